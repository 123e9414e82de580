"""A small detector's neck and head in PyTorch: the original of the example."""

import torch
from torch import nn
from torch.nn import functional as F


class ConvNorm(nn.Module):
    def __init__(self, before, after, kernel, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(after, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))


class Gate(nn.Module):
    """Weights each place of the map by its strongest channel."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        strongest = x.max(1, keepdim=True)[0]
        return x * torch.sigmoid(self.scale * strongest + self.shift)


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.narrow = ConvNorm(channels, channels // 2, 1)
        self.wide = ConvNorm(channels // 2, channels, 3)
        self.gate = Gate()

    def forward(self, x):
        return x + self.gate(self.wide(self.narrow(x)))


class Detector(nn.Module):
    def __init__(self, channels=8, classes=4):
        super().__init__()
        self.stem = ConvNorm(3, channels, 3, 2)
        self.down = ConvNorm(channels, channels, 3, 2)
        self.body = nn.Sequential(Residual(channels), Residual(channels))
        self.head = nn.Conv2d(2 * channels, classes + 4, 1)
        self.classes = classes

    def forward(self, x):
        fine = self.stem(x)
        coarse = self.body(self.down(fine))
        both = torch.cat([fine, F.interpolate(coarse, scale_factor=2)], 1)
        y = self.head(both)
        return {"scores": y[:, : self.classes], "boxes": y[:, self.classes :]}


def build():
    return Detector()
