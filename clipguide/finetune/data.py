"""Read images with their labels or captions, check them, and split them before the training."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image

from ..engine import processors
from ..errors import ClipguideError, UsageError
from ..prompts import shorten
from . import duplicates, sources
from .inspection import content_of, cut, decode, inspect
from .tables import Listing, Row

LEAST = 4  # images: two classes or captions, each with one to train on and one to test on
SHOWN = 3  # names per kind in the report


@dataclass(frozen=True, slots=True)
class Example:
    """One image with its label or caption.

    `path` is a file, or "shard.tar!/name.jpg". `caption` is the name of the class if there are
    classes, and `label` its number. `digest` is the sha256 of the bytes. Equal and nearly equal
    images share a `group`.
    """

    path: str
    caption: str
    label: int | None
    digest: str
    group: int
    row: Row = field(repr=False)

    def picture(self, *, side: int | None = None) -> Image.Image:
        """Return the image in RGB. With `side`, a JPEG may be decoded at a smaller size
        (`images.load`).

        Raises:
            UsageError: it cannot be read.
            ClipguideError: it has changed since it was checked.
        """
        content = content_of(self.row)
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise ClipguideError(f"{self.path} has changed since it was first read: start again.")
        return decode(self.row, content, side)


@dataclass(frozen=True)
class Report:
    """The result of the check before the first step. Images are named by their paths.

    broken: (image, reason) of images that cannot be read. They are left out. So are `empty` images,
    which have no text, and `passed` images, which are in no folder of a class. exact, near: sets of
    images with the same bytes, and of nearly equal images. disputed: sets of the same bytes in
    several classes. lonely: classes with one image besides copies, which cannot be tested. hollow:
    names without a readable image, which are no classes. cut: captions that the tokenizer cuts.
    counts: images per class.
    """

    source: str
    pictures: int
    counts: dict[str, int] = field(default_factory=dict)
    broken: list[tuple[str, str]] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    exact: list[list[str]] = field(default_factory=list)
    near: list[list[str]] = field(default_factory=list)
    disputed: list[list[str]] = field(default_factory=list)
    lonely: list[str] = field(default_factory=list)
    hollow: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return a few lines for a terminal."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.source}: {_plural(self.pictures, 'image')}{self._spread()}."
        if self.broken:
            why = "; ".join(said.rstrip(".") for _, said in self.broken[:SHOWN])
            yield f"Broken, and left out: {len(self.broken)}. {why}{_more(self.broken)}."
        if self.empty:
            yield f"Without a text, and left out: {_named(self.empty)}."
        if self.passed:
            yield f"In no class's folder, and left out: {_named(self.passed)}."
        for kind, sets in (("Same bytes", self.exact), ("Nearly the same", self.near)):
            if sets:
                first = " and ".join(sets[0][:2])
                held = f"{sum(map(len, sets))} images in {_plural(len(sets), 'set')}"
                yield f"{kind}: {held}, each on one side of the split; as {first}."
        if self.disputed:
            first = " and ".join(self.disputed[0][:2])
            sets = _plural(len(self.disputed), "set")
            yield f"Same bytes in several classes: {sets}, as {first}."
        if self.hollow:
            yield f"Without an image that can be read, and so no class: {_named(self.hollow)}."
        if self.lonely:
            yield f"Classes of one image, trained on but not tested: {_named(self.lonely)}."
        if self.cut:
            shown = ", ".join(repr(shorten(text)) for text in self.cut[:SHOWN])
            yield f"Captions whose end the CLIP does not read: {len(self.cut)}: {shown}."

    def _spread(self) -> str:
        if not self.counts:
            return " with captions"
        low, high = min(self.counts.values()), max(self.counts.values())
        fewest = min(self.counts, key=lambda name: self.counts[name])
        each = f"{low} each" if low == high else f"{low} ({fewest}) to {high} each"
        return f" in {len(self.counts)} classes, {each}"


@dataclass(frozen=True)
class Dataset:
    """The examples, the names of the classes by number (none for captions), and the report."""

    examples: list[Example]
    classes: list[str]
    report: Report
    spill: object = field(default=None, repr=False, compare=False)  # see `Listing`

    def __len__(self) -> int:
        return len(self.examples)

    def digest(self) -> str:
        """Return the digest of the bytes and texts of the images, in their order."""
        content = str([(example.digest, example.caption) for example in self.examples])
        return hashlib.sha256(content.encode()).hexdigest()


def read(
    source: str | os.PathLike,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    label_column: str | None = None,
    names: sources.Names | None = None,
    tokenizer: Callable[..., torch.Tensor] | None = None,
    train: bool = True,
    texts: bool = True,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Read the images of a source (`sources.rows` lists the kinds). Each is decoded once.

    Copies stay, in one group. Without `train`, the images are only tested on: there may be few of
    them, with one class or caption. Without `texts`, labels and captions are ignored: all images of
    a folder, a table or a tar have one caption.

    Args:
        tokenizer: the tokenizer of the CLIP, to report captions that it cuts.
        progress: called with the number of images read and the number of all.

    Raises:
        UsageError: nothing can be learned from the source: it has one class, numbers instead of
            names, equal captions, fewer than LEAST different images, or no readable image.
    """
    columns = {"caption_column": caption_column, "label_column": label_column}
    if texts:
        listing = sources.rows(source, image_column=image_column, names=names, **columns)
    else:
        listing, train = sources.pictures(source, image_column=image_column), False
    rows = list(dict.fromkeys(row for row in listing.rows if row.text))
    found = inspect(rows, workers or min(8, processors()), progress)
    broken = {row.path: one for row, one in zip(rows, found) if isinstance(one, str)}
    rows = [row for row, one in zip(rows, found) if not isinstance(one, str)]
    found = [one for one in found if not isinstance(one, str)]
    if not rows:
        first = next(iter(broken.values()))
        raise UsageError(f"None of the {len(broken)} images of {source} can be read. {first}")
    said = {row.text for row in rows}
    if train and len(said) < 2:
        _refuse_one(os.fspath(source), listing.classes, said.pop(), len(rows))
    groups = _groups([digest for digest, _ in found], np.stack([small_D for _, small_D in found]))
    classes = sorted(said) if listing.classes else []
    number = {name: i for i, name in enumerate(classes)}
    examples = [
        Example(row.path, row.text, number.get(row.text), digest, group, row)
        for row, (digest, _), group in zip(rows, found, groups)
    ]
    if train:
        _check_enough(os.fspath(source), examples, bool(classes))
    report = _report(source, examples, classes, listing, broken, tokenizer)
    return Dataset(examples, classes, report, listing.spill)


