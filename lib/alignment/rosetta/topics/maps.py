"""Maps: resizing, reading between pixels, pooling."""

import math

import numpy as np

from ..probe import Probe, attempt, normal

TOPIC = "Resizing and pooling"
MAP = normal(1, 1, 5, 5)
SMALL = np.arange(1, 10, dtype=np.float32).reshape(1, 1, 3, 3)
LINE = np.arange(8, dtype=np.float32).reshape(1, 1, 1, 8)
GRID = np.array([[[[-1.0, -1.0], [0.3, -0.2], [1.2, 0.9]]]], np.float32)


def taps(length, out, ratio, corners):
    """(out, length) shares of bilinear reading, at ratio = pixels in per pixel out."""
    at = np.maximum(np.arange(out) * ratio if corners else (np.arange(out) + 0.5) * ratio - 0.5, 0)
    low = np.minimum(at.astype(int), length - 1)
    shares = np.zeros((out, length))
    shares[np.arange(out), low] += 1 - (at - low)
    shares[np.arange(out), np.minimum(low + 1, length - 1)] += at - low
    return shares


def resized(x, out, ratio=None, corners=False):
    """x (1, 1, n, n) resized bilinearly to (out, out); the ratio follows from the sizes unless given."""
    n = x.shape[2]
    shares = taps(n, out, ratio or ((n - 1) / (out - 1) if corners else n / out), corners)
    return shares @ x @ shares.T


