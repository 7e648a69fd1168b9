"""clipguide finetune: a CLIP on pictures of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from . import console
from .generate import best_device

if TYPE_CHECKING:
    from ..finetune.config import Progress
    from ..finetune.fit import FitStep
    from ..finetune.guiding import GuidingConfig
    from ..finetune.job import Job
    from ..finetune.outcome import Outcome

DATA = "What is read"
TRAINING = "How it is trained"
KEEPING = "What it keeps"
GUIDING = "With --for-guiding"
HELD_OUT = "held-out"
NONE = "none"


def _option(*names: str, text: str, panel: str, metavar: str | None = None) -> typer.Option:
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel=panel)


def finetune(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A folder whose subfolders name classes; a .csv, .tsv, .jsonl or .parquet of "
            "pictures and captions or labels; a webdataset .tar, or a pattern of them; an index.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="The folder of the new CLIP."),
    ] = None,
    clip: Annotated[
        str, typer.Option(metavar="NAME", help="The CLIP to begin from, as for score.")
    ] = "mini",
    method: Annotated[
        str,
        _option(
            text="full: both towers. lora: low-rank changes of both. lit: the text tower alone. "
            "head: the last layer of the image tower, on vectors that are computed once.",
            panel=TRAINING,
            metavar="full|lora|lit|head",
        ),
    ] = "full",
    loss: Annotated[
        str, _option(text="softmax: CLIP's. sigmoid: SigLIP's.", panel=TRAINING)
    ] = "softmax",
    epochs: Annotated[
        float, _option(text="Times that the pictures are gone through.", panel=TRAINING)
    ] = 10.0,
    steps: Annotated[
        int | None, _option(text="Steps, in the place of epochs.", panel=TRAINING)
    ] = None,
    batch: Annotated[int, _option(text="Pictures a step.", panel=TRAINING)] = 64,
    chunk: Annotated[
        int,
        _option(text="Pictures encoded at a time: less memory, the same gradient.", panel=TRAINING),
    ] = 64,
    lr: Annotated[
        float | None, _option(text="The learning rate. [default: by the method]", panel=TRAINING)
    ] = None,
    rank: Annotated[int, _option(text="Of lora.", panel=TRAINING)] = 8,
    patience: Annotated[
        int, _option(text="Epochs without a gain until it stops.", panel=TRAINING)
    ] = 3,
    templates: Annotated[
        str | None,
        _option(text="Of classes' captions, as for classify.", panel=TRAINING, metavar="NAME|FILE"),
    ] = None,
    augment: Annotated[
        bool, _option("--augment/--plain", text="Crop (and mirror, for classes).", panel=TRAINING)
    ] = True,
    bf16: Annotated[bool, _option("--bf16", text="Autocast to bfloat16.", panel=TRAINING)] = False,
    seed: Annotated[
        int, _option(text="Of the split, the order and the crops.", panel=TRAINING)
    ] = 0,
    image_column: Annotated[str | None, _option(text="Of a table.", panel=DATA)] = None,
    caption_column: Annotated[str | None, _option(text="Of a table.", panel=DATA)] = None,
    label_column: Annotated[str | None, _option(text="Of a table.", panel=DATA)] = None,
    names: Annotated[
        Path | None,
        _option(text="A file with the name of class 0, 1, … a line.", panel=DATA, metavar="FILE"),
    ] = None,
    share: Annotated[
        float,
        _option(
            text="Of the pictures, to set aside: half to choose by, half to test on.", panel=DATA
        ),
    ] = 0.2,
    test: Annotated[
        str | None, _option(text="Other pictures to test on.", panel=DATA, metavar="DATA")
    ] = None,
    look: Annotated[
        bool, _option("--look", text="Only report on the data, and train nothing.", panel=DATA)
    ] = False,
    retain: Annotated[
        str,
        _option(
            text="What it should still know: held-out (drawings among 1,740 names, which mini was "
            "not trained on), other pictures, or none.",
            panel=KEEPING,
            metavar="held-out|DATA|none",
        ),
    ] = HELD_OUT,
    allow: Annotated[
        float, _option(text="Points of retention that may be lost.", panel=KEEPING)
    ] = 1.0,
    wise: Annotated[
        bool,
        _option(
            "--wise/--no-wise",
            text="Keep as much of the old weights as --allow asks for (WiSE-FT).",
            panel=KEEPING,
        ),
    ] = True,
    for_guiding: Annotated[
        bool,
        _option(
            "--for-guiding",
            text="Train the image tower against attacks instead, so that its gradient draws "
            "shapes: a better guide.",
            panel=GUIDING,
        ),
    ] = False,
    against: Annotated[
        str,
        _option(
            text="tecoa: by the names of classes. fare: by where the CLIP itself puts the "
            "pictures, for which any folder will do.",
            panel=GUIDING,
            metavar="tecoa|fare",
        ),
    ] = "tecoa",
    norm: Annotated[
        str, _option(text="Of the attack's ball.", panel=GUIDING, metavar="l2|linf")
    ] = "l2",
    epsilon: Annotated[
        str | None,
        _option(
            text="The least and the largest radius, in pixels of [0, 1]. [default: by the norm]",
            panel=GUIDING,
            metavar="LOW,HIGH",
        ),
    ] = None,
    attack_steps: Annotated[int, _option(text="Of each attack.", panel=GUIDING)] = 1,
    minutes: Annotated[
        float | None,
        _option(text="Of the processor. [default: 240, or --steps]", panel=GUIDING),
    ] = None,
    judge: Annotated[
        str, _option(text="The CLIP that looks for what the guide draws.", panel=GUIDING)
    ] = "mini-judge",
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="cpu, cuda, mps. [default: the best]")
    ] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Read a pickle or JIT archive of --clip.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was stopped.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite FOLDER, or begin anew what was stopped.")
    ] = False,
) -> None:
    """Fine-tune a CLIP on your own pictures, and say what it gained and lost.

    The result is a folder that every --clip takes, and open_clip too, with its card, the curve of
    target against retention, confusions, and the pictures that changed sides. A run that is stopped
    goes on with --resume.
    """
    with console.plain_speech():
        if not 0 <= allow <= 100:
            raise UsageError(f"--allow is in points, from 0 to 100, not {allow:g}.")
        from ..finetune.job import HELD_OUT as DRAWINGS

        shared = dict(
            clip=clip,
            retain={HELD_OUT: DRAWINGS, NONE: None}.get(retain, retain),
            device=device or best_device(),
            trust_pickle=trust_pickle,
            columns=dict(
                image_column=image_column,
                caption_column=caption_column,
                label_column=label_column,
                names=names,
            ),
        )
        if for_guiding:
            from ..finetune.guiding import GuidingConfig

            config = GuidingConfig(
                minutes=minutes,
                steps=steps,
                method=against,
                norm=norm,
                epsilon=_pair(epsilon),
                attack_steps=attack_steps,
                lr=lr,
                seed=seed,
            )
            unfinished = None if look else _unfinished(out, resume=resume, force=force)
            _guide(
                data, config, out, unfinished, dict(shared, judge=judge, batch=batch), look, force
            )
            return
        from ..finetune.config import FinetuneConfig

        config = FinetuneConfig(
            method=method,
            loss=loss,
            epochs=epochs,
            steps=steps,
            batch=batch,
            chunk=chunk,
            lr=lr,
            rank=rank,
            patience=patience,
            templates=templates,
            augment=augment,
            bf16=bf16,
            seed=seed,
        )
        unfinished = None if look else _unfinished(out, resume=resume, force=force)
        _train(
            data,
            config,
            out,
            unfinished,
            dict(shared, test=test, share=share),
            look,
            force,
            {"allowed": allow / 100, "wise": wise},
        )


def _train(
    data: str,
    config: object,
    out: Path | None,
    unfinished: Path | None,
    settings: dict,
    look: bool,
    force: bool,
    keeping: dict,
) -> None:
    """Fine-tune, and tell of it."""
    from ..finetune.job import prepare

    with _Meter() as meter:
        job = prepare(data, config=config, folder=unfinished, progress=meter.reading, **settings)
        meter.say(str(job.report))
        if look:
            return
        for step in job.run():
            meter.training(step)
        meter.busy("weighing old and new")
        outcome = job.settle(**keeping)
    job.save(outcome, out, overwrite=force)
    _tell(job, outcome, out)


def _guide(
    data: str,
    config: object,
    out: Path | None,
    unfinished: Path | None,
    settings: dict,
    look: bool,
    force: bool,
) -> None:
    """Make a guide, and tell of it."""
    from ..finetune.guide_job import prepare_guide

    with _Meter() as meter:
        job = prepare_guide(
            data, config=config, folder=unfinished, progress=meter.reading, **settings
        )
        meter.say(str(job.found))
        if look:
            return
        for step in job.run():
            meter.guiding(step, config)
        meter.busy("drawing by both")
        report = job.report()
    job.save(report, out, overwrite=force)
    _print_rows([(what, f"{100 * a:.1f} %", f"{100 * b:.1f} %") for what, a, b in report.rows()])
    console.tell(out)


def _pair(text: str | None) -> tuple[float, float] | None:
    """The two numbers of "0.5,4.5"."""
    if text is None:
        return None
    try:
        low, high = (float(word) for word in text.split(","))
    except ValueError:
        raise UsageError(f"--epsilon is two numbers, as in 0.5,4.5, not {text!r}.") from None
    return low, high


def _unfinished(out: Path | None, *, resume: bool, force: bool) -> Path:
    """Where the checkpoint of a run into `out` is. UsageError without `out`, if it is there, if a
    run was stopped and nothing says what to do, or none was to go on with."""
    import shutil

    from ..finetune.job import check_out

    if out is None:
        raise UsageError("Name the folder of the new CLIP with --out, or give --look.")
    check_out(out, overwrite=force)
    folder = out.with_name(f"{out.name}.unfinished")
    there = (folder / "checkpoint.pt").exists()
    if there and force and not resume:
        shutil.rmtree(folder)
    elif there and not resume:
        raise UsageError(
            f"A run that was stopped is in {folder}: --resume goes on with it, --force begins anew."
        )
    elif resume and not there:
        raise UsageError(f"There is nothing to go on with in {folder}: leave out --resume.")
    return folder


def _tell(job: Job, outcome: Outcome, out: Path) -> None:
    """The table before and after, and where everything is."""
    from ..finetune.report import table

    _print_rows(table(outcome))
    if outcome.retention:
        way = f"{outcome.chosen.alpha:.0%} of the way to the new weights is kept"
        console.tell(f"{way}; retention: {job.kept}.")
    console.tell(out)


def _print_rows(rows: list[tuple[str, str, str]]) -> None:
    """A table of what was before and what is after."""
    rows = [("", "before", "after"), *rows]
    wide = [max(len(row[k]) for row in rows) for k in range(3)]
    for what, was, now in rows:
        typer.echo(f"{what:<{wide[0]}}  {was:>{wide[1]}}  {now:>{wide[2]}}")


class _Meter:
    """A bar on stderr, where that is a terminal; what is said stays above it."""

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
        """Lines on stderr, above the bar."""
        for line in text.splitlines():
            self._console.print(console.one_line(line), markup=False)

    def reading(self, done: int, total: int) -> None:
        """Pictures that were looked at."""
        self._bar.update(self._task, completed=done, total=total)

    def training(self, step: Progress) -> None:
        """A step; after an epoch, its figure as a line."""
        said = f"loss {step.loss:.3f}"
        self._bar.update(
            self._task, description="training", completed=step.step, total=step.steps, said=said
        )
        if step.measured is not None:
            aside = f"{100 * step.measured:.1f} % of those set aside"
            self.say(f"epoch {step.epoch:.3g}, step {step.step}: {said}, {aside}")

    def guiding(self, step: FitStep, config: GuidingConfig) -> None:
        """A step of a guide's training, which goes by steps or by minutes."""
        told = "  ".join(f"{name} {value:.3f}" for name, value in step.parts.items())
        done, total = (step.index, config.steps) if config.steps else (step.minutes, config.minutes)
        self._bar.update(
            self._task, description="training", completed=int(done), total=total, said=told
        )
        if step.index % 50 == 0:
            self.say(f"step {step.index}, {step.minutes:.1f} processor minutes: {told}")

    def busy(self, what: str) -> None:
        """Something of which the end is not known."""
        self._bar.update(self._task, description=what, completed=0, total=None, said="")
