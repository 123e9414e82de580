"""Many reports from one table, for a class or a study: a CSV file with a row for each report, whose columns say what
differs. What the table has no column for, or a cell leaves empty, is as `make report` was told.

    name,model,seed
    li-lei,nanodet-plus-m_320,1
    han-meimei,gold-yolo-n rtdetr_r18vd,2
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lib.errors import UserError

COLUMNS = {"name": "name", "model": "models"} | {name: name for name in ("seed", "data", "weights", "backbone")}
TAKEN = ("index.html", "snakemake.log", "records")  # what lies beside the reports, or would make one of their folder
SEPARATORS = ",;\t"  # the last two are what spreadsheets write in some countries


def rows(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Of each row where it stands, its name, and what it says, under the names of a request's fields.

    UserError names file, row and remedy.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        said = f"can't be read ({error.strerror}): give a CSV file with a row for each report"
        raise UserError(f"TABLE={path}: {said}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 (byte {error.start}): save it as CSV UTF-8") from error
    separator = next((one for one in SEPARATORS if lines and one in lines[0]), ",")
    written = csv.reader(lines, delimiter=separator)
    header = [cell.strip() for cell in next(written, [])]
    wrong = next((column for column in header if column not in COLUMNS or header.count(column) > 1), "")
    if wrong or "name" not in header:
        said = f"'{wrong}' is no column, or one twice" if wrong else "has no column 'name'"
        raise UserError(f"{path}: row 1: {said}: choose from {', '.join(COLUMNS)}")
    seen: dict[str, str] = {}
    for cells in written:
        where, cells = f"{path}: row {written.line_num}", [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if len(cells) > len(header):
            said = f"{len(cells)} cells for {len(header)} columns: quote a cell with '{separator}' in it"
            raise UserError(f"{where}: {said}")
        values = {COLUMNS[column]: cell for column, cell in zip(header, cells) if cell}
        name = values.pop("name", "")
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise UserError(f"{where}: '{name}' can't be a folder's name: use letters, digits, '-', '_' and '.'")
        if name.lower() in TAKEN:
            raise UserError(f"{where}: '{name}' is not free in the folder of the reports: give the report another name")
        if name in seen:
            raise UserError(f"{where}: '{name}' is the name of {seen[name]} too: give each report its own")
        seen[name] = f"row {written.line_num}"
        yield where, name, {field: _read(field, cell, where) for field, cell in values.items()}
    if not seen:
        raise UserError(f"{path}: holds no report: write a row for each below the first")


def _read(field: str, cell: str, where: str) -> Any:
    if field == "seed" and not cell.isdecimal():
        raise UserError(f"{where}: seed '{cell}' is no whole number from 0 on: write one")
    return int(cell) if field == "seed" else tuple(dict.fromkeys(cell.split())) if field == "models" else cell
