"""Normalisations for Jittor on the CPU, two-pass, and what goes with them."""

import math

import numpy as np

from . import Function, jt, on_cpu, read

KERNELS = read("normalise")
PER_CHANNEL = [0, 2, 3]  # the axes of (n, c, h, w) that a value per channel lacks


def _normalise(x, weight, bias, eps: float, **layout: int) -> list:
    """[y, mean, variance]; y = (x - mean) / sqrt(variance + eps) * weight + bias per group; layout: see normalise.h."""
    groups = [layout["groups"]]
    return Function(
        KERNELS["normalise"],
        KERNELS["normalise, gradient"],
        [x.shape, groups, groups],
        kept=[0, 1, 4, 5],  # x, weight, mean, variance
        data={**layout, "length": math.prod(x.shape[2:]), "channels": x.shape[1], "eps": eps},
        results=3,
    )(x, weight, bias)


def _plain_batch_norm(x, weight, bias, eps, average=lambda x, axes: x.mean(axes, keepdims=True)):
    """Two-pass: the mean first, then the variance of what is left."""
    axes = [0] + list(range(2, x.ndim))
    mean = average(x, axes)
    centred = x - mean
    variance = average(centred * centred, axes)
    scale = weight.broadcast(x.shape, axes) / jt.sqrt(variance + eps)
    return centred * scale + bias.broadcast(x.shape, axes), mean.flatten().detach(), variance.flatten().detach()


@on_cpu(_plain_batch_norm)
def batch_norm(x, weight, bias, eps):
    """(y, mean, biased variance) of x (n, c, …) normalised over every axis but c."""
    n, c = x.shape[:2]
    y, mean, variance = _normalise(x, weight, bias, eps, groups=c, runs=n, a=1, b=c, p=1, q=0)
    return y, mean.detach(), variance.detach()


def synchronised_batch_norm(x, weight, bias, eps):
    """`batch_norm` over the values of all processes, of which each has as many."""

    def average(x, axes):
        return x.float64().mean(axes, keepdims=True).mpi_all_reduce("mean").cast(x.dtype)

    # Not a Python number, which would be float32; at once, as `jittor_functions.array` says.
    least = jt.array(np.array([eps], str(x.dtype)), dtype=str(x.dtype)).sync()
    return _plain_batch_norm(x, weight, bias, least, average)


def _plain_group_norm(x, groups, weight, bias, eps):
    grouped = x.reshape((x.shape[0], groups, -1))
    centred = grouped - grouped.mean(2, keepdims=True)
    normal = centred / jt.sqrt((centred * centred).mean(2, keepdims=True) + eps)
    axes = [0] + list(range(2, x.ndim))
    return normal.reshape(x.shape) * weight.broadcast(x.shape, axes) + bias.broadcast(x.shape, axes)


@on_cpu(_plain_group_norm)
def group_norm(x, groups, weight, bias, eps):
    """x (n, c, …) normalised over each of `groups` equal stretches of channels."""
    n, runs = x.shape[0], x.shape[1] // groups
    return _normalise(x, weight, bias, eps, groups=n * groups, runs=runs, a=runs, b=1, p=runs, q=1)[0]


def _plain_layer_norm(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jt.sqrt((centred * centred).mean(-1, keepdims=True) + eps) * weight + bias


@on_cpu(_plain_layer_norm)
def layer_norm(x, weight, bias, eps):
    """x (…, c) normalised over its last axis, then times weight (c,) plus bias (c,)."""
    rows = [x.numel() // weight.numel()]
    return Function(
        KERNELS["layer norm"],
        KERNELS["layer norm, gradient"],
        [x.shape, rows, rows],
        kept=[0, 1, 4, 5],  # x, weight, mean, 1 / deviation
        data={"eps": eps},
    )(x, weight, bias)


def _channel_sums(dy, x) -> list:
    """Per channel of dy (n, c, h, w) the sum of dy, and of dy * x."""
    return KERNELS["channel sums"]([dy, x], dy.shape[1:2], dy.shape[1:2])


class _Affine(jt.Function):
    def execute(self, x, scale, shift):
        self.saved = x, scale
        return KERNELS["affine"]([x, scale, shift], x.shape)[0]

    def grad(self, dy):
        x, scale = self.saved
        sums, products = _channel_sums(dy, x)
        return dy * scale.broadcast(dy.shape, PER_CHANNEL), products, sums


class _Bias(jt.Function):
    def execute(self, x, bias):
        return KERNELS["affine"]([x, jt.ones_like(bias), bias], x.shape)[0]

    def grad(self, dy):
        return dy, _channel_sums(dy, dy)[0]


@on_cpu(lambda x, bias: x + bias.broadcast(x.shape, PER_CHANNEL))
def add_bias(x, bias):
    """x (n, c, h, w) plus bias (c,), whose gradient is accumulated like every sum here."""
    return _Bias()(x, bias)


@on_cpu(lambda x, scale, shift: x * scale.broadcast(x.shape, PER_CHANNEL) + shift.broadcast(x.shape, PER_CHANNEL))
def affine(x, scale, shift):
    """x (n, c, h, w) times scale (c,) plus shift (c,): batch norm in evaluation."""
    return _Affine()(x, scale, shift)


@on_cpu(lambda old, new, share, factor=1.0: old * (1 - share) + new * (share * factor))
def blend(old, new, share: float, factor: float = 1.0):
    """old (c,) moved towards factor * new by `share`, with the share in float64: a Python number would be float32."""
    return KERNELS["blend"]([old, new], old.shape, data={"share": share, "factor": factor})[0]
