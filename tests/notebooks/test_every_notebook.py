"""Every notebook of every family in its kernel, and the report that they make.

Takes minutes of both cores: `make test` runs it once, beside the last tests of the torch environment.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from lib.machine import environment
from lib.machine.notebook import cells

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("nanodet-plus-m_320", "gold-yolo-n", "rtdetr_r18vd")  # one of each family
TOURS = {"20_nanodet_plus": 2, "21_gold_yolo": 1, "22_rt_detr": 3}  # how often each says that by hand is as by lib


@pytest.mark.slow
def test_the_real_notebooks_make_a_report_on_the_smallest_profile():
    """A report without a FAIL; a second call does nothing. What was done by hand in a notebook is what lib did."""
    shutil.rmtree(ROOT / "reports" / "smallest", ignore_errors=True)
    folder = environment.location(environment.TORCH)
    command = [folder / "bin" / "python", "-m", "lib.machine.pipeline", "--profile", "smallest"]
    command += ["--models", " ".join(MODELS)]
    environ = environment.process_environment(environment.TORCH, folder)
    first, second = (subprocess.run(command, cwd=ROOT, env=environ, text=True, capture_output=True) for _ in range(2))
    assert first.returncode == 0, first.stdout + first.stderr
    assert (ROOT / "reports" / "smallest" / "index.html").stat().st_size > 0
    assert second.returncode == 0 and "nothing to do" in second.stdout
    executed = (ROOT / "reports" / "smallest" / "notebooks").rglob("[0-9]*.ipynb")
    said = [(path.stem, printed(path)) for path in executed]
    equal = [line for _, lines in said for line in lines if "equal: " in line]
    assert len(equal) > 10 and not [line for line in equal if not line.endswith("equal: True")]
    toured = [(stem, "".join(lines)) for stem, lines in said if stem in TOURS]
    assert sorted(stem for stem, _ in toured) == sorted(2 * list(TOURS))
    assert not [one for one in toured if one[1].count("True") != TOURS[one[0]] or "False" in one[1]]


def printed(notebook: Path) -> list[str]:
    """The lines that the cells of an executed notebook printed."""
    outputs = (output for cell in cells(notebook) for output in cell["outputs"])
    return [line for output in outputs for line in "".join(output.get("text", "")).splitlines()]
