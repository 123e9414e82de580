"""Batches from a data set, prepared by threads, the same for any number of them."""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from lib.data import coco, stream, transforms
from lib.errors import UserError

AHEAD = 2  # batches prepared or in preparation beyond the one asked for
MEMORY = 256 << 20  # bytes of decoded images that training keeps: mosaics ask for each image several times an epoch


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step sees; n images of one size."""

    images: np.ndarray  # (n, 3, h, w) float32, normalised
    targets: tuple[dict[str, np.ndarray], ...]  # boxes (k, 4) float32 xyxy in input pixels, labels (k,) int64
    ids: tuple[int, ...]  # of the images in the COCO file
    warps: np.ndarray  # (n, 3, 3) float64, from original to input pixels; identity: none
    original_sizes: tuple[transforms.Size, ...]  # height, width


class Pictures(Sequence[transforms.Picture]):
    """The decoded images of a data set by position; those used last are kept, up to `memory` bytes. For any thread."""

    def __init__(self, dataset: coco.Dataset, memory: int = MEMORY) -> None:
        self._entries, self._memory = dataset.images, memory
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()  # the one used last is last
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> transforms.Picture:
        """UserError if the file is at fault."""
        entry = self._entries[index]
        with self._lock:
            image = self._kept.get(index)
            if image is not None:
                self._kept.move_to_end(index)
        if image is None:
            image = coco.read_image(entry)
            image.setflags(write=False)
            self._keep(index, image)
        return transforms.Picture(image, entry.boxes, entry.labels)

    def _keep(self, index: int, image: np.ndarray) -> None:
        with self._lock:
            if index not in self._kept:  # another thread may have been faster
                self._kept[index] = image
                self._bytes += image.nbytes
            while self._bytes > self._memory:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes


class Loader:
    """Yields the batches of an epoch.

    Training: shuffled per (seed, epoch), augmented per (seed, epoch, image), the incomplete last batch dropped;
    `epochs` is the length of the whole run, for recipes that change towards its end (None: they do not).
    Validation: in the data set's order, only preprocessed, every image.
    part: (r, w), of each batch the r-th of w equal parts, which one of several processes trains on.
    """

    def __init__(
        self,
        dataset: coco.Dataset,
        recipe: transforms.Recipe,
        size: transforms.Size,
        batch: int,
        seed: int = 0,
        workers: int = 2,
        train: bool = True,
        epochs: int | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        if batch < 1 or workers < 1:
            raise UserError(f"{dataset.path}: batch {batch} and workers {workers} must be at least 1")
        if train and len(dataset.images) < batch:
            raise UserError(
                f"{dataset.path}: has {len(dataset.images)} images, fewer than one batch of {batch}; "
                "use a smaller batch or more images"
            )
        self.dataset, self.recipe, self.size, self.batch = dataset, recipe, size, batch
        self.seed, self.workers, self.train, self.epochs = seed, workers, train, epochs
        self._pictures = Pictures(dataset, MEMORY if train else 0)
        share = batch // part[1]
        self._part = slice(part[0] * share, (part[0] + 1) * share)

    def __len__(self) -> int:
        """Batches in an epoch."""
        count = len(self.dataset.images)
        return count // self.batch if self.train else -(-count // self.batch)

    def iter_epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (0-based) but for the first `skip`, which are not prepared either.

        At most AHEAD + 1 batches are in memory. A faulty image raises its UserError when its batch's turn comes.
        Closing the iterator, Ctrl-C or an error drops what is not begun and waits for the images that are.
        """
        order, recipe = self._order(epoch), self.recipe_of(epoch)
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="loader")
        try:
            pending: deque = deque()
            for number in range(skip, len(self)):
                chosen = self._chosen(order, number)[self._part]
                pending.append([pool.submit(self._sample, recipe, epoch, index) for index in chosen])
                if len(pending) > AHEAD:
                    yield _collate([future.result() for future in pending.popleft()])
            while pending:
                yield _collate([future.result() for future in pending.popleft()])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def whole(self, epoch: int, number: int) -> Batch:
        """A batch of `epoch`, whatever part of it is trained on here."""
        chosen = self._chosen(self._order(epoch), number)
        return _collate([self._sample(self.recipe_of(epoch), epoch, index) for index in chosen])

    def images_per_second(self, epoch: int = 0) -> float:
        """Wall-clock rate over one epoch with nothing else to do between the batches."""
        start = time.perf_counter()
        images = sum(len(batch.ids) for batch in self.iter_epoch(epoch))
        return images / (time.perf_counter() - start)

    def _chosen(self, order: np.ndarray, number: int) -> list[int]:
        return order[number * self.batch : (number + 1) * self.batch].tolist()

    def recipe_of(self, epoch: int) -> transforms.Recipe:
        """What its pictures go through."""
        return self.recipe if self.epochs is None else self.recipe.at(epoch, self.epochs)

    def _order(self, epoch: int) -> np.ndarray:
        count = len(self.dataset.images)
        return stream(self.seed, "shuffle", epoch).permutation(count) if self.train else np.arange(count)

    def _sample(self, recipe: transforms.Recipe, epoch: int, index: int) -> tuple:
        """What a batch holds of one image, in `Batch`'s order."""
        entry = self.dataset.images[index]
        if self.train:
            rng = stream(self.seed, "augment", epoch, index)
            prepared, warp, boxes, labels = recipe.augment(self._pictures, index, self.size, rng)
        else:
            picture = self._pictures[index]
            prepared, warp = recipe.preprocess(picture.image, self.size)
            boxes, labels = transforms.warp_boxes(picture.boxes, warp, prepared.shape[1:]), picture.labels
        return prepared, {"boxes": boxes, "labels": labels}, entry.id, warp, (entry.height, entry.width)


def _collate(samples: list[tuple]) -> Batch:
    images, targets, ids, warps, original_sizes = zip(*samples)
    return Batch(transforms.stack(images), targets, ids, np.stack(warps), original_sizes)
