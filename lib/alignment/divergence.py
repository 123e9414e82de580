"""The first layer that diverges, forward and backward, from the errors that `lib.alignment.layers` recorded.

A layer's own error is what it adds: its output on the reference's inputs against the exact one. It is gated by K times
the reference's own float32 error there, and in float64 by SHARP closer, where all of it is computed in float64. Its
inherited error is what its output shows inside the whole network; output over input is how much the layer amplifies what
reaches it.

It says where two sides part, not which is right. PyTorch 2.13 on the CPU is wrong itself in a batch of one: the gradient
of a batch norm whose output goes to tokens (reshape, permute) is not that of finite differences.

Blamed is a layer beyond its gate none of whose parts is: of the layers around a fault the innermost, and where all parts
are right the code that puts them together. The first such layer in the order of the pass is the first divergence.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lib.alignment.verdict import FEW, ROUNDING, SHARP, K, Row, fault, shared_floor

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
    noise: Mapping[str, float | None]      # the same of the reference's float32 against its float64

    @property
    def name(self) -> str:
        """The full path; later calls of a module carry their number."""
        return (self.path or ROOT) + (f" (call {self.call + 1})" if self.call else "")

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
    shared = {direction: _shared(fields["layers"], direction) for direction in DIRECTIONS}
    factor = SHARP if fields["float64"] == "full" else 1.0
    layers = [
        Layer(call["path"], call["call"], call["kind"], call["leaf"], _own(call, shared, factor), _numbers(call["inherited"]),
              _numbers(call["noise"])) for call in fields["layers"]
    ]  # fmt: skip
    largest = _largest(layers)
    layers = [replace(layer, own=_held_to_the_largest(layer, largest)) for layer in layers]
    extra = [] if fields["mapped"] else fields["apart"]["candidate"]
    faults = [fault(path, "module", "left over: the reference has no such module") for path in extra]
    if not layers:
        faults.append(fault("(nothing)", "module", "empty comparison: no layer was looked at"))
    return Divergence(tuple(layers), tuple(faults))


def _largest(layers: Sequence[Layer]) -> dict[str, float]:
    """The largest relative floor of a leaf in float32, by direction."""
    return {direction: max((row.relative(row.floor) for layer in layers if layer.leaf
                            if (row := layer.own.get((direction, "float32"))) and row.floor == row.floor), default=0.0)
            for direction in DIRECTIONS}


def _held_to_the_largest(layer: Layer, largest: Mapping[str, float]) -> dict[tuple[str, str], Row]:
    """The layer's rows, those in float32 beyond their own floor held to `largest` where float64 agrees.

    One run is a poor sample of rounding: PyTorch's convolutions add thousands of products in blocks, Jittor's one by one,
    with several times the noise. A fault would show in float64.
    """
    rows = dict(layer.own)
    for direction in DIRECTIONS:
        row, exact = rows.get((direction, "float32")), rows.get((direction, "float64"))
        gate = K * largest[direction] * row.scale if row else 0.0
        if row and exact and exact.passed and row.passed is False and row.error <= gate:
            note = f"{row.note}; beyond its own floor, held to the leaves' largest; its float64 run agrees"
            rows[direction, "float32"] = replace(row, floor=gate / K, gate=gate, passed=True, note=note)
    return rows


def _own(call: Mapping[str, Any], shared: Mapping[str, float], factor: float) -> dict[tuple[str, str], Row]:
    name = (call["path"] or ROOT) + (f" (call {call['call'] + 1})" if call["call"] else "")
    if call["fault"]:
        return {("forward", "float32"): fault(name, "own error, forward, float32", call["fault"])}
    unfit, rows = _unfit(call), {}
    for precision, errors in call["errors"].items():
        for direction, entry in errors.items():
            if entry is None:
                continue
            # Where a composite holds a step or a kink, float32 noise inside it can flip a unit: then float64 judges.
            kinked = precision == "float32" and not call["leaf"] and "float64" in call["errors"] and (direction == "backward" or entry["discrete"])
            shown = unfit or ("judged in float64: noise inside it may flip a unit" if kinked else None)
            rows[direction, precision] = _row(name, direction, precision, entry, shared[direction], shown, factor)
    return rows


def _unfit(call: Mapping[str, Any]) -> str | None:
    """Why the call's own error means nothing, or None."""
    if call["unable"]:
        return call["unable"]
    if not float(call["repeat"]) <= K:
        return f"it gives another output each time ({float(call['repeat']):.3g} roundings apart)"
    if not float(call["replay"]) <= K:
        return f"alone it gives another output than inside the model ({float(call['replay']):.3g} floors apart): it depends on " \
               "more than its positional inputs"
    return None


def _row(name: str, direction: str, precision: str, entry: Mapping[str, Any], shared: float, shown: str | None,
         factor: float) -> Row:  # fmt: skip
    """Both metrics are gated, the worse in gates is shown; `factor`: how much closer a float64 run is held."""
    what = f"own error, {direction}, {precision}"
    entry = entry | {key: float(entry[key]) for key in ("max_abs", "l2", "scale_max", "scale_l2", "floor_max", "floor_l2")}
    floors = {"max_abs": entry["floor_max"], "l2": entry["floor_l2"]}
    scales = {"max_abs": entry["scale_max"], "l2": entry["scale_l2"]}
    if entry["fault"] and not shown:
        return fault(name, what, f"{entry['tensor']}: {entry['fault']}")
    least = max(ROUNDING, shared if entry["size"] < FEW else 0.0)
    factor = factor if precision == "float64" else 1.0
    gates = {m: 0.0 if entry["discrete"] else K * factor * max(floors[m], least * scales[m]) for m in floors}
    rows = [Row(name, what, entry[m], gates[m] / K, gates[m], scales[m], None if shown else bool(entry[m] <= gates[m]),
                shown or f"{entry['tensor']}, worst at {tuple(entry['worst'])}") for m in gates]  # fmt: skip
    return max(rows, key=lambda row: (row.passed is False, row.ratio))


def _shared(calls: Sequence[Mapping[str, Any]], direction: str) -> float:
    """The relative floor of tensors of a few elements, as `verdict.noise_floors` has it."""
    entries = [call["errors"]["float32"][direction] for call in calls if call["errors"].get("float32", {}).get(direction)]
    relative = {str(i): (float(e["floor_l2"]) / float(e["scale_l2"]), e["size"]) for i, e in enumerate(entries)
                if not e["fault"] and not e["discrete"] and float(e["scale_l2"])}  # fmt: skip
    return shared_floor(relative) if relative else 0.0


def _numbers(values: Mapping[str, Any] | None) -> dict[str, float | None]:
    return {name: None if value is None else float(value) for name, value in (values or {}).items()}


def _inside(path: str, outer: str) -> bool:
    return path != outer and (not outer or path.startswith(outer + "."))


def _relative(row: Row, value: float) -> float | None:
    return value / row.scale if row.scale and value == value else None
