"""`make lab` in a real browser: every notebook opens by a double click in its kernel, in the shell's language; one is
run through in each kernel without an error; widgets and progress bars are drawn. (test_every_notebook runs the others
through.)

Runs in the torch environment, which has JupyterLab and Playwright; the browser is the system's Chromium. A picture of
the page is kept in reports/lab when a test fails.
"""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from lib.report.pdf import BROWSERS
from lib.show import messages, tables

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "reports" / "lab"
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
SECONDS = 90  # of two busy cores: the server takes ten, a kernel as many
NAMES = {"torch": "PyTorch", "jittor": "Jittor"}  # as Jupyter shows the kernels
WIDGETS = """\
import ipywidgets
from tqdm.auto import tqdm
display(ipywidgets.IntSlider(description="threshold"))
print(sum(tqdm(range(5))))
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """(address, folder) of a server on copies: saving there leaves the project's notebooks without outputs."""
    if BROWSER is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    folder, settings = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("settings")
    shutil.copytree(ROOT / "notebooks", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*", "*.md"))
    cell = {"cell_type": "code", "id": "w", "metadata": {}, "source": WIDGETS, "outputs": [], "execution_count": None}
    kernel = {"kernelspec": {"name": "torch", "display_name": NAMES["torch"]}}
    (folder / "widgets.ipynb").write_text(
        json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(8)
    options = f"--no-browser --ip=127.0.0.1 --port={port} --ServerApp.port_retries=0 --IdentityProvider.token={token}"
    said = subprocess.run(
        ["make", "--dry-run", "lab", "LC_ALL=zh_CN.UTF-8", f"LAB={options}"], cwd=ROOT, text=True, capture_output=True
    )
    command = ["sh", "-c", said.stdout.replace("root_dir=.", f"root_dir={folder}")]
    places = {"JUPYTERLAB_SETTINGS_DIR": str(settings), "JUPYTERLAB_WORKSPACES_DIR": str(settings)}
    environ = {**os.environ, **places}
    with open(settings / "server.log", "w") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(f"http://127.0.0.1:{port}/api?token={token}", server, settings / "server.log")
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}&reset", folder
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def _wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"JupyterLab did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def browser():
    """One profile for all pages: each with its own would fetch and compile JupyterLab's scripts again."""
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield found.new_context(viewport={"width": 1400, "height": 1600})
        found.close()


@pytest.fixture
def page(browser, request):
    """A page of the browser; a picture of it is kept where the test fails."""
    found = browser.new_page()
    found.set_default_timeout(SECONDS * 1000)
    failed = request.session.testsfailed
    yield found
    if request.session.testsfailed > failed:
        PICTURES.mkdir(parents=True, exist_ok=True)
        found.screenshot(path=PICTURES / f"{request.node.name}.png")
    found.close()


@pytest.fixture
def opened(lab, page):
    """open(notebook) -> the page with it, its kernel idle."""
    address, _ = lab

    def open_notebook(name: str) -> playwright.Page:
        page.goto(address.format(name))
        page.locator(".jp-NotebookPanel").wait_for()
        _idle(page)
        return page

    return open_notebook


def _idle(page) -> None:
    """Run All does nothing, and says nothing, before the status bar shows an idle kernel."""
    page.locator(".jp-StatusBar-Widget, #jp-main-statusbar").get_by_text("| Idle").first.wait_for()


def _choose(page, kernel: str) -> None:
    """The kernel's name in the toolbar opens the list of kernels."""
    page.locator(".jp-KernelName").first.click()
    page.locator(".jp-Dialog select").select_option(label=NAMES[kernel])
    page.locator(".jp-Dialog .jp-mod-accept").click()
    page.locator(".jp-Dialog").wait_for(state="detached")
    page.locator(".jp-KernelName").get_by_text(NAMES[kernel]).first.wait_for()
    _idle(page)


def _run_all(page, notebook: Path) -> list[dict]:
    """Run all cells, save, and give the saved code cells."""
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    page.locator(".lm-MenuBar-item, .lm-MenuBar-itemLabel").get_by_text("Run", exact=True).first.click()
    page.locator(".lm-Menu-itemLabel").get_by_text("Run All Cells", exact=True).click()
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1000)
        saved = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
        if all(cell["execution_count"] for cell in saved) or any(_errors(saved)):
            return saved
    raise AssertionError(f"{len(cells)} cells are not done after {SECONDS} s")


def _errors(cells: list[dict]) -> list[str]:
    outputs = (output for cell in cells for output in cell["outputs"])
    return [f"{one['ename']}: {one['evalue']}" for one in outputs if one["output_type"] == "error"]


