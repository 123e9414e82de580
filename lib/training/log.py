"""A run's log: one JSON object a line, and beside it the same numbers for TensorBoard, by tensorboardX.

tensorboardX's EventsWriter stands here rather than its SummaryWriter: that one hands events to a thread, whose flush
does not wait for them, so that nobody can say what a killed process has left.
"""

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lib.errors import UserError
from lib.record import atomic

CURVE_KEYS = ("step", "epoch")
EVENTS = "events.out.tfevents.*"  # what tensorboardX calls its files, beside the log


class Log:
    """`path` and the TensorBoard files beside it, continued at `step`: lines from there on, and half a line, are
    dropped; where the evaluation after the step before is `pending`, that one's line too.

    TensorBoard's files stay as they are, each start adds one that says from which step on the earlier ones are void; a
    run from its beginning (`step` 0) removes those of the run before it.
    """

    def __init__(self, path: Path, step: int, pending: bool = False):
        self._path, self._step, self._pending = path, step, pending

    def __enter__(self) -> "Log":
        from tensorboardX import event_file_writer, proto  # slow to import, and few who import this write a log

        lines = [line for line in read_log(self._path) if line["step"] < self._step] if self._step else []
        if self._pending:
            lines = [line for line in lines if "evaluation" not in line or line["step"] < self._step - 1]
        with atomic(self._path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        for old in self._path.parent.glob(EVENTS) if not self._step else ():
            old.unlink()
        self._stream = open(self._path, "a", encoding="utf-8")
        # The step in the name: two starts within a second would write the same file.
        self._event = proto.event_pb2.Event
        self._events = event_file_writer.EventsWriter(str(self._path.with_name("events")), f".{self._step}")
        if self._step:
            self._tell(self._step, session_log={"status": "START"})
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._events.close()

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line, handed to the operating system at once: a killed process loses none."""
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()
        values = [{"tag": tag, "simple_value": value} for tag, value in scalars(line).items()]
        self._tell(line["step"], summary={"value": values})

    def _tell(self, step: int, **what: Any) -> None:
        """One event for TensorBoard, which counts steps from one."""
        self._events.write_event(self._event(wall_time=time.time(), step=step + 1, **what))

    def flush(self) -> None:
        """Bring TensorBoard's file up to date on the disk: before a checkpoint, after which no line comes again."""
        self._events.flush()


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The whole lines of a log; a last line without its end is left out. UserError if there is no log."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); train first") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no log of a run ({error}); restore it, or train anew in another folder") from error


def curves(lines: Iterable[Mapping[str, Any]]) -> tuple[dict[str, list], list[dict[str, Any]]]:
    """(columns per step, one dict per evaluation) from the lines of a training log, as the train record holds them."""
    lines = list(lines)
    steps = [line for line in lines if "loss" in line]
    names = [name for name in (steps[0] if steps else ()) if name != "schedule"]
    columns = {name: [line[name] for line in steps] for name in names}
    return columns, [
        {**{key: line[key] for key in CURVE_KEYS}, **line["evaluation"]} for line in lines if "evaluation" in line
    ]


def changes(rows: Iterable[Mapping[str, float]]) -> dict[str, list[list[float]]]:
    """Columns of numbers that mostly stay as they are, as [row, value] wherever one becomes another; None: absent."""
    found: dict[str, list[list[float]]] = {}
    for i, row in enumerate(rows):
        for name in dict.fromkeys([*found, *row]):
            held = found.setdefault(name, [] if i == 0 else [[0, None]])
            if not held or held[-1][1] != row.get(name):
                held.append([i, row.get(name)])
    return found


def schedule(lines: Iterable[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """The `changes` of what each step of a log was taken by."""
    return changes(line["schedule"] for line in lines if "schedule" in line)


def scalars(line: Mapping[str, Any], group: str = "train") -> dict[str, float]:
    """The numbers of a line by TensorBoard's tags: "train/loss", "evaluation/AP", "cost/seconds"."""
    found = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            found |= scalars(value, name)
        elif name != "step" and value is not None:
            found[f"{group}/{name}"] = value
    return found
