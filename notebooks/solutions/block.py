"""The block of the exercise, mended: three differences between Jittor and PyTorch that no shape and no error shows."""

import jittor as jt
from jittor import nn


class BatchNorm(nn.BatchNorm2d):
    """Jittor averages the biased variance into its running statistics, PyTorch the unbiased one."""

    def execute(self, x):
        before = self.running_var.copy()
        y = super().execute(x)
        if self.is_train:
            count = x.numel() // x.shape[1]
            biased = (self.running_var - (1 - self.momentum) * before) / self.momentum
            self.running_var.update((1 - self.momentum) * before + self.momentum * biased * (count / (count - 1)))
        return y


class Block(nn.Module):
    def __init__(self, channels, bins):
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = BatchNorm(channels)
        self.bins = nn.Conv2d(channels, bins, 1)
        self.places = jt.arange(bins).float32().stop_grad()  # any tensor attribute is trained otherwise

    def execute(self, x):
        y = nn.interpolate(nn.silu(self.norm(self.conv(x))), scale_factor=2, mode="nearest")  # the default is bilinear
        share = nn.softmax(self.bins(y), 1)
        return (share * self.places.reshape(-1, 1, 1)).sum(1)
