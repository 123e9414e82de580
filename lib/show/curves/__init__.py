"""Logs of trainings, ours and those that the published repositories write, as comparable curves over epochs.

Read are
* `log.jsonl` of this suite, or the folder of a run that holds it;
* NanoDet's `logs.txt` and console output (RangiLyu/nanodet, nanodet/trainer/task.py and util/logger.py);
* Gold-YOLO's console output, kept by `tee` or `>>` (huawei-noah/Efficient-Computing, Detection/Gold-YOLO,
  yolov6/core/engine.py: the repository writes no text log of its own);
* RT-DETR's `log.txt` and console output (lyuwenyu/RT-DETR, rtdetr_pytorch/src/solver/det_solver.py).
A line that is cut off says nothing. Where a run was resumed, what it repeats replaces what was there.
"""

import json
import re
from pathlib import Path

from lib.errors import UserError
from lib.show.curves.formats import PARSERS, Progress

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
KNOWN = "this suite's log.jsonl, NanoDet's logs.txt, Gold-YOLO's console output, RT-DETR's log.txt or console output"


def read(path: str | Path, name: str | None = None) -> Progress:
    """One training; `name` is what its curves are called, by default its file or folder. UserError for another file."""
    path = Path(path)
    file = path / "log.jsonl" if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{file}: can't be read ({error.strerror}); give {KNOWN}") from error
    lines = _whole_lines(text)
    name = name or (
        file.parent.name if file.name in ("log.jsonl", "log.txt", "logs.txt") and file.parent.name else file.name
    )
    entries = [entry for line in lines if (entry := _entry(line)) is not None]
    for kind, of_entries, parse in PARSERS:
        curves = parse(entries if of_entries else lines)
        if curves.losses or curves.evaluations:
            return Progress(name, kind, curves)
    raise UserError(f"{file}: no training log that is known; give {KNOWN}")


def _whole_lines(text: str) -> list[str]:
    """Lines that have their end; a progress bar's carriage returns end lines too."""
    return ANSI.sub("", text.replace("\r", "\n")).split("\n")[:-1]


def _entry(line: str) -> dict | None:
    """The JSON object of a line, None for anything else."""
    if not line.startswith("{"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