def near_copies(first: Sequence[Example], second: Sequence[Example]) -> set[int]:
    """Return the places in `first` of images that are in `second`, identical or nearly so."""
    found = inspect([e.row for e in (*first, *second)], min(8, processors()), None)
    if any(isinstance(one, str) for one in found):
        raise ClipguideError("Images have changed since they were first read: start again.")
    groups = _groups([digest for digest, _ in found], np.stack([small_D for _, small_D in found]))
    known = set(groups[len(first) :])
    return {i for i, group in enumerate(groups[: len(first)]) if group in known}


def split(dataset: Dataset, *, share: float = 0.2, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Return the examples to train on, and a `share` of each class to test on.

    A group stays on one side. A class with two groups of its own is on both sides. The split
    follows from the seed and the digests, not from names or order.

    Raises:
        UsageError: the share is not in (0, 1).
    """
    if not 0 < share < 1:
        raise UsageError(f"The share to test on lies between 0 and 1, not {share}.")
    members = defaultdict(list)
    for example in dataset.examples:
        members[example.group].append(example)
    key = {g: _draw(seed, min(e.digest for e in found)) for g, found in members.items()}
    of_class: dict[int | None, set[int]] = defaultdict(set)
    for example in dataset.examples:
        of_class[example.label].add(example.group)
    tested: dict[int, bool] = {}
    for label in sorted(of_class, key=lambda label: (len(of_class[label]), label or 0)):
        mine = sorted(of_class[label], key=lambda group: key[group])
        weight = {g: sum(e.label == label for e in members[g]) for g in mine}
        _share_out(mine, weight, share * sum(weight.values()), tested)
    sides = [[e for e in dataset.examples if tested[e.group] is test] for test in (False, True)]
    train, test = (replace(dataset, examples=side) for side in sides)
    return train, test


def halves(dataset: Dataset, *, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Return two parts of about equal size, whatever the classes. A group stays on one side. The
    split follows from the seed and the digests."""
    members = defaultdict(list)
    for example in dataset.examples:
        members[example.group].append(example)
    key = {g: _draw(seed, min(e.digest for e in found)) for g, found in members.items()}
    sides: tuple[list, list] = ([], [])
    for group in sorted(members, key=key.__getitem__):
        min(sides, key=len).extend(members[group])
    return tuple(replace(dataset, examples=side) for side in sides)


def _share_out(
    groups: list[int], weight: dict[int, int], target: float, tested: dict[int, bool]
) -> None:
    """Assign the remaining groups of a class, so that about `target` images are for the test."""
    free = [group for group in groups if group not in tested]
    done = sum(weight[group] for group in groups if tested.get(group))
    for group in free:
        tested[group] = len(groups) > 1 and done + weight[group] / 2 <= target
        done += weight[group] * tested[group]
    if free and len(groups) > 1 and len({tested[group] for group in groups}) == 1:
        lightest = min(free, key=weight.__getitem__)
        tested[lightest] = not tested[lightest]


def _draw(seed: int, digest: str) -> str:
    return hashlib.sha256(f"{seed} {digest}".encode()).hexdigest()


def _groups(digests: list[str], small_ND: np.ndarray) -> list[int]:
    """Return the number of the group of each image. Equal and nearly equal images share a group."""
    first = {digest: i for i, digest in reversed(list(enumerate(digests)))}
    first = dict(reversed(first.items()))
    number = dict(zip(first, duplicates.groups(small_ND[list(first.values())])))
    return [number[digest] for digest in digests]


def _refuse_one(source: str, classes: bool, text: str, count: int) -> None:
    if classes:
        raise UsageError(
            f"{source} has one class, {text!r}, and fine-tuning needs two or more, to tell them "
            "apart: add images of something else."
        )
    raise UsageError(
        f"The captions of the {count} images of {source} are all {shorten(text)!r}, from which "
        "nothing can be told apart: give each image a caption of its own."
    )


def _check_enough(source: str, examples: list[Example], classes: bool) -> None:
    """Raise UsageError if there are too few images to train on some and test on others."""
    groups = {example.group for example in examples}
    several = Counter(label for label, _ in {(e.label, e.group) for e in examples})
    if len(groups) < LEAST:
        what = "classes" if classes else "captions"
        raise UsageError(
            f"{source} has {_plural(len(groups), 'different image')} that can be read, and "
            f"fine-tuning needs {LEAST} at least: two {what} of two images, one to train on and "
            "one to test on."
        )
    if classes and sum(count > 1 for count in several.values()) < 2:
        raise UsageError(
            f"{source} needs two classes at least of two different images, one to train on and "
            "one to test on; its others may have one."
        )


def _report(
    source: str | os.PathLike,
    examples: list[Example],
    classes: list[str],
    listing: Listing,
    broken: dict[str, str],
    tokenizer: Callable[..., torch.Tensor] | None,
) -> Report:
    same, alike_, texts = defaultdict(dict), defaultdict(dict), defaultdict(set)
    for example in examples:
        same[example.digest][example.path] = None
        alike_[example.group][example.path] = example.digest
        texts[example.digest].add(example.caption)
    exact = [list(paths) for paths in same.values() if len(paths) > 1]
    near = [list(paths) for paths in alike_.values() if len(set(paths.values())) > 1]
    groups = Counter(label for label, _ in {(e.label, e.group) for e in examples})
    return Report(
        source=os.fspath(source),
        pictures=len({example.path for example in examples}),
        counts={name: sum(e.caption == name for e in examples) for name in classes},
        broken=list(broken.items()),
        empty=[row.path for row in listing.rows if not row.text],
        passed=listing.passed,
        exact=exact,
        near=near,
        disputed=[list(same[d]) for d, said in texts.items() if classes and len(said) > 1],
        hollow=listing.hollow + sorted({r.text for r in listing.rows if r.text} - set(classes))
        if classes
        else [],
        lonely=[name for i, name in enumerate(classes) if groups[i] == 1],
        cut=cut(sorted({e.caption for e in examples}), tokenizer) if tokenizer else [],
    )


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'s' if count != 1 else ''}"


def _more(items: Sequence) -> str:
    return f"; and {len(items) - SHOWN} more" if len(items) > SHOWN else ""


def _named(items: Sequence[str]) -> str:
    return f"{len(items)}, {', '.join(items[:SHOWN])}{' …' if len(items) > SHOWN else ''}"
