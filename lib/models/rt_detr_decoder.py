"""RT-DETR's decoder: query selection, deformable attention (arXiv:2010.04159), boxes refined layer by layer.

Letters: n images, m tokens of all levels, q queries, d features, a attention heads, p points, k classes.
"""

from functools import lru_cache

import numpy as np

from lib.backend import amax, cat, clamp, grid_sample, nn, sigmoid, softmax, sum, tensor, topk
from lib.models.rt_detr_denoising import Denoising
from lib.models.rt_detr_layers import MLP, ConvNorm, SelfAttention, constant, inverse_sigmoid

QUERIES = 300
WIDTH, HIDDEN, HEADS, POINTS, LEVELS = 256, 1024, 8, 4, 3
ANCHOR = 0.05  # side of the anchors of the finest level, in parts of the image; it doubles with every level
MARGIN = 0.01  # a cell whose anchor's centre or side is nearer to 0 or 1 is never an object
LARGEST = 65504.0  # of float16; bounds a layer's output


@lru_cache(maxsize=32)
def anchors(sizes: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, np.ndarray]:
    """Logits (m, 4) of centre, width, height for each cell of levels of (rows, columns), and (m, 1) whether it is valid.

    float32 and bool, read-only; +inf in the rows of invalid cells.
    """
    levels = []
    for level, (height, width) in enumerate(sizes):
        y, x = np.mgrid[:height, :width].astype(np.float32)
        centre = (np.stack([x, y], 2) + np.float32(0.5)) / np.asarray([width, height], np.float32)
        side = np.full_like(centre, ANCHOR * 2**level)
        levels.append(np.concatenate([centre, side], 2).reshape(-1, 4))
    boxes = np.concatenate(levels)
    valid = ((boxes > MARGIN) & (boxes < 1 - MARGIN)).all(1, keepdims=True)
    logits = np.where(valid, np.log(boxes / (1 - boxes)), np.float32(np.inf))
    for array in (logits, valid):
        array.setflags(write=False)
    return logits, valid


def boundary_gap(logits: np.ndarray) -> np.ndarray:
    """(n,) by how much the worst selected token beats the best other one, for class logits (n, m, k); inf without others."""
    falling = -np.sort(-logits.max(2), 1)
    return (
        falling[:, QUERIES - 1] - falling[:, QUERIES] if falling.shape[1] > QUERIES else np.full(len(falling), np.inf)
    )


