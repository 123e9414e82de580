"""The first layer that diverges, forward and backward, from the errors that `lib.alignment.layers` recorded.

A layer's own error is what it adds: its output on the reference's inputs against the exact one. It is gated by K times
the reference's own float32 error there, and in float64 by FINER closer, where all of it is computed in float64. Its
inherited error is what its output shows inside the whole network; output over input is how much the layer amplifies
what reaches it.

It says where two sides part, not which is right. PyTorch 2.13 on the CPU is wrong itself in a batch of one: the
gradient of a batch norm whose output goes to tokens (reshape, permute) is not that of finite differences.

Blamed is a layer beyond its gate none of whose parts is: of the layers around a fault the innermost, and where all
parts are right the code that puts them together. The first such layer in the order of the pass is the first divergence.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lib.alignment.compare import Comparison
from lib.alignment.verdict import FINER, K, Reach, Row, fault, gated, held_to, least_floor

DIRECTIONS = ("forward", "backward")
ROOT = "(the model itself)"


@dataclass(frozen=True)
class Layer:
    """One call of a module; `own` by (direction, precision), judged or, where `passed` is None, only shown."""

    path: str
    call: int  # counts the calls of this module from 0
    kind: str
    leaf: bool
    own: Mapping[tuple[str, str], Row]
    inherited: Mapping[str, float | None]  # relative L2 of "input", "output", "input_gradient", "output_gradient"
    noise: Mapping[str, float | None]  # the same of the reference's float32 against its float64

    @property
    def name(self) -> str:
        """The full path; later calls of a module carry their number."""
        return _named(self.path, self.call)

    def fails(self, direction: str) -> bool:
        """Whether its own error is beyond the gate in some precision."""
        return any(row.passed is False for (way, _), row in self.own.items() if way == direction)

    def amplification(self, direction: str) -> float | None:
        """Inherited error of what leaves the layer over that of what reaches it; None where either is absent or 0."""
        before, after = ("input", "output") if direction == "forward" else ("output_gradient", "input_gradient")
        reaching, leaving = self.inherited.get(before), self.inherited.get(after)
        return leaving / reaching if reaching and leaving is not None else None


@dataclass(frozen=True)
class Divergence:
    """All calls in order of execution, inner ones before those around them."""

    layers: tuple[Layer, ...]
    faults: tuple[Row, ...]  # what kept layers from being compared, as failing rows

    def blamed(self, direction: str) -> list[Layer]:
        """The layers to look at, first divergence first."""
        failing = [layer for layer in self.layers if layer.fails(direction)]
        inner = [layer for layer in failing if not any(_inside(other.path, layer.path) for other in failing)]
        return inner if direction == "forward" else inner[::-1]

    def first(self, direction: str) -> Layer | None:
        """The first divergence of the pass, or None."""
        return next(iter(self.blamed(direction)), None)

    def rows(self) -> list[Row]:
        """Every row, for a verdict."""
        return [*self.faults, *(row for layer in self.layers for row in layer.own.values())]

    def depth(self, direction: str) -> dict[str, list]:
        """What a figure of the error through the depth draws: a column each, of the calls in order of execution.

        "own" and "gate" are relative to the layer's scale, in float32; None where a call has no such number.
        """
        side = "output" if direction == "forward" else "input_gradient"
        own = [layer.own.get((direction, "float32")) for layer in self.layers]
        blamed = self.blamed(direction)
        return {
            "name": [layer.name for layer in self.layers],
            "leaf": [layer.leaf for layer in self.layers],
            "own": [row and _relative(row, row.error) for row in own],
            "gate": [row and _relative(row, row.gate) for row in own],
            "inherited": [layer.inherited.get(side) for layer in self.layers],
            "noise": [layer.noise.get(side) for layer in self.layers],
            "blamed": [layer in blamed for layer in self.layers],
        }


def localise(fields: Mapping[str, Any]) -> Divergence:
    """Judge the fields that `layers.candidate` gave, fresh or read from a record."""
    least = {direction: _least(fields["layers"], direction) for direction in DIRECTIONS}
    factor = FINER if fields["float64"] == "full" else 1.0
    layers = [
        Layer(
            *(call[name] for name in ("path", "call", "kind", "leaf")),
            _own(call, least, factor),
            _numbers(call["inherited"]),
            _numbers(call["noise"]),
        )
        for call in fields["layers"]
    ]
    largest = {direction: _largest(layers, direction) for direction in DIRECTIONS}
    layers = [replace(layer, own=_held_to_the_largest(layer.own, largest)) for layer in layers]
    extra = [] if fields["mapped"] else fields["apart"]["candidate"]
    faults = [fault(path, "module", "left over: the reference has no such module") for path in extra]
    if not layers:
        faults.append(fault("(nothing)", "module", "empty comparison: no layer was looked at"))
    return Divergence(tuple(layers), tuple(faults))


def first_alone(fields: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The recorded call of the first divergence, forward before backward; None where none is or it can't be run
    alone."""
    found = localise(fields)
    layer = found.first("forward") or found.first("backward")
    calls = {(call["path"], call["call"]): call for call in fields["layers"] if not call["unable"]}
    return calls.get((layer.path, layer.call)) if layer else None