def windows(x, size, stride, padding, fill, pick):
    """pick over each full window of x (1, 1, h, w), padded with fill."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)), constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))[:, :, ::stride, ::stride]
    return pick(view, (4, 5))


def ceil_means(x):
    """Means over windows of 3, stride 2, padding 1 of x (1, 1, 4, 4) in ceil mode: the last is cut off at the padded edge."""
    padded = np.pad(x[0, 0], 1)
    return np.array([[padded[i : i + 3, j : j + 3].mean() for j in (0, 2, 4)] for i in (0, 2, 4)])[None, None]


def adaptive(x, out):
    """Means over windows from floor(i n / out) to ceil((i + 1) n / out)."""
    n = x.shape[3]
    return np.stack([x[..., i * n // out : -(-(i + 1) * n // out)].mean(-1) for i in range(out)], -1)


def sampled(x, grid):
    """x (1, 1, h, w) read bilinearly at grid (1, 1, k, 2), -1 and 1 at the outer edges, 0 outside."""
    h, w = x.shape[2:]
    padded, values = np.pad(x[0, 0], 2), []
    for gx, gy in grid[0, 0]:
        column, row = ((gx + 1) * w - 1) / 2, ((gy + 1) * h - 1) / 2
        i, j = math.floor(row), math.floor(column)
        shares = np.outer([1 - row + i, row - i], [1 - column + j, column - j])
        values.append((padded[i + 2 : i + 4, j + 2 : j + 4] * shares).sum())
    return np.array(values).reshape(1, 1, 1, -1)


PROBES = (
    Probe(
        topic=TOPIC,
        name="mode of interpolate by default",
        question="How does interpolate resize where no mode is given?",
        advice="Pass the mode: Jittor's default is bilinear.",
        jittor=lambda jt, x: jt.nn.interpolate(x, size=(6, 6)),
        torch=lambda torch, x: torch.nn.functional.interpolate(x, size=(6, 6)),
        backend=lambda B, x: B.interpolate(x, size=(6, 6)),
        expected=lambda x: x.repeat(2, 2).repeat(2, 3),
        inputs=(SMALL,),
    ),
    Probe(
        topic=TOPIC,
        name="nearest from 3 to 7",
        question="Which pixels does nearest take where sizes don't divide?",
        advice="Equal: floor(i h / H).",
        jittor=lambda jt, x: jt.nn.interpolate(x, size=(7, 7), mode="nearest"),
        torch=lambda torch, x: torch.nn.functional.interpolate(x, size=(7, 7), mode="nearest"),
        backend=lambda B, x: B.interpolate(x, size=(7, 7), mode="nearest"),
        expected=lambda x: x[:, :, np.arange(7) * 3 // 7][..., np.arange(7) * 3 // 7],
        inputs=(SMALL,),
    ),
    Probe(
        topic=TOPIC,
        name="bilinear up",
        question="Does bilinear resizing read at half pixels?",
        advice="Equal with align_corners=False, which is the default of both.",
        jittor=lambda jt, x: jt.nn.interpolate(x, size=(6, 6), mode="bilinear"),
        torch=lambda torch, x: torch.nn.functional.interpolate(x, size=(6, 6), mode="bilinear"),
        backend=lambda B, x: B.interpolate(x, size=(6, 6), mode="bilinear"),
        expected=lambda x: resized(x, 6),
        inputs=(SMALL,),
    ),
    Probe(
        topic=TOPIC,
        name="bilinear down",
        question="Where does bilinear reading land when a map shrinks?",
        advice="Equal by size.",
        jittor=lambda jt, x: jt.nn.interpolate(x, size=(3, 3), mode="bilinear"),
        torch=lambda torch, x: torch.nn.functional.interpolate(x, size=(3, 3), mode="bilinear"),
        backend=lambda B, x: B.interpolate(x, size=(3, 3), mode="bilinear"),
        expected=lambda x: resized(x, 3),
        inputs=(MAP,),
        cancels=True,
    ),
    Probe(
        topic=TOPIC,
        name="bilinear with aligned corners",
        question="Does align_corners=True read the corners themselves?",
        advice="Equal.",
        jittor=lambda jt, x: jt.nn.interpolate(x, size=(6, 6), mode="bilinear", align_corners=True),
        torch=lambda torch, x: torch.nn.functional.interpolate(x, size=(6, 6), mode="bilinear", align_corners=True),
        backend=lambda B, x: B.interpolate(x, size=(6, 6), mode="bilinear", align_corners=True),
        expected=lambda x: resized(x, 6, corners=True),
        inputs=(SMALL,),
    ),
    Probe(
        topic=TOPIC,
        name="scale factor on an odd size",
        question="Where does bilinear read with scale_factor=0.5 on 5 pixels?",
        advice="Pass the size: Jittor recomputes the factor from rounded sizes.",
        jittor=lambda jt, x: jt.nn.interpolate(x, scale_factor=0.5, mode="bilinear"),
        torch=lambda torch, x: torch.nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear"),
        backend=lambda B, x: B.interpolate(x, scale_factor=0.5, mode="bilinear"),
        expected=lambda x: resized(x, 2, ratio=2),
        inputs=(MAP,),
        cancels=True,
    ),
    Probe(
        topic=TOPIC,
        name="antialiased resizing",
        question="Can interpolate be asked for antialias=True?",
        advice="Resize images with OpenCV or Pillow, outside the framework.",
        jittor=lambda jt, x: attempt(
            lambda: str(jt.nn.interpolate(x, size=(3, 3), mode="bilinear", antialias=True).shape)
        ),
        torch=lambda torch, x: str(
            list(torch.nn.functional.interpolate(x, size=(3, 3), mode="bilinear", antialias=True).shape)
        ),
        expected=lambda x: "[1, 1, 3, 3]",
        inputs=(MAP,),
    ),
    Probe(
        topic=TOPIC,
        name="grid_sample",
        question="Where does grid_sample read, and what outside?",
        advice="Equal by default: bilinear, zeros outside, align_corners=False.",
        jittor=lambda jt, x, grid: jt.nn.grid_sample(x, grid),
        torch=lambda torch, x, grid: torch.nn.functional.grid_sample(x, grid, align_corners=False),
        backend=lambda B, x, grid: B.grid_sample(x, grid),
        expected=sampled,
        inputs=(SMALL, GRID),
        cancels=True,
    ),
    Probe(
        topic=TOPIC,
        name="max pooling",
        question="Does padding count as minus infinity?",
        advice="Equal: padding never wins.",
        jittor=lambda jt, x: jt.nn.MaxPool2d(3, 2, 1)(-jt.abs(x)),
        torch=lambda torch, x: torch.nn.MaxPool2d(3, 2, 1)(-torch.abs(x)),
        backend=lambda B, x: B.nn.MaxPool2d(3, 2, 1)(-B.abs(x)),
        expected=lambda x: windows(-np.abs(x), 3, 2, 1, -np.inf, np.max),
        inputs=(MAP,),
    ),
    Probe(
        topic=TOPIC,
        name="max pooling in ceil mode with padding",
        question="Which shape has 5 x 5 pooled by 2, stride 2, padding 1, ceil mode?",
        advice="PyTorch drops a window that starts in the padding: cut Jittor's last row and column.",
        jittor=lambda jt, x: str(list(jt.nn.MaxPool2d(2, 2, 1, ceil_mode=True)(x).shape)),
        torch=lambda torch, x: str(list(torch.nn.MaxPool2d(2, 2, 1, ceil_mode=True)(x).shape)),
        expected=lambda x: "[1, 1, 3, 3]",
        inputs=(MAP,),
    ),
    Probe(
        topic=TOPIC,
        name="a window as large as the map",
        question="What is MaxPool2d(3) of a 3 x 3 map?",
        advice="Jittor raises unless the map is larger: SPP on small maps needs a maximum over everything.",
        jittor=lambda jt, x: attempt(lambda: jt.nn.MaxPool2d(3)(x).numpy()),
        torch=lambda torch, x: torch.nn.MaxPool2d(3)(x),
        backend=lambda B, x: B.nn.MaxPool2d(3)(x),
        expected=lambda x: x.max((2, 3), keepdims=True),
        inputs=(SMALL,),
    ),
    Probe(
        topic=TOPIC,
        name="average pooling",
        question="What is AvgPool2d(2) of 4 x 4?",
        advice="Equal without padding.",
        jittor=lambda jt, x: jt.nn.AvgPool2d(2)(x),
        torch=lambda torch, x: torch.nn.AvgPool2d(2)(x),
        backend=lambda B, x: B.nn.AvgPool2d(2)(x),
        expected=lambda x: windows(x, 2, 2, 0, 0, np.mean),
        inputs=(MAP[..., :4, :4],),
        cancels=True,
    ),
    Probe(
        topic=TOPIC,
        name="average pooling with padding",
        question="Do padded zeros count by default?",
        advice="They do in both: count_include_pad=True.",
        jittor=lambda jt, x: jt.nn.AvgPool2d(3, 2, 1)(x),
        torch=lambda torch, x: torch.nn.AvgPool2d(3, 2, 1)(x),
        expected=lambda x: windows(x, 3, 2, 1, 0, np.mean),
        inputs=(MAP,),
        cancels=True,
    ),
    Probe(
        topic=TOPIC,
        name="average pooling without counting the padding",
        question="Does count_include_pad=False divide by the pixels inside?",
        advice="Divide by a pooled map of ones instead: Jittor ignores the option without ceil mode.",
        jittor=lambda jt, x: jt.nn.AvgPool2d(3, 2, 1, count_include_pad=False)(x),
        torch=lambda torch, x: torch.nn.AvgPool2d(3, 2, 1, count_include_pad=False)(x),
        expected=lambda x: windows(x, 3, 2, 1, np.nan, np.nanmean),
        inputs=(MAP,),
        cancels=True,
    ),
    Probe(
        topic=TOPIC,
        name="average pooling in ceil mode with padding",
        question="By what is a window divided that the padded edge cuts off?",
        advice="PyTorch divides by the part inside the padded map: avoid ceil mode with padding.",
        jittor=lambda jt, x: jt.nn.AvgPool2d(3, 2, 1, ceil_mode=True)(x),
        torch=lambda torch, x: torch.nn.AvgPool2d(3, 2, 1, ceil_mode=True)(x),
        expected=ceil_means,
        inputs=(MAP[..., :4, :4],),
        cancels=True,
    ),
    Probe(
        topic=TOPIC,
        name="average pooling in ceil mode",
        question="By what is a window divided that the edge cuts off?",
        advice="By its own pixels in both.",
        jittor=lambda jt, x: jt.nn.AvgPool2d(2, 2, ceil_mode=True)(x),
        torch=lambda torch, x: torch.nn.AvgPool2d(2, 2, ceil_mode=True)(x),
        backend=lambda B, x: B.nn.AvgPool2d(2, 2, ceil_mode=True)(x),
        expected=lambda x: windows(
            np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan), 2, 2, 0, 0, np.nanmean
        ),
        inputs=(MAP,),
        cancels=True,
    ),
    Probe(
        topic=TOPIC,
        name="adaptive average pooling",
        question="Which windows has AdaptiveAvgPool2d where 8 pixels become 3?",
        advice="Jittor's windows are wrong unless the sizes divide: pool in windows of one's own.",
        jittor=lambda jt, x: jt.nn.AdaptiveAvgPool2d((1, 3))(x),
        torch=lambda torch, x: torch.nn.AdaptiveAvgPool2d((1, 3))(x),
        backend=lambda B, x: B.adaptive_avg_pool2d(x, (1, 3)),
        expected=lambda x: adaptive(x, 3),
        inputs=(LINE * LINE,),
    ),
    Probe(
        topic=TOPIC,
        name="dilated pooling",
        question="Can MaxPool2d be dilated?",
        advice="Jittor's can't: pool a rearranged map.",
        jittor=lambda jt, x: attempt(lambda: jt.nn.MaxPool2d(2, 1, dilation=2)(x).numpy()),
        torch=lambda torch, x: torch.nn.MaxPool2d(2, 1, dilation=2)(x),
        expected=lambda x: windows(x, 3, 1, 0, 0, lambda view, axes: view[..., ::2, ::2].max(axes)),
        inputs=(MAP,),
    ),
)
