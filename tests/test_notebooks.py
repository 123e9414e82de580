"""Each text of a notebook stands in it in English and in Chinese, side by side."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
BILINGUAL = sorted(path.relative_to(NOTEBOOKS).with_suffix("").as_posix() for path in NOTEBOOKS.rglob("*.ipynb"))
BLOCKS = re.compile(r'\s*<div lang="en">\n\n(.+?)\n\n</div>\s*<div lang="zh">\n\n(.+?)\n\n</div>\s*', re.S)


def texts(path: Path) -> list[str]:
    held = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in held["cells"] if cell["cell_type"] == "markdown"]


def fault(text: str) -> str:
    """What is wrong with a text; nothing where it is well. Names stay as they are, the signs are Chinese ones."""
    found = BLOCKS.fullmatch(text)
    if not found or text.count("<div") != 2:
        return "is not one English and one Chinese block, with blank lines inside"
    english, chinese = (re.sub(r"`[^`]*`", "", block) for block in found.groups())
    if re.search(r"[\u4e00-\u9fff]", english) or not re.search(r"[\u4e00-\u9fff]", chinese):
        return "has the languages mixed"
    if re.search(r"[\u4e00-\u9fff] *[,;:()?!]|[,;:()?!] *[\u4e00-\u9fff]|底噪", chinese):
        return "has English signs, or another word than 噪声底, in Chinese"
    if [line[:2] for line in english.splitlines() if line[:1] == "#"] != [
        line[:2] for line in chinese.splitlines() if line[:1] == "#"
    ]:
        return "has other headings in Chinese"
    return ""


@pytest.mark.parametrize("name", BILINGUAL)
def test_every_text_is_in_both_languages(name):
    faults = {text[:80]: said for text in texts(NOTEBOOKS / f"{name}.ipynb") if (said := fault(text))}
    assert not faults


def test_the_lint_sees_what_is_missing():
    whole = '<div lang="en">\n\n# A port?\n\n</div>\n<div lang="zh">\n\n# 移植？\n\n</div>'
    assert not fault(whole)
    for planted in (
        whole.replace("\n\n# A", "# A"),
        whole.replace("zh", "en"),
        whole[: whole.index('<div lang="zh">')],
        whole.replace("# 移植？", "# port?"),
        whole.replace("？", "?"),
        whole.replace("# 移植", "## 移植"),
        whole.replace("移植", "底噪"),
        f"{whole} more",
    ):
        assert fault(planted), planted
