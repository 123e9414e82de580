"""The built-in data set: drawn scenes of ten classes, so that everything runs with nothing downloaded.

Every pixel is a pure function of (seed, split, index) and the size, and every byte is the same on every machine:
* the dice are the raw 64-bit words of PCG64, which NumPy never changes, not the methods of its Generator, which it may;
* shapes are polygons filled by exact integer arithmetic, 4 x 4 samples a pixel; no floating point, no library drawing;
* PNG files hold DEFLATE's *stored* blocks: no version of zlib can change them (0.15 MB an image of 256 x 208).

Boxes and areas are those of the *visible* part, as in COCO: what nearer objects, sticks or the border hide does not
count. A pixel is an object's when the object covers at least half of it and nothing nearer does.
"""

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from lib.errors import UserError
from lib.record import atomic

DESCRIPTION = "built-in scenes"
VERSION = 2  # of the drawing; raise it whenever a byte of the result changes
SAMPLES = 4  # per pixel side
HALF = SAMPLES**2 // 2  # samples that make a pixel an object's
UNIT = 1000  # templates are drawn inside a circle of this radius
HUES = 6 * 256
EMPTY_EVERY = 20  # one image in 20 has no object, but clutter
SIDES = ((16, 16), (16, 12), (12, 16), (16, 14), (14, 16), (16, 10), (10, 16))  # width, height in sixteenths of `size`
SIZES = (((6, 11), 1), ((12, 33), 4), ((34, 66), 5))  # diameters in per cent of `size`, and how often in ten
MIN_RADIUS = 4  # pixels; below, a shape is no shape
TRIES = 12  # places tried for an object
SHOWN_INSIDE = 60  # per cent of an object that lie inside the image, at least
SHOWN_AT_LAST = 50  # per cent of these that nearer objects leave visible, at least

Point = tuple[int, int]
Polygon = tuple[Point, ...]


@dataclass(frozen=True)
class Layer:
    """Where `contours` cover a point an odd number of times and `cuts` do not, in one of the object's colours."""

    contours: tuple[Polygon, ...]
    cuts: tuple[Polygon, ...] = ()
    colour: int = 0  # 0: the object's own, 1: its second colour


def _circle(radius: int, x: int = 0, y: int = 0) -> Polygon:
    """48 points at rational angles, tan(angle/2) = k/12: exact without sine and cosine."""
    quarter = [((144 - k * k) * radius // (144 + k * k), 24 * k * radius // (144 + k * k)) for k in range(12)]
    turns = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))
    return tuple((x + a * px + b * py, y + c * px + d * py) for a, b, c, d in turns for px, py in quarter)


def _square(x1: int, y1: int, x2: int, y2: int) -> Polygon:
    return (x1, y1), (x2, y1), (x2, y2), (x1, y2)


def _points(*numbers: int) -> Polygon:
    """x and y by turns."""
    return tuple(zip(numbers[::2], numbers[1::2]))


STAR = _points(0, -1000, 259, -356, 951, -309, 418, 136, 588, 809, 0, 440, -588, 809, -418, 136, -951, -309, -259, -356)
PLUS = _points(
    *(-310, -950, 310, -950, 310, -310, 950, -310, 950, 310, 310, 310),
    *(310, 950, -310, 950, -310, 310, -950, 310, -950, -310, -310, -310),
)
ARROW = _points(1000, 0, 250, -720, 250, -290, -950, -290, -950, 290, 250, 290, 250, 720)
PETALS: tuple[Polygon, ...] = tuple(
    _circle(310, x, y) for x, y in ((690, 0), (345, 598), (-345, 598), (-690, 0), (-345, -598), (345, -598))
)

