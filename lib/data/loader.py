"""Batches from a data set, prepared by threads, the same for any number of them."""
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from lib.data import coco, stream, transforms
from lib.errors import UserError

AHEAD = 2  # batches prepared or in preparation beyond the one asked for


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step sees; n images of one size."""
    images: np.ndarray                           # (n, 3, h, w) float32, normalised
    targets: tuple[dict[str, np.ndarray], ...]   # boxes (k, 4) float32 xyxy in input pixels, labels (k,) int64
    ids: tuple[int, ...]                         # of the images in the COCO file
    warps: np.ndarray                            # (n, 3, 3) float64, from original to input pixels
    original_sizes: tuple[transforms.Size, ...]  # height, width


@dataclass(frozen=True)
class _Sample:
    image: np.ndarray
    target: dict[str, np.ndarray]
    id: int
    warp: np.ndarray
    original_size: transforms.Size


class Loader:
    """Yields the batches of an epoch.

    Training: shuffled per (seed, epoch), augmented per (seed, epoch, image), the incomplete last batch dropped.
    Validation: in the data set's order, only preprocessed, every image.
    """

    def __init__(self, dataset: coco.Dataset, recipe: transforms.Recipe, size: transforms.Size, batch: int,
                 seed: int = 0, workers: int = 2, train: bool = True) -> None:
        if batch < 1 or workers < 1:
            raise UserError(f"{dataset.path}: batch {batch} and workers {workers} must be at least 1")
        if train and len(dataset.images) < batch:
            raise UserError(f"{dataset.path}: has {len(dataset.images)} images, fewer than one batch of {batch}; "
                            "use a smaller batch or more images")
        self.dataset, self.recipe, self.size, self.batch = dataset, recipe, size, batch
        self.seed, self.workers, self.train = seed, workers, train

    def __len__(self) -> int:
        """Batches in an epoch."""
        count = len(self.dataset.images)
        return count // self.batch if self.train else -(-count // self.batch)

    def iter_epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (0-based) but for the first `skip`, which are not prepared either.

        At most AHEAD + 1 batches are in memory. A faulty image raises its UserError when its batch's turn comes.
        Closing the iterator, Ctrl-C or an error drops what is not begun and waits for the images that are.
        """
        order = self._order(epoch)
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="loader")
        try:
            pending: deque = deque()
            for number in range(skip, len(self)):
                chosen = order[number * self.batch:(number + 1) * self.batch]
                pending.append([pool.submit(self._sample, epoch, index) for index in chosen.tolist()])
                if len(pending) > AHEAD:
                    yield _collate([future.result() for future in pending.popleft()])
            while pending:
                yield _collate([future.result() for future in pending.popleft()])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def images_per_second(self, epoch: int = 0) -> float:
        """Wall-clock rate over one epoch with nothing else to do between the batches."""
        start = time.perf_counter()
        images = sum(len(batch.ids) for batch in self.iter_epoch(epoch))
        return images / (time.perf_counter() - start)

    def _order(self, epoch: int) -> np.ndarray:
        count = len(self.dataset.images)
        return stream(self.seed, "shuffle", epoch).permutation(count) if self.train else np.arange(count)

    def _sample(self, epoch: int, index: int) -> _Sample:
        entry = self.dataset.images[index]
        image = coco.read_image(entry)
        boxes, labels = entry.boxes, entry.labels
        if self.train:
            rng = stream(self.seed, "augment", epoch, index)
            prepared, warp, boxes, labels = self.recipe.augment(image, boxes, labels, self.size, rng)
        else:
            prepared, warp = self.recipe.preprocess(image, self.size)
            boxes = transforms.warp_boxes(boxes, warp, prepared.shape[1:])
        return _Sample(prepared, {"boxes": boxes, "labels": labels}, entry.id, warp, image.shape[:2])


def _collate(samples: list[_Sample]) -> Batch:
    return Batch(images=transforms.stack([sample.image for sample in samples]),
                 targets=tuple(sample.target for sample in samples),
                 ids=tuple(sample.id for sample in samples),
                 warps=np.stack([sample.warp for sample in samples]),
                 original_sizes=tuple(sample.original_size for sample in samples))
