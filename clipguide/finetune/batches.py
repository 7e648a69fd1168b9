"""An endless sequence of batches. Each follows from its number alone, so that a run can resume.

The images of batch n, and their crops, follow from the seed and n: a resumed run sees identical
batches. Threads decode ahead of the model, and keep reduced images in memory, so that later epochs
decode nothing.

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

MARGIN = 1.25  # ratio of the stored side to the side of the encoder
LONGEST = 4  # longest stored side in shorter sides: more of a strip is never seen
AHEAD = 2  # batches that are prepared ahead
MEMORY = 2 << 30  # bytes of stored images


@dataclass(frozen=True, kw_only=True)
class Augment:
    """The augmentation: a crop with a share of the area in `scale`, and an aspect ratio in `ratio`
    times that of the image or the square, mirrored with probability `flip` (Inception's crops,
    Szegedy et al. 2015; never larger than the image)."""

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
    """Endless batches of a data set for a CLIP, from number `start`.

    Each batch is a dict of `image` (image_B3HW in [0, 1], at the size of the encoder, before it is
    normalised), `index` (places in `dataset.examples`, index_B), `label` (label_B, or None for
    captions) and `caption` (a list).

    With `balanced`, the batches take the classes in turn (captions if there are no classes), in a
    new order each round. The images of a class also come in turn, in a new order each round.
    Otherwise the images come in turn. By default, `augment` mirrors images with classes, but not
    those with captions, which can name left and right (for such classes, give Augment(flip=0)).
    False applies the checkpoint's own transform, bit for bit. `memory` limits the stored images in
    bytes, and changes nothing else. `waited` is the total time of `next` in seconds.
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
        """Return the number of batches with as many images as the data set."""
        return math.ceil(len(self.dataset) / self.batch)

    def __iter__(self) -> Iterator[dict]:
        return self.run(self.start)

    def run(self, start: int, stop: int | None = None) -> Iterator[dict]:
        """Yield the batches from `start` to before `stop`. Threads prepare them ahead."""
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
        """Return the captions of batch number `step`, without its images."""
        return [self.dataset.examples[i].caption for i in self.order(step)]

    def at(self, step: int) -> dict:
        """Return batch number `step`, prepared now."""
        index = self.order(step)
        done: Future = Future()
        done.set_result(self._views(step * self.batch, index))
        return self._collate(index, [done])

    def order(self, step: int) -> list[int]:
        """Return the places of batch number `step` in `dataset.examples`."""
        found = []
        for number in range(step * self.batch, (step + 1) * self.batch):
            turn, place = divmod(number, len(self._strata))
            stratum = self._order(-1, turn, len(self._strata))[place]
            members = self._strata[stratum]
            turn, place = divmod(turn, len(members))
            found.append(members[self._order(stratum, turn, len(members))[place]])
        return found

    def _order(self, stratum: int, turn: int, count: int) -> list[int]:
        """Return the order of the members of a stratum, or of the strata (-1), in one round."""
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
        """Return the images of consecutive places in the sequence, as the encoder sees them, BHW3.
        """
        made = []
        for number, i in enumerate(index, start=first):
            kept = self._fetch(self.dataset.examples[i])
            generator = _generator("view", self.seed, number)
            made.append(self._view.vary(kept, generator) if self.augment else kept)
        return np.stack(made)

    def _fetch(self, example: Example) -> np.ndarray:
        """Return the stored form of an image. Make it if it is missing."""
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
            "image": image_BHW3.permute(0, 3, 1, 2),  # memory layout with the channels last
            "index": torch.tensor(index),
            "label": None if label is None else torch.tensor(label),
            "caption": [example.caption for example in examples],
        }


class _View:
    """Store an image, and make the encoder's view of it."""

    def __init__(self, parts: Parts, augment: Augment | None) -> None:
        self.config, self.size, self.augment = parts.preprocess, parts.image_size, augment
        self.transform, self.steps = parts.transform, pixel_steps(parts.transform)
        self.mode = self.config["resize_mode"]
        self.filter = Image.Resampling[self.config["interpolation"].upper()]
        self.side = math.ceil(self.size * MARGIN)

    def keep(self, example: Example) -> np.ndarray:
        """Return bytes_HW3 to store: the encoder's view, or a little more if it is to be cropped.

        If the transform does not end in an 8-bit image, they are floats in [0, 1].
        """
        if self.augment is None:
            return self._seen(example.picture())
        picture = example.picture(side=self.side)
        return np.asarray(self._shrunk(picture))

    def vary(self, kept_HW3: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """Return a crop of the stored image at the size of the encoder, drawn from the generator.
        """
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
        """Return the image after the checkpoint's own transform, before it is normalised."""
        picture = tame(picture, self.config, self.size)
        if self.steps is not None:
            for step in self.steps:
                picture = step(picture)
            return np.array(picture)
        image_3HW = self.transform(picture)
        mean_3, std_3 = (torch.tensor(self.config[key])[:, None, None] for key in ("mean", "std"))
        return (image_3HW * std_3 + mean_3).clamp(0, 1).permute(1, 2, 0).contiguous().numpy()

    def _shrunk(self, picture: Image.Image) -> Image.Image:
        """Return the image with the shorter side that is stored, if it is larger. If the encoder
        squashes, both sides count. If it pads, the longer side counts, and the image is padded to a
        square."""
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
    """Return the places of the examples of each class or caption. Without `balanced`, return one
    stratum."""
    if not balanced:
        return [list(range(len(dataset)))]
    found: dict[str, list[int]] = defaultdict(list)
    for i, example in enumerate(dataset.examples):
        found[example.caption].append(i)
    return list(found.values())


def _generator(*words: object) -> torch.Generator:
    """Return a generator with a seed that follows from the words."""
    digest = hashlib.blake2b(" ".join(map(str, words)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))
