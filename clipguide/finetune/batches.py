"""Batches without end, each of them known from its number alone, so that a run can go on.

What is in batch n, and how each of its images is cropped, follows from the seed and n: a run that
is resumed sees the same bits. Threads decode ahead of the model, and what they decoded is kept
small in memory, so that later epochs decode nothing.

Shapes: B examples, 3 channels, H rows, W columns.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ..clip.base import pixel_steps
from ..clip.parts import Parts
from ..clip.resize import tame
from ..engine import processors
from ..errors import UsageError
from .data import Dataset, Example

MARGIN = 1.25  # of the side that is kept to the side that the tower sees
LONGEST = 4  # times the shorter side, of an image that is kept: more of a strip is never seen
AHEAD = 2  # batches that are made before they are asked for
MEMORY = 2 << 30  # bytes of images that are kept


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How images are varied: a crop of a share of the area in `scale`, of an aspect in `ratio`
    times the image's or square's, mirrored with the chance `flip` (Inception's crops, Szegedy et
    al. 2015; never larger than the image)."""

    scale: tuple[float, float] = (0.7, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UsageError(f"The scale of crops lies in (0, 1], not {self.scale}.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UsageError(f"The ratio of crops is above 0, not {self.ratio}.")
        if not 0 <= self.flip <= 1:
            raise UsageError(f"The chance of a mirror lies in [0, 1], not {self.flip}.")


class Batches:
    """Batches of a data set for a CLIP, from number `start` on, without end.

    Each is a dict of `image` (image_B3HW in [0, 1], of the side that the tower sees, before it is
    normalised), `index` (places in `dataset.examples`, index_B), `label` (label_B, None of
    captions) and `caption` (a list).

    `balanced` takes classes in turn, or captions where there are none, in a new order each round,
    and of each its images in turn, in a new order each time they are through; else images in
    turn. `augment` varies images, by default with mirrors for classes and without for captions,
    which may say left and right (as may classes: give Augment(flip=0)); False is the checkpoint's
    own transform to the bit. `memory` bounds what is kept of images, in bytes, and changes
    nothing else. `waited` is the time in seconds that `next` took so far.
    """

    def __init__(
        self,
        dataset: Dataset,
        parts: Parts,
        *,
        batch: int,
        seed: int = 0,
        balanced: bool = True,
        augment: bool | Augment = True,
        workers: int | None = None,
        start: int = 0,
        memory: int = MEMORY,
    ) -> None:
        if batch < 1 or (workers is not None and workers < 1) or start < 0:
            raise UsageError("batch and workers are at least 1, and start at least 0.")
        if not dataset.examples:
            raise UsageError("There are no images to make batches of.")
        if augment is True:
            augment = Augment(flip=0.5 if dataset.classes else 0.0)
        self.dataset, self.batch, self.seed, self.start = dataset, batch, seed, start
        self.augment = augment or None
        self.workers = workers or min(8, processors())
        self.waited = 0.0
        self._view = _View(parts, self.augment)
        self._strata = _strata(dataset, balanced)
        self._orders: dict[int, tuple[int, list[int]]] = {}
        self._kept: dict[str, np.ndarray] = {}
        self._left, self._lock = memory, threading.Lock()

    @property
    def epoch(self) -> int:
        """Batches that have as many images as there are."""
        return math.ceil(len(self.dataset) / self.batch)

    def __iter__(self) -> Iterator[dict]:
        return self.run(self.start)

    def run(self, start: int, stop: int | None = None) -> Iterator[dict]:
        """Batches `start` to before `stop`, threads ahead of whoever takes them."""
        pool = ThreadPoolExecutor(self.workers)
        ahead: deque[tuple[list[int], list[Future]]] = deque()
        step = start
        try:
            while stop is None or step < stop or ahead:
                began = time.perf_counter()
                while len(ahead) <= AHEAD and (stop is None or step < stop):
                    ahead.append(self._submit(pool, step))
                    step += 1
                batch = self._collate(*ahead.popleft())
                self.waited += time.perf_counter() - began
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def captions(self, step: int) -> list[str]:
        """What is said in batch number `step`, without its images."""
        return [self.dataset.examples[i].caption for i in self.order(step)]

    def at(self, step: int) -> dict:
        """Batch number `step`, made here and now."""
        index = self.order(step)
        done: Future = Future()
        done.set_result(self._views(step * self.batch, index))
        return self._collate(index, [done])

    def order(self, step: int) -> list[int]:
        """The places of batch number `step` in `dataset.examples`."""
        found = []
        for number in range(step * self.batch, (step + 1) * self.batch):
            turn, place = divmod(number, len(self._strata))
            stratum = self._order(-1, turn, len(self._strata))[place]
            members = self._strata[stratum]
            turn, place = divmod(turn, len(members))
            found.append(members[self._order(stratum, turn, len(members))[place]])
        return found

    def _order(self, stratum: int, turn: int, count: int) -> list[int]:
        """The order of a stratum's members, or (-1) of the strata, in one of their turns."""
        if count == 1:
            return [0]
        known = self._orders.get(stratum)
        if known is None or known[0] != turn:
            generator = _generator("order", self.seed, stratum, turn)
            known = turn, torch.randperm(count, generator=generator).tolist()
            self._orders[stratum] = known
        return known[1]

    def _submit(self, pool: ThreadPoolExecutor, step: int) -> tuple[list[int], list[Future]]:
        index = self.order(step)
        size = math.ceil(len(index) / self.workers)
        first = step * self.batch
        return index, [
            pool.submit(self._views, first + i, index[i : i + size])
            for i in range(0, len(index), size)
        ]

    def _views(self, first: int, index: list[int]) -> np.ndarray:
        """The images of consecutive places in the sequence, as the tower sees them, BHW3."""
        made = []
        for number, i in enumerate(index, start=first):
            kept = self._fetch(self.dataset.examples[i])
            generator = _generator("view", self.seed, number)
            made.append(self._view.vary(kept, generator) if self.augment else kept)
        return np.stack(made)

    def _fetch(self, example: Example) -> np.ndarray:
        """What is kept of an image, made now if it is not there."""
        found = self._kept.get(example.digest)
        if found is None:
            found = self._view.keep(example)
            with self._lock:
                if found.nbytes <= self._left and example.digest not in self._kept:
                    self._left -= found.nbytes
                    self._kept[example.digest] = found
        return found

    def _collate(self, index: list[int], parts: list[Future]) -> dict:
        image_BHW3 = torch.from_numpy(np.concatenate([part.result() for part in parts]))
        if image_BHW3.dtype == torch.uint8:
            image_BHW3 = image_BHW3.float().div_(255)
        examples = [self.dataset.examples[i] for i in index]
        label = [example.label for example in examples] if self.dataset.classes else None
        return {
            "image": image_BHW3.permute(0, 3, 1, 2),  # channels last in memory
            "index": torch.tensor(index),
            "label": None if label is None else torch.tensor(label),
            "caption": [example.caption for example in examples],
        }


class _View:
    """What is kept of an image, and what a tower sees of that."""

    def __init__(self, parts: Parts, augment: Augment | None) -> None:
        self.config, self.size, self.augment = parts.preprocess, parts.image_size, augment
        self.transform, self.steps = parts.transform, pixel_steps(parts.transform)
        self.mode = self.config["resize_mode"]
        self.filter = Image.Resampling[self.config["interpolation"].upper()]
        self.side = math.ceil(self.size * MARGIN)

    def keep(self, example: Example) -> np.ndarray:
        """bytes_HW3 of an image: as the tower sees it, or a little larger, to be cropped.

        Floats in [0, 1] where the transform does not end in an image of 8 bits.
        """
        if self.augment is None:
            return self._seen(example.picture())
        picture = example.picture(side=self.side)
        return np.asarray(self._shrunk(picture))

    def vary(self, kept_HW3: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """A crop of what is kept, of the side that the tower sees, drawn from the generator."""
        height, width = kept_HW3.shape[:2]
        area, aspect, x, y, flip = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        scale, ratio = self.augment.scale, self.augment.ratio
        area = scale[0] + area * (scale[1] - scale[0])
        aspect = ratio[0] * (ratio[1] / ratio[0]) ** aspect
        short = min(height, width)
        whole = (width, height) if self.mode == "squash" else (short, short)
        across = min(width, whole[0] * math.sqrt(area * aspect))
        down = min(height, whole[1] * math.sqrt(area / aspect))
        left, top = x * (width - across), y * (height - down)
        box = (left, top, min(width, left + across), min(height, top + down))
        picture = Image.fromarray(kept_HW3).resize((self.size, self.size), self.filter, box=box)
        seen_HW3 = np.asarray(picture)
        return seen_HW3[:, ::-1] if flip < self.augment.flip else seen_HW3

    def _seen(self, picture: Image.Image) -> np.ndarray:
        """What the checkpoint's own transform makes of an image, before it normalises."""
        picture = tame(picture, self.config, self.size)
        if self.steps is not None:
            for step in self.steps:
                picture = step(picture)
            return np.array(picture)
        image_3HW = self.transform(picture)
        mean_3, std_3 = (torch.tensor(self.config[key])[:, None, None] for key in ("mean", "std"))
        return (image_3HW * std_3 + mean_3).clamp(0, 1).permute(1, 2, 0).contiguous().numpy()

    def _shrunk(self, picture: Image.Image) -> Image.Image:
        """An image of the shorter side that is kept, if it is not smaller; both sides where the
        tower squashes, the longer one, and padded to a square, where it pads."""
        width, height = picture.size
        if self.mode == "squash":
            size = min(width, self.side), min(height, self.side)
            return picture if size == picture.size else picture.resize(size, self.filter)
        if self.mode == "longest":
            scale = min(1.0, self.side / max(width, height))
        else:
            most = LONGEST * min(width, height)
            left, top = max(0, width - most) // 2, max(0, height - most) // 2
            if left or top:
                picture = picture.crop((left, top, width - left, height - top))
                width, height = picture.size
            scale = min(1.0, self.side / min(width, height))
        size = tuple(max(1, round(side * scale)) for side in (width, height))
        picture = picture if size == picture.size else picture.resize(size, self.filter)
        return self._padded(picture) if self.mode == "longest" else picture

    def _padded(self, picture: Image.Image) -> Image.Image:
        side = max(picture.size)
        square = Image.new("RGB", (side, side), (int(self.config.get("fill_color", 0)),) * 3)
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        return square


def _strata(dataset: Dataset, balanced: bool) -> list[list[int]]:
    """The places of the examples of each class, or caption; of all in one if not balanced."""
    if not balanced:
        return [list(range(len(dataset)))]
    found: dict[str, list[int]] = defaultdict(list)
    for i, example in enumerate(dataset.examples):
        found[example.caption].append(i)
    return list(found.values())


def _generator(*words: object) -> torch.Generator:
    """A generator of its own for what the words say."""
    digest = hashlib.blake2b(" ".join(map(str, words)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))
