"""The pipeline: what a job depends on, what a failed notebook leaves, what Snakemake runs again.

In the torch environment only, which orchestrates. A miniature project with stub notebooks stands in for the real one.
"""

import ast
import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml

from lib.alignment.evidence import REFERENCE
from lib.errors import UserError
from lib.families import FAMILIES, family
from lib.machine import environment, gaps, pipeline
from lib.machine import job as jobs
from lib.machine import notebook as notebooks

pytest.importorskip("snakemake", reason="the jt environment has no Snakemake")
ROOT = Path(__file__).resolve().parent.parent
MODELS = ("nanodet-plus-m_320", "gold-yolo-n", "rtdetr_r18vd")  # one of each family
MODEL = "nanodet-plus-m_320"
COMPARE = """found = sorted(map(str, pathlib.Path(records).rglob('*.json')))
pathlib.Path(report, 'index.html').write_text(' '.join(found))
open('trace', 'a').write('compare/none\\n')"""
STAGE = """side, stage = {side}, '{stage}'
open('trace', 'a').write(f'{{stage}}/{{side}}\\n')
place = pathlib.Path(records, model, side, f'{{stage}}.json')
place.parent.mkdir(parents=True, exist_ok=True)
place.write_text(json.dumps(str(time.time())))"""
DATA_PARAMETERS = "data = ''\nrecords = ''\ntrain_images = 1"
DATA = "model = 'all'\n" + STAGE.format(stage="data", side="'none'")
TRAIN = """folder = pathlib.Path(runs, model, os.environ['SIDE'])
steps = folder / 'steps'
done = len(steps.read_text()) if steps.exists() else 0
for step in range(done, epochs):
    open(steps, 'a').write('.')
    if pathlib.Path('kill').exists() and step in (1, 2):
        os.kill(os.getpid(), 9)"""


def notebook(path: Path, *sources: str, parameters: str = "") -> Path:
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})] if parameters else []
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


