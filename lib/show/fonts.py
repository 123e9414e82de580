"""Fonts for texts in any script: matplotlib's DejaVu Sans, then the machine's Chinese ones.

A figure must not show boxes for letters: what no font here has is written as its code point, or said otherwise.
"""

from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.font_manager import FontEntry, fontManager

RULES = Path(__file__).with_name("align.mplstyle")
PLAIN, *CHINESE = matplotlib.rc_params_from_file(RULES, use_default_template=False)["font.sans-serif"]
LONGEST = 40  # letters of a name
REMEDY = "install a font such as Noto Sans CJK"


@lru_cache(maxsize=1)
def chinese() -> tuple[FontEntry, ...]:
    """The regular face of each of these families that is here, best first."""
    return _listed() or (_look_again(), _listed())[1]


def _listed() -> tuple[FontEntry, ...]:
    faces: dict[str, list[FontEntry]] = {}
    for one in fontManager.ttflist:
        if one.name in CHINESE and one.style == "normal" and isinstance(one.weight, int):
            faces.setdefault(one.name, []).append(one)
    return tuple(min(faces[name], key=lambda one: abs(one.weight - 400)) for name in CHINESE if name in faces)


def _look_again() -> None:
    """matplotlib keeps a list of the fonts it once saw: one that was installed since is not in it."""
    for path in sorted(set(font_manager.findSystemFonts()) - {one.fname for one in fontManager.ttflist}):
        with suppress(OSError, RuntimeError):  # a font of a kind that it can't read; another one may serve
            fontManager.addfont(path)


def families() -> list[str]:
    """For `font.family`: each letter is taken from the first that has it."""
    return [PLAIN, *(one.name for one in chinese())]


def covering(text: str) -> tuple[str, int] | None:
    """(file, face) of the first font that has every character of `text`; None if none has."""
    letters = set(text) - {" "}
    return next((place for place in _places() if letters <= _characters(*place)), None)


def plain() -> tuple[str, int]:
    """(file, face) of the font that is always there."""
    return font_manager.findfont(PLAIN), 0


def one_line(text: object, most: int = LONGEST) -> str:
    """A name as it is written: in one line of at most `most` letters, what is too long without its middle, and a code
    point for each letter that no font here has."""
    line = "".join(letter if covering(letter) else f"U+{ord(letter):04X}" for letter in " ".join(str(text).split()))
    return line if len(line) <= most else f"{line[: most // 2 - 1]}…{line[len(line) - most + most // 2 :]}"


def _places() -> list[tuple[str, int]]:
    return [plain(), *((one.fname, one.index) for one in chinese())]


@lru_cache(maxsize=32)
def _characters(path: str, face: int) -> frozenset[str]:
    return frozenset(map(chr, font_manager.get_font(font_manager.FontPath(path, face)).get_charmap()))
