"""Two small pictures on their way into a model, stage by stage, through the family's own transforms."""

import cv2
import numpy as np

from lib.alignment import datastages
from lib.data import transforms
from lib.data.transforms import Picture

SIZE = 64  # of the network input
SEEDS = range(4)  # of the augmentations, which mirror some and leave some


def _picture(height: int, width: int) -> Picture:
    """A smooth pattern with other colours everywhere, and boxes."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([120 + 100 * np.sin(x / 5), 3 * y % 256, 90 + 60 * np.cos((x + 2 * y) / 7)], 2).astype(np.uint8)
    boxes = np.array([[0.1, 0.2, 0.6, 0.9], [0.5, 0.1, 0.95, 0.5]]) * [width, height, width, height]
    return Picture(image, boxes.astype(np.float32), np.array([3, 17], np.int64))


def stages(model: str) -> list[datastages.Stage]:
    """Decoded images, evaluation input, augmentations and the batch."""
    recipe = transforms.recipe(model)
    drawn = [_picture(72, 96), _picture(90, 60)]
    decoded = [cv2.imdecode(cv2.imencode(".png", picture.image)[1], cv2.IMREAD_COLOR) for picture in drawn]
    prepared = [recipe.preprocess(image, (SIZE, SIZE)) for image in decoded]
    augmented = [recipe.augment(drawn, seed % len(drawn), (SIZE, SIZE), np.random.default_rng(seed)) for seed in SEEDS]
    return [
        datastages.stage("decoded", {str(i): image for i, image in enumerate(decoded)}),
        datastages.stage("evaluation input", {str(i): image for i, (image, _) in enumerate(prepared)}),
        datastages.stage("evaluation matrix", {str(i): matrix for i, (_, matrix) in enumerate(prepared)}),
        datastages.stage("augmented image", {str(i): sample[0] for i, sample in enumerate(augmented)}),
        datastages.stage("augmented boxes", {str(i): sample[2] for i, sample in enumerate(augmented)}),
        datastages.stage("augmented labels", {str(i): sample[3] for i, sample in enumerate(augmented)}),
        datastages.stage("batch", {"images": transforms.stack([sample[0] for sample in augmented])}),
    ]
