"""Every word the report prints, by language and key. Numbers are filled in by the page, bound to their records."""

import re

from lib.errors import UserError
from lib.report import chinese, english

LANGUAGES = {"en": english, "zh": chinese}


class Messages:
    """The catalogue of one language; an unknown key is a programming error and raises KeyError."""

    def __init__(self, language: str):
        if language not in LANGUAGES:
            raise UserError(
                f"language '{language}' has no catalogue in lib/report/messages.py: choose from {', '.join(LANGUAGES)}"
            )
        catalogue = LANGUAGES[language]
        self.language, self._texts, self._terms, self._patterns = (
            language,
            catalogue.TEXTS,
            catalogue.TERMS,
            catalogue.PATTERNS,
        )

    def __call__(self, key: str) -> str:
        return self._texts[key]

    def term(self, text: str) -> str:
        """A text of a record in this language: a term, a pattern whose parts are texts again, or a term's rest; else as it is.

        A term that ends in a space stands for the beginning of a text.
        """
        if text in self._terms:
            return self._terms[text]
        for pattern, form in self._patterns:
            if found := re.fullmatch(pattern, text):
                return form.format(*map(self.term, found.groups()))
        beginning = next((known for known in self._terms if known.endswith(" ") and text.startswith(known)), "")
        return self._terms.get(beginning, "") + text.removeprefix(beginning)

    @property
    def texts(self) -> list[str]:
        """All texts, placeholders included."""
        return list(self._texts.values())
