"""One notebook: its parameters, the files its numbers depend on, and its execution."""
import ast
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lib import environment
from lib.errors import UserError


class Family(NamedTuple):
    prefix: str  # how the names of its models begin
    tour: str    # the notebook that walks through its code


FAMILIES = {  # by the name of their files in lib/models, lib/losses
    "nanodet_plus": Family("nanodet-plus", "20_nanodet_plus"),
    "gold_yolo": Family("gold-yolo", "21_gold_yolo"),
    "rt_detr": Family("rtdetr", "22_rt_detr"),
}
# A stage's numbers do not depend on how it shows them, nor on how environments are built: a new table must not train again.
ASIDE = ("lib.figures", "lib.tables", "lib.report", "lib.installation", "lib.doctor")
BOTH = ("torch", "jittor")


def family(model: str) -> str:
    """The family that a model's name belongs to."""
    for name, one in FAMILIES.items():
        if model.startswith(one.prefix):
            return name
    raise UserError(f"MODELS: '{model}' is no model: names begin with {', '.join(one.prefix for one in FAMILIES.values())}")


def cells(notebook: Path) -> list[dict[str, Any]]:
    """The code cells, each with its source joined to one string."""
    try:
        content = json.loads(notebook.read_text())["cells"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{notebook}: not a readable notebook ({error}): restore it from git") from error
    return [{**cell, "source": "".join(cell["source"])} for cell in content if cell["cell_type"] == "code"]


def declared(notebook: Path) -> dict[str, Any]:
    """Names and defaults in the cell tagged `parameters`, which holds literals only."""
    tagged = [cell for cell in cells(notebook) if "parameters" in cell.get("metadata", {}).get("tags", [])]
    if not tagged:
        return {}
    found = {}
    for statement in ast.parse(tagged[0]["source"]).body:
        if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
            raise UserError(f"{notebook.name}: the parameters cell holds more than `name = literal` (line {statement.lineno})")
        found[statement.targets[0].id] = ast.literal_eval(statement.value)
    return found


def parameters(notebook: Path, section: Mapping[str, Any], offered: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What the notebook gets: all of its profile section, and of what is offered to every notebook what it declares."""
    defaults = declared(notebook)
    unknown = sorted(set(section) - set(defaults))
    if unknown:
        raise UserError(f"{where}.{unknown[0]}: {notebook.name} has no such parameter: it has {', '.join(sorted(defaults))}")
    for name, value in section.items():
        if isinstance(value, str) and isinstance(defaults[name], (int, float)):
            raise UserError(f"{where}.{name}: '{value}' is text to YAML: write it as a number, 1.0e-3 rather than 1e-3")
    return {name: value for name, value in {**offered, **section}.items() if name in defaults}


def imported(code: str, package: str, where: Path) -> Iterator[str]:
    """The names below `lib` that Python code imports, the names taken from modules included."""
    try:
        tree = ast.parse(code)
    except SyntaxError as error:
        raise UserError(f"{where}: line {error.lineno}: {error.msg} in {(error.text or '').strip()!r}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "lib")
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[:len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*parts, *filter(None, [node.module])])
            if module.split(".")[0] == "lib":
                yield module
                yield from (f"{module}.{alias.name}" for alias in node.names)


def sources(notebook: Path, side: str, models: Iterable[str], display: bool = False) -> list[str]:
    """The project's files that a notebook's numbers depend on: what it imports, directly or not.

    Left out: the other side's backend, the other families' models, and what stands aside (unless `display`).
    """
    root = environment.ROOT
    others = set(FAMILIES) - {family(model) for model in models}
    found: set[str] = set()
    waiting = [name for cell in cells(notebook) for name in imported(cell["source"], "", notebook)]
    while waiting:
        name = waiting.pop()
        path = root.joinpath(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        relative = str(file.relative_to(root))
        skipped = (relative in found or not file.is_file() or file.stem in others
                   or (not display and name.startswith(ASIDE))
                   or (name.startswith("lib.backend.") and side in BOTH and not file.stem.startswith(side)))
        if not skipped:
            found.add(relative)
            package = name if path.is_dir() else name.rpartition(".")[0]
            waiting += [*imported(file.read_text(), package, file), package]
    return sorted(found)


def execute(notebook: Path, output: Path, kernel: str, values: Mapping[str, Any]) -> None:
    """Run a notebook; `output` appears only when every cell ran. What a failed run left is `<name>.failed.ipynb`.

    papermill's own record of what ran is not used: after a killed kernel it says "completed" for every cell.
    """
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import DeadKernelError

    failed = output.with_name(f"{output.stem}.failed.ipynb")
    partial = output.with_name(f".{output.stem}.{os.getpid()}.ipynb")
    partial.parent.mkdir(parents=True, exist_ok=True)
    problem = None
    try:
        papermill.execute_notebook(notebook, partial, parameters=dict(values), kernel_name=kernel, language="python",
                                   progress_bar=False, log_output=False, cwd=environment.ROOT)
    except papermill.PapermillExecutionError as error:
        first = error.source.strip().splitlines()[0]
        problem = f"code cell {error.exec_count} ({first!r}) raised {error.ename}: {' '.join(str(error.evalue).split())}"
    except DeadKernelError:
        problem = (f"{last_started(partial)}: the kernel was killed, most often for lack of memory: "
                   "close other programs or lower the batch size")
    except NoSuchKernel as error:
        raise UserError(f"{notebook}: the kernel {kernel} is absent: run `make envs`") from error
    if problem is None:
        skipped = [cell for cell in cells(partial) if cell["source"].strip() and cell["execution_count"] is None]
        problem = f"{len(skipped)} cells did not run" if skipped else None
    if problem is None:
        os.replace(partial, output)
        failed.unlink(missing_ok=True)
        return
    where = ""
    if partial.is_file():
        os.replace(partial, failed)
        where = f" (see {failed})"
    raise UserError(f"{notebook}: {problem}{where}")


def last_started(notebook: Path) -> str:
    """The code cell that was running when the kernel went, by papermill's start times (the kernel sent no count)."""
    started = [cell for cell in cells(notebook) if cell["metadata"]["papermill"]["start_time"]] if notebook.is_file() else []
    return f"code cell {len(started)} ({started[-1]['source'].strip().splitlines()[0]!r})" if started else "before the first cell"
