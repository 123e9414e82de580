"""Windows of an image for Jittor on the CPU: resizing, pooling, and reading between its pixels."""

from functools import partial

import numpy as np

from . import Function, jt, on_cpu, read

KERNELS = read("windows")


def _plain_resize(x, size: tuple[int, int], _ratios: tuple[float, float], mode: str, align_corners: bool):
    """By Jittor's own operator, whose ratios are always those of the sizes."""
    return jt.nn.interpolate(x, size=size, mode=mode, align_corners=align_corners)


@on_cpu(_plain_resize)
def resize(x, size: tuple[int, int], ratios: tuple[float, float], mode: str, align_corners: bool):
    """x (n, c, h, w) sampled at `size` points; `ratios`: input pixels per output pixel, rows and columns."""
    data = {
        "row_ratio": ratios[0],
        "column_ratio": ratios[1],
        "bilinear": float(mode == "bilinear"),
        "corners": float(align_corners),
    }
    return Function(KERNELS["resize"], KERNELS["resize, gradient"], [[*x.shape[:2], *size]], data=data)(x)


@on_cpu(jt.nn.max_pool2d)  # which refuses maps no larger than the window
def max_pool(x, size: int, stride: int, padding: int):
    """Largest value of each window of x (n, c, h, w); the first of equals takes the gradient, as in PyTorch."""
    shape = [*x.shape[:2], *((length + 2 * padding - size) // stride + 1 for length in x.shape[2:])]
    return Function(
        KERNELS["max pool"],
        KERNELS["max pool, gradient"],
        [shape, shape],
        kept=[2],  # where each maximum was
        data={"size": size, "stride": stride, "padding": padding},
        dtypes=[x.dtype, "int32"],
    )(x)


def _average_pool(x, out: tuple[int, ...], size: int, stride: int):
    data = {"size": size, "stride": stride}
    return Function(KERNELS["average pool"], KERNELS["average pool, gradient"], [[*x.shape[:2], *out]], data=data)(x)


def _plain_means(x, spans: list[list[tuple[int, int]]]):
    """Means of x (n, c, h, w) over spans of rows and of columns: a product with a matrix of shares per axis."""
    for axis_spans in reversed(spans):
        shares = np.zeros((x.shape[3], len(axis_spans)))
        for i, (start, stop) in enumerate(axis_spans):
            shares[start:stop, i] = 1 / (stop - start)
        x = jt.matmul(x, jt.array(shares, dtype=str(x.dtype))).permute(0, 1, 3, 2)
    return x


def _plain_adaptive_avg_pool(x, size: tuple[int, int]):
    return _plain_means(
        x, [[(i * s // out, -(-(i + 1) * s // out)) for i in range(out)] for s, out in zip(x.shape[2:], size)]
    )


@on_cpu(_plain_adaptive_avg_pool)
def adaptive_avg_pool(x, size: tuple[int, int]):
    """Means of x (n, c, h, w) over `size` windows from floor(i H / h) to ceil((i + 1) H / h); Jittor's are wrong where
    h does not divide H."""
    return _average_pool(x, size, 0, 0)


def _spans(length: int, size: int, stride: int, ceil_mode: bool) -> list[tuple[int, int]]:
    """(start, stop) of windows over `length` values; with `ceil_mode` the last may reach out, and is cut, never start
    out."""
    count = (length - size + (stride - 1 if ceil_mode else 0)) // stride + 1
    starts = [i * stride for i in range(count) if i * stride < length]
    return [(start, min(start + size, length)) for start in starts]


def _plain_avg_pool(x, size: int, stride: int, ceil_mode: bool):
    return _plain_means(x, [_spans(length, size, stride, ceil_mode) for length in x.shape[2:]])


@on_cpu(_plain_avg_pool)
def avg_pool(x, size: int, stride: int, ceil_mode: bool):
    """Means of x (n, c, h, w) over windows; with `ceil_mode` also over what is left at the end, by its own count."""
    return _average_pool(x, tuple(len(_spans(s, size, stride, ceil_mode)) for s in x.shape[2:]), size, stride)


@on_cpu(partial(jt.nn.grid_sample, mode="bilinear", padding_mode="zeros", align_corners=False))
def grid_sample(x, grid):
    """x (n, c, h, w) read bilinearly at grid (n, i, j, 2), the core of deformable attention: x and y in -1 … 1 from one
    outer edge of the image to the other; 0 outside."""
    shape = [*x.shape[:2], *grid.shape[1:3]]
    return Function(KERNELS["grid sample"], KERNELS["grid sample, gradient"], [shape], kept=[0, 1])(x, grid)
