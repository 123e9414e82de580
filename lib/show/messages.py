"""Every word that the report, a table or a figure prints, from the gettext catalogues of a language, one for each kind
of reader in `texts/<language>`. Numbers are filled in by the page, bound to their records.

A text has a key as its msgid; one that counts has a form for each number that the language has. What records say
in English stands under the context `record`: a text, or a form whose placeholders are parts of it (`_FORMS`), each of
which is a text again.
"""

import os
import re
from collections.abc import Mapping
from functools import cache, lru_cache
from gettext import c2py
from pathlib import Path

from babel.messages.catalog import Message
from babel.messages.plurals import get_plural
from babel.messages.pofile import read_po
from markupsafe import Markup, escape

from lib.errors import UserError

TEXTS = Path(__file__).parent / "texts"
LANGUAGES = tuple(sorted(path.name for path in TEXTS.iterdir()))
_NUMBER = r"\d+"
_CHINESE = r"[\u3000-\u9fff\uff00-\uffef]"
_OPEN, _CLOSE = "\x02", "\x03"  # around what is filled in, until gaps are closed
_GAP = re.compile(rf"({_CHINESE}(?:<[^>]+>|{_CLOSE})*) ((?:<[^>]+>|{_OPEN})*{_CHINESE})")
_FORMS = {  # what placeholders of the records' texts stand for; any other name: a whole number
    "text": ".+",
    "rest": "(?s:.*)",
    "precision": r"float\d+",
    "mode": "fed|native|window around .+",
    "event": ".+",
    "outcome": "EQUIVALENT|DIFFERENT|UNDERPOWERED",
    "place": r"worst at \(.+",
}


class Messages:
    """The catalogues of one language; an unknown key is a programming error and raises KeyError."""

    def __init__(self, language: str):
        if language not in LANGUAGES:
            raise UserError(f"language '{language}' has no catalogue in {TEXTS}: choose from {', '.join(LANGUAGES)}")
        self.language = language
        messages = [one for path in sorted((TEXTS / language).glob("*.po")) for one in entries(path)]
        self.counts = {one.id[0]: one.string for one in messages if one.pluralizable}  # by key, a text for each form
        self.texts = {  # by key, placeholders included
            one.id: one.string for one in messages if not one.context and not one.pluralizable
        }
        self.terms = {one.id: one.string for one in messages if one.context == "record"}
        self._forms = [(_pattern(text), form) for text, form in self.terms.items() if "{" in text]
        self._form = c2py(get_plural(language).plural_expr)
        self.term = lru_cache(maxsize=None)(self._term)

    def __call__(self, key: str) -> str:
        return self.texts[key]

    def say(self, key: str, **values: object) -> Markup:
        """A text with its placeholders filled in; what is no markup yet is escaped."""
        return _closed(Markup(escape(self.texts[key])).format(**{name: _inside(one) for name, one in values.items()}))

    def beside(self, *parts: object) -> Markup:
        """Parts one after the other."""
        return _closed(Markup(" ").join(map(_inside, parts)))

    def count(self, things: str, number: int, shown: object = None) -> Markup:
        """So many `things`, in the language's form for the number; `shown` stands in its place."""
        form = escape(self.counts[f"count.{things}"][self._form(number)])
        return Markup(form).format(number=number if shown is None else shown)

    def joined(self, parts: list[Markup], by: str = "list") -> Markup:
        return escape(self.texts[f"join.{by}"]).join(parts)

    def pair(self, pair: str) -> str:
        """What "published-torch" is called."""
        first, second = pair.split("-")
        return self.texts["join.pair"].format(first=self(f"side.{first}"), second=self(f"side.{second}"))

    def _term(self, text: str) -> str:
        """A text of a record in this language; a name, or any other text that the catalogue does not have, as it is."""
        if text in self.terms:
            return self.terms[text]
        for pattern, form in self._forms:
            if found := pattern.fullmatch(text):
                return form.format(**{name: self.term(part) for name, part in found.groupdict().items()})
        return text


def _inside(value: object) -> Markup:
    return Markup(f"{_OPEN}{{}}{_CLOSE}").format(value)


def _closed(said: Markup) -> Markup:
    """Between a Chinese text and what is filled in, if it is Chinese too, stands no space, which is there for names."""

    def close(gap: re.Match) -> str:
        return gap[1] + gap[2] if _CLOSE in gap[1] or _OPEN in gap[2] else gap[0]

    text = _GAP.sub(close, str(said))  # a Markup would escape what it is joined of
    return Markup(text.replace(_OPEN, "").replace(_CLOSE, ""))


@cache  # reading all of a language takes longer than to check a page
def entries(path: Path) -> tuple[Message, ...]:
    """What a catalogue's file holds, its header left out."""
    with path.open("rb") as file:
        return tuple(one for one in read_po(file, abort_invalid=True) if one.id)


def spoken(variables: Mapping[str, str] = os.environ) -> str:
    """The language of the shell, where there are texts in it, else English; POSIX says which variable counts first."""
    said = next((text for name in ("LC_ALL", "LC_MESSAGES", "LANG") if (text := variables.get(name))), "")
    return next((language for language in LANGUAGES if said.startswith(language)), "en")


@lru_cache(maxsize=1)
def words() -> Messages:
    """The texts in the language of the shell: what notebooks, tables and figures speak where nobody chose another."""
    return Messages(spoken())


def _pattern(text: str) -> re.Pattern:
    plain, names = (re.split(r"\{(\w+)\}", text)[start::2] for start in (0, 1))
    held = [f"(?P<{name}>{_FORMS.get(name, _NUMBER)})" for name in names]
    return re.compile("".join(map("".join, zip(map(re.escape, plain), [*held, ""]))))
