"""The catalogue: what people get wrong, in the order in which a port is made."""

from lib.alignment.exam.planting import Fault

from . import assigning, boxes, layers, losses, pictures, training, transformers, weights

FAULTS: tuple[Fault, ...] = (
    *pictures.FAULTS,
    *weights.FAULTS,
    *layers.FAULTS,
    *transformers.FAULTS,
    *boxes.FAULTS,
    *assigning.FAULTS,
    *losses.FAULTS,
    *training.FAULTS,
)
