"""Lectures from notebooks: reveal.js decks, each one file that works without a network, in the shell's language.

A markdown cell is a slide; the code below it, with what it gives, lies one step down, so that a prediction comes before
the result. A picture, and what code of more than a few lines gives, has a slide of its own, where it can be large; the
page splits a table that is taller than its slide (templates/align). Cells before the second text (parameters, imports)
are left out. A cell's own slide metadata wins.
"""

import importlib.util
import json
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import nbformat
from nbconvert.exporters import SlidesExporter
from nbformat import NotebookNode
from traitlets.config import Config

from lib.errors import UserError
from lib.machine import environment
from lib.machine.notebook import execute, parameters
from lib.record import ROOT, atomic
from lib.show.messages import spoken

TEMPLATES = Path(__file__).parent / "templates"
LECTURES = ("20_nanodet_plus", "21_gold_yolo", "22_rt_detr", "30_migration")
FIRST = {"30_migration": "jittor"}  # lectures that read what the other kernel recorded: it runs before
KERNEL = "torch"  # whose outputs are shown
PACKAGE = "sphinx-revealjs"  # the pinned package that brings reveal.js
SHORT = 3  # lines of code that stay on one slide with what they give
RESULT = "result"  # tag of a slide that shows what the code on the slide before gave


def reveal() -> Path:
    """The folder of reveal.js, from the environment."""
    found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if found is None or not found.origin:
        raise UserError(f"slides: {PACKAGE}, which brings reveal.js, is not installed: run `make envs`")
    return Path(found.origin).parent / "_static" / "revealjs"


def typed(notebook: NotebookNode) -> NotebookNode:
    """The notebook with a slide type in every cell; those that have one keep it."""
    texts, cells = 0, []
    for cell in notebook.cells:
        texts += cell.cell_type == "markdown"
        kind = "slide" if cell.cell_type == "markdown" else "skip" if texts < 2 else "subslide"
        held = cell.metadata.setdefault("slideshow", {})
        held.setdefault("slide_type", kind)
        cells += _apart(cell)
    notebook.cells = cells
    return notebook


def _apart(cell: NotebookNode) -> list[NotebookNode]:
    """The cell, or its code and the tables or pictures that it gave as two cells; short code that draws is left out."""
    shown = "".join(one.get("data", {}).get("text/html", "") for one in cell.get("outputs", []))
    short = len(cell.source.splitlines()) <= SHORT
    if not shown or (short and "<img" not in shown):
        return [cell]
    given = deepcopy(cell)
    given.metadata["tags"] = [*given.metadata.get("tags", []), RESULT]
    if short:
        return [given]
    cell.outputs, given.id = [], f"{cell.id}-{RESULT}"
    if given.metadata["slideshow"]["slide_type"] == "slide":
        given.metadata["slideshow"]["slide_type"] = "subslide"
    return [cell, given]


def deck(notebook: NotebookNode, language: str = "en") -> str:
    """The HTML of a notebook's deck."""
    hidden = {"enabled": True, "remove_input_tags": {RESULT}}
    exporter = SlidesExporter(
        config=Config(TagRemovePreprocessor=hidden),
        template_name="align",
        extra_template_basedirs=[str(TEMPLATES)],
        extra_template_paths=[str(TEMPLATES / "notebook")],  # where a text's language is chosen
    )
    dist = reveal() / "dist"
    files = {
        "reveal_css": dist / "reveal.css",
        "reveal_js": dist / "reveal.js",
        "css": TEMPLATES / "slides.css",
        "notes_js": reveal() / "plugin" / "notes" / "notes.js",
    }
    held = {name: _inline(path) for name, path in files.items()}
    return exporter.from_notebook_node(typed(notebook), {"deck": held, "language": language})[0]


def _inline(path: Path) -> str:
    """A file's text, safe inside a page: no closing tag, no map that a browser would look for."""
    text = path.read_text(encoding="utf-8").replace("</script", "<\\/script")
    return re.sub(r"^//# sourceMappingURL=.*$|/\*# sourceMappingURL=.*?\*/", "", text, flags=re.M)


def make(names: Mapping[str, Path] | None, out: Path, profile: str) -> list[Path]:
    """Write a deck per lecture into `out`; `names`: name -> notebook, by default LECTURES.

    An executed copy that `make report` left under reports/<profile>/notebooks serves, where it speaks the shell's
    language; else the notebook is run.
    """
    reveal()  # its absence is said before a notebook has run for minutes
    chosen = names or {name: ROOT / "notebooks" / f"{name}.ipynb" for name in LECTURES}
    written, language = [], spoken()
    for name, source in chosen.items():
        executed = _executed(name, source, profile, language) or _run(source, out)
        with atomic(out / f"{name}.html") as temporary:
            temporary.write_text(deck(nbformat.read(executed, as_version=4), language), encoding="utf-8")
        written.append(out / f"{name}.html")
    return written


def _executed(name: str, source: Path, profile: str, language: str) -> Path | None:
    """The newest executed copy in the language, with the cells that the notebook has now; KERNEL's, where it reads
    another's record."""
    copies = (ROOT / "reports" / profile / "notebooks").glob(f"*/{KERNEL if name in FIRST else '*'}/{name}.ipynb")
    newest = sorted(copies, key=lambda path: path.stat().st_mtime, reverse=True)
    wanted = _sources(source), language
    return next((path for path in newest if (_sources(path), _language(path)) == wanted), None)


def _language(path: Path) -> str:
    """What the outputs of an executed notebook speak: tables and figures have Chinese letters, or none."""
    outputs = [cell["outputs"] for cell in nbformat.read(path, as_version=4).cells if cell["cell_type"] == "code"]
    return "zh" if re.search(r"[\u4e00-\u9fff]", json.dumps(outputs, ensure_ascii=False)) else "en"


def _sources(path: Path) -> list[str]:
    """The cells' texts, but for the parameters, which a run replaces."""
    cells: list[dict[str, Any]] = nbformat.read(path, as_version=4).cells
    return [cell["source"] for cell in cells if "injected-parameters" not in cell["metadata"].get("tags", [])]


def _run(source: Path, out: Path) -> Path:
    """Run a notebook; its records go beside the executed copy, not among those of a report."""
    executed = out / ".executed" / source.name
    values = parameters(source, {}, {"records": str(executed.parent / "records")}, source.name)
    for kernel in filter(None, (FIRST.get(source.stem), KERNEL)):
        environment.location(environment.named(kernel))  # a clear error where it is absent
        execute(source, executed, kernel, values)
    return executed