class DeformableAttention(nn.Module):
    """Each query reads the memory at points around its box.

    query (n, q, d), boxes (n, q, 4) as parts of the image, memory (n, m, d), sizes of its levels -> (n, q, d).
    """

    def __init__(self):
        super().__init__()
        self.sampling_offsets = nn.Linear(WIDTH, HEADS * LEVELS * POINTS * 2)
        self.attention_weights = nn.Linear(WIDTH, HEADS * LEVELS * POINTS)
        self.value_proj = nn.Linear(WIDTH, WIDTH)
        self.output_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, query, boxes, memory, sizes):
        n, q, d = query.shape
        grid = self._grid(query, boxes)  # (n * a, q, levels * p, 2)
        shares = softmax(self._per_head(self.attention_weights(query)), 2).unsqueeze(1)  # (n * a, 1, q, levels * p)
        value, samples, start = self.value_proj(memory), [], 0
        for level, (height, width) in enumerate(sizes):
            end = start + height * width
            plane = value[:, start:end].permute(0, 2, 1).reshape(n * HEADS, d // HEADS, height, width)
            samples.append(grid_sample(plane, grid[:, :, level * POINTS : (level + 1) * POINTS]))
            start = end
        read = sum(cat(samples, 3) * shares, 3)  # (n * a, d / a, q)
        return self.output_proj(read.reshape(n, d, q).permute(0, 2, 1))

    def _grid(self, query, boxes):
        """Where to read, in -1 … 1: the box's centre, moved by offsets in units of an eighth of its extent."""
        n, q, _ = query.shape
        offsets = self.sampling_offsets(query).reshape(n, q, HEADS * LEVELS * POINTS, 2)
        centre, extent = boxes[:, :, :2].unsqueeze(2), boxes[:, :, 2:].unsqueeze(2)
        places = (centre + offsets * (extent * (0.5 / POINTS))) * 2.0 - 1.0
        return self._per_head(places.reshape(n, q, HEADS * LEVELS * POINTS * 2)).reshape(
            n * HEADS, q, LEVELS * POINTS, 2
        )

    @staticmethod
    def _per_head(x):
        """(n, q, a * c) -> (n * a, q, c)."""
        n, q, width = x.shape
        return x.reshape(n, q, HEADS, width // HEADS).permute(0, 2, 1, 3).reshape(n * HEADS, q, width // HEADS)


class DecoderLayer(nn.Module):
    """Self-attention among the queries, deformable attention to the memory, a perceptron; each added and normalised."""

    def __init__(self):
        super().__init__()
        self.self_attn = SelfAttention(WIDTH, HEADS)
        self.norm1 = nn.LayerNorm(WIDTH)
        self.cross_attn = DeformableAttention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.linear1 = nn.Linear(WIDTH, HIDDEN)
        self.linear2 = nn.Linear(HIDDEN, WIDTH)
        self.norm3 = nn.LayerNorm(WIDTH)
        self.act = nn.ReLU()

    def forward(self, x, position, boxes, memory, sizes, mask):
        x = self.norm1(x + self.self_attn(x, position, mask))
        x = self.norm2(x + self.cross_attn(x + position, boxes, memory, sizes))
        x = x + self.linear2(self.act(self.linear1(x)))
        return self.norm3(clamp(x, min=-LARGEST, max=LARGEST))


class DecoderLayers(nn.Module):
    """The layers under their published name; RTDETRTransformer runs them."""

    def __init__(self, count: int):
        super().__init__()
        self.layers = nn.ModuleList([DecoderLayer() for _ in range(count)])


class Selection(nn.Module):
    """The tokens that become queries: those with the largest class logit, in falling order.

    features (n, m, d), class logits (n, m, k), anchors' logits (m, 4), the module that predicts boxes ->
    features, boxes' logits, boxes, class logits of the q chosen tokens, which they are (n, q), and what was chosen by (n, m).
    """

    def forward(self, features, logits, anchor_logits, box_head):
        n, m, k = logits.shape
        q = min(QUERIES, m)
        scores = amax(logits.detach(), 2)
        _, tokens = topk(scores, q, 1)
        rows = (tokens + tensor(np.arange(n)[:, None] * m)).reshape(n * q)
        chosen = features.reshape(n * m, features.shape[2])[rows].reshape(n, q, features.shape[2])
        box_logits = box_head(chosen) + anchor_logits[tokens.reshape(n * q)].reshape(n, q, 4)
        return chosen, box_logits, sigmoid(box_logits), logits.reshape(n * m, k)[rows].reshape(n, q, k), tokens, scores


class RTDETRTransformer(nn.Module):
    """Encoder maps -> per layer class logits (n, q, k) and boxes (n, q, 4), centre, width, height as parts of the image.

    In eval() the layers end with number `last`, and only its predictions are made.
    """

    def __init__(self, channels: int, num_classes: int, layers: int, last: int):
        super().__init__()
        self.last = last
        self.num_classes = num_classes
        self.input_proj = nn.ModuleList([ConvNorm(channels, WIDTH, 1) for _ in range(LEVELS)])
        self.decoder = DecoderLayers(layers)
        self.denoising_class_embed = nn.Embedding(num_classes + 1, WIDTH)  # its last row stands for no box
        self.query_pos_head = MLP(4, 2 * WIDTH, WIDTH)
        self.enc_output = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))
        self.enc_score_head = nn.Linear(WIDTH, num_classes)
        self.enc_bbox_head = MLP(WIDTH, WIDTH, WIDTH, 4)
        self.dec_score_head = nn.ModuleList([nn.Linear(WIDTH, num_classes) for _ in range(layers)])
        self.dec_bbox_head = nn.ModuleList([MLP(WIDTH, WIDTH, WIDTH, 4) for _ in range(layers)])
        self.selection = Selection()

    def forward(self, maps, noised: Denoising | None):
        """-> (predictions per layer, the selection's own, its tokens and all tokens' scores).

        A prediction is (class logits, boxes). `noised` puts denoising queries in front of the others.
        """
        maps = [layer(x) for layer, x in zip(self.input_proj, maps)]
        sizes = tuple((x.shape[2], x.shape[3]) for x in maps)
        memory = cat([x.reshape(x.shape[0], WIDTH, h * w) for x, (h, w) in zip(maps, sizes)], 2).permute(0, 2, 1)
        content, reference, boxes, logits, tokens, scores = self._select(memory, sizes)
        content, reference, mask = content.detach(), reference.detach(), None
        if noised is not None:
            mask = constant(noised.blocks(content.shape[1]), memory)
            content = cat((self._noised_content(noised), content), 1)
            reference = cat((constant(noised.boxes, memory), reference), 1)
        return self._decode(content, sigmoid(reference), memory, sizes, mask), (logits, boxes), (tokens, scores)

    def _select(self, memory, sizes):
        logits, valid = anchors(sizes)
        features = self.enc_output(memory * constant(valid[None], memory))
        return self.selection(features, self.enc_score_head(features), constant(logits, memory), self.enc_bbox_head)

    def _noised_content(self, noised: Denoising):
        """(n, q, d) the embeddings of the noised labels; the row that stands for no box learns nothing."""
        n, q = noised.labels.shape
        table = self.denoising_class_embed.weight
        table = cat((table[: self.num_classes], table[self.num_classes :].detach()), 0)
        return table[tensor(noised.labels.reshape(-1))].reshape(n, q, WIDTH)

    def _decode(self, x, boxes, memory, sizes, mask) -> list:
        """Each layer sees the boxes of the one before without their history. In training its own boxes are predicted
        once more from those boxes with theirs, so that their loss reaches the layer before too ("look forward twice")."""
        predictions, before = [], None
        for index, (layer, box_head) in enumerate(zip(self.decoder.layers, self.dec_bbox_head)):
            x = layer(x, self.query_pos_head(boxes), boxes, memory, sizes, mask)
            change = box_head(x)
            refined = sigmoid(change + inverse_sigmoid(boxes))
            if self.training:
                ahead = refined if before is None else sigmoid(change + inverse_sigmoid(before))
                predictions.append((self.dec_score_head[index](x), ahead))
            elif index == self.last:
                return [(self.dec_score_head[index](x), refined)]
            before, boxes = refined, refined.detach()
        return predictions
