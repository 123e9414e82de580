"""A user's own port: a PyTorch original and a hand-written Jittor module, judged as the suite's models are.

Each side runs in a process of its environment (`lib.alignment.port.side`) and writes records in the suite's format;
`lib.alignment` judges them, so that `python -m lib compare` and `handin` read the folder like any other.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from lib.alignment import divergence
from lib.alignment.divergence import Divergence, Layer
from lib.alignment.questions import judge_records
from lib.alignment.seeded import seeded_input
from lib.alignment.verdict import FAILED
from lib.errors import UserError
from lib.machine import environment
from lib.record import Record, atomic, read

STAGES = {"evaluation": "divergence", "training": "divergence_training"}  # mode -> stage of the records of its layers
MODES = tuple(STAGES)
SHOWN = 3  # pairs of names in a line
ROLES = {"torch": "original", "jittor": "candidate"}


@dataclass(frozen=True)
class Port:
    """What is compared: a builder "package.module:function" per side, and the positional inputs of both.

    inputs: shapes "1,3,64,64", filled with standard normal numbers from `seed`, or one .npz whose arrays are taken in
    order. names: file with pairs of names; None: inferred. folder: of everything that is written.
    """

    torch: str
    jittor: str
    inputs: tuple[str, ...]
    folder: str
    name: str = "my_port"
    seed: int = 0
    names: str | None = None

    @property
    def root(self) -> Path:
        return Path(self.folder)

    @property
    def records(self) -> Path:
        return self.root / "records"

    @property
    def map(self) -> Path:
        return self.root / "names.json"

    @property
    def weights(self) -> Path:
        return self.root / "weights.safetensors"

    def layers(self, mode: str) -> Path:
        """Where the original's layers are captured."""
        return self.root / "layers" / mode

    def record(self, side: str, stage: str) -> Path:
        return self.records / self.name / side / f"{stage}.json"

    @property
    def files(self) -> tuple[str, ...]:
        return (self.inputs[0],) if self.inputs[0].endswith(".npz") else ()

    def arrays(self) -> list[np.ndarray]:
        """The inputs: float32, or integers. UserError in one line."""
        if self.files:
            found = _file(self.inputs[0])
        else:
            found = {text: seeded_input(f"port:{self.seed}:{i}", _shape(text)) for i, text in enumerate(self.inputs)}
        for name, array in found.items():
            if array.dtype.kind not in "fiu" or not array.size or not np.isfinite(array).all():
                raise UserError(
                    f"input {name}: {array.dtype.name}{list(array.shape)} must be numbers, some, and finite"
                )
        return [array.astype(np.float32) if array.dtype.kind == "f" else array for array in found.values()]

    def case(self) -> str:
        """What was measured, for both sides' records."""
        return f"{' '.join(self.inputs)}, seed {self.seed}"


def _shape(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) for part in parts):
        raise UserError(f"--input {text}: not a shape such as 2,3,64,64, nor one .npz file")
    return tuple(map(int, parts))


def _file(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as held:
            found = {name: held[name] for name in held.files}
    except (OSError, ValueError) as error:
        raise UserError(f"--input {path}: can't be read ({error})") from error
    if not found:
        raise UserError(f"--input {path}: holds no array")
    return found


@dataclass(frozen=True)
class Result:
    """What came out: the verdicts, and by mode the first divergence."""

    port: Port
    verdicts: Record
    divergence: Mapping[str, Divergence]

    def failing(self) -> list[str]:
        return [v["question"] for v in self.verdicts.fields["verdicts"] if v["verdict"] in FAILED]

    def pairs(self) -> str:
        """How the names were paired, in one line."""
        fields = read(self.port.record("jittor", "convert")).fields
        other = [f"{name} = {theirs}" for name, theirs in fields["names"].items() if name != theirs]
        alone = len(fields["missing"]) + len(fields["left_over"])
        return (
            f"{len(fields['names'])} entries paired, {len(other)} under other names"
            + (f" ({', '.join(other[:SHOWN])}{', …' * (len(other) > SHOWN)})" if other else "")
            + f", {alone} of one side alone"
        )

    def lines(self) -> list[str]:
        """Pairs of names, the verdicts on what was measured, and which layers to look at."""
        found = [f"{self.port.map}: {self.pairs()}"]
        found += [
            f"{v['verdict']:<8} {v['question']}" for v in self.verdicts.fields["verdicts"] if v["verdict"] != "NOT RUN"
        ]
        for mode, held in self.divergence.items():
            for direction in divergence.DIRECTIONS:
                layers = ", ".join(f"{layer.name} ({layer.kind})" for layer in held.blamed(direction))
                said = f": look at {layers}" if layers else ""
                found.append(f"{'FAIL' if layers else 'PASS':<8} layers, {mode}, {direction}{said}")
        return found

    def first(self) -> tuple[str, str, Layer] | None:
        """The first cause: (mode, direction, layer), evaluation before training and forward before backward."""
        found = (
            (mode, direction, held.first(direction))
            for direction in divergence.DIRECTIONS
            for mode, held in self.divergence.items()
        )
        return next((cause for cause in found if cause[2]), None)

    def depth(self, mode: str = "evaluation") -> dict[str, dict[str, list]]:
        """What `figures_alignment.error_through_depth` draws."""
        return {direction: self.divergence[mode].depth(direction) for direction in divergence.DIRECTIONS}

    def reproduction(self) -> Path | None:
        """The script that runs the first cause alone; None where nothing diverges."""
        cause = self.first()
        script = read(self.port.record("jittor", STAGES[cause[0]])).fields["reproduction"] if cause else None
        return Path(script) if script else None


def measure(port: Port, side: str) -> None:
    """Measure one side in a process of its environment. UserError with its one line where it fails."""
    specification = port.root / "port.json"
    with atomic(specification) as temporary:
        temporary.write_text(json.dumps(asdict(port), indent=1) + "\n", encoding="utf-8")
    arguments, what = ["-m", "lib.alignment.port.side", ROLES[side], str(specification)], getattr(port, side)
    environment.work(environment.named(side), arguments, what)
    if not port.record(side, "loss").is_file():
        raise UserError(f"{what}: its process ended before it was measured")


def compare(port: Port) -> Result:
    """Measure both sides, each in its own environment, and judge."""
    port.arrays()  # a bad input is said before a process starts
    for side in ROLES:
        port.record(side, "loss").unlink(missing_ok=True)  # an earlier run's must not pass for this one's
    for side in tqdm(ROLES, desc="measuring", unit="side", leave=False, disable=None):
        measure(port, side)
    return judge(port)


def judge(port: Port) -> Result:
    """The verdicts on the records of both sides, as a record beside them."""
    [verdicts] = judge_records(port.records, [port.name])
    found = {mode: divergence.localise(read(port.record("jittor", stage)).fields) for mode, stage in STAGES.items()}
    return Result(port, verdicts, found)
