"""What 30_migration asks, one file per topic, in the order of the notebook.

Here belong questions that PyTorch and Jittor may answer differently: for each the code of both frameworks and, where it
has the name, of the backend, the answer expected in float64, and a sentence of advice. Beside them lie what they are
written with and asked by (`probe`), judged (`rosetta`) and shown (`sheet`). A new probe is a new entry of a topic's
PROBES.
"""

from dataclasses import replace

from notebooks.probes.probe import Probe

from . import arithmetic, functions, gradients, indexing, layers, losses, maps, modules, optimisers, process, types

_ORDER = (types, arithmetic, functions, indexing, gradients, layers, maps, losses, modules, optimisers, process)
TOPICS: tuple[str, ...] = tuple(topic.TOPIC for topic in _ORDER)
PROBES: tuple[Probe, ...] = tuple(
    replace(probe, name=name, topic=topic.TOPIC) for topic in _ORDER for name, probe in topic.PROBES.items()
)
