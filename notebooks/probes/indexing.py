"""Shapes, indices and order: what an operator returns, and which of two equals comes first."""

import numpy as np

from notebooks.probes.probe import ask, attempt, f32, given

TOPIC = "Shapes, indices, order"
TABLE = f32([1, 5, 2], [7, 0, 3])
TIES = f32(1, 1, 1, 1, 1, 1, 1, 1)
CUBE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
MASK = np.array([True, False, True])
ORDER = np.array([1, 0], np.int64)
ASKED = [
    "abs",
    "allclose",
    "amax",
    "asin",
    "bmm",
    "cat",
    "chunk",
    "clamp",
    "cumsum",
    "einsum",
    "expm1",
    "flatten",
    "flip",
    "floor_divide",
    "full",
    "gather",
    "isclose",
    "log1p",
    "logical_not",
    "masked_select",
    "maximum",
    "no_grad",
    "outer",
    "remainder",
    "scatter",
    "softmax",
    "split",
    "square",
    "stack",
    "take_along_dim",
    "topk",
    "unbind",
    "where",
]


def kind(value):
    """What came back: "tensor", or the number of parts."""
    return f"{len(value)} parts" if isinstance(value, tuple | list) else "tensor"


def largest(boxes, scores, overlap):
    """Greedy suppression with exact areas, as torchvision's nms: indices that stay, best first."""
    x1, y1, x2, y2 = boxes.T
    area, order, kept = (x2 - x1) * (y2 - y1), list(np.argsort(-scores)), []
    while order:
        best = order.pop(0)
        kept.append(int(best))
        width = np.minimum(x2[best], x2[order]) - np.maximum(x1[best], x1[order])
        height = np.minimum(y2[best], y2[order]) - np.maximum(y1[best], y1[order])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        order = [i for i, part in zip(order, shared / (area[best] + area[order] - shared)) if part <= overlap]
    return kept


def torch_nms(torch, boxes, scores):
    """Which of two boxes with IoU 1/3 stay at threshold 0.35, by PyTorch's operators (torchvision isn't here)."""
    first, second = boxes
    low, high = torch.maximum(first[:2], second[:2]), torch.minimum(first[2:], second[2:])
    shared = torch.prod(torch.clamp(high - low, min=0))
    areas = torch.prod(boxes[:, 2:] - boxes[:, :2], 1)
    order = torch.argsort(scores, descending=True)
    return order[:1] if shared / (areas.sum() - shared) > 0.35 else order


