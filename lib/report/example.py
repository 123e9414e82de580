"""The report that is kept in git: a small copy of a rendered one. `python -m lib.report.example reports/quick reports/example`"""
import json
import shutil
import sys
import tempfile
from pathlib import Path

from lib.errors import UserError
from lib.report import verify

PAGES = ("index.html", "report.pdf", "handin.html")
ARRAYS = ("evaluate",)  # stages whose arrays figures are drawn from; the others' are large
LIMIT = 5 * 2**20  # bytes of one page


def copy(report: Path, target: Path) -> None:
    """Replace `target` by the pages of `report` and the records that `python -m lib verify` needs to believe them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        fresh = Path(temporary) / target.name
        fresh.mkdir()
        for page in filter(Path.is_file, (report / name for name in PAGES)):
            if page.stat().st_size > LIMIT:
                raise UserError(f"{page}: {page.stat().st_size} bytes are too many for git; make the example of a smaller profile")
            shutil.copy(page, fresh)
        records = report / "records"
        kept = [*records.rglob("*.json"), *(path for stage in ARRAYS for path in records.rglob(f"{stage}.safetensors"))]
        for path in kept:
            place = fresh / path.relative_to(report)
            place.parent.mkdir(parents=True, exist_ok=True)
            if path.name == "compare.json":  # the largest by far, and no record holds its hash: without its line breaks
                place.write_text(json.dumps(json.loads(path.read_text()), ensure_ascii=False, separators=(",", ":")))
            else:
                shutil.copy(path, place)
        if wrong := [fault for one in verify.verify(fresh) for fault in one.faults]:
            raise UserError(f"{report}: not as recorded: {wrong[0]}; render it again")
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)


if __name__ == "__main__":
    try:
        copy(*map(Path, sys.argv[1:3] if len(sys.argv) == 3 else ("reports/quick", "reports/example")))
    except UserError as error:
        sys.exit(f"error: {error}")
