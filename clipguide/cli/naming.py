"""Name the files of a run. Each name is known, and free, before the first step."""

from __future__ import annotations

import glob
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError, close_matches
from ..prompts import parse

DEFAULT = "{prompt}-{seed}.png"
MAX_SLUG = 100  # bytes; file systems allow names of 255 bytes


def slug(prompt: str) -> str:
    """Return a prompt as a part of a file name: letters and digits of any script, joined by
    hyphens."""
    name = "-".join(_words(parse(prompt).text)).encode()[:MAX_SLUG].decode(errors="ignore")
    return name.strip("-") or "picture"


def in_place(prompt: str, like: Path | None) -> str:
    """Return a prompt, or in the place of an empty one what names the files: "like fox", for an
    image file fox.png."""
    return prompt if prompt or like is None else " ".join(("like", *_words(like.stem)))


def _words(text: str) -> list[str]:
    """Return the words of a text, in lower case: letters and digits of any script."""
    text = unicodedata.normalize("NFC", text.lower())
    return "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text).split()


def plan(out: str | None, *, prompts: Sequence[str], count: int, seed: int) -> list[Path]:
    """Return the file of each image: `count` for each prompt, with the seeds `seed`, `seed` + 1, …

    `out` is a pattern with {prompt}, {seed} or {index}, the name of a PNG, or a folder.

    Raises:
        UsageError: two images have the same file.
    """
    paths = [
        of_seed(out, prompts, count, index, seed + index % count)
        for index in range(len(prompts) * count)
    ]
    if len(set(paths)) < len(paths):
        raise UsageError(
            f"{len(paths)} images do not fit into {out or DEFAULT}: give --out a folder, "
            "or a pattern such as {prompt}-{index}.png."
        )
    return paths


def of_seed(out: str | None, prompts: Sequence[str], count: int, index: int, seed: int) -> Path:
    """Return the file of image `index` of a run, drawn from `seed`."""
    return _fill(_pattern(out), prompt=slug(prompts[index // count]), seed=seed, index=index)


def claim(paths: Sequence[Path], *, force: bool) -> None:
    """Make the folders. Raise UsageError if a file exists without `force`, or cannot be written."""
    from ..recipe import prepare, refuse_existing  # imports Pillow, which --help does not need

    for path in paths:
        if not force:
            refuse_existing(path)
        prepare(path)


def sweep(paths: Sequence[Path]) -> None:
    """Remove the partial files that a killed run left."""
    for path in paths:
        for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
            part.unlink(missing_ok=True)


def beside(path: Path, kind: str) -> Path:
    """Return the file of a sheet or preview, next to its image."""
    return path.with_name(f"{path.stem}-{kind}.png")


def tapes(path: Path) -> Path:
    """Return the folder of the unfinished images of a run whose first image is `path`."""
    return path.with_name(f".{path.stem}-steps")


def _pattern(out: str | None) -> str:
    """Return `out`, with {prompt}-{seed}.png appended if it names a folder."""
    if out is None:
        return DEFAULT
    path = Path(out)
    if out.endswith("/") or path.is_dir() or not path.suffix:
        return str(path / DEFAULT)
    if path.suffix.lower() != ".png":
        raise UsageError(f"Images are written as PNG: end {out!r} in .png.")
    return out


def _fill(pattern: str, **fields: str | int) -> Path:
    try:
        return Path(pattern.format_map(fields))
    except KeyError as error:
        name = str(error.args[0])
        raise UsageError(
            f"There is no {{{name}}} for --out.{close_matches(name, fields)}"
        ) from None
    except (ValueError, AttributeError, IndexError):
        raise UsageError(f"The pattern {pattern!r} is not one that can be filled in.") from None
