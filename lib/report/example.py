"""The report that is kept in git: one page of a rendered one. `python -m lib.report.example reports/quick reports/example`"""

import shutil
import sys
import tempfile
from pathlib import Path

from lib.errors import UserError
from lib.report import verify

PAGE = "index.html"
LIMIT = 2 * 2**20  # bytes


def copy(report: Path, target: Path) -> None:
    """Replace `target` by the page of `report`, once its records say that it is theirs.

    The records, of tens of megabytes, stay behind: who wants to verify makes the report anew.
    """
    if wrong := [fault for one in verify.verify(report) for fault in one.faults]:
        raise UserError(f"{report}: not as recorded: {wrong[0]}; render it again")
    page = report / PAGE
    if page.stat().st_size > LIMIT:
        raise UserError(f"{page}: {page.stat().st_size} bytes are too many for git; make the example of fewer models")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        fresh = Path(temporary) / target.name
        fresh.mkdir()
        shutil.copy(page, fresh)
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)


if __name__ == "__main__":
    try:
        copy(*map(Path, sys.argv[1:3] if len(sys.argv) == 3 else ("reports/quick", "reports/example")))
    except UserError as error:
        sys.exit(f"error: {error}")
