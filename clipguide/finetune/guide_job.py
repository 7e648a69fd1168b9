"""Make a better guide from a folder of images: the work of --for-guiding.

    job = prepare_guide("my-images", clip="mini", config=GuidingConfig(minutes=60))
    for step in job.run():
        print(step.index, step.loss)
    job.save(job.report(), "my-guide")
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from .. import __version__
from ..clip import Clip, Parts, load_clip, load_parts
from ..errors import UsageError
from ..export.folder import staged
from ..zero_shot import default_templates, templates
from .batches import Batches
from .checkpoint import Checkpoints
from .data import Dataset, Report, read
from .figure import GuideReport, guide_report
from .fit import Fit, FitStep, NotFinite
from .guiding import GuidingConfig, guiding_fit
from .job import CONCEPTS, DEFAULT, FACTS, HELD_OUT, retained
from .run import slow_down

SECONDS = 60.0  # time between checkpoints
DRAWN = 24  # concepts of the figure before and after
BATCH = 32


@dataclass
class GuideJob:
    """The job that `prepare_guide` returns. `found` is the report on the data."""

    parts: Parts
    before: Clip
    data: Dataset
    fit: Fit
    judge: Clip
    retain: Dataset | None
    batch: int
    checkpoints: Checkpoints | None
    source: str
    templates: tuple[str, ...]

    @property
    def found(self) -> Report:
        """Return what was found before the first step."""
        return self.data.report

    def run(self) -> Iterator[FitStep]:
        """Train, from the checkpoint if there is one. At the end, the model has the averaged
        weights."""
        if not self._load():
            self._save()
        while True:
            try:
                yield from self._steps()
                break
            except NotFinite as error:
                slow_down(self.fit, error, self.checkpoints)
                self._load(before=True)
                self.fit.slower = 0.5
        self._save()
        self.parts.model.load_state_dict(self.fit.average.model.state_dict())
        self.parts.model.requires_grad_(False)

    def _steps(self) -> Iterator[FitStep]:
        saved, balanced = time.monotonic(), bool(self.data.classes)
        seed = self.fit.loss.config.seed
        batches = Batches(self.data, self.parts, batch=self.batch, seed=seed, balanced=balanced)
        for step in self.fit.run(batches.run(self.fit.index)):
            if time.monotonic() - saved > SECONDS:
                self._save()
                saved = time.monotonic()
            yield step

    def _save(self) -> None:
        if self.checkpoints:
            state = {"fit": self.fit.state_dict(), "loss": self.fit.loss.state_dict()}
            self.checkpoints.save(state)

    def _load(self, *, before: bool = False) -> bool:
        kept = self.checkpoints.load(before=before) if self.checkpoints else None
        if kept is not None:
            self.fit.load_state_dict(kept["fit"])
            self.fit.loss.load_state_dict(kept["loss"])
        return kept is not None

    def report(self, *, drawn: int = DRAWN) -> GuideReport:
        """Return the figure of the guide before and after: on the classes, or on well-known
        concepts; and its top-1 accuracy on the retention set."""
        known = CONCEPTS.read_text().splitlines()
        words = self.data.classes or [name for name in known if name.isalpha()]
        stride = max(1, len(words) // drawn)
        among = list(dict.fromkeys([*known, *self.data.classes]))
        clean = {}
        if self.retain is not None:
            place = {name: n for n, name in enumerate(self.retain.classes)}
            clean = {
                "pictures": [e.picture() for e in self.retain.examples],
                "labels": [place[e.caption] for e in self.retain.examples],
                "classes": self.retain.classes,
            }
        after = self.parts.clip(device=str(self.before.device))
        return guide_report(
            self.before, after, self.judge, words[::stride][:drawn], among=among, **clean
        )

    def save(self, report: GuideReport, out: str | os.PathLike, *, overwrite: bool = False) -> Clip:
        """Write the folder of the guide, with its card and both contact sheets. Raise the errors of
        `Job.save`."""
        with staged(Path(out), force=overwrite, of=FACTS) as folder:
            self.parts.save(folder)
            report.save(folder)
            facts = {
                "clipguide": __version__,
                "data": self.source,
                "base": self.before.name,
                "templates": list(self.templates),
                "figures": {what: [was, now] for what, was, now in report.rows()},
            }
            (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
            (folder / "README.md").write_text(self._card(report))
        if self.checkpoints:
            self.checkpoints.remove()
        return self.parts.clip()

    def _card(self, report: GuideReport) -> str:
        config, fit = self.fit.loss.config, self.fit
        return (
            f"# {self.before.name}, made a guide\n\n"
            f"The image tower was trained by clipguide on {len(self.data)} images of "
            f"{self.source} against {config.norm} attacks ({config.method}): {fit.index} steps, "
            f"{fit.minutes:.0f} processor minutes.\n\n{report.markdown()}\n"
            "![before](guide-before.png)\n\n![after](guide-after.png)\n"
        )


def prepare_guide(
    data: str | os.PathLike,
    *,
    clip: str | os.PathLike | Parts = "mini",
    config: GuidingConfig | None = None,
    judge: str = "mini-judge",
    retain: str | os.PathLike | None = DEFAULT,
    batch: int = BATCH,
    folder: Path | None = None,
    device: str = "cpu",
    trust_pickle: bool = False,
    columns: dict[str, object] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> GuideJob:
    """Read the data and prepare the training. FARE takes any folder of images. TeCoA needs classes.

    `judge`, another CLIP, gives the figure. `retain` are images with names that measure the loss of
    accuracy; the default is that of `prepare`.

    Raises:
        UsageError: as `read` and `load_parts`; or TeCoA has no classes.
    """
    config = config or GuidingConfig()
    parts = (
        clip
        if isinstance(clip, Parts)
        else load_parts(clip, device=device, trust_pickle=trust_pickle)
    )
    retain = retained(parts, retain)
    if config.method == "tecoa":
        found = read(data, tokenizer=parts.tokenizer, progress=progress, **(columns or {}))
        if not found.classes:
            raise UsageError(
                f"TeCoA needs classes, and {data} has captions: --against fare does without."
            )
    else:
        image_column = (columns or {}).get("image_column")
        found = read(data, texts=False, image_column=image_column, progress=progress)
    before = parts.clip(device=device)
    judging = load_clip(judge, device=device, trust_pickle=trust_pickle)
    if judging.fingerprint == before.fingerprint:
        raise UsageError(f"The judge {judge} is the CLIP itself: name another by --judge.")
    kept = None
    if retain is not None:
        kept = read(retain, train=False)
        if not kept.classes:
            raise UsageError(f"{retain} has captions: images to retain have names of classes.")
        if retain == HELD_OUT:
            kept = replace(kept, classes=CONCEPTS.read_text().splitlines())
    about = {name: str(value) for name, value in vars(config).items()}
    about |= {"batch": str(batch), "model": parts.fingerprint[:12]}
    about["data"] = found.digest()[:12]
    fit = guiding_fit(parts, classes=found.classes, config=config)
    checkpoints = Checkpoints(folder, about) if folder else None
    source = os.fspath(data)
    own = templates(default_templates(parts.name))
    return GuideJob(parts, before, found, fit, judging, kept, batch, checkpoints, source, own)