PROBES = {
    "names": ask(
        "Which of PyTorch's names are missing?",
        "Look for the name before porting a line: most of what is missing can be written with what is there.",
        both=lambda F: [name for name in ASKED if not hasattr(F, name)] or "none",
        expected=lambda: "none",
    ),
    "keepdim": given(TABLE).ask(
        "Does sum take keepdim=True?",
        "Both spell it keepdim; Jittor's keepdims is its own.",
        both=lambda F, x: attempt(lambda: x.sum(1, keepdim=True).numpy()),
        backend=lambda B, x: B.sum(x, 1, keepdim=True),
        expected=lambda x: x.sum(1, keepdims=True),
    ),
    "max along an axis": given(TABLE).ask(
        "What does max(x, 1) return?",
        "Take values from max and indices from argmax: unpacking Jittor's tensor gives two rows.",
        both=lambda F, x: kind(F.max(x, 1)),
        expected=lambda x: "2 parts",
    ),
    "largest along an axis": given(TABLE).ask(
        "What are the values of the maximum along an axis?",
        "amax in PyTorch, max in Jittor.",
        jittor=lambda jt, x: jt.max(x, 1),
        torch=lambda torch, x: torch.amax(x, 1),
        backend=lambda B, x: B.amax(x, 1),
        expected=lambda x: x.max(1),
    ),
    "unpacked max": given(TABLE).ask(
        "What is `values, indices = x.max(1)` good for on two rows?",
        "Two rows unpack in silence: the second name holds a value, not indices.",
        both=lambda F, x: _second(x.max(1)),
        expected=lambda x: x.argmax(1),
    ),
    "argmax": given(TABLE).ask(
        "What does argmax(x, 1) return?",
        "Jittor returns (index, value): take [0].",
        every=lambda F, x: kind(F.argmax(x, 1)),
        expected=lambda x: "tensor",
    ),
    "argmax among equals": given(TIES).ask(
        "Which index has the maximum of equal values?",
        "The first in both.",
        jittor=lambda jt, x: jt.argmax(x, 0)[0],
        torch=lambda torch, x: torch.argmax(x, 0),
        backend=lambda B, x: B.argmax(x, 0),
        expected=lambda x: 0,
    ),
    "argsort": given(TABLE).ask(
        "What does argsort return?",
        "Jittor returns (index, value): take [0].",
        both=lambda F, x: kind(F.argsort(x, 1)),
        expected=lambda x: "tensor",
    ),
    "sort": given(TABLE).ask(
        "What is the second part of sort's answer?",
        "Indices in both.",
        both=lambda F, x: F.sort(x, 1)[1],
        expected=lambda x: x.argsort(1),
    ),
    "topk among equals": given(TIES).ask(
        "Which 4 of 8 equal values does topk take?",
        "PyTorch leaves the order of ties open: write the assigner's own top-k on the CPU, with a stable sort.",
        every=lambda F, x: F.topk(x, 4)[1],
        expected=None,
    ),
    "topk with NaN": given(f32(1, np.nan, 3, 2)).ask(
        "Where does topk see a NaN?",
        "PyTorch takes NaN for the largest: look for NaN before choosing.",
        every=lambda F, x: F.topk(x, 1)[1],
        expected=lambda x: np.array([1]),
    ),
    "order of equal values in a sort": given(np.ones(40, np.float32)).ask(
        "Does sort keep the order of 40 equal values where it is asked to?",
        "Add a falling tie-breaker to the key, or sort in NumPy: Jittor ignores stable=True.",
        jittor=lambda jt, x: jt.sort(x, 0, stable=True)[1],
        torch=lambda torch, x: torch.sort(x, dim=0, stable=True)[1],
        expected=lambda x: np.arange(40),
    ),
    "nonzero": given(TABLE).ask(
        "Which shape has nonzero of a table?",
        "One row per place in both.",
        both=lambda F, x: F.nonzero(x),
        expected=lambda x: np.argwhere(x),
    ),
    "where with one argument": given(MASK).ask(
        "What does where(mask) return?",
        "One index tensor per axis in both.",
        both=lambda F, mask: F.where(mask)[0],
        expected=lambda mask: np.where(mask)[0],
    ),
    "where with a number": given(MASK, f32(1, 2, 3)).ask(
        "Does where(mask, x, 0.0) take a Python number?",
        "Pass zeros_like(x): it works everywhere.",
        both=lambda F, mask, x: F.where(mask, x, 0.0),
        expected=lambda mask, x: np.where(mask, x, 0.0),
    ),
    "gather": given(TABLE, np.array([[2, 0], [1, 1]])).ask(
        "What is gather(x, 1, index)?",
        "Equal.",
        every=lambda F, x, index: F.gather(x, 1, index),
        expected=lambda x, index: np.take_along_axis(x, index, 1),
    ),
    "index_select": given(TABLE, ORDER).ask(
        "What is index_select(x, 1, [1, 0])?",
        "Use gather or x[:, index].",
        both=lambda F, x, index: attempt(lambda: F.index_select(x, 1, index).numpy()),
        expected=lambda x, index: x[:, index],
    ),
    "scatter with add": given(f32(1, 2, 4), np.array([0, 0, 2])).ask(
        'What does scatter with reduce="add" give where an index repeats?',
        "Equal.",
        jittor=lambda jt, x, index: jt.scatter(jt.zeros((3,)), 0, index, x, reduce="add"),
        torch=lambda torch, x, index: torch.zeros(3).scatter_add(0, index, x),
        expected=lambda x, index: np.bincount(index, x, 3),
    ),
    "masked_fill": given(f32(1, 2, 3), MASK).ask(
        "What is x.masked_fill(mask, -1)?",
        "Equal.",
        both=lambda F, x, mask: x.masked_fill(mask, -1.0),
        expected=lambda x, mask: np.where(mask, -1, x),
    ),
    "assignment to a negative index": given(f32(1, 2, 3)).ask(
        "Does x[-1] = 9 change x?",
        "Equal for a single number; never in lists and index tensors.",
        both=lambda F, x: _assign(x, -1),
        expected=lambda x: np.array([1.0, 2.0, 9.0]),
    ),
    "assignment to an index": given(f32(1, 2, 3)).ask(
        "Does x[1] = 9 change x?",
        "Equal.",
        both=lambda F, x: _assign(x, 1),
        expected=lambda x: np.array([1.0, 9.0, 3.0]),
    ),
    "assignment through a view": given(TABLE).ask(
        "Does a change of row = x[0] change x?",
        "Equal in this simple case; assign to x itself all the same.",
        both=lambda F, x: _through_view(x),
        expected=lambda x: np.array([[9.0, 5.0, 2.0], [7.0, 0.0, 3.0]]),
    ),
    "in-place addition under another name": given(f32(1, 2, 3)).ask(
        "Does y = x; y += 1 change x?",
        "Equal; write y = y + 1 all the same.",
        both=lambda F, x: _add_in_place(x),
        expected=lambda x: x + 1,
    ),
    "squeeze of a wide axis": given(TABLE).ask(
        "What does squeeze(0) do where the axis has size 2?",
        "Jittor raises: index or reshape instead.",
        both=lambda F, x: attempt(lambda: x.squeeze(0).numpy()),
        expected=lambda x: x,
    ),
    "transpose of two axes": given(CUBE).ask(
        "What is x.transpose(0, 2)?",
        "Equal with two numbers.",
        both=lambda F, x: x.transpose(0, 2),
        expected=lambda x: x.swapaxes(0, 2),
    ),
    "view of a transposed tensor": given(TABLE).ask(
        "Does view work after a transposition?",
        "Jittor's view is a reshape: code that runs there can raise in PyTorch.",
        both=lambda F, x: attempt(lambda: x.transpose(0, 1).view(-1).numpy()),
        expected=lambda x: "raises",
    ),
    "chunks of unequal size": given(np.arange(7, dtype=np.float32)).ask(
        "Which sizes have 3 chunks of 7 values?",
        "Equal.",
        both=lambda F, x: [len(part) for part in F.chunk(x, 3)],
        backend=lambda B, x: [part.shape[0] for part in B.chunk(x, 3)],
        expected=lambda x: [3, 3, 1],
    ),
    "meshgrid": ask(
        "Which axis does meshgrid's first answer vary along?",
        'Rows in both; Jittor knows no indexing="xy".',
        jittor=lambda jt: jt.meshgrid(jt.arange(2), jt.arange(3))[0],
        torch=lambda torch: torch.meshgrid(torch.arange(2), torch.arange(3), indexing="ij")[0],
        expected=lambda: np.mgrid[:2, :3][0],
    ),
    "meshgrid by columns": ask(
        'Can meshgrid be asked for indexing="xy"?',
        "Swap the arguments and the answers.",
        both=lambda F: attempt(lambda: F.meshgrid(F.arange(2), F.arange(3), indexing="xy")[0].numpy()),
        expected=lambda: np.meshgrid(np.arange(2), np.arange(3))[0],
    ),
    "one_hot": given(np.array([0, 2])).ask(
        "What is one_hot of labels 0 and 2 of 3?",
        "Equal values; see the type before comparing.",
        jittor=lambda jt, x: jt.nn.one_hot(x, 3),
        torch=lambda torch, x: torch.nn.functional.one_hot(x, 3),
        backend=lambda B, x: B.one_hot(x, 3),
        expected=lambda x: np.eye(3)[x],
    ),
    "unique": given(f32(3, 1, 3, 2)).ask(
        "Are unique values sorted?",
        "Equal.",
        both=lambda F, x: F.unique(x),
        expected=np.unique,
    ),
    "(n,) times (n, 1)": given(f32(1, 2, 3)).ask(
        "Which shape has (3,) * (3, 1)?",
        "An outer product in both, in silence: assert shapes in losses.",
        every=lambda F, x: x * x.reshape(3, 1),
        expected=lambda x: np.outer(x, x),
    ),
    "flip and roll": given(TABLE).ask(
        "What is roll(flip(x), 1)?",
        "Equal.",
        jittor=lambda jt, x: jt.roll(jt.flip(x, 1), 1, 1),
        torch=lambda torch, x: torch.roll(torch.flip(x, [1]), 1, 1),
        expected=lambda x: np.roll(x[:, ::-1], 1, 1),
    ),
    "searchsorted": given(f32(1, 2, 2, 3), f32(2, 2.5)).ask(
        "Where does an equal value go?",
        "Before its equals in both.",
        both=lambda F, x, v: F.searchsorted(x, v),
        expected=lambda x, v: np.searchsorted(x, v),
    ),
    "all": given(MASK).ask(
        "What is mask.all()?",
        "Equal.",
        both=lambda F, mask: mask.all(),
        expected=lambda mask: mask.all(),
    ),
    "nms at the legacy + 1": given(f32([0, 0, 4, 4], [0, 2, 4, 6]), f32(0.9, 0.8)).ask(
        "Which of two boxes with IoU 1/3 stay at threshold 0.35?",
        "Run suppression in NumPy: Jittor adds 1 to widths and heights.",
        jittor=lambda jt, boxes, scores: jt.nms(jt.concat([boxes, scores.reshape(2, 1)], 1), 0.35),
        torch=torch_nms,
        expected=lambda boxes, scores: largest(boxes, scores, 0.35),
    ),
}


def _second(parts):
    _, second = parts
    return second


def _assign(x, index):
    x[index] = 9
    return x


def _through_view(x):
    row = x[0]
    row[0] = 9
    return x


def _add_in_place(x):
    y = x
    y += 1
    return x
