"""Reading an image between its pixels, the core of deformable attention, for Jittor on the CPU."""

from functools import partial

from . import Function, jt, on_cpu, read

KERNELS = read("sampling")


@on_cpu(partial(jt.nn.grid_sample, mode="bilinear", padding_mode="zeros", align_corners=False))
def grid_sample(x, grid):
    """x (n, c, h, w) read bilinearly at grid (n, i, j, 2); -1 and 1 are the outer edges of the image, outside is 0."""
    shape = [*x.shape[:2], *grid.shape[1:3]]
    return Function(KERNELS["grid sample"], KERNELS["grid sample, gradient"], [shape], kept=[0, 1])(x, grid)
