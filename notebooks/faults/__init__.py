"""What people get wrong, as faults that `make exam` and 31_fault_gallery plant, in the order in which a port is made.

Here belong faults: each a name, what people do, where it shows, and the code as they would write it. What they are
planted in and the gates that must catch them is `notebooks.exam`. A new fault stands beside its like here.
"""

from notebooks.exam.planting import Fault

from . import boxes, layers, losses, pictures, training, transformers, weights

FAULTS: tuple[Fault, ...] = tuple(
    fault for part in (pictures, weights, layers, transformers, boxes, losses, training) for fault in part.FAULTS
)