@pytest.mark.parametrize("kernel", ["torch", "jittor"])
def test_a_notebook_opens_takes_a_kernel_and_runs_through(lab, opened, kernel):
    page = opened("00_start_here.ipynb")
    _choose(page, kernel)
    cells = _run_all(page, lab[1] / "00_start_here.ipynb")
    assert not _errors(cells)
    assert page.locator(".jp-OutputArea table").count() == 2, "the two tables are drawn"
    assert json.loads((lab[1] / "00_start_here.ipynb").read_text())["metadata"]["kernelspec"]["name"] == kernel


def test_of_two_languages_the_shell_s_is_shown(opened):
    """`make lab` was started in a Chinese shell."""
    page = opened("00_start_here.ipynb")
    page.locator("h1").get_by_text("从这里开始").wait_for()
    page.locator(".jp-RenderedMarkdown div[lang=zh]").nth(3).wait_for(state="attached")  # cells render one by one
    assert not [one for one in page.locator(".jp-RenderedMarkdown div[lang=en]").all() if one.is_visible()]


def test_each_language_hides_the_others_and_the_makefile_names_its_folder():
    for language in messages.LANGUAGES:
        hidden = re.findall(r'\[lang="(\w+)"\]', (messages.TEXTS / language / "custom.css").read_text(encoding="utf-8"))
        assert sorted([language, *hidden]) == list(messages.LANGUAGES)
        said = ["make", "--dry-run", "lab", f"LC_ALL={language}_X.UTF-8"]
        assert f"lib/show/texts/{language}'" in subprocess.run(said, cwd=ROOT, text=True, capture_output=True).stdout


def test_sliders_and_progress_bars_are_drawn(lab, opened):
    page = opened("widgets.ipynb")
    cells = _run_all(page, lab[1] / "widgets.ipynb")
    assert not _errors(cells)
    page.locator(".widget-slider").first.wait_for()
    page.locator(
        ".jupyter-widgets progress, .widget-hprogress, .progress-bar, .jupyter-widgets.widget-hprogress"
    ).first.wait_for()


def test_a_long_table_is_sorted_and_searched(page):
    values = [10.0 ** (place * 7 % 12 - 6) for place in range(tables.LONG)]
    frame = tables.Frame({"name": [f"layer {place}" for place in range(tables.LONG)], "error": values})
    page.set_content(frame._repr_html_())
    page.locator("thead th").nth(2).click()
    shown = page.locator("tbody tr td:nth-child(3)").all_inner_texts()
    assert list(map(float, shown)) == sorted(values)
    page.locator("input").fill("LAYER 7")
    assert page.locator("tbody tr:visible").all_inner_texts()[0].split()[:3] == ["7", "layer", "7"]
    assert page.locator("tbody tr:visible").count() == 1
    page.set_content(frame.head(3)._repr_html_())
    assert not page.locator("input").count()


def test_an_error_is_seen(lab, opened):
    """The tests above can fail: a cell that raises is found."""
    path = lab[1] / "widgets.ipynb"
    content = json.loads(path.read_text())
    content["cells"][0] |= {"source": "1 / 0", "outputs": [], "execution_count": None}
    path.write_text(json.dumps(content))
    assert _errors(_run_all(opened("widgets.ipynb"), path)) == ["ZeroDivisionError: division by zero"]


def _listed(page, name: str) -> playwright.Locator:
    """The line of a file or folder in the file browser."""
    return page.locator(".jp-DirListing-item").filter(has=page.get_by_text(name, exact=True))


def _numbered(folder: Path) -> list[Path]:
    """The notebooks, without the copies that JupyterLab keeps of those it saved."""
    return [path for path in sorted(folder.glob("**/[0-9]*.ipynb")) if path.parent.name != ".ipynb_checkpoints"]


def test_every_notebook_opens_by_a_double_click_in_its_kernel(lab, page):
    """In the panel that comes to the front: all its cells, its title as a heading, its kernel's name, no dialog."""
    address, folder = lab
    page.goto(address.format("").replace("/tree/", ""))
    assert len(_numbered(folder)) > 15
    for path in _numbered(folder):
        if path.parent != folder:
            _listed(page, path.parent.name).dblclick()
        _listed(page, path.name).dblclick()
        panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)").filter(
            has=page.locator(".jp-RenderedMarkdown h1")
        )
        held = json.loads(path.read_text())
        title = re.findall(r"^# (.+)$", "".join(held["cells"][0]["source"]), re.MULTILINE)[-1]  # the Chinese one
        panel.locator("h1").get_by_text(title).first.wait_for()
        panel.locator(".jp-KernelName").get_by_text(NAMES[held["metadata"]["kernelspec"]["name"]]).wait_for()
        assert not page.locator(".jp-Dialog").count(), path.name
        if path.parent != folder:
            page.locator(".jp-BreadCrumbs-home").click()
