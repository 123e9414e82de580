"""One notebook: its parameters, the files its numbers depend on, and its execution."""
import ast
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from lib import environment
from lib.errors import UserError
from lib.kernel import ARGUMENTS, LINES, Process, last_lines


class Family(NamedTuple):
    prefix: str  # how the names of its models begin
    tour: str    # the notebook that walks through its code


FAMILIES = {  # by the name of their files in lib/models, lib/losses
    "nanodet_plus": Family("nanodet-plus", "20_nanodet_plus"),
    "gold_yolo": Family("gold-yolo", "21_gold_yolo"),
    "rt_detr": Family("rtdetr", "22_rt_detr"),
}
# A stage's numbers do not depend on how it shows them, nor on how environments are built and kernels watched: a new table
# must not train again. What shapes a record takes nothing from these (tests/test_pipeline.py).
ASIDE = ("lib.figures", "lib.tables", "lib.report", "lib.installation", "lib.locks", "lib.doctor",
         "lib.kernel")
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
        content = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
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


@lru_cache(maxsize=None)
def module(root: Path, name: str) -> tuple[str, tuple[str, ...]]:
    """The file of a dotted name, relative to root, and the names that it imports; "" where the name is no module.

    Read once: the jobs of a report share their files, and parsing them for each took half of `make report`'s time.
    """
    path = root.joinpath(*name.split("."))
    whole = path.is_dir()
    file = path / "__init__.py" if whole else path.with_suffix(".py")
    if not file.is_file():
        return "", ()
    package = name if whole else name.rpartition(".")[0]
    return str(file.relative_to(root)), (*imported(file.read_text(encoding="utf-8"), package, file), package)


def sources(start: Path, side: str, models: Iterable[str], display: bool = False) -> list[str]:
    """The project's files that the numbers of a notebook, or of a module of the project, depend on: what it imports,
    directly or not.

    Left out: the other side's backend, the other families' models, and what stands aside (unless `display`).
    """
    others = set(FAMILIES) - {family(model) for model in models}
    found: set[str] = set()
    module_name = ".".join(start.with_suffix("").parts) if start.suffix == ".py" else ""
    waiting = [module_name] if module_name else [
        name for cell in cells(start) for name in imported(cell["source"], "", start)]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        file, imports = module(environment.ROOT, name)
        stem = Path(file).stem
        left_out = (stem in others or (name.startswith(ASIDE) and not display)
                    or (name.startswith("lib.backend.") and side in BOTH and not stem.startswith(side)))
        if file and (not left_out or name == module_name):
            found.add(file)
            waiting += imports
    return sorted(found)


def execute(notebook: Path, output: Path, kernel: str, values: Mapping[str, Any]) -> None:
    """Run a notebook; `output` appears only when every cell ran. What a failed run left is `<name>.failed.ipynb`.

    ProcessDied where the kernel's process ended by itself, UserError for any other failure. papermill's own record of
    what ran is not used: after a killed kernel it says "completed" for every cell.
    """
    # jsonschema would compile a grammar of international addresses, longer than all else here takes to start, for a format
    # that no notebook's schema has; it does without where the package can't be imported.
    sys.modules.setdefault("rfc3987_syntax", None)
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import DeadKernelError

    failed, partial = failed_copy(output), output.with_name(f".{output.stem}.{os.getpid()}.ipynb")
    partial.parent.mkdir(parents=True, exist_ok=True)
    process = Process(partial.with_suffix(".log"))
    problem: UserError | None = None
    try:
        papermill.execute_notebook(
            notebook, partial, parameters=dict(values), kernel_name=kernel, language="python", progress_bar=False,
            log_output=False, cwd=environment.ROOT, kernel_manager_class=process.manager(), extra_arguments=ARGUMENTS)
    except papermill.PapermillExecutionError as error:
        first = error.source.strip().splitlines()[0]
        raised = f"raised {error.ename}: {' '.join(str(error.evalue).split())}"
        problem = UserError(f"{notebook}: code cell {error.exec_count} ({first!r}) {raised}")
    except NoSuchKernel as error:
        raise UserError(f"{notebook}: the kernel {kernel} is absent: run `make envs`") from error
    except (DeadKernelError, RuntimeError) as error:  # the latter where it dies before its first cell
        if process.running is None or process.running.poll() is None:
            raise
        problem = process.died(f"{notebook}: {last_started(partial)}: the kernel")
        problem.__cause__ = error
    else:
        skipped = [cell for cell in cells(partial) if cell["source"].strip() and cell["execution_count"] is None]
        problem = UserError(f"{notebook}: {len(skipped)} cells did not run") if skipped else None
    finally:
        said = last_lines(process.written(), 100 * LINES)
        process.log.unlink(missing_ok=True)
    if problem is None:
        os.replace(partial, output)
        failed.unlink(missing_ok=True)
        return
    if partial.is_file():
        add_output(partial, said)
        os.replace(partial, failed)
    raise problem


def failed_copy(output: Path) -> Path:
    """Where what a failed run left is kept."""
    return output.with_name(f"{output.stem}.failed.ipynb")


def started(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The code cells that papermill began (a kernel that died sent no count)."""
    return [cell for cell in content["cells"]
            if cell["cell_type"] == "code" and cell["metadata"].get("papermill", {}).get("start_time")]


def add_output(notebook: Path, lines: list[str]) -> None:
    """Put what the kernel's process wrote beside its cells below the cell that failed, where its reader looks."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    cells_run = started(content)
    if lines and cells_run:
        text = "".join(f"{line}\n" for line in lines)
        cells_run[-1]["outputs"].append({"output_type": "stream", "name": "stderr", "text": text})
        notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def last_started(notebook: Path) -> str:
    """The code cell that was running when the kernel went."""
    begun = started(json.loads(notebook.read_text(encoding="utf-8"))) if notebook.is_file() else []
    if not begun:
        return "before the first cell"
    return f"code cell {len(begun)} ({''.join(begun[-1]['source']).strip().splitlines()[0]!r})"
