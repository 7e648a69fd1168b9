"""Run the training of finetune: show it, save it, and end it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..errors import UsageError
from . import console

if TYPE_CHECKING:
    from ..finetune.config import FinetuneConfig, Progress
    from ..finetune.fit import FitStep
    from ..finetune.guiding import GuidingConfig
    from ..finetune.job import Job
    from ..finetune.outcome import Outcome


class Run:
    """A training run into the folder `out`. Its checkpoint is in `unfinished`, next to `out`. With
    `look`, neither is written.

    Raises:
        UsageError: `out` is missing or exists; there is a stopped run, and neither --resume nor
            --force was given; or there is no run to resume.
    """

    def __init__(self, out: Path | None, *, look: bool, resume: bool, force: bool) -> None:
        from ..export.folder import check
        from ..finetune.job import FACTS

        self.out, self.look, self.force, self.resume = out, look, force, resume
        self.unfinished: Path | None = None
        if look:
            return
        if out is None:
            raise UsageError("Name the folder of the new CLIP with --out, or give --dry-run.")
        check(out, force=force, of=FACTS)
        self.unfinished = folder = out.with_name(f"{out.name}.unfinished")
        there = any(folder.glob("checkpoint*.pt"))
        if there and not (resume or force):
            raise UsageError(
                f"A run that was stopped is in {folder}: --resume continues it, --force starts "
                "again."
            )
        elif resume and not there:
            raise UsageError(f"There is no run to continue in {folder}: leave out --resume.")

    def _anew(self) -> None:
        """Remove the stopped run. This happens only after all options are checked."""
        if not self.resume and self.unfinished.is_dir():
            shutil.rmtree(self.unfinished)

    def train(self, data: str, config: FinetuneConfig, keeping: dict, **settings: object) -> None:
        """Fine-tune, and report. `settings` are those of `prepare`, `keeping` those of `select`."""
        from ..finetune.job import prepare

        folder = self.unfinished
        with _Meter() as meter:
            job = prepare(data, config=config, folder=folder, progress=meter.reading, **settings)
            meter.say(str(job.report))
            if self.look:
                return
            self._anew()
            for step in job.run():
                meter.training(step)
            if job.fit.state and not job.fit.state.is_main_process:
                return
            meter.busy("weighing old and new")
            outcome = job.select(**keeping)
        job.save(outcome, self.out, overwrite=self.force)
        _tell(job, outcome)
        console.tell(self.out)

    def guide(self, data: str, config: GuidingConfig, **settings: object) -> None:
        """Train a guide, and report. `settings` are those of `prepare_guide`."""
        from ..finetune.guide_job import prepare_guide

        folder = self.unfinished
        with _Meter() as meter:
            job = prepare_guide(
                data, config=config, folder=folder, progress=meter.reading, **settings
            )
            meter.say(str(job.found))
            if self.look:
                return
            self._anew()
            for step in job.run():
                meter.guiding(step, config)
            meter.busy("drawing by both")
            report = job.report()
        job.save(report, self.out, overwrite=self.force)
        rows = [(what, f"{100 * a:.1f} %", f"{100 * b:.1f} %") for what, a, b in report.rows()]
        _print_rows(rows)
        console.tell(self.out)


def pair(text: str | None) -> tuple[float, float] | None:
    """Return the two numbers of "0.5,4.5"."""
    if text is None:
        return None
    try:
        low, high = (float(word) for word in text.split(","))
    except ValueError:
        raise UsageError(f"--epsilon is two numbers, as in 0.5,4.5, not {text!r}.") from None
    return low, high


def _tell(job: Job, outcome: Outcome) -> None:
    """Print the table of before and after, and how much was retained."""
    from ..finetune.report import table

    _print_rows(table(outcome))
    if outcome.target is job.fit.exam:
        console.tell(
            f"With only {len(outcome.target)} set aside, the same images choose the model and "
            "test it: the figures flatter."
        )
    if outcome.retention:
        way = f"{outcome.chosen.alpha:.0%} of the way to the new weights is kept"
        console.tell(f"{way}; retention: {job.kept}.")


def _print_rows(rows: list[tuple[str, str, str]]) -> None:
    """Print a table of the values before and after."""
    rows = [("", "before", "after"), *rows]
    wide = [max(len(row[k]) for row in rows) for k in range(3)]
    for what, was, now in rows:
        typer.echo(f"{what:<{wide[0]}}  {was:>{wide[1]}}  {now:>{wide[2]}}")


class _Meter:
    """A progress bar on stderr, if that is a terminal. Messages stand above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[said]}"),
            console=self._console,
            disable=not self._console.is_terminal,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("reading", total=None, said="")

    def __enter__(self) -> _Meter:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print lines on stderr, above the bar."""
        for line in text.splitlines():
            self._console.print(console.one_line(line), markup=False)

    def reading(self, done: int, total: int) -> None:
        """Show the number of images that were read."""
        self._bar.update(self._task, completed=done, total=total)

    def training(self, step: Progress) -> None:
        """Show a step. After an epoch, print its figure as a line."""
        said = f"loss {step.loss:.3f}"
        self._bar.update(
            self._task, description="training", completed=step.step, total=step.steps, said=said
        )
        if step.measured is not None:
            aside = f"{100 * step.measured:.1f} % of those set aside"
            self.say(f"epoch {step.epoch:.3g}, step {step.step}: {said}, {aside}")

    def guiding(self, step: FitStep, config: GuidingConfig) -> None:
        """Show a step of a guide's training, which counts steps or minutes."""
        metrics = "  ".join(f"{name} {value:.3f}" for name, value in step.parts.items())
        done, total = (step.index, config.steps) if config.steps else (step.minutes, config.minutes)
        self._bar.update(
            self._task, description="training", completed=int(done), total=total, said=metrics
        )
        if step.index % 50 == 0:
            self.say(f"step {step.index}, {step.minutes:.1f} processor minutes: {metrics}")

    def busy(self, what: str) -> None:
        """Show work of unknown length."""
        self._bar.update(self._task, description=what, completed=0, total=None, said="")
