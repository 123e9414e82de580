"""The probes, by topic, in the order of the notebook."""

from ..probe import Probe
from . import arithmetic, functions, gradients, indexing, layers, losses, maps, modules, optimisers, process, types

_ORDER = (types, arithmetic, functions, indexing, gradients, layers, maps, losses, modules, optimisers, process)
PROBES: tuple[Probe, ...] = sum((topic.PROBES for topic in _ORDER), ())
TOPICS: tuple[str, ...] = tuple(topic.TOPIC for topic in _ORDER)
