"""What a command shows while it works: warnings in one line each, and a progress bar on stderr."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from .. import imports
from ..errors import ClipguideWarning

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..pipelines.text_to_image import Step

VALUES = (
    (r"Input should be greater than or equal to", "it must be at least"),
    (r"Input should be less than or equal to", "it must be at most"),
    (r"Input should be a valid integer.*", "it must be a whole number."),
    (r"Input should be a valid number.*", "it must be a number."),
    (r"Input should be a valid boolean.*", "it must be yes or no."),
    (r"Input should be a valid string.*", "it must be a text in UTF-8."),
    (r"Input should be", "it must be"),
)


@contextlib.contextmanager
def plain_speech(*, drawing: bool = False) -> Iterator[None]:
    """Show clipguide's own warnings on stderr, each once, and keep other libraries quiet: diffusers
    and transformers only where something is `drawing`, for they take seconds to import."""
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    if drawing:
        imports.diffusion()
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()

    shown: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            complain(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ClipguideWarning)
        warnings.showwarning = show
        yield


def options_for_names(message: str) -> str:
    """A message of the library, which names settings as Python does, for the command line: of an
    option and its name in Python the option is left, of a name alone an option is made."""
    message = re.sub(r"\b[a-z]\w*=\w* \((--[\w-]+)\)", r"\1", message)
    message = re.sub(r" \([a-z]\w*=\w*\)", "", message)
    message = re.sub(r"\([a-z]\w*=\w*, (--[\w-]+)\)", r"(\1)", message)
    return re.sub(r"\b([a-z]\w*)=True\b", lambda m: "--" + m[1].replace("_", "-"), message)


def of_values(message: str) -> str:
    """What is wrong with an option's value, in the words of this program: typer passes on those of
    the library that it checks by."""
    message = message.removeprefix("Value error, ")
    for theirs, ours in VALUES:
        message = re.sub(theirs, ours, message)
    return message


def tell(line: str | os.PathLike) -> None:
    """Print a line that names a file, whatever bytes its name is made of."""
    typer.echo(encoded(os.fspath(line)))


def complain(message: str) -> None:
    """Print a message on stderr, in one line, whatever the names of files in it are made of."""
    to_stderr(f"clipguide: {one_line(options_for_names(message))}")


def to_stderr(line: str) -> None:
    """Print a line on stderr, as bytes unless it takes text alone."""
    typer.echo(encoded(line) if hasattr(sys.stderr, "buffer") else line, err=True)


def encoded(text: str | bytes) -> bytes:
    """Return the bytes of a line: those of a file's name as they are on disk, and UTF-8 if the
    locale has no such character."""
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape")


def one_line(text: str) -> str:
    """Text whose line breaks and control characters are spelt out; a path's odd bytes stay."""
    return "".join(
        c if c.isprintable() or "\udc80" <= c <= "\udcff" else ascii(c)[1:-1] for c in text
    )


class Meter:
    """A progress bar over `samples` samples, with the guide's and the judge's mean score in it.

    A context; call it with each Step. Nothing is shown where `quiet`, or where stderr is a file.
    """

    def __init__(self, samples: int, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        self._progress: Progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[scores]}"),
            TimeElapsedColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._samples, self._total = samples, 0
        self._task = self._progress.add_task("drawing", total=None, scores="")

    def __enter__(self) -> Meter:
        self._progress.start()
        return self

    def __exit__(self, exception_type: type | None, *_: object) -> None:
        if exception_type is None:  # a method that stops early has done all it was to do
            self._progress.update(self._task, completed=self._total, total=self._total)
        self._progress.stop()

    def __call__(self, step: Step) -> None:
        scores = {"guide": step.guide_score_B, "judge": step.judge_score_B}
        self._total = self._samples * step.total
        self._progress.update(
            self._task,
            total=self._total,
            advance=step.samples,
            scores=score_line({k: v.mean() for k, v in scores.items() if v is not None}),
        )


class Count:
    """A progress bar of images on stderr: how many are done, how many a second, the time left.

    A context; call it with how many are `done`, of how many where that is known, and with the
    seconds `left` where they are. Nothing is shown where stderr is a file; nor where stdout is the
    terminal and `prints`, for there the rows that are printed say how far it is.
    """

    def __init__(self, doing: str, *, prints: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        console = Console(stderr=True)
        self._begin = time.monotonic()
        self._progress: Progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            console=console,
            disable=not console.is_terminal or (prints and sys.stdout.isatty()),
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task(doing, total=None, pace="")

    def __enter__(self) -> Count:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, done: int, total: int | None = None, *, left: float | None = None) -> None:
        rate = done / max(time.monotonic() - self._begin, 1e-3)
        if left is None and total is not None:
            left = (total - done) / rate if rate else 0.0
        pace = f"{rate:.0f} a second"
        if left is not None:
            minutes, seconds = divmod(round(left), 60)
            pace += f", {minutes}:{seconds:02} left"
        self._progress.update(self._task, total=total, completed=done, pace=pace)


def score_line(scores: dict[str, float], words: dict[str, str] | None = None) -> str:
    """Return a line such as 'guide 0.312 (very sure)  judge 0.287 (sure)'."""
    said = {name: f" ({word})" for name, word in (words or {}).items() if word}
    return "  ".join(f"{name} {score:.3f}{said.get(name, '')}" for name, score in scores.items())
