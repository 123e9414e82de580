"""Shapes, indices and order: what an operator returns, and which of two equals comes first."""

import numpy as np

from ..probe import Probe, attempt, f32

TOPIC = "Shapes, indices, order"
TABLE = f32([1, 5, 2], [7, 0, 3])
TIES = f32(1, 1, 1, 1, 1, 1, 1, 1)
CUBE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
MASK = np.array([True, False, True])
ORDER = np.array([1, 0], np.int64)
ASKED = (
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
)


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
    """Which of two boxes with IoU 1/3 stay at threshold 0.35, by PyTorch's operators (torchvision is a package of its own)."""
    first, second = boxes
    low, high = torch.maximum(first[:2], second[:2]), torch.minimum(first[2:], second[2:])
    shared = torch.prod(torch.clamp(high - low, min=0))
    areas = torch.prod(boxes[:, 2:] - boxes[:, :2], 1)
    order = torch.argsort(scores, descending=True)
    return order[:1] if shared / (areas.sum() - shared) > 0.35 else order


PROBES = (
    Probe(
        topic=TOPIC,
        name="names",
        question="Which of PyTorch's names are missing?",
        advice="Look for the name before porting a line: most of what is missing can be written with what is there.",
        jittor=lambda jt: [name for name in ASKED if not hasattr(jt, name)] or "none",
        torch=lambda torch: [name for name in ASKED if not hasattr(torch, name)] or "none",
        expected=lambda: "none",
    ),
    Probe(
        topic=TOPIC,
        name="keepdim",
        question="Does sum take keepdim=True?",
        advice="Both spell it keepdim; Jittor's keepdims is its own.",
        jittor=lambda jt, x: attempt(lambda: x.sum(1, keepdim=True).numpy()),
        torch=lambda torch, x: x.sum(1, keepdim=True),
        backend=lambda B, x: B.sum(x, 1, keepdim=True),
        expected=lambda x: x.sum(1, keepdims=True),
        inputs=(TABLE,),
    ),
    Probe(
        topic=TOPIC,
        name="max along an axis",
        question="What does max(x, 1) return?",
        advice="Take values from max and indices from argmax: unpacking Jittor's tensor gives two rows.",
        jittor=lambda jt, x: kind(jt.max(x, 1)),
        torch=lambda torch, x: kind(torch.max(x, 1)),
        expected=lambda x: "2 parts",
        inputs=(TABLE,),
    ),
    Probe(
        topic=TOPIC,
        name="largest along an axis",
        question="What are the values of the maximum along an axis?",
        advice="amax in PyTorch, max in Jittor.",
        jittor=lambda jt, x: jt.max(x, 1),
        torch=lambda torch, x: torch.amax(x, 1),
        backend=lambda B, x: B.amax(x, 1),
        expected=lambda x: x.max(1),
        inputs=(TABLE,),
    ),
    Probe(
        topic=TOPIC,
        name="unpacked max",
        question="What is `values, indices = x.max(1)` good for on two rows?",
        advice="Two rows unpack in silence: the second name holds a value, not indices.",
        jittor=lambda jt, x: _second(x.max(1)),
        torch=lambda torch, x: _second(x.max(1)),
        expected=lambda x: x.argmax(1),
        inputs=(TABLE,),
    ),
    Probe(
        topic=TOPIC,
        name="argmax",
        question="What does argmax(x, 1) return?",
        advice="Jittor returns (index, value): take [0].",
        jittor=lambda jt, x: kind(jt.argmax(x, 1)),
        torch=lambda torch, x: kind(torch.argmax(x, 1)),
        backend=lambda B, x: kind(B.argmax(x, 1)),
        expected=lambda x: "tensor",
        inputs=(TABLE,),
    ),
    Probe(
        topic=TOPIC,
        name="argmax among equals",
        question="Which index has the maximum of equal values?",
        advice="The first in both.",
        jittor=lambda jt, x: jt.argmax(x, 0)[0],
        torch=lambda torch, x: torch.argmax(x, 0),
        backend=lambda B, x: B.argmax(x, 0),
        expected=lambda x: 0,
        inputs=(TIES,),
    ),
    Probe(
        topic=TOPIC,
        name="argsort",
        question="What does argsort return?",
        advice="Jittor returns (index, value): take [0].",
        jittor=lambda jt, x: kind(jt.argsort(x, 1)),
        torch=lambda torch, x: kind(torch.argsort(x, 1)),
        expected=lambda x: "tensor",
        inputs=(TABLE,),
    ),
    Probe(
        topic=TOPIC,
        name="sort",
        question="What is the second part of sort's answer?",
        advice="Indices in both.",
        jittor=lambda jt, x: jt.sort(x, 1)[1],
        torch=lambda torch, x: torch.sort(x, 1)[1],
        expected=lambda x: x.argsort(1),
        inputs=(TABLE,),
    ),
    Probe(
        topic=TOPIC,
        name="topk among equals",
        question="Which 4 of 8 equal values does topk take?",
        advice="PyTorch leaves the order of ties open: write the assigner's own top-k on the CPU, with a stable sort.",
        jittor=lambda jt, x: jt.topk(x, 4)[1],
        torch=lambda torch, x: torch.topk(x, 4)[1],
        backend=lambda B, x: B.topk(x, 4)[1],
        expected=None,
        inputs=(TIES,),
    ),
    Probe(
        topic=TOPIC,
        name="topk with NaN",
        question="Where does topk see a NaN?",
        advice="PyTorch takes NaN for the largest: look for NaN before choosing.",
        jittor=lambda jt, x: jt.topk(x, 1)[1],
        torch=lambda torch, x: torch.topk(x, 1)[1],
        backend=lambda B, x: B.topk(x, 1)[1],
        expected=lambda x: np.array([1]),
        inputs=(f32(1, np.nan, 3, 2),),
    ),
    Probe(
        topic=TOPIC,
        name="order of equal values in a sort",
        question="Does sort keep the order of 40 equal values where it is asked to?",
        advice="Add a falling tie-breaker to the key, or sort in NumPy: Jittor ignores stable=True.",
        jittor=lambda jt, x: jt.sort(x, 0, stable=True)[1],
        torch=lambda torch, x: torch.sort(x, dim=0, stable=True)[1],
        expected=lambda x: np.arange(40),
        inputs=(np.ones(40, np.float32),),
    ),
    Probe(
        topic=TOPIC,
        name="nonzero",
        question="Which shape has nonzero of a table?",
        advice="One row per place in both.",
        jittor=lambda jt, x: jt.nonzero(x),
        torch=lambda torch, x: torch.nonzero(x),
        expected=lambda x: np.argwhere(x),
        inputs=(TABLE,),
    ),
    Probe(
        topic=TOPIC,
        name="where with one argument",
        question="What does where(mask) return?",
        advice="One index tensor per axis in both.",
        jittor=lambda jt, mask: jt.where(mask)[0],
        torch=lambda torch, mask: torch.where(mask)[0],
        expected=lambda mask: np.where(mask)[0],
        inputs=(MASK,),
    ),
    Probe(
        topic=TOPIC,
        name="where with a number",
        question="Does where(mask, x, 0.0) take a Python number?",
        advice="Pass zeros_like(x): it works everywhere.",
        jittor=lambda jt, mask, x: jt.where(mask, x, 0.0),
        torch=lambda torch, mask, x: torch.where(mask, x, 0.0),
        expected=lambda mask, x: np.where(mask, x, 0.0),
        inputs=(MASK, f32(1, 2, 3)),
    ),
    Probe(
        topic=TOPIC,
        name="gather",
        question="What is gather(x, 1, index)?",
        advice="Equal.",
        jittor=lambda jt, x, index: jt.gather(x, 1, index),
        torch=lambda torch, x, index: torch.gather(x, 1, index),
        backend=lambda B, x, index: B.gather(x, 1, index),
        expected=lambda x, index: np.take_along_axis(x, index, 1),
        inputs=(TABLE, np.array([[2, 0], [1, 1]])),
    ),
    Probe(
        topic=TOPIC,
        name="index_select",
        question="What is index_select(x, 1, [1, 0])?",
        advice="Use gather or x[:, index].",
        jittor=lambda jt, x, index: attempt(lambda: jt.index_select(x, 1, index).numpy()),
        torch=lambda torch, x, index: torch.index_select(x, 1, index),
        expected=lambda x, index: x[:, index],
        inputs=(TABLE, ORDER),
    ),
    Probe(
        topic=TOPIC,
        name="scatter with add",
        question='What does scatter with reduce="add" give where an index repeats?',
        advice="Equal.",
        jittor=lambda jt, x, index: jt.scatter(jt.zeros((3,)), 0, index, x, reduce="add"),
        torch=lambda torch, x, index: torch.zeros(3).scatter_add(0, index, x),
        expected=lambda x, index: np.bincount(index, x, 3),
        inputs=(f32(1, 2, 4), np.array([0, 0, 2])),
    ),
    Probe(
        topic=TOPIC,
        name="masked_fill",
        question="What is x.masked_fill(mask, -1)?",
        advice="Equal.",
        jittor=lambda jt, x, mask: x.masked_fill(mask, -1.0),
        torch=lambda torch, x, mask: x.masked_fill(mask, -1.0),
        expected=lambda x, mask: np.where(mask, -1, x),
        inputs=(f32(1, 2, 3), MASK),
    ),
    Probe(
        topic=TOPIC,
        name="assignment to a negative index",
        question="Does x[-1] = 9 change x?",
        advice="Equal for a single number; never in lists and index tensors.",
        jittor=lambda jt, x: _assign(x, -1),
        torch=lambda torch, x: _assign(x, -1),
        expected=lambda x: np.array([1.0, 2.0, 9.0]),
        inputs=(f32(1, 2, 3),),
    ),
    Probe(
        topic=TOPIC,
        name="assignment to an index",
        question="Does x[1] = 9 change x?",
        advice="Equal.",
        jittor=lambda jt, x: _assign(x, 1),
        torch=lambda torch, x: _assign(x, 1),
        expected=lambda x: np.array([1.0, 9.0, 3.0]),
        inputs=(f32(1, 2, 3),),
    ),
    Probe(
        topic=TOPIC,
        name="assignment through a view",
        question="Does a change of row = x[0] change x?",
        advice="Equal in this simple case; assign to x itself all the same.",
        jittor=lambda jt, x: _through_view(x),
        torch=lambda torch, x: _through_view(x),
        expected=lambda x: np.array([[9.0, 5.0, 2.0], [7.0, 0.0, 3.0]]),
        inputs=(TABLE,),
    ),
    Probe(
        topic=TOPIC,
        name="in-place addition under another name",
        question="Does y = x; y += 1 change x?",
        advice="Equal; write y = y + 1 all the same.",
        jittor=lambda jt, x: _add_in_place(x),
        torch=lambda torch, x: _add_in_place(x),
        expected=lambda x: x + 1,
        inputs=(f32(1, 2, 3),),
    ),
    Probe(
        topic=TOPIC,
        name="squeeze of a wide axis",
        question="What does squeeze(0) do where the axis has size 2?",
        advice="Jittor raises: index or reshape instead.",
        jittor=lambda jt, x: attempt(lambda: x.squeeze(0).numpy()),
        torch=lambda torch, x: x.squeeze(0),
        expected=lambda x: x,
        inputs=(TABLE,),
    ),
    Probe(
        topic=TOPIC,
        name="transpose of two axes",
        question="What is x.transpose(0, 2)?",
        advice="Equal with two numbers.",
        jittor=lambda jt, x: x.transpose(0, 2),
        torch=lambda torch, x: x.transpose(0, 2),
        expected=lambda x: x.swapaxes(0, 2),
        inputs=(CUBE,),
    ),
    Probe(
        topic=TOPIC,
        name="view of a transposed tensor",
        question="Does view work after a transposition?",
        advice="Jittor's view is a reshape: code that runs there can raise in PyTorch.",
        jittor=lambda jt, x: attempt(lambda: x.transpose(0, 1).view(-1).numpy()),
        torch=lambda torch, x: attempt(lambda: x.transpose(0, 1).view(-1)),
        expected=lambda x: "raises",
        inputs=(TABLE,),
    ),
    Probe(
        topic=TOPIC,
        name="chunks of unequal size",
        question="Which sizes have 3 chunks of 7 values?",
        advice="Equal.",
        jittor=lambda jt, x: [len(part) for part in jt.chunk(x, 3)],
        torch=lambda torch, x: [len(part) for part in torch.chunk(x, 3)],
        backend=lambda B, x: [part.shape[0] for part in B.chunk(x, 3)],
        expected=lambda x: [3, 3, 1],
        inputs=(np.arange(7, dtype=np.float32),),
    ),
    Probe(
        topic=TOPIC,
        name="meshgrid",
        question="Which axis does meshgrid's first answer vary along?",
        advice='Rows in both; Jittor knows no indexing="xy".',
        jittor=lambda jt: jt.meshgrid(jt.arange(2), jt.arange(3))[0],
        torch=lambda torch: torch.meshgrid(torch.arange(2), torch.arange(3), indexing="ij")[0],
        expected=lambda: np.mgrid[:2, :3][0],
    ),
    Probe(
        topic=TOPIC,
        name="meshgrid by columns",
        question='Can meshgrid be asked for indexing="xy"?',
        advice="Swap the arguments and the answers.",
        jittor=lambda jt: attempt(lambda: jt.meshgrid(jt.arange(2), jt.arange(3), indexing="xy")[0].numpy()),
        torch=lambda torch: torch.meshgrid(torch.arange(2), torch.arange(3), indexing="xy")[0],
        expected=lambda: np.meshgrid(np.arange(2), np.arange(3))[0],
    ),
    Probe(
        topic=TOPIC,
        name="one_hot",
        question="What is one_hot of labels 0 and 2 of 3?",
        advice="Equal values; see the type before comparing.",
        jittor=lambda jt, x: jt.nn.one_hot(x, 3),
        torch=lambda torch, x: torch.nn.functional.one_hot(x, 3),
        backend=lambda B, x: B.one_hot(x, 3),
        expected=lambda x: np.eye(3)[x],
        inputs=(np.array([0, 2]),),
    ),
    Probe(
        topic=TOPIC,
        name="unique",
        question="Are unique values sorted?",
        advice="Equal.",
        jittor=lambda jt, x: jt.unique(x),
        torch=lambda torch, x: torch.unique(x),
        expected=np.unique,
        inputs=(f32(3, 1, 3, 2),),
    ),
    Probe(
        topic=TOPIC,
        name="(n,) times (n, 1)",
        question="Which shape has (3,) * (3, 1)?",
        advice="An outer product in both, in silence: assert shapes in losses.",
        jittor=lambda jt, x: x * x.reshape(3, 1),
        torch=lambda torch, x: x * x.reshape(3, 1),
        backend=lambda B, x: x * x.reshape(3, 1),
        expected=lambda x: np.outer(x, x),
        inputs=(f32(1, 2, 3),),
    ),
    Probe(
        topic=TOPIC,
        name="flip and roll",
        question="What is roll(flip(x), 1)?",
        advice="Equal.",
        jittor=lambda jt, x: jt.roll(jt.flip(x, 1), 1, 1),
        torch=lambda torch, x: torch.roll(torch.flip(x, [1]), 1, 1),
        expected=lambda x: np.roll(x[:, ::-1], 1, 1),
        inputs=(TABLE,),
    ),
    Probe(
        topic=TOPIC,
        name="searchsorted",
        question="Where does an equal value go?",
        advice="Before its equals in both.",
        jittor=lambda jt, x, v: jt.searchsorted(x, v),
        torch=lambda torch, x, v: torch.searchsorted(x, v),
        expected=lambda x, v: np.searchsorted(x, v),
        inputs=(f32(1, 2, 2, 3), f32(2, 2.5)),
    ),
    Probe(
        topic=TOPIC,
        name="all",
        question="What is mask.all()?",
        advice="Equal.",
        jittor=lambda jt, mask: mask.all(),
        torch=lambda torch, mask: mask.all(),
        expected=lambda mask: mask.all(),
        inputs=(MASK,),
    ),
    Probe(
        topic=TOPIC,
        name="nms at the legacy + 1",
        question="Which of two boxes with IoU 1/3 stay at threshold 0.35?",
        advice="Run suppression in NumPy: Jittor adds 1 to widths and heights.",
        jittor=lambda jt, boxes, scores: jt.nms(jt.concat([boxes, scores.reshape(2, 1)], 1), 0.35),
        torch=torch_nms,
        expected=lambda boxes, scores: largest(boxes, scores, 0.35),
        inputs=(f32([0, 0, 4, 4], [0, 2, 4, 6]), f32(0.9, 0.8)),
    ),
)


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