# Class -> layers; the first one is the outline that boxes and areas follow.
CLASSES: dict[str, tuple[Layer, ...]] = {
    "disc": (Layer((_circle(UNIT),)), Layer((_circle(280, -350, -350),), colour=1)),
    "ring": (Layer((_circle(UNIT),), (_circle(580),)),),
    "square": (
        Layer((_square(-720, -720, 720, 720),)),
        Layer((_square(-720, -720, 0, 0), _square(0, 0, 720, 720)), colour=1),
    ),
    "triangle": (
        Layer((_points(0, -1000, 866, 500, -866, 500),)),
        Layer((_points(0, -400, 346, 200, -346, 200),), colour=1),
    ),
    "star": (Layer((STAR,)),),
    "cross": (Layer((PLUS,)), Layer((_square(-310, -310, 310, 310),), colour=1)),
    "moon": (Layer((_circle(UNIT),), (_circle(820, 480, 0),)),),
    "arrow": (Layer((ARROW,)), Layer((_square(-950, -290, -650, 290), _square(-350, -290, -50, 290)), colour=1)),
    "hourglass": (
        Layer((_points(-680, -730, 680, -730, -680, 730, 680, 730),)),
        Layer((_square(-680, -730, 680, -480), _square(-680, 480, 680, 730)), colour=1),
    ),
    "flower": (Layer((*PETALS, _circle(350))), Layer((_circle(350),), colour=1)),
}