def _largest(layers: Sequence[Layer], direction: str) -> float:
    """The largest relative floor of a leaf in float32."""
    rows = [layer.own.get((direction, "float32")) for layer in layers if layer.leaf]
    return max((row.relative(row.reach) for row in rows if row and row.reach == row.reach), default=0.0)


def _held_to_the_largest(
    own: Mapping[tuple[str, str], Row], largest: Mapping[str, float]
) -> dict[tuple[str, str], Row]:
    """A layer's rows, those in float32 beyond their own floor held to `largest` where float64 agrees.

    One run is a poor sample of rounding: PyTorch's convolutions add thousands of products in blocks, Jittor's one by
    one, with several times the noise. A fault would show in float64.
    """
    rows = dict(own)
    for (direction, precision), row in own.items():
        exact = own.get((direction, "float64"))
        if precision == "float32" and row.passed is False and exact and exact.passed:
            said = "beyond its own floor, held to the leaves' largest; its float64 run agrees"
            rows[direction, precision] = held_to(row, largest[direction] * row.scale, note=f"{row.note}; {said}")
    return rows


def _own(
    call: Mapping[str, Any], least: Mapping[str, Callable[[int], float]], factor: float
) -> dict[tuple[str, str], Row]:
    """The rows of a call; `factor`: how much closer a float64 run is held."""
    name = _named(call["path"], call["call"])
    if call["fault"]:
        return {("forward", "float32"): fault(name, "own error, forward, float32", call["fault"])}
    unfit, rows = _unfit(call), {}
    for precision, errors in call["errors"].items():
        for direction, entry in errors.items():
            if entry is None:
                continue
            what = f"own error, {direction}, {precision}"
            # Where a composite holds a step or a kink, float32 noise inside it can flip a unit: then float64 judges.
            kinked = (
                precision == "float32"
                and not call["leaf"]
                and "float64" in call["errors"]
                and (direction == "backward" or entry["discrete"])
            )
            shown = unfit or ("judged in float64: noise inside it may flip a unit" if kinked else None)
            if entry["fault"] and not shown:
                rows[direction, precision] = fault(name, what, f"{entry['tensor']}: {entry['fault']}")
                continue
            found = _comparison(entry)
            floor = Reach.of(float(entry["floor_max"]), float(entry["floor_l2"]))
            floor = floor.at_least(Reach.of(found.scale_max, found.scale_l2).times(least[direction](found.size)))
            floor = floor.times(0.0 if entry["discrete"] else factor if precision == "float64" else 1.0)
            row = gated(found, floor, K, name, what, shown or f"{found.name}, worst at {found.worst}")
            rows[direction, precision] = replace(row, passed=None) if shown else row
    return rows


def _unfit(call: Mapping[str, Any]) -> str | None:
    """Why the call's own error means nothing, or None."""
    if call["unable"]:
        return call["unable"]
    if not float(call["repeat"]) <= K:
        return f"it gives another output each time ({float(call['repeat']):.3g} roundings apart)"
    if not float(call["replay"]) <= K:
        said = f"alone it gives another output than inside the model ({float(call['replay']):.3g} floors apart)"
        return f"{said}: it depends on more than its positional inputs"
    return None


def _comparison(entry: Mapping[str, Any]) -> Comparison:
    """As `layers` compared the worst tensor of a call; records write infinity as a string."""
    numbers = {name: float(entry[name]) for name in ("max_abs", "l2", "scale_max", "scale_l2")}
    numbers |= {"along": numbers["l2"], "differing": 0}  # neither was kept: no part is longer than all of it
    return Comparison(entry["tensor"], entry["fault"], entry["size"], worst=tuple(entry["worst"]), **numbers)


def _least(calls: Sequence[Mapping[str, Any]], direction: str) -> Callable[[int], float]:
    entries = [call["errors"].get("float32", {}).get(direction) for call in calls]
    known = [entry for entry in entries if entry and not entry["fault"] and not entry["discrete"]]
    return least_floor((float(e["floor_l2"]) / float(e["scale_l2"]), e["size"]) for e in known if float(e["scale_l2"]))


def _named(path: str, call: int) -> str:
    return (path or ROOT) + (f" (call {call + 1})" if call else "")


def _numbers(values: Mapping[str, Any] | None) -> dict[str, float | None]:
    return {name: None if value is None else float(value) for name, value in (values or {}).items()}


def _inside(path: str, outer: str) -> bool:
    return path != outer and (not outer or path.startswith(outer + "."))


def _relative(row: Row, value: float) -> float | None:
    return value / row.scale if row.scale and value == value else None
