"""Show warnings, one line each, and progress bars on stderr while a command works."""

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
    """Return a message of the library with the names of options. The library names arguments as
    Python does. If a message has both the option and the argument, only the option stays. An
    argument alone becomes an option."""
    message = re.sub(r"\b[a-z]\w*=\w* \((--[\w-]+)\)", r"\1", message)
    message = re.sub(r" \([a-z]\w*=\w*\)", "", message)
    message = re.sub(r"\([a-z]\w*=\w*, (--[\w-]+)\)", r"(\1)", message)
    return re.sub(r"\b([a-z]\w*)=True\b", lambda m: "--" + m[1].replace("_", "-"), message)


def of_values(message: str) -> str:
    """Return the error of an option's value in clipguide's words. Typer passes on the messages of
    pydantic and click."""
    message = message.removeprefix("Value error, ")
    for theirs, ours in VALUES:
        message = re.sub(theirs, ours, message)
    return message


def tell(line: str | os.PathLike) -> None:
    """Print a line that contains a file name. The name can contain any bytes."""
    typer.echo(encoded(os.fspath(line)))


def complain(message: str) -> None:
    """Print a message on stderr in one line. File names in it can contain any bytes."""
    to_stderr(f"clipguide: {one_line(options_for_names(message))}")


def to_stderr(line: str) -> None:
    """Print a line on stderr: as bytes if the stream accepts them, else as text."""
    typer.echo(encoded(line) if hasattr(sys.stderr, "buffer") else line, err=True)


def encoded(text: str | bytes) -> bytes:
    """Return the bytes of a line. Bytes of a file name stay as they are on disk. If the locale
    lacks a character, the line is encoded in UTF-8."""
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape")


def one_line(text: str) -> str:
    """Return the text with line breaks and control characters escaped. Undecodable bytes of a path
    stay."""
    return "".join(
        c if c.isprintable() or "\udc80" <= c <= "\udcff" else ascii(c)[1:-1] for c in text
    )


class Meter:
    """A progress bar over `samples` samples. It shows the mean score of the guide and of the judge.

    Use it as a context, and call it with each Step. It shows nothing if `quiet`, or if stderr is
    not a terminal.
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
        if exception_type is None:  # a method that stops early is complete
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
    """A progress bar of images on stderr: the number done, the number per second, the time left.

    Use it as a context. Call it with the number `done`, the total if it is known, and the seconds
    `left` if they are known. It shows nothing if stderr is not a terminal. It also shows nothing if
    the command `prints` rows to a terminal, because the rows then show the progress.
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