@dataclass(frozen=True, eq=False)
class Scene:
    """One drawn image, (h, w, 3) uint8 BGR; boxes (k, 4) int64 x, y, width, height; areas in pixels."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray


class _Dice:
    """Whole numbers from PCG64's raw words."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def roll(self, low: int, high: int) -> int:
        """Uniform in low..high, both included."""
        return low + int(self._bits.random_raw()) % (high - low + 1)

    def pick(self, items: Sequence, weights: Sequence[int] | None = None):
        choices = [item for item, weight in zip(items, weights or [1] * len(items)) for _ in range(weight)]
        return choices[self.roll(0, len(choices) - 1)]

    def noise(self, shape: tuple[int, ...], amplitude: int) -> np.ndarray:
        """int32 in -amplitude..amplitude, one word for eight values."""
        count = int(np.prod(shape))
        octets = self._bits.random_raw(-(-count // 8)).astype("<u8").view(np.uint8)[:count]
        return (octets.astype(np.int32) * (2 * amplitude + 1) >> 8).reshape(shape) - amplitude


def generate(folder: str | Path, seed: int = 0, train: int = 160, val: int = 40, size: int = 256) -> dict[str, Path]:
    """Writes train.json, val.json and images/{train,val}/*.png -> {split: its JSON file}.

    `size` is the longer side in pixels. What is there and right is left alone; a file that is missing or damaged is
    drawn again; a split's JSON is written after its images, so it is there only when all of them are. UserError for
    sizes out of range, or when the folder holds another data set.
    """
    if not (train >= 1 and val >= 1 and 64 <= size <= 2048 and seed >= 0):
        raise UserError(
            f"{folder}: scenes need seed >= 0 (is {seed}), train and val >= 1 (are {train}, {val}) "
            f"and size 64 to 2048 (is {size}); change these"
        )
    counts = {"train": train, "val": val}
    targets = {split: Path(folder) / f"{split}.json" for split in counts}
    standing = {split: _standing(path) for split, path in targets.items()}
    for split, path in targets.items():
        info = dict(description=DESCRIPTION, version=VERSION, seed=seed, split=split, count=counts[split], size=size)
        if standing[split] is None or standing[split]["info"] != info or not _intact(path, standing[split]):
            if standing[split]:
                path.unlink()  # before its images change: it must not describe others
            document = _draw_split(path, info)
            with atomic(path) as temporary:
                temporary.write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")
    return targets


def is_theirs(folder: str | Path) -> bool:
    """Whether `generate` may write there: the folder is absent, holds built-in scenes, or holds no annotations yet."""
    folder = Path(folder)
    if folder.is_file():
        return False
    annotations = [*folder.glob("*.json"), *folder.glob("annotations")]
    return all(path.is_file() and DESCRIPTION.encode() in path.read_bytes() for path in annotations)


def draw(seed: int, split: str, index: int, size: int) -> Scene:
    """The scene of this number: background, clutter, up to seven objects from far to near, now and then a stick."""
    dice = _Dice(seed, zlib.crc32(split.encode()), index)
    width, height = (side * size // 16 for side in dice.pick(SIDES))
    canvas = _background(dice, width, height)
    for _ in range(dice.roll(3, 9)):
        _blend(canvas, *_clutter(dice, width, height, size))
    owner = np.full((height, width), -1, np.int32)  # index of the nearest object, -1 where there is none
    labels, whole = [], []  # of the objects, and the pixels that each had when it was drawn
    if index % EMPTY_EVERY != EMPTY_EVERY - 1:
        for _ in range(dice.roll(2, 7)):
            _place(dice, canvas, owner, labels, whole, size)
    if dice.roll(0, 2) == 0:
        _lay_over(dice, canvas, owner, whole, size)
    canvas = np.clip(canvas + dice.noise(canvas.shape, dice.roll(0, 10)), 0, 255).astype(np.uint8)
    seen = [np.nonzero(owner == number) for number in range(len(labels))]
    boxes = [(columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1) for rows, columns in seen]
    boxes, areas = np.array(boxes, np.int64).reshape(-1, 4), np.array([len(rows) for rows, _ in seen], np.int64)
    return Scene(canvas, boxes, np.array(labels, np.int64), areas)


def _place(dice: _Dice, canvas: np.ndarray, owner: np.ndarray, labels: list[int], whole: list[int], size: int) -> None:
    """Draws one object where it hides no other too much; after TRIES in vain it draws none."""
    height, width = owner.shape
    label = dice.roll(0, len(CLASSES) - 1)
    layers = list(CLASSES.values())[label]
    colours = _colours(dice, label)
    for _ in range(TRIES):
        smallest, largest = dice.pick([limits for limits, _ in SIZES], [weight for _, weight in SIZES])
        radius = max(dice.roll(size * smallest // 100, size * largest // 100) // 2, MIN_RADIUS)
        turn = _turn(dice)
        at = dice.roll(0, width - 1), dice.roll(0, height - 1)
        patch = _raster(layers[0], at, radius, turn)
        window, share = _laid(owner, *patch)
        solid, pixels = share >= HALF, int((patch[0] >= HALF).sum())
        if int(solid.sum()) * 100 >= pixels * SHOWN_INSIDE and _leaves_enough(owner, window[solid], whole):
            window[solid] = len(labels)
            _blend(canvas, *patch, colours[0])
            for layer in layers[1:]:
                _blend(canvas, *_raster(layer, at, radius, turn), colours[layer.colour])
            labels.append(label)
            whole.append(int(solid.sum()))
            return


def _lay_over(dice: _Dice, canvas: np.ndarray, owner: np.ndarray, whole: list[int], size: int) -> None:
    """One stick in front of everything, unless it hides too much."""
    *patch, colour = _stick(dice, owner.shape[1], owner.shape[0], size)
    window, share = _laid(owner, *patch)
    if _leaves_enough(owner, window[share >= HALF], whole):
        window[share >= HALF] = -1
        _blend(canvas, *patch, colour)


def _leaves_enough(owner: np.ndarray, covered: np.ndarray, whole: list[int]) -> bool:
    """Whether every object stays visible enough when these pixels of `owner` are covered."""
    hidden = np.bincount(covered[covered >= 0], minlength=len(whole))
    visible = np.bincount(owner[owner >= 0], minlength=len(whole)) - hidden
    return all(left * 100 >= all_ * SHOWN_AT_LAST for left, all_ in zip(visible.tolist(), whole))


def _turn(dice: _Dice) -> tuple[int, int, int]:
    """(c, s, n): a rotation by cos = c/n, sin = s/n, exact, about evenly spread over the circle."""
    k, quarter = dice.roll(0, 31), dice.roll(0, 3)
    # tan(angle/2) = t/77 with t/77 <= tan(22.5 degrees) covers half a quarter; mirroring covers the other half.
    t = k % 16 * 2
    c, s, n = 77 * 77 - t * t, 2 * 77 * t, 77 * 77 + t * t
    if k >= 16:
        c, s = s, c
    for _ in range(quarter):
        c, s = -s, c
    return c, s, n


def _colours(dice: _Dice, label: int) -> tuple[np.ndarray, np.ndarray]:
    """Own and second colour, BGR; one object in twenty has any hue, the others one close to their class's."""
    apart = HUES // len(CLASSES)
    any_hue = dice.roll(1, 20) == 1
    hue = dice.roll(0, HUES - 1) if any_hue else (label * apart + dice.roll(-apart // 5, apart // 5)) % HUES
    own = _paint(hue, dice.roll(180, 255), dice.roll(180, 255))
    second = own // 3 if dice.roll(0, 1) else 255 - (255 - own) // 4
    return own, second


def _paint(hue: int, saturation: int, value: int) -> np.ndarray:
    """BGR from hue 0..HUES-1, saturation and value 0..255."""
    ramps = [min(max(abs((hue + shift) % HUES - HUES // 2) - 256, 0), 255) for shift in (1024, 512, 0)]
    return np.array([value * (255 * 255 - saturation * (255 - ramp)) // (255 * 255) for ramp in ramps], np.int32)


def _background(dice: _Dice, width: int, height: int) -> np.ndarray:
    """(height, width, 3) int32: muted colours at the knots of a coarse grid, blended in between."""
    step = dice.roll(24, 96)
    rows, columns = height // step + 2, width // step + 2
    base = _paint(dice.roll(0, HUES - 1), dice.roll(0, 90), dice.roll(60, 200))
    knots = base + dice.noise((rows, columns, 1), 45) + dice.noise((rows, columns, 3), 15)
    y, fy = np.divmod(np.arange(height, dtype=np.int32)[:, None, None], step)
    x, fx = np.divmod(np.arange(width, dtype=np.int32)[:, None], step)
    lines = knots[:, x[:, 0]] * (step - fx) + knots[:, x[:, 0] + 1] * fx  # (rows, width, 3)
    return (lines[y[:, 0, 0]] * (step - fy) + lines[y[:, 0, 0] + 1] * fy) // (step * step)


def _clutter(dice: _Dice, width: int, height: int, size: int) -> tuple[np.ndarray, int, int, np.ndarray]:
    """A stick, or a crooked patch of muted colour: shapes of no class."""
    if dice.roll(0, 1):
        return _stick(dice, width, height, size)
    corners = [(700, 0), (350, 600), (-350, 600), (-700, 0), (-350, -600), (350, -600)]
    crooked = tuple((x + dice.roll(-300, 300), y + dice.roll(-300, 300)) for x, y in corners)
    at = dice.roll(0, width - 1), dice.roll(0, height - 1)
    colour = _paint(dice.roll(0, HUES - 1), dice.roll(0, 100), dice.roll(40, 230))
    return *_raster(Layer((crooked,)), at, dice.roll(size // 20, size // 5), _turn(dice)), colour


def _stick(dice: _Dice, width: int, height: int, size: int) -> tuple[np.ndarray, int, int, np.ndarray]:
    half = dice.roll(20, 60)  # of its thickness, in thousandths of half its length
    at = dice.roll(0, width - 1), dice.roll(0, height - 1)
    colour = _paint(dice.roll(0, HUES - 1), dice.roll(0, 255), dice.roll(30, 255))
    bar = Layer((_square(-UNIT, -half, UNIT, half),))
    return *_raster(bar, at, dice.roll(size // 8, size // 2), _turn(dice)), colour


def _raster(layer: Layer, at: Point, radius: int, turn: tuple[int, int, int]) -> tuple[np.ndarray, int, int]:
    """Samples covered per pixel, (s, s) int32 of 0..SAMPLES², and where the array's corner lies, x, y."""
    reach = radius + 2
    side = 2 * reach
    c, s, n = turn
    grid = 2 * SAMPLES  # a sample's centre is an odd number of these units

    def samples(contours: tuple[Polygon, ...]) -> np.ndarray:
        flips = np.zeros((side * SAMPLES, side * SAMPLES + 1), np.uint8)
        for contour in contours:
            turned = ((x * c - y * s, x * s + y * c) for x, y in contour)
            points = [tuple(reach * grid + part * radius * grid // (UNIT * n) for part in point) for point in turned]
            for start, stop in zip(points, points[1:] + points[:1]):
                _flip(flips, *sorted((start, stop), key=lambda point: point[1]))
        return np.bitwise_xor.accumulate(flips, axis=1)[:, :-1]

    inside = samples(layer.contours)
    if layer.cuts:
        inside &= 1 - samples(layer.cuts)
    rows = sum(inside[line::SAMPLES] for line in range(SAMPLES))  # (side, side * SAMPLES)
    coverage = sum(rows[:, column::SAMPLES] for column in range(SAMPLES))  # (side, side); faster than .sum(axis)
    return coverage.astype(np.int32), at[0] - reach, at[1] - reach


def _flip(flips: np.ndarray, low: Point, high: Point) -> None:
    """Marks, in every row that the edge crosses, the first sample to its right: there inside and outside change."""
    (x0, y0), (x1, y1) = low, high
    # Rows whose centre 2 row + 1 lies in y0 <= centre < y1; a cut may reach beyond the array.
    rows = np.arange(max(y0 // 2, 0), min(y1 // 2, len(flips)))
    if len(rows):
        rise = y1 - y0
        columns = (x0 * rise + (2 * rows + 1 - y0) * (x1 - x0) - rise) // (2 * rise) + 1
        flips[rows, columns.clip(0, flips.shape[1] - 1)] ^= 1


def _blend(canvas: np.ndarray, coverage: np.ndarray, x: int, y: int, colour: np.ndarray) -> None:
    window, share = _laid(canvas, coverage, x, y)
    share = share[..., None]
    window[...] = (window * (SAMPLES**2 - share) + colour * share + HALF) // SAMPLES**2


def _laid(plane: np.ndarray, coverage: np.ndarray, x: int, y: int) -> tuple[np.ndarray, np.ndarray]:
    """The view of `plane` under `coverage` laid with its corner at x, y, and the part of `coverage` on it."""
    height, width = plane.shape[:2]
    window = plane[max(y, 0) : max(y + len(coverage), 0), max(x, 0) : max(x + len(coverage), 0)]
    return window, coverage[max(-y, 0) : max(height - y, 0), max(-x, 0) : max(width - x, 0)]


def _draw_split(path: Path, info: dict) -> dict:
    """Writes the images and gives the COCO document that goes with them."""
    pictures, annotations = [], []
    for index in range(info["count"]):
        scene = draw(info["seed"], info["split"], index, info["size"])
        name = f"{info['split']}/{index:06d}.png"
        content, file = _png(scene.image), path.parent / "images" / name
        if not file.is_file() or file.read_bytes() != content:
            with atomic(file) as temporary:
                temporary.write_bytes(content)
        height, width, _ = scene.image.shape
        digest = sha256(content).hexdigest()
        pictures.append(dict(id=index + 1, file_name=name, width=width, height=height, sha256=digest))
        for box, label, area in zip(scene.boxes.tolist(), scene.labels.tolist(), scene.areas.tolist()):
            ids = dict(id=len(annotations) + 1, image_id=index + 1, category_id=label + 1)
            annotations.append(ids | dict(bbox=box, area=area, iscrowd=0))
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)]
    return {"info": info, "images": pictures, "annotations": annotations, "categories": categories}


def _standing(path: Path) -> dict | None:
    """The document that is already there, None if there is none; UserError if it is not one of ours."""
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_bytes())
        ours = document["info"]["description"] == DESCRIPTION
    except (ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise UserError(f"{path}: is not a file of built-in scenes; choose another folder, or move it away")
    return document


def _intact(path: Path, document: dict) -> bool:
    files = ((path.parent / "images" / image["file_name"], image["sha256"]) for image in document["images"])
    return all(file.is_file() and sha256(file.read_bytes()).hexdigest() == digest for file, digest in files)


def _png(image: np.ndarray) -> bytes:
    """BGR (h, w, 3) uint8 as a PNG of unfiltered rows in stored DEFLATE blocks."""
    height, width, _ = image.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 1:] = image[..., ::-1].reshape(height, -1)
    raw = rows.tobytes()
    blocks = [raw[at : at + 65535] for at in range(0, len(raw), 65535)]
    heads = (struct.pack("<BHH", block is blocks[-1], len(block), len(block) ^ 0xFFFF) for block in blocks)
    stored = b"".join(part for pair in zip(heads, blocks) for part in pair)
    pixels = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(raw))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, red, green and blue
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    )
