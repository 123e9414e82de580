"""What belongs together: the themes under which the report asks its questions, in the order of the report."""

from collections.abc import Iterable

THEMES = {
    "theme_parts": ("structure", "conversion", "initialisation", "data"),
    "theme_answers": ("forward", "divergence", "decisions"),
    "theme_learning": ("losses", "assignment", "gradients", "step", "batch_norm", "lockstep"),
    "theme_result": ("training", "trajectory", "evaluation", "equivalence"),
    "theme_cost": ("speed",),
}


def grouped(questions: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Theme -> those of the questions that belong to it; KeyError for one that THEMES does not list."""
    theme = {question: theme for theme, members in THEMES.items() for question in members}
    found: dict[str, list[str]] = {}
    for question in questions:
        found.setdefault(theme[question], []).append(question)
    return {theme: tuple(found[theme]) for theme in THEMES if theme in found}
