"""The options of the commands that embed images, and the report of files that cannot be read."""

from __future__ import annotations

import inspect
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ..errors import ClipguideError, UsageError
from ..prompts import shorten
from . import console
from .options import DEVICES, among, spelt

if TYPE_CHECKING:
    from ..clip import Clip
    from ..engine import Embedded, Engine


Images = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGES",
        help="Images: files, folders, patterns in quotes, - to read names from standard input, or "
        "an .npz or .parquet that embed wrote.",
        show_default=False,
    ),
]


def _option(*names: str, text: str, metavar: str | None = None, known: tuple[str, ...] = ()) -> Any:
    complete = among(*known) if known else spelt(metavar)
    return typer.Option(*names, help=text, metavar=metavar, autocompletion=complete)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options that find, read and embed images."""

    clip: Annotated[
        str,
        _option(
            text="The CLIP: mini, mini-judge, a folder or file, or an open_clip MODEL/TAG. a+b "
            "averages the cosine similarities of several CLIPs. name@cuda:bfloat16 sets a device "
            "and a dtype. name~FILE adds a word that invert learned.",
            metavar="NAME",
        ),
    ] = "mini"
    device: Annotated[
        str | None,
        _option(
            text="The device, such as cpu, cuda, cuda:1 or mps. [default: the fastest one]",
            metavar="NAME",
            known=DEVICES,
        ),
    ] = None
    recursive: Annotated[
        bool, _option("--recursive/--flat", text="Also read the folders inside a folder.")
    ] = True
    alpha: Annotated[
        str,
        _option(
            text="What to do with transparency. white: put the image on white. drop: ignore "
            "transparency, as open_clip does.",
            metavar="white|drop",
        ),
    ] = "white"
    frames: Annotated[
        int,
        _option(
            text="For an animated image: the number of frames whose embeddings are averaged.",
            metavar="N",
        ),
    ] = 1
    icc: Annotated[bool, _option("--icc", text="Convert colours of other profiles to sRGB.")] = (
        False
    )
    megapixels: Annotated[
        float | None,
        _option(text="The largest image that is read, in megapixels. [default: 179]", metavar="N"),
    ] = None
    fast: Annotated[
        bool,
        _option(
            "--fast", text="Decode JPEGs no larger than necessary. This is faster and less exact."
        ),
    ] = False
    bf16: Annotated[
        bool,
        _option(
            "--bf16",
            text="Compute in bfloat16. clipguide compares the first images, and keeps "
            "float32 if a cosine similarity changes by more than 0.001.",
        ),
    ] = False
    batch: Annotated[
        int | None,
        _option(
            text="The number of images in a batch. [default: 16 on a CPU, else 256]", metavar="N"
        ),
    ] = None
    workers: Annotated[
        int | None,
        _option(
            text="The number of threads that decode images. [default: one per processor]",
            metavar="N",
        ),
    ] = None
    compile: Annotated[
        bool, _option("--compile", text="Run torch.compile on the image encoder.")
    ] = False
    urls: Annotated[bool, _option("--urls", text="Download images that are given as URLs.")] = False
    trust_pickle: Annotated[
        bool,
        _option(
            "--trust-pickle",
            text="Read weights from a pickle or a JIT archive, which can run code.",
        ),
    ] = False
    cache: Annotated[
        Path | None,
        _option(
            text="The file of the cache of embeddings. [default: $CLIPGUIDE_CACHE, or a file in "
            "~/.cache/clipguide]",
            metavar="FILE",
        ),
    ] = None
    no_cache: Annotated[
        bool, _option("--no-cache", text="Do not read or write the cache of embeddings.")
    ] = False
    verify: Annotated[
        bool,
        _option(
            "--verify",
            text="Check the content of each file before its cached embedding is "
            "used. Without it, size and time are compared.",
        ),
    ] = False
    strict: Annotated[bool, _option("--strict", text="Exit with 1 if an image cannot be read.")] = (
        False
    )

    def check(self, images: Sequence[str] | None = None) -> None:
        """Raise UsageError for impossible options, or if none of `images` exists. Import nothing
        slow."""
        from ..engine import settings

        names = ("batch", "workers", "frames", "alpha", "megapixels")
        settings.check(**{name: getattr(self, name) for name in names})
        check_named(images or ())


def check_named(names: Sequence[str]) -> None:
    """Raise UsageError if none of the named files and folders exists."""
    if names and not any(
        name == "-" or "://" in name or set("*?[") & set(name) or os.path.lexists(name)
        for name in names
    ):
        more = ", nor any of the others" if len(names) > 1 else ""
        raise UsageError(f"There is no file or folder {shorten(names[0])}{more}.")


def with_options(command: Callable, *, clip: str = Options.clip) -> Callable:
    """Return a command whose parameter `options` is replaced by one option for each field of
    Options. `clip` is the default of --clip."""
    hints = get_type_hints(command, include_extras=True)
    mine = get_type_hints(Options, include_extras=True)
    default = {**{f.name: f.default for f in fields(Options)}, "clip": clip}
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "options"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    given = [p.replace(annotation=hints[p.name]) for p in own]
    given += [
        inspect.Parameter(f.name, keyword, default=default[f.name], annotation=mine[f.name])
        for f in fields(Options)
    ]

    @wraps(command)
    def wrapped(**values: Any) -> None:
        options = Options(**{f.name: values.pop(f.name) for f in fields(Options)})
        options.check(values.get("images"))
        command(options=options, **values)

    wrapped.__signature__ = inspect.Signature(
        [p.replace(kind=keyword) for p in given], return_annotation=None
    )
    wrapped.__annotations__ = {p.name: p.annotation for p in given}
    return wrapped


@dataclass
class Pictures:
    """The images of a command: an engine, and the files that could not be read. `prints` says that
    the command prints a row for each image at once."""

    engine: Engine
    sources: list[str]
    options: Options
    prints: bool = False
    bad: int = 0
    good: int = 0
    passed: list[str] = field(default_factory=list)

    @property
    def clip(self) -> Clip:
        return self.engine.clip

    def __iter__(self) -> Iterator[Embedded]:
        """Yield each readable image with its vector, and report each file that cannot be read.

        Raises:
            UsageError: there is no image at all.
        """
        with console.Count("embedding", prints=self.prints) as count:
            for embedded in self._all():
                if embedded.error is None:
                    self.good += 1
                    yield embedded
                else:
                    self.bad += 1
                    console.complain(embedded.error)
                count(self.good + self.bad)
        if not self.good and not self.bad:
            passed = f" (other files there: {len(self.passed)})" if self.passed else ""
            raise UsageError(f"There are no images in {', '.join(self.sources)}{passed}.")

    def finish(self) -> None:
        """Report the number of unreadable files. Exit with 1 if no file was readable, or with
        --strict if any was not."""
        tell_passed(self.passed)
        if profiles := self.engine.profiles:
            path, name = next(iter(profiles.items()))
            console.complain(
                f"{len(profiles)} of the images are not sRGB ({path}: {shorten(name)}), and were "
                "taken as if they were: --icc converts them."
            )
        if self.bad:
            many = self.bad + self.good
            console.complain(
                f"{self.bad} of {many} {'image' if many == 1 else 'images'} could not be read."
            )
            if self.options.strict or not self.good:
                raise typer.Exit(1)

    def _all(self) -> Iterator[Embedded]:
        from ..engine import find, processes, shared, table

        options = self.options
        tables = [source for source in self.sources if table.is_table(source)]
        for source in tables:
            yield from table.read(source, key=self.engine.key)
        if others := [source for source in self.sources if source not in tables]:
            found = find(others, recursive=options.recursive, urls=options.urls, passed=self.passed)
            rows, state = shared(self.engine, found), processes()
            # only this process writes and prints
            if state is not None and not state.is_main_process:
                deque(rows, maxlen=0)
                raise typer.Exit()
            yield from rows


def open_pictures(sources: Sequence[str], options: Options, *, prints: bool = False) -> Pictures:
    """Return the images of the options and the named files. "-" stands for the names on stdin.
    `prints` says that the command prints a row for each image at once.

    Raises:
        UsageError: no image is named.
    """
    from .. import load_clip
    from ..engine import Cache, Engine, processes
    from .values import best_device

    named: list[str] = []
    for source in sources:
        named.extend(_from_stdin() if source == "-" else [source])
    if not named:
        raise UsageError("No images are named: give files, folders, patterns, or names on stdin.")
    state = processes()
    device = options.device or (best_device() if state is None else str(state.device))
    clip = load_clip(options.clip, device=device, trust_pickle=options.trust_pickle)
    names = ("alpha", "frames", "fast", "bf16", "batch", "workers", "compile", "urls", "verify")
    names += ("icc", "megapixels")
    engine = Engine(
        clip,
        cache=None if options.no_cache else _open_cache(Cache, options.cache),
        **{name: getattr(options, name) for name in names},
    )
    return Pictures(engine, named, options, prints=prints)


def tell_passed(passed: Sequence[str]) -> None:
    """Report the files in folders that may be unreadable images. Do not name other files, such as a
    licence."""
    if passed:
        from ..reading import ENDINGS, UNREAD

        kinds = Counter(ENDINGS.get(Path(path).suffix.lower()) for path in passed)
        for kind in filter(None, kinds):
            what = "1 file is" if kinds[kind] == 1 else f"{kinds[kind]} files are"
            console.complain(f"{what} skipped, which may be {kind}: {UNREAD[kind]}.")


def _open_cache(cache: type, path: Path | None) -> Any:
    """Open the cache. If the default cache cannot be used, say so and continue without it."""
    try:
        return cache(path)
    except ClipguideError as error:
        if path is not None:
            raise
        console.complain(str(error))
        return None


def _from_stdin() -> list[str]:
    """Return the names on stdin: one per line, or separated by zero bytes (find -print0)."""
    from ..engine import Named

    content = sys.stdin.buffer.read()
    names = content.split(b"\0") if b"\0" in content else content.splitlines()
    return [Named(os.fsdecode(name)) for name in names if name]
