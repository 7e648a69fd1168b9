"""Fine-tune a CLIP, from the data to the folder: the work of the command, for programs.

    job = prepare("my-images", clip="mini")
    print(job.report)
    for step in job.run():
        print(step.step, step.loss, step.measured)
    outcome = job.select()
    job.save(outcome, "my-clip")
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..clip import Clip, Parts, load_parts
from ..clip.names import MINI
from ..errors import ClipguideWarning, UsageError
from ..export.folder import staged
from ..tables import ENDINGS
from . import report
from .config import FinetuneConfig, Progress
from .data import Dataset, Report, halves, near_copies, read, split
from .exam import Exam
from .outcome import Outcome, select
from .run import Finetune

HELD_OUT = Path(__file__).parent / "held-out.tar"
CONCEPTS = Path(__file__).parent / "concepts.txt"
FACTS = "finetune.json"
DEFAULT = ""  # default of `retain` for the embedded CLIPs
TWICE = 40  # smallest number of images set aside of which half are only tested on


@dataclass
class Job:
    """The job that `prepare` returns. `report` is the report on the data, and `fit` trains. `test`
    and `retention` measure the result. `weighed`, the other half of the retention set, selects the
    weights."""

    fit: Finetune
    test: Exam
    retention: Exam | None
    weighed: Exam | None
    report: Report
    data: str
    kept: str

    def run(self) -> Iterator[Progress]:
        """Train, one step at a time."""
        return self.fit.run()

    def select(self, *, allowed: float = 0.01, wise_ft: bool = True) -> Outcome:
        """Select the weights, as `outcome.select`, after the run has ended."""
        return select(
            self.fit, self.test, self.retention, self.weighed, allowed=allowed, wise_ft=wise_ft
        )

    def save(self, outcome: Outcome, out: str | os.PathLike, *, overwrite: bool = False) -> Clip:
        """Save the model and its card to a folder, and remove the checkpoint. Return the CLIP.

        Raises:
            UsageError: `out` exists and `overwrite` is False.
            ClipguideError: `out` cannot be written. The checkpoint stays.
        """
        with staged(Path(out), force=overwrite, of=FACTS) as folder:
            outcome.parts.save(folder)
            report.write(folder, outcome, self.fit, data=self.data, kept=self.kept)
        if self.fit.checkpoints:
            self.fit.checkpoints.remove()
        return outcome.parts.clip()


def prepare(
    data: str | os.PathLike,
    *,
    clip: str | os.PathLike | Parts = "mini",
    config: FinetuneConfig | None = None,
    test: str | os.PathLike | None = None,
    retain: str | os.PathLike | None = DEFAULT,
    share: float = 0.2,
    folder: Path | None = None,
    device: str = "cpu",
    trust_pickle: bool = False,
    columns: dict[str, object] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Job:
    """Read the data, set a share of it aside, and prepare the training.

    Args:
        data: a folder of classes, a table, a webdataset or an index, in the formats of the page
            "Fine-tune".
        clip: the CLIP to start from.
        config: how to train; the defaults if None.
        test: other data of the same classes to test on. If None, half of what is set aside is used.
        retain: images of what the CLIP must not forget. One half is used to select the weights, the
            other half for the report. None skips the check. For mini, the default is drawings that
            it was not trained on. Each must be named among all the names of mini's training. Other
            CLIPs have no default.
        share: the share of the data that is set aside.
        folder: the folder of the checkpoint.
        device: the device of the training.
        trust_pickle: whether weights in a pickle may be read.
        columns: the columns of a table, by the keys "image_column", "caption_column" and
            "label_column".
        progress: called with the number of files read and the number of all.

    Raises:
        UsageError: the data cannot be read, the CLIP does not load, a setting is out of range, or
            the CLIP needs `retain`.
    """
    parts = (
        clip
        if isinstance(clip, Parts)
        else load_parts(clip, device=device, trust_pickle=trust_pickle)
    )
    config, retain = config or FinetuneConfig(), retained(parts, retain)
    found = read(data, tokenizer=parts.tokenizer, progress=progress, **(columns or {}))
    train, held = split(found, share=share, seed=config.seed)
    aside, tested = held, held
    if test is not None:
        tested = _same_classes(_test_data(test, parts, columns or {}), found, os.fspath(test))
        train, aside = _without_copies((train, aside), tested)
    elif len(held) >= TWICE:
        aside, tested = split(held, share=0.5, seed=config.seed)
    fit = Finetune(parts, train, aside, config, folder=folder)
    exam = fit.exam
    if tested is not aside:
        exam = Exam(parts, tested, templates=fit.templates)
    retention, weighed, kept = _retention(parts, retain, fit)
    return Job(fit, exam, retention, weighed, found.report, os.fspath(data), kept)


def retained(parts: Parts, source: str | os.PathLike | None) -> str | os.PathLike | None:
    """Return the default retention set: the drawings, for the embedded CLIPs. Raise UsageError for
    other CLIPs, for which drawings measure nothing."""
    if source is None or os.fspath(source) != DEFAULT:
        return source
    if parts.name.partition("@")[0] not in MINI:
        raise UsageError(
            f"Say what {parts.name} should still know: --retain DATA (retain=DATA), images with "
            "names or captions of the kind that it is good at; or --retain none (retain=None)."
        )
    return HELD_OUT


def _retention(
    parts: Parts, source: str | os.PathLike | None, fit: Finetune
) -> tuple[Exam | None, Exam | None, str]:
    """Return the half that is reported, the half that selects, and a description of both."""
    if source is None:
        return None, None, "nothing"
    data = read(source, tokenizer=parts.tokenizer, train=False)
    labels, what = None, os.fspath(source)
    if source == HELD_OUT:
        labels = CONCEPTS.read_text().splitlines()
        what = f"drawings that mini was not trained on, among {len(labels)} names"
    settings = {"templates": fit.templates, "labels": labels}
    if len(data) < TWICE:
        exam = Exam(parts, data, **settings)
        return exam, exam, f"{what}: {len(data)}, by which was chosen as well"
    sides = halves(data, seed=fit.config.seed)
    reported, chosen = (Exam(parts, half, **settings) for half in sides)
    return reported, chosen, f"{what}: {len(reported)}, chosen by {len(chosen)} others"


def _same_classes(test: Dataset, train: Dataset, source: str) -> Dataset:
    """Return the test data with the numbers of the classes of the training data."""
    if bool(test.classes) != bool(train.classes):
        raise UsageError(
            f"{source} must name classes where the data to train on does, or captions."
        )
    strange = sorted(set(test.classes) - set(train.classes))
    if strange:
        raise UsageError(f"{source} has classes that are not trained on: {', '.join(strange[:5])}.")
    if not train.classes:
        return test
    number = {name: n for n, name in enumerate(train.classes)}
    examples = [replace(e, label=number[e.caption]) for e in test.examples]
    return replace(test, examples=examples, classes=train.classes)


def _test_data(source: str | os.PathLike, parts: Parts, columns: dict) -> Dataset:
    """Return the test data. Columns are those of a table; names are those of either."""
    if Path(source).suffix.lower() not in ENDINGS:
        columns = {"names": columns["names"]} if columns.get("names") else {}
    return read(source, tokenizer=parts.tokenizer, train=False, **columns)


def _without_copies(sides: tuple[Dataset, Dataset], tested: Dataset) -> tuple[Dataset, ...]:
    """Return the data without copies or near-copies of the test images. Warn if there are any."""
    copies = [near_copies(side.examples, tested.examples) for side in sides]
    if count := sum(map(len, copies)):
        warnings.warn(
            f"{count} of the images to train on or to choose by are among those to test on, or "
            "nearly, and are left out.",
            ClipguideWarning,
            stacklevel=3,
        )
    left = [
        [e for i, e in enumerate(side.examples) if i not in found]
        for side, found in zip(sides, copies)
    ]
    return tuple(replace(side, examples=examples) for side, examples in zip(sides, left))