STUBS = {
    "models/__init__": "from . import nanodet_plus, gold_yolo",
    "models/nanodet_plus": "WIDTH = 1",
    "models/gold_yolo": "",
    "show/__init__": "",
    "report/__init__": """from pathlib import Path
from types import SimpleNamespace
from lib.machine.notebook import execute
def make(name, values):
    output = Path(values["report"], "notebooks", "all", "none", f"{name}.ipynb")
    execute(Path("notebooks", f"{name}.ipynb"), output, "torch", values)
    return SimpleNamespace(failure=None)
def render_notebooks(folder, language):
    Path(folder, "rendered").touch()""",
    "report/overview": "def write(folder, reports, language):\n    (folder / 'index.html').touch()",
    "show/tables": "from lib import models",
    "data": "",
    "backend/__init__": "from .torch import *\nfrom .jittor import *",
    "backend/torch": "",
    "backend/jittor": "from . import jittor_nn",
    "backend/jittor_nn": "",
}
REAL = (
    "__init__",
    "errors",
    "families",
    "record",
    *(f"machine/{name}" for name in ("__init__", "doctor", "environment", "notebook")),
    *(f"machine/{name}" for name in ("job", "gaps", "table", "pipeline")),
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A checkout with stub notebooks and a stub library; both its kernels are this interpreter."""
    shutil.copy(ROOT / "Snakefile", tmp_path)
    for name, text in {**{name: (ROOT / "lib" / f"{name}.py").read_text() for name in REAL}, **STUBS}.items():
        (tmp_path / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib" / f"{name}.py").write_text(text)
    head, books = "import json, os, pathlib, time\nfrom lib", tmp_path / "notebooks"
    notebook(books / "10_data.ipynb", f"{head} import data", DATA, parameters=DATA_PARAMETERS)
    train = STAGE.format(stage="train", side="os.environ['SIDE']")
    declares = f"model = '{MODEL}'\nrecords = ''\nruns = ''\nepochs = 1"
    tables = "from lib.show import tables"
    notebook(books / "60_train.ipynb", f"{head} import backend, models\n{tables}", TRAIN, train, parameters=declares)
    notebook(
        books / "90_compare.ipynb", f"{head} import data\n{tables}", COMPARE, parameters="report = ''\nrecords = ''"
    )
    profile(tmp_path, epochs=3)
    jupyter = tmp_path / ".jupyter"
    (tmp_path / "envs").mkdir()
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
    for one in environment.ENVIRONMENTS:
        folder, kernel = tmp_path / "home" / one.name, jupyter / "data" / "kernels" / one.kernel / "kernel.json"
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").symlink_to(sys.executable)
        (folder / environment.STAMP).touch()
        (tmp_path / "envs" / one.name).symlink_to(folder)
        kernel.parent.mkdir(parents=True)
        variables = {"SIDE": one.kernel, "PYTHONPATH": str(tmp_path)}
        kernel.write_text(json.dumps({"argv": argv, "language": "python", "display_name": one.name, "env": variables}))
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(jupyter / name))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(jupyter / "data"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")  # these kernels before the environment's own of the same names
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in (
        "OMP_NUM_THREADS",
        "OMP_WAIT_POLICY",
        "RECORD_COMMAND",
        "RECORD_RESTARTS",
    ):  # what a job sets for its kernel is undone
        monkeypatch.setenv(name, "")
    return tmp_path


def profile(folder: Path, name: str = "mini", hours: float = 1, **train) -> None:
    content = {"data": {"train_images": 2}, "train": train, "compare": {}, "hours": hours} if train else {"data": {}}
    (folder / "profiles").mkdir(exist_ok=True)
    (folder / "profiles" / f"{name}.yaml").write_text(yaml.safe_dump(content))


def start(*snakemake: str, **options) -> subprocess.Popen:
    chosen = {"profile": "mini", "cores": 2, **options}
    arguments = [text for name, value in chosen.items() for text in (f"--{name}", str(value))]
    arguments += ["--", *snakemake] if snakemake else []
    command = [sys.executable, "-m", "lib.machine.pipeline", *arguments]
    streams = dict(text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return subprocess.Popen(command, start_new_session=True, **streams)


def report(*snakemake: str, **options) -> tuple[int, str, list[str]]:
    """Exit code, what was printed, and which stages ran, in order."""
    Path("trace").write_text("")
    process = start(*snakemake, **options)
    printed, _ = process.communicate()
    return process.returncode, printed, Path("trace").read_text().split()


# ------------------------------------------------------------------------------------------------------ dependencies


def test_sources_follow_imports_to_this_side_and_family(project):
    train = project / "notebooks" / "60_train.ipynb"
    shared = [f"lib/{name}.py" for name in ("__init__", "backend/__init__", "models/__init__", "models/nanodet_plus")]
    assert notebooks.sources(train, "torch", [MODEL]) == sorted([*shared, "lib/backend/torch.py"])
    assert notebooks.sources(train, "jittor", [MODEL]) == sorted(
        [*shared, "lib/backend/jittor.py", "lib/backend/jittor_nn.py"]
    )
    assert "lib/show/tables.py" in notebooks.sources(train, "torch", [MODEL], display=True)
    assert "lib/models/gold_yolo.py" in notebooks.sources(train, "torch", ["gold-yolo-n"])


@pytest.mark.parametrize("model", MODELS)
def test_a_record_depends_on_its_own_family_and_the_data_on_names_alone(model):
    """Who builds a model depends on its file, who asks for a name does not."""
    loss = notebooks.sources(ROOT / "notebooks" / "51_loss_and_gradient.ipynb", "torch", [model])
    rooms = ("alignment/references", "data/transforms", "losses", "models")  # the recipe has numbers in all of them
    own = [f"lib/{room}/{family(model)}.py" for room in rooms]
    assert [name for name in loss if Path(name).stem in FAMILIES] == own
    data = notebooks.sources(ROOT / "notebooks" / "10_data.ipynb", "none", [model])
    assert "lib/families.py" in data and not [name for name in data if name.startswith(("lib/models", "lib/backend"))]


def test_a_runner_compiles_no_grammar_before_it_starts_a_kernel(project):
    """Of all that papermill imports it took the longest, 1.4 s of each job."""
    code = """
import sys
from pathlib import Path
from lib.errors import UserError
from lib.machine import notebook
try:
    notebook.execute(Path("notebooks/10_data.ipynb"), Path("out.ipynb"), "no-such-kernel", {})
except UserError as error:
    print(error)
print("papermill" in sys.modules, "lark" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=project, text=True, capture_output=True, check=True)
    assert ran.stdout.splitlines() == [
        "notebooks/10_data.ipynb: the kernel no-such-kernel is absent: run `make envs`",
        "True False",
    ]


def test_a_parameter_that_the_notebook_lacks_or_that_yaml_read_as_text_is_refused(project):
    path = notebook(project / "n.ipynb", parameters="lr = 0.1  # a comment\nseed = 0")
    assert notebooks.parameters(path, {"lr": 0.2}, {"seed": 3, "data": "x"}, "p") == {"lr": 0.2, "seed": 3}
    with pytest.raises(UserError, match="p.epochs: n.ipynb has no such parameter"):
        notebooks.parameters(path, {"epochs": 1}, {}, "p")
    with pytest.raises(UserError, match="1.0e-3"):
        notebooks.parameters(path, yaml.safe_load("lr: 1e-3"), {}, "p")


def from_aside(path: Path, code: str) -> list[str]:
    """What code takes from the modules that no record depends on."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return [name for name in notebooks.imported(code, package, path) if name.startswith(notebooks.ASIDE)]


@pytest.mark.parametrize("model", MODELS)
def test_what_shapes_a_record_takes_nothing_from_the_modules_left_aside(model):
    """What a measuring stage depends on imports none of them, and its cells fill no record with their help."""
    for stage in (stage for stage in pipeline.STAGES if stage.writes and stage.notebook):
        path = ROOT / "notebooks" / f"{stage.notebook}.ipynb"
        named = {file for side in stage.sides for file in notebooks.sources(path, side, [model])}
        for file in (file for file in named if file.endswith(".py")):
            assert not from_aside(ROOT / file, (ROOT / file).read_text()), f"{stage.name} reads {file}"
        for cell in notebooks.cells(path):
            assert not filled_from_aside(cell["source"]), f"{path.name}: {cell['source']}"


def filled_from_aside(cell: str) -> bool:
    """Whether what a cell puts into a record comes from a module left aside."""
    names = {name.rpartition(".")[2] for name in notebooks.ASIDE} | {path.stem for path in ROOT.glob("lib/show/*.py")}
    return any(
        isinstance(node, ast.AugAssign | ast.Assign)
        and "m." in ast.unparse(node).partition("=")[0]
        and names & {inner.id for inner in ast.walk(node.value) if isinstance(inner, ast.Name)}
        for node in ast.walk(ast.parse(cell))
    )


def test_a_module_or_a_cell_that_takes_from_them_is_seen():
    for code in ("from lib.show.tables import curves", "def f():\n    from ..show import figures"):
        assert from_aside(ROOT / "lib" / "training" / "starts.py", code)
    assert filled_from_aside("with measure() as m:\n    m.fields |= tables.curves(lines)")
    assert not filled_from_aside("with measure() as m:\n    m.fields |= capture.all()\ntables.state(m.fields)")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"profile": "none"}, "choose one of mini"),
        ({"models": "yolo"}, "is unknown: choose one of"),
        ({"data": "absent.json"}, "absent.json: no such file"),
    ],
)
def test_users_mistakes_are_one_line(project, options, words):
    code, printed, ran = report(**options)
    assert (
        code == 1 and not ran and words in printed and printed.startswith("error: ") and len(printed.splitlines()) == 1
    )


def test_an_interruption_while_it_is_imported_is_one_line(tmp_path):
    """Of a report's first second; what exit_code says comes after."""
    (tmp_path / "yaml.py").write_text("raise KeyboardInterrupt")
    command, environ = [sys.executable, "-m", "lib.machine.pipeline"], {**os.environ, "PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(command, cwd=ROOT, env=environ, text=True, capture_output=True)
    assert (ran.returncode, ran.stderr) == (-signal.SIGINT, "interrupted\n")


def test_what_the_machine_refuses_is_one_line(project):
    Path("reports").mkdir()
    Path("reports/mini").touch()  # root may write into a read-only folder, but not into a file
    code, printed, _ = report()
    assert code == 1 and len(printed.splitlines()) == 1
    assert printed.startswith("error: reports/mini: File exists: move away the file in its place")


def test_the_side_that_leads_is_the_reference():
    assert {stage.leads for stage in pipeline.STAGES} == {"", REFERENCE}


def test_every_profile_section_fits_its_notebook():
    for path in (ROOT / "profiles").glob("*.yaml"):
        profile = pipeline.load_profile(path.stem)
        for stage, model in itertools.product(pipeline.STAGES, (MODEL, "gold-yolo-n", "rtdetr_r18vd")):
            if stage.name in profile and stage.notebook:
                name = pipeline.TOURS[family(model)] if stage.notebook == "tour" else stage.notebook
                values = pipeline.section(profile[stage.name] or {}, model)
                notebooks.parameters(ROOT / "notebooks" / f"{name}.ipynb", values, {}, f"{path.name}: {stage.name}")


def test_a_notebook_that_is_no_python_is_one_line(project):
    with pytest.raises(UserError, match=r"n.ipynb: line 1: .* in 'x = \('"):
        notebooks.sources(notebook(project / "n.ipynb", "y = 1", "x = ("), "torch", [MODEL])


# ------------------------------------------------------------------------------------------------- running a notebook


def test_a_failing_cell_is_named_and_leaves_the_earlier_output(project):
    path = notebook(
        project / "n.ipynb", "x = n + 1", "raise ValueError('box 3 is\\nempty')", "never = 1", parameters="n = 0"
    )
    output = project / "out" / "n.ipynb"
    output.parent.mkdir()
    output.write_text("earlier")
    with pytest.raises(UserError, match="raised ValueError: box 3 is empty$"):
        notebooks.execute(path, output, "torch", {"n": 2})
    assert output.read_text() == "earlier" and (project / "out" / "n.failed.ipynb").is_file()
    notebook(path, "assert n == 2", parameters="n = 0")
    notebooks.execute(path, output, "torch", {"n": 2})
    assert [file.name for file in output.parent.iterdir()] == ["n.ipynb"]


def test_a_killed_kernel_is_named_and_is_not_taken_for_done(project):
    path = notebook(project / "n.ipynb", "import os", "os.kill(os.getpid(), 9)", "never = 1")
    with pytest.raises(UserError, match=r"os.kill.*the kernel died of signal 9 \(SIGKILL\)$"):  # no word of memory
        notebooks.execute(path, project / "o.ipynb", "torch", {})
    assert not (project / "o.ipynb").exists() and (project / "o.failed.ipynb").is_file()


def test_no_loopback_is_said_before_a_kernel_starts(project, monkeypatch):
    def refuse(*_, **__):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(notebooks.doctor.socket, "create_connection", refuse)
    with pytest.raises(UserError, match="MISSING  loopback: .*Network is unreachable"):
        notebooks.execute(notebook(project / "n.ipynb", "1"), project / "o.ipynb", "torch", {})


def test_an_absent_kernel_is_one_line(project):
    with pytest.raises(UserError, match="make envs"):
        notebooks.execute(notebook(project / "n.ipynb", "1"), project / "o.ipynb", "mxnet", {})


def test_a_run_is_resumed_only_with_the_very_same_inputs(project):
    folder = project / "runs"
    jobs.forget_other_run(folder, "a")
    (folder / "checkpoint").touch()
    jobs.forget_other_run(folder, "a")
    assert (folder / "checkpoint").exists()
    jobs.forget_other_run(folder, "b")
    assert not (folder / "checkpoint").exists()


def test_an_edit_while_a_job_runs_is_not_taken_for_done(project):
    edits = "open('lib/data.py', 'a').write('# edited')"
    notebook(project / "notebooks/10_data.ipynb", "from lib import data", edits, parameters="train_images = 1")
    (job, *_) = pipeline.plan(pipeline.Request("mini", (MODEL,), "", 2))
    with pytest.raises(UserError, match="edited while it ran"):
        jobs.run(job.file)
    assert not job.done.exists()


# ------------------------------------------------------------------------------------------------- what runs again


@pytest.mark.slow
def test_only_what_depends_on_a_change_runs_again_and_a_dry_run_tells(project):
    """An empty folder is not "up to date"; a record that was overwritten runs its job, and what reads it, again."""
    trains = {"train/jittor", "train/torch"}
    code, printed, ran = report("--dry-run")
    assert code == 0 and not ran and f"to do, 4 of 4 jobs: data_all_none, train_{MODEL}_torch" in printed
    assert "up to date" not in printed and not list(project.glob("reports/mini/.done/*/*/*"))
    code, printed, ran = report()
    assert code == 0, printed
    assert ran[0] == "data/none" and set(ran[1:3]) == trains and ran[3:] == ["compare/none"]
    assert (project / "reports/mini/rendered").exists(), "the notebooks have no pages"
    started = time.monotonic()
    code, printed, ran = report()
    assert code == 0 and not ran and "nothing to do" in printed and time.monotonic() - started < 15
    for path in ("lib/models/gold_yolo.py", "lib/models/nanodet_plus.py"):  # another family; the same content, newer
        (project / path).write_text((project / path).read_text() + ("# new" if "gold" in path else ""))
    assert report()[2] == []
    (project / "lib" / "backend" / "jittor_nn.py").write_text("# mended")
    assert report()[2] == ["train/jittor", "compare/none"]
    record = project / "reports/mini/records" / MODEL / "torch" / "train.json"
    mark = project / "reports/mini/.done" / MODEL / "torch" / "train"
    record.write_text("a lesson's")
    os.utime(record, (1, 1))  # older than all marks: only its content tells
    code, printed, ran = report("--dry-run")
    assert not ran and f"to do, 2 of 4 jobs: train_{MODEL}_torch, compare_all_none" in printed and mark.exists()
    code, printed, ran = report()
    assert ran == ["train/torch", "compare/none"] and "2 jobs, about" in printed and "; 2 of 2 jobs" in printed
    profile(project, epochs=2)
    assert set(report()[2]) == {*trains, "compare/none"}


def complete(planned) -> None:
    """Write all that these jobs would, and their marks."""
    for job in planned:
        for path in map(Path, job.results):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(job.name)
        mark = {
            "inputs": jobs.digest(job.inputs),
            "results": {name: jobs.digest([name]) for name in job.results},
        }
        job.done.parent.mkdir(parents=True, exist_ok=True)
        job.done.write_text(json.dumps(mark))


def test_a_record_that_is_gone_or_changed_and_what_reads_it_is_not_done(project):
    planned = pipeline.plan(pipeline.Request("mini", (MODEL,), "", 2))
    complete(planned)
    assert pipeline.stale(planned) == []
    train, data = (Path("reports/mini/records", name) for name in (f"{MODEL}/torch/train.json", "all/none/data.json"))
    train.unlink()
    assert [job.name for job in pipeline.stale(planned)] == [f"train_{MODEL}_torch", "compare_all_none"]
    train.write_text(f"train_{MODEL}_torch")
    assert pipeline.stale(planned) == []
    state = data.stat()
    data.write_text("ten digits"[: state.st_size])
    os.utime(data, ns=(state.st_atime_ns, state.st_mtime_ns + 1))  # no newer than its mark
    assert len(pipeline.stale(planned)) == len(planned) == 4


def test_a_command_that_prepares_its_own_side_is_a_stage(project, monkeypatch):
    """It writes no record; what runs its model on its side waits for it, and nothing depends on what it wrote."""
    (project / "lib" / "backend" / "ready.py").write_text(
        "import sys\nopen('ready', 'w').write(' '.join(sys.argv[1:]))\nsys.exit(len(sys.argv) < 4)"
    )
    ready = pipeline.Stage("ready", command=("lib.backend.ready",), sides=("jittor",), prepares=True)
    profile = project / "profiles" / "mini.yaml"
    profile.write_text(yaml.safe_dump({"ready": {"size": 64}, **yaml.safe_load(profile.read_text())}))
    monkeypatch.setattr(pipeline, "STAGES", (ready, *pipeline.STAGES))
    planned = {job.name: job for job in pipeline.plan(pipeline.Request("mini", (MODEL,), "", 2))}
    own = planned[f"ready_{MODEL}_jittor"]
    assert {name for name, job in planned.items() if str(own.done) in job.after} == {f"train_{MODEL}_jittor"}
    assert not [name for name, job in planned.items() if str(own.done) in (*job.needs, *job.inputs)]
    assert "lib/backend/ready.py" in own.inputs and own.results == ()
    priority = pipeline.priorities(list(planned.values()))
    assert priority["ready"] > priority["train"] > priority["compare"] > 0, (
        "who begins the longest chain does not start first"
    )
    jobs.run(own.file)
    assert (project / "ready").read_text() == f"--model {MODEL} --size 64" and pipeline.is_done(own)
    (project / "lib" / "backend" / "ready.py").write_text("import os\nos.write(2, b'no compiler\\n')\nos.abort()")
    with pytest.raises(UserError, match=r"its process died of signal 6 \(SIGABRT\) \(see .*ready.log\)"):
        jobs.run(own.file)
    assert not pipeline.is_done(own) and pipeline.stale(list(planned.values()))[0] is own


@pytest.mark.parametrize("said, threads", [({}, 2), ({"threads": 1}, 1)])
def test_a_stage_that_runs_alone_has_all_cores_unless_its_section_says_threads(project, said, threads):
    notebook(project / "notebooks/80_speed.ipynb", "1", parameters="threads = 4")
    (project / "profiles" / "mini.yaml").write_text(yaml.safe_dump({"threads": 1, "speed": said}))
    (job,) = pipeline.plan(pipeline.Request("mini", (MODEL,), "", 2))
    told = json.loads(job.file.read_text())
    assert job.threads == told["threads"] == told["parameters"]["threads"] == threads
    assert told["wait_policy"] == ("" if threads == 2 else "PASSIVE")
    assert pipeline.priorities([job]) == {"speed": 0}


def test_only_a_death_by_a_signal_is_started_once_more_and_its_record_is_told(monkeypatch):
    seen = []

    def die(*numbers):
        deaths = iter(numbers)

        def once(_job):
            seen.append(json.loads(os.environ["RECORD_RESTARTS"]))
            if (number := next(deaths)) != "ends well":
                raise notebooks.ProcessDied(f"died of {number}", number, [])

        monkeypatch.setattr(jobs, "run_once", once)

    monkeypatch.setenv("RECORD_RESTARTS", "[]")
    die(11, "ends well")
    assert jobs.run_twice({}, "m/torch/train") == ["died of 11"] and seen == [[], ["died of 11"]]
    for numbers in ((11, 9), (None,)):  # a second death is final, and an exit of its own is no crash
        die(*numbers)
        with pytest.raises(notebooks.ProcessDied, match=f"died of {numbers[-1]}"):
            jobs.run_twice({}, "m/torch/train")


@pytest.mark.parametrize("name", ["2024_05", "a #2", "1e3", "data[1]", "{v1}", "US$", "螺栓", "<b>", "it's", "-x"])
def test_a_name_of_the_users_reaches_the_notebook_as_it_is(project, name):
    """Snakemake never sees it: YAML would make a number of it, its patterns wildcards."""
    (project / name).mkdir()
    (project / name / "val.json").touch()
    told = "import json\nopen('told', 'w').write(data)"
    notebook(project / "notebooks/10_data.ipynb", told, parameters=DATA_PARAMETERS)
    data, *_ = pipeline.plan(pipeline.Request("mini", (MODEL,), name, 2))
    description = json.loads(data.file.read_text(encoding="utf-8"))
    assert description["parameters"]["data"] == name and f"{name}/val.json" in data.inputs
    from papermill import iorw, parameterize

    book = iorw.load_notebook_node("notebooks/10_data.ipynb")
    form = {"kernel_name": "torch", "language": "python"}
    given = parameterize.parameterize_notebook(book, description["parameters"], **form)
    exec("\n".join(cell.source for cell in given.cells if cell.cell_type == "code"), {})
    assert (project / "told").read_text(encoding="utf-8") == name


def test_what_snakemake_says_before_the_first_job_is_shown(project, capsys):
    (project / "snakemake.log").write_text("Building\nError in Snakefile, line 8:\n    no such thing\n\n")
    said = gaps.cause(pipeline.plan(pipeline.Request("mini", (MODEL,), "", 2)), project / "snakemake.log")
    assert said.startswith("Snakemake stopped, though no job failed") and "snakemake.log" in said
    assert "[report]   |     no such thing" in capsys.readouterr().out
    (project / "snakemake.log").write_text(
        "Error in rule train:\n    message: job '3': NODE_FAIL: gone\n    jobid: 3\n"
    )
    planned = pipeline.plan(pipeline.Request("mini", (MODEL,), "", 2))
    shared = f"Snakemake stopped: no job has begun in what is seen from here: {project}, "
    assert gaps.cause(planned, project / "snakemake.log").startswith(shared)
    jobs.write_mark(jobs.open_mark(planned[0].done), since=1)
    assert gaps.cause(planned, project / "snakemake.log").startswith("Snakemake stopped: job '3': NODE_FAIL: gone (")
    for line in ("__main__.py: error: argument -e: invalid choice: 'slurm'", "Error: profile directory given"):
        (project / "snakemake.log").write_text(f"usage: snakemake\n{line}\n")
        assert gaps.cause(planned, project / "snakemake.log").startswith(f"Snakemake stopped: {line} (")


def test_a_gap_says_what_failed_or_what_it_waits_for(project):
    planned = pipeline.plan(pipeline.Request("mini", (MODEL,), "", 2))
    complete(planned)
    data, train, other, _ = planned
    for job in (train, other):
        job.done.unlink()
    jobs.open_mark(train.done).write_text(
        json.dumps({"since": 1.0, "why": "died", "see": "reports/mini/notebooks/m/60_train.failed.ipynb"})
    )
    jobs.open_mark(other.done).write_text(json.dumps({"since": 1.0}))
    rest = pipeline.stale(planned)
    found = gaps.gaps(rest, {str(job.done): job for job in rest}, Path("reports/mini"))
    assert [(gap["side"], gap["why"], gap["see"], gap["waits_for"]) for gap in found] == [
        (train.side, "died", "notebooks/m/60_train.failed.ipynb", ""),
        (other.side, "", "", ""),
    ]
    jobs.open_mark(data.done).write_text(json.dumps({"since": 1.0, "why": "no data", "see": ""}))
    for job in (data, train):
        job.done.unlink(missing_ok=True)
    jobs.open_mark(train.done).unlink()
    waiting = dataclasses.replace(train, needs=(str(data.done),))
    found = gaps.gaps([waiting], {str(job.done): job for job in (data, waiting)}, Path("reports/mini"))
    assert [gap["waits_for"] for gap in found] == ["all/none/data"]  # which may be another report's


@pytest.mark.slow
def test_a_plain_locale_and_an_interruption_are_no_traceback(project, monkeypatch):
    for name, value in {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}.items():
        monkeypatch.setenv(name, value)
    text = "# 检测\nimport time\nprint('检测', flush=True)\ntime.sleep(60)"
    notebook(project / "notebooks/10_data.ipynb", text, parameters=DATA_PARAMETERS)
    (project / "profiles" / "one.yaml").write_text("# 一\ndata: {}")
    process = start(profile="one")
    while not list(project.glob("reports/one/notebooks/all/none/.*")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    time.sleep(3)  # its kernel is up
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    printed = process.communicate()[0]
    assert process.returncode == 130 and "Traceback" not in printed and printed.count("interrupted") == 1, printed
    assert not list(project.glob("reports/one/notebooks/all/none/.*")), "half a notebook"


@pytest.mark.slow
def test_a_killed_training_continues_and_earlier_results_stay(project):
    profile(project, epochs=4)
    (project / "kill").touch()
    code, printed, ran = report()
    assert code == 1 and ran[0] == "data/none" and "train/torch" not in ran, printed
    died = f"{MODEL}/torch/train: notebooks/60_train.ipynb: code cell 4 "
    assert printed.count(died) == 1 and printed.count("the kernel died of signal 9 (SIGKILL): started once more") == 2
    assert printed.count("FAILED: ") == 2 and "60_train.failed.ipynb)" in printed
    steps = project / "reports/mini/runs" / MODEL / "torch" / "steps"
    assert steps.read_text() == "..."  # two deaths, and no third start
    (project / "kill").unlink()
    assert report()[0] == 0 and steps.read_text() == "...."
    record = project / "reports/mini/records" / MODEL / "torch" / "train.json"
    earlier = record.read_text()
    path = project / "notebooks" / "60_train.ipynb"
    path.write_text(path.read_text().replace("steps = folder / 'steps'", "raise RuntimeError('too early')"))
    code, printed, _ = report()
    assert code == 1 and "too early" in printed and record.read_text() == earlier
    assert not (project / "reports/mini/.done" / MODEL / "torch" / "train").exists()
    shown = (project / "reports/mini/index.html").read_text()
    assert "all/none/data" in shown and "train" not in shown  # a gap, not the record of an earlier run


@pytest.mark.slow
def test_an_interrupted_run_continues_and_two_at_once_do_not_collide(project):
    profile(project, "one")
    notebook(project / "notebooks/10_data.ipynb", "import time\ntime.sleep(60)", parameters=DATA_PARAMETERS)
    first = start(profile="one")
    while not list(project.glob("reports/one/notebooks/all/none/.*")):
        assert first.poll() is None
        time.sleep(0.1)
    second = start(profile="one")
    assert "another `make report`" in second.communicate()[0] and second.returncode == 1
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    head = "import json, os, pathlib, time"
    notebook(project / "notebooks/10_data.ipynb", head, DATA, parameters=DATA_PARAMETERS)
    assert report(profile="one")[0] == 0
