"""A block in native Jittor, translated line by line from PyTorch. It runs, and its shapes are right. Mend it.

The original:

    class Block(nn.Module):
        def __init__(self, channels, bins):
            super().__init__()
            self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(channels)
            self.bins = nn.Conv2d(channels, bins, 1)
            self.register_buffer("places", torch.arange(bins).float())

        def forward(self, x):
            y = F.interpolate(F.silu(self.norm(self.conv(x))), scale_factor=2)
            share = self.bins(y).softmax(1)                      # (n, bins, h, w)
            return (share * self.places[:, None, None]).sum(1)   # (n, h, w)
"""

import jittor as jt
from jittor import nn


class Block(nn.Module):
    def __init__(self, channels, bins):
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.bins = nn.Conv2d(channels, bins, 1)
        self.places = jt.arange(bins).float32()

    def execute(self, x):
        y = nn.interpolate(nn.silu(self.norm(self.conv(x))), scale_factor=2)
        share = nn.softmax(self.bins(y), 1)
        return (share * self.places.reshape(-1, 1, 1)).sum(1)
