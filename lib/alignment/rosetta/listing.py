"""The probes' code as text, so that the tables show what was run and a record knows which version of a probe it holds."""

import ast
import hashlib
import inspect
import sys

from .probe import Probe


class Listing:
    """Sources of the topics' modules, parsed once each."""

    def __init__(self) -> None:
        self._trees: dict[str, tuple[dict[str, ast.Call], str]] = {}

    def code(self, probe: Probe, side: str) -> str:
        """What `side` ("jittor", "torch", "backend") runs: a lambda's expression, or a function's name; "" for nothing."""
        found = next((word.value for word in self._parsed(probe)[0][probe.name].keywords if word.arg == side), None)
        if found is None:
            return ""
        return ast.unparse(found.body if isinstance(found, ast.Lambda) else found)

    def digest(self, probe: Probe) -> str:
        """Changes with the probe or with anything else that its module defines."""
        calls, helpers = self._parsed(probe)
        return hashlib.sha256((ast.unparse(calls[probe.name]) + helpers).encode()).hexdigest()[:16]

    def _parsed(self, probe: Probe) -> tuple[dict[str, ast.Call], str]:
        """(calls of Probe by name, everything else) of the module that the probe is written in."""
        name = probe.torch.__module__
        if name not in self._trees:
            tree = ast.parse(inspect.getsource(sys.modules[name]))
            calls = {
                ast.literal_eval(word.value): node
                for node in ast.walk(tree)
                if isinstance(node, ast.Call)
                for word in node.keywords
                if word.arg == "name" and isinstance(word.value, ast.Constant)
            }
            others = (node for node in tree.body if not any(call in ast.walk(node) for call in calls.values()))
            self._trees[name] = calls, "".join(ast.unparse(node) for node in others)
        return self._trees[name]
