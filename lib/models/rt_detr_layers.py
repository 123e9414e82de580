"""What RT-DETR's backbone, encoder and decoder share. See lib.models.rt_detr.

Letters: n images, c channels, h rows, w columns, t tokens, d features of a token, a attention heads.
"""

import numpy as np

from lib.backend import clamp, linear, log, matmul, nn, softmax, tensor

EPS = 1e-5  # inverse_sigmoid: how near to 0 and 1 a probability is taken
BLOCKED = -1e9  # added to an attention score that must not count: its share is exactly 0


def precision(x) -> str:
    """The NumPy name of a tensor's dtype."""
    return str(x.dtype).rpartition(".")[2]


def constant(values, like):
    """Values as a tensor in the precision of `like`: a Python number in Jittor would be float32 among float64."""
    return tensor(np.atleast_1d(np.asarray(values, precision(like))))


def inverse_sigmoid(x):
    """log(x / (1 - x)) for x in [0, 1], bounded by EPS at both ends."""
    return log(clamp(x, min=EPS) / clamp(1.0 - x, min=EPS))


class ConvNorm(nn.Module):
    """Convolution without bias, a normalisation, and an activation where one is given; same size at stride 1."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        stride: int = 1,
        activation: nn.Module | None = None,
        norm: type = nn.BatchNorm2d,
    ):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        self.norm = norm(c_out)
        self.act = activation or nn.Identity()

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))


class MLP(nn.Module):
    """Linear layers of the given widths with ReLU between them."""

    def __init__(self, *widths: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(d_in, d_out) for d_in, d_out in zip(widths, widths[1:])])
        self.act = nn.ReLU()

    def forward(self, x):
        first, *others = self.layers
        x = first(x)
        for layer in others:
            x = layer(self.act(x))
        return x


class SelfAttention(nn.Module):
    """x, position (n, t, d) -> (n, t, d): queries and keys from x + position, values from x.

    `mask` (t, t), if there is one, is added to the scores: 0 or BLOCKED.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.width, self.heads = width, heads
        self.in_proj_weight = nn.Parameter(tensor(np.zeros((3 * width, width), np.float32)))  # query, key, value
        self.in_proj_bias = nn.Parameter(tensor(np.zeros(3 * width, np.float32)))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x, position, mask=None):
        n, t, d = x.shape
        query_key = linear(x + position, self.in_proj_weight[: 2 * d], self.in_proj_bias[: 2 * d])
        value = self._heads(linear(x, self.in_proj_weight[2 * d :], self.in_proj_bias[2 * d :]))  # (n * a, t, d / a)
        query = self._heads(query_key[:, :, :d]) * constant((d // self.heads) ** -0.5, x)
        scores = matmul(query, self._heads(query_key[:, :, d:]).permute(0, 2, 1))  # (n * a, t, t)
        shares = softmax(scores if mask is None else scores + mask.unsqueeze(0), 2)
        mixed = matmul(shares, value).reshape(n, self.heads, t, d // self.heads)
        return self.out_proj(mixed.permute(0, 2, 1, 3).reshape(n, t, d))

    def _heads(self, x):
        n, t, d = x.shape
        return (
            x.reshape(n, t, self.heads, d // self.heads).permute(0, 2, 1, 3).reshape(n * self.heads, t, d // self.heads)
        )
