"""Executes a notebook of the report in the process of the test: what papermill does, without the kernel's seconds."""

import ast
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nbformat

from lib import report
from lib.alignment.evidence import Evidence
from lib.errors import UserError
from lib.machine import notebook
from lib.report import pdf, pictures
from lib.show.messages import Messages

ROOT = Path(__file__).resolve().parents[1]
DRAW = pictures.draw
# What was drawn: by model, question and language, what the figures were drawn from, and they.
_drawn: dict[tuple, list[tuple[dict[tuple, str], tuple[pictures.Figure, ...]]]] = {}


def execute(source: Path, output: Path, kernel: str, values: Mapping[str, Any]) -> None:
    """Stands for `notebook.execute`."""
    held = nbformat.read(source, as_version=4)
    names: dict[str, Any] = {}
    problem, target = None, output
    held.metadata.papermill = {"parameters": dict(values)}
    for cell in (cell for cell in held.cells if cell.cell_type == "code"):
        cell.execution_count = 1
        try:
            cell.outputs = _run(cell.source, names)
        except AssertionError as error:
            problem, target = UserError(f"raised AssertionError: {error}"), notebook.failed_copy(output)
            cell.outputs = [nbformat.v4.new_output("error", ename="AssertionError", evalue=str(error), traceback=["3"])]
            break
        if "parameters" in cell.metadata.get("tags", []):
            names |= values
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(held, target)
    if problem:
        raise problem


def _run(source: str, names: dict[str, Any]) -> list[Any]:
    """The outputs of a cell: the value of its last expression."""
    *body, last = ast.parse(source).body
    exec(compile(ast.Module([*body, *([] if isinstance(last, ast.Expr) else [last])], []), "cell", "exec"), names)
    shown = eval(compile(ast.Expression(last.value), "cell", "eval"), names) if isinstance(last, ast.Expr) else None
    data = {"text/html": shown._repr_html_()} if hasattr(shown, "_repr_html_") else {}
    return [nbformat.v4.new_output("execute_result", data=data, execution_count=1)] if data else []


def printed(source: Path, target: Path) -> str:
    """Stands for `pdf.write`, which takes seconds."""
    target.write_bytes(b"%PDF-")
    return "nothing"


def drawn_once(evidence: Evidence, question: str, words: Messages | None = None) -> tuple[pictures.Figure, ...]:
    """Stands for `pictures.draw`: what the same records show, whenever and wherever they were written, is kept."""
    kept = _drawn.setdefault((evidence.model, question, words and words.language), [])
    for read, found in kept:
        if read == _digests(evidence, read):
            return found
    noted = Noted(evidence.folder, evidence.model)
    found = DRAW(noted, question, words)
    kept.append((_digests(noted, noted.asked), found))
    return found


class Noted(Evidence):
    """Notes the files that it is asked for: side, stage, suffix."""

    def __init__(self, folder: Path, model: str):
        super().__init__(folder, model)
        self.asked: set[tuple[str, str, str]] = set()

    def get(self, side: str, stage: str):
        self.asked.add((side, stage, ".json"))
        return super().get(side, stage)

    def arrays(self, side: str, stage: str, prefix: str = ""):
        self.asked.add((side, stage, ".safetensors"))
        return super().arrays(side, stage, prefix)


def _digests(evidence: Evidence, asked: Iterable[tuple[str, str, str]]) -> dict[tuple, str]:
    """Of each file what it holds before its provenance, which is another in each run; "" where it is absent."""
    paths = {one: evidence.path(*one[:2]).with_suffix(one[2]) for one in asked}
    return {
        one: hashlib.sha256(path.read_bytes().partition(b'"provenance"')[0]).hexdigest() if path.is_file() else ""
        for one, path in paths.items()
    }


def patch(monkeypatch) -> None:
    """Reports are made in this process, each figure once, and not printed."""
    monkeypatch.setattr(notebook, "execute", execute)
    monkeypatch.setattr(pdf, "write", printed)
    monkeypatch.setattr(pictures, "draw", drawn_once)


def made(
    folder: Path, models: list[str], language: str = "en", name: str = "90_compare", records: Path | None = None
) -> Path:
    """The page of a report folder, whose records lie in it unless told otherwise."""
    values = {"models": models, "report": str(folder), "records": str(records or folder / "records")}
    return report.make(name, {**values, "profile": "quick", "language": language}).html
