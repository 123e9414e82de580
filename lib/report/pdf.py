"""HTML to PDF: headless Chromium where there is one, else WeasyPrint."""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lib.errors import UserError
from lib.machine.doctor import BROWSERS

SECONDS = 120  # a report takes under ten on two busy cores


def write(source: Path, target: Path) -> str:
    """Print an HTML file to `target` and return the name of what printed it; UserError where nothing can."""
    tried = []
    if browser := next(filter(None, map(shutil.which, BROWSERS)), None):
        if not (problem := _chromium(browser, source, target)):
            return Path(browser).name
        tried.append(f"{Path(browser).name}: {problem}")
    if importlib.util.find_spec("weasyprint"):
        # A process of its own: WeasyPrint's libraries would stay in the notebook's memory.
        command = [sys.executable, "-m", "weasyprint", "--quiet", str(source), str(target)]
        if not (problem := _run(command, target)):
            return "weasyprint"
        tried.append(f"weasyprint: {problem}")
    detail = f" ({'; '.join(tried)})" if tried else ""
    raise UserError(
        f"{target.name}: no PDF{detail}; {source} is complete: install Debian's chromium, or pip install "
        "weasyprint==70.0"
    )


def _chromium(browser: str, source: Path, target: Path) -> str:
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer", "--virtual-time-budget=10000"]
        paths = [f"--user-data-dir={profile}", f"--print-to-pdf={target.resolve()}", source.resolve().as_uri()]
        return _run([browser, *flags, *paths], target)


def _run(command: list[str], target: Path) -> str:
    """Run a printer; why it failed, or nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"not done after {SECONDS} s"
    except OSError as error:
        return str(error.strerror)
    if done.returncode == 0 and target.is_file() and target.read_bytes()[:5] == b"%PDF-":
        return ""
    target.unlink(missing_ok=True)
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}, no PDF"])[-1]
