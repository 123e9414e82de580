"""Maps: resizing, reading between pixels, pooling."""

import math

import numpy as np

from notebooks.probes.probe import attempt, given, normal

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
    """Means over windows of 3, stride 2, padding 1 of x (1, 1, 4, 4) in ceil mode, the last one cut off."""
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


PROBES = {
    "mode of interpolate by default": given(SMALL).ask(
        "How does interpolate resize where no mode is given?",
        "Pass the mode: Jittor's default is bilinear.",
        jittor=lambda jt, x: jt.nn.interpolate(x, size=(6, 6)),
        torch=lambda torch, x: torch.nn.functional.interpolate(x, size=(6, 6)),
        backend=lambda B, x: B.interpolate(x, size=(6, 6)),
        expected=lambda x: x.repeat(2, 2).repeat(2, 3),
    ),
    "nearest from 3 to 7": given(SMALL).ask(
        "Which pixels does nearest take where sizes don't divide?",
        "Equal: floor(i h / H).",
        jittor=lambda jt, x: jt.nn.interpolate(x, size=(7, 7), mode="nearest"),
        torch=lambda torch, x: torch.nn.functional.interpolate(x, size=(7, 7), mode="nearest"),
        backend=lambda B, x: B.interpolate(x, size=(7, 7), mode="nearest"),
        expected=lambda x: x[:, :, np.arange(7) * 3 // 7][..., np.arange(7) * 3 // 7],
    ),
    "bilinear up": given(SMALL).ask(
        "Does bilinear resizing read at half pixels?",
        "Equal with align_corners=False, which is the default of both.",
        jittor=lambda jt, x: jt.nn.interpolate(x, size=(6, 6), mode="bilinear"),
        torch=lambda torch, x: torch.nn.functional.interpolate(x, size=(6, 6), mode="bilinear"),
        backend=lambda B, x: B.interpolate(x, size=(6, 6), mode="bilinear"),
        expected=lambda x: resized(x, 6),
    ),
    "bilinear down": given(MAP, cancels=True).ask(
        "Where does bilinear reading land when a map shrinks?",
        "Equal by size.",
        jittor=lambda jt, x: jt.nn.interpolate(x, size=(3, 3), mode="bilinear"),
        torch=lambda torch, x: torch.nn.functional.interpolate(x, size=(3, 3), mode="bilinear"),
        backend=lambda B, x: B.interpolate(x, size=(3, 3), mode="bilinear"),
        expected=lambda x: resized(x, 3),
    ),
    "bilinear with aligned corners": given(SMALL).ask(
        "Does align_corners=True read the corners themselves?",
        "Equal.",
        jittor=lambda jt, x: jt.nn.interpolate(x, size=(6, 6), mode="bilinear", align_corners=True),
        torch=lambda torch, x: torch.nn.functional.interpolate(x, size=(6, 6), mode="bilinear", align_corners=True),
        backend=lambda B, x: B.interpolate(x, size=(6, 6), mode="bilinear", align_corners=True),
        expected=lambda x: resized(x, 6, corners=True),
    ),
    "scale factor on an odd size": given(MAP, cancels=True).ask(
        "Where does bilinear read with scale_factor=0.5 on 5 pixels?",
        "Pass the size: Jittor recomputes the factor from rounded sizes.",
        jittor=lambda jt, x: jt.nn.interpolate(x, scale_factor=0.5, mode="bilinear"),
        torch=lambda torch, x: torch.nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear"),
        backend=lambda B, x: B.interpolate(x, scale_factor=0.5, mode="bilinear"),
        expected=lambda x: resized(x, 2, ratio=2),
    ),
    "antialiased resizing": given(MAP).ask(
        "Can interpolate be asked for antialias=True?",
        "Resize images with OpenCV or Pillow, outside the framework.",
        jittor=lambda jt, x: attempt(
            lambda: str(jt.nn.interpolate(x, size=(3, 3), mode="bilinear", antialias=True).shape)
        ),
        torch=lambda torch, x: str(
            list(torch.nn.functional.interpolate(x, size=(3, 3), mode="bilinear", antialias=True).shape)
        ),
        expected=lambda x: "[1, 1, 3, 3]",
    ),
    "grid_sample": given(SMALL, GRID, cancels=True).ask(
        "Where does grid_sample read, and what outside?",
        "Equal by default: bilinear, zeros outside, align_corners=False.",
        jittor=lambda jt, x, grid: jt.nn.grid_sample(x, grid),
        torch=lambda torch, x, grid: torch.nn.functional.grid_sample(x, grid, align_corners=False),
        backend=lambda B, x, grid: B.grid_sample(x, grid),
        expected=sampled,
    ),
    "max pooling": given(MAP).ask(
        "Does padding count as minus infinity?",
        "Equal: padding never wins.",
        every=lambda F, x: F.nn.MaxPool2d(3, 2, 1)(-F.abs(x)),
        expected=lambda x: windows(-np.abs(x), 3, 2, 1, -np.inf, np.max),
    ),
    "max pooling in ceil mode with padding": given(MAP).ask(
        "Which shape has 5 x 5 pooled by 2, stride 2, padding 1, ceil mode?",
        "PyTorch drops a window that starts in the padding: cut Jittor's last row and column.",
        both=lambda F, x: str(list(F.nn.MaxPool2d(2, 2, 1, ceil_mode=True)(x).shape)),
        expected=lambda x: "[1, 1, 3, 3]",
    ),
    "a window as large as the map": given(SMALL).ask(
        "What is MaxPool2d(3) of a 3 x 3 map?",
        "Jittor raises unless the map is larger: SPP on small maps needs a maximum over everything.",
        both=lambda F, x: attempt(lambda: F.nn.MaxPool2d(3)(x).numpy()),
        backend=lambda B, x: B.nn.MaxPool2d(3)(x),
        expected=lambda x: x.max((2, 3), keepdims=True),
    ),
    "average pooling": given(MAP[..., :4, :4], cancels=True).ask(
        "What is AvgPool2d(2) of 4 x 4?",
        "Equal without padding.",
        every=lambda F, x: F.nn.AvgPool2d(2)(x),
        expected=lambda x: windows(x, 2, 2, 0, 0, np.mean),
    ),
    "average pooling with padding": given(MAP, cancels=True).ask(
        "Do padded zeros count by default?",
        "They do in both: count_include_pad=True.",
        both=lambda F, x: F.nn.AvgPool2d(3, 2, 1)(x),
        expected=lambda x: windows(x, 3, 2, 1, 0, np.mean),
    ),
    "average pooling without counting the padding": given(MAP, cancels=True).ask(
        "Does count_include_pad=False divide by the pixels inside?",
        "Divide by a pooled map of ones instead: Jittor ignores the option without ceil mode.",
        both=lambda F, x: F.nn.AvgPool2d(3, 2, 1, count_include_pad=False)(x),
        expected=lambda x: windows(x, 3, 2, 1, np.nan, np.nanmean),
    ),
    "average pooling in ceil mode with padding": given(MAP[..., :4, :4], cancels=True).ask(
        "By what is a window divided that the padded edge cuts off?",
        "PyTorch divides by the part inside the padded map: avoid ceil mode with padding.",
        both=lambda F, x: F.nn.AvgPool2d(3, 2, 1, ceil_mode=True)(x),
        expected=ceil_means,
    ),
    "average pooling in ceil mode": given(MAP, cancels=True).ask(
        "By what is a window divided that the edge cuts off?",
        "By its own pixels in both.",
        every=lambda F, x: F.nn.AvgPool2d(2, 2, ceil_mode=True)(x),
        expected=lambda x: windows(
            np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan), 2, 2, 0, 0, np.nanmean
        ),
    ),
    "adaptive average pooling": given(LINE * LINE).ask(
        "Which windows has AdaptiveAvgPool2d where 8 pixels become 3?",
        "Jittor's windows are wrong unless the sizes divide: pool in windows of one's own.",
        both=lambda F, x: F.nn.AdaptiveAvgPool2d((1, 3))(x),
        backend=lambda B, x: B.adaptive_avg_pool2d(x, (1, 3)),
        expected=lambda x: adaptive(x, 3),
    ),
    "dilated pooling": given(MAP).ask(
        "Can MaxPool2d be dilated?",
        "Jittor's can't: pool a rearranged map.",
        both=lambda F, x: attempt(lambda: F.nn.MaxPool2d(2, 1, dilation=2)(x).numpy()),
        expected=lambda x: windows(x, 3, 1, 0, 0, lambda view, axes: view[..., ::2, ::2].max(axes)),
    ),
}
