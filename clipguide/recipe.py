"""The recipe of an image, which its PNG contains.

A PNG has two text chunks. `clipguide` is the recipe as JSON. `parameters` is the same in the layout
of the AUTOMATIC1111 web UI, which many programs read. With a trace, a third chunk,
`clipguide-trace`, has the scores of each step. Anyone may have written a file, so reading is
strict: every field is checked, and reading a recipe runs nothing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import typing
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path

from PIL import Image, PngImagePlugin

from .errors import ClipguideError, UsageError, close_matches
from .prompts import shorten

CHUNK = "clipguide"
TRACE = "clipguide-trace"
TRACED = ("step", "noise", "sigma", "loss", "gradient", "angle", "guide", "judge", "trust")
FORMAT = 2
MAX_JSON = 1_000_000  # characters
MAX_TEXT = 200_000  # characters of one text
MAX_ITEMS = 1_000  # entries of one list or table
MAX_NUMBER = 2**63
PNG = b"\x89PNG\r\n\x1a\n"
KINDS = {  # type of a field, for messages
    str: f"a text of at most {MAX_TEXT} characters",
    int: "a whole number from 0",
    tuple[int, ...]: "a list of whole numbers from 0",
    dict[str, str]: "a table of texts",
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a full disk


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that is needed to draw one image again.

    Recipes of early versions lack the fields that have defaults.

    Attributes:
        seed: the seed of the generator of this image.
        batch_seeds: the seeds of the batch in which the image was sampled.
        batch_position: the place of the image in that batch.
        options: the options of the steering method that differ from their defaults, each as JSON.
        guide: the prompt that the guide read.
        model_fingerprint: the sha256 digest of the weights of the pipeline.
        clip_fingerprint: the sha256 digest of the weights and the preprocessing of the guide.
        judge_fingerprint: the same for the judge. Without a judge, it and `judge` are "".
        tiny_fingerprint: the sha256 digest of the weights of the tiny decoder, or "".
        guide_score: the cosine similarity of the image with `guide`, by the guide.
        judge_score: the same by the judge.
        libraries: the version of each package.
        decoder: the decoder that steering used, with its level of memory, such as "vae:whole";
            "auto" if nothing was decoded for steering.
        tiny: the folder of a tiny decoder.
        cutouts: the number of crops that the guide saw in addition to the whole image.
        refine: the number of steps of the optimisation loop after sampling.
        rewards: the rewards that steered together with the guide, as `--reward` takes them, each
            with its fingerprint.
        selected_by: the rewards that selected among candidates in place of the objective, in the
            same form.
        question: the question to the vision-language models among the rewards.
        cfg_window: the noise levels of classifier-free guidance, such as "0.2,0.8", if they were
            set.
        like: the image file that the image is like (`--like`), with the digest of its pixels.
        reader_fingerprint: the sha256 digest of the weights that read `like`, or "".
    """

    version: int = FORMAT
    command: str
    prompt: str
    guide: str
    negative: str
    seed: int
    steps: int
    method: str
    options: dict[str, str]
    strength: float
    cfg: float
    width: int
    height: int
    scheduler: str
    best_of: int
    model: str
    model_fingerprint: str
    clip: str
    clip_fingerprint: str
    judge: str
    judge_fingerprint: str
    device: str
    dtype: str
    threads: int
    libraries: dict[str, str]
    batch_position: int
    batch_seeds: tuple[int, ...]
    guide_score: float
    judge_score: float | None
    decoder: str = "vae"
    tiny: str = ""
    tiny_fingerprint: str = ""
    cutouts: int = 4
    refine: int = 0
    rewards: dict[str, str] = field(default_factory=dict)
    selected_by: dict[str, str] = field(default_factory=dict)
    question: str = ""
    cfg_window: str = ""
    like: dict[str, str] = field(default_factory=dict)
    reader_fingerprint: str = ""

    def to_json(self) -> str:
        """Return the recipe as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)

    def resolving(self, asked: Recipe) -> Recipe:
        """Return `asked` with the decoder of this recipe, if `asked` left the choice open."""
        if asked.decoder not in ("auto", self.decoder.partition(":")[0]):
            return asked
        chosen = ("decoder", "tiny", "tiny_fingerprint")
        return replace(asked, **{name: getattr(self, name) for name in chosen})

    @property
    def files(self) -> tuple[str, ...]:
        """Return the image files that the image began with, as the recipe names them."""
        found = [*self.like]
        for name in ("digests", "init", "mask", "pictures"):
            try:
                value = json.loads(self.options.get(name, '""'))
            except (ValueError, RecursionError):
                value = self.options[name][:200]
            found += [*value] if isinstance(value, (dict, list)) else [value]
        return tuple(dict.fromkeys(str(file) for file in found if file))

    def parameters(self) -> str:
        """Return the recipe in the layout of the AUTOMATIC1111 web UI."""
        lines = [self.prompt]
        if self.negative:
            lines.append(f"Negative prompt: {self.negative}")
        settings = {
            "Steps": self.steps,
            "Sampler": self.scheduler,
            "CFG scale": f"{self.cfg:g}",
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            "Model hash": self.model_fingerprint[:10],
            "Model": self.model,
            "Version": f"clipguide {self.libraries.get('clipguide', '')}".strip(),
        }
        lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items()))
        return "\n".join(lines)


def _quoted(value: object) -> str:
    """Return a value as the AUTOMATIC1111 web UI writes it: as a JSON string if it contains a
    separator."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if set(",:\n") & set(text) else text


def from_json(text: str) -> Recipe:
    """Return the recipe that `to_json` wrote.

    Raises:
        UsageError: the text is anything else.
    """
    values = fields_of(text)
    made = (MISSING, MISSING)
    needed = [f.name for f in fields(Recipe) if (f.default, f.default_factory) == made]
    if missing := [name for name in needed if name not in values]:
        raise UsageError(f"The recipe has no {', '.join(missing)[:200]}.")
    recipe = Recipe(**values)
    if recipe.seed not in recipe.batch_seeds[recipe.batch_position :][:1]:
        raise UsageError("The recipe's seed is not the one at its place in the batch.")
    return recipe


def fields_of(text: str) -> dict[str, typing.Any]:
    """Return the fields of a recipe in JSON, or of a part of one. Each is checked.

    Raises:
        UsageError: the text is not a JSON object, it is of another version, a field is unknown or
            has the wrong type.
    """
    if len(text) > MAX_JSON:
        raise UsageError("The recipe is too long to be one of clipguide's.")
    try:
        values = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise UsageError("The recipe is not valid JSON.") from None
    if not isinstance(values, dict):
        raise UsageError("The recipe is not a JSON object.")
    if (version := values.get("version", FORMAT)) != FORMAT:
        later = type(version) is int and version > FORMAT
        raise UsageError(
            f"The recipe is of format {str(version)[:20]}, and this clipguide reads format "
            f"{FORMAT}{': update clipguide' if later else ''}."
        )
    wanted = typing.get_type_hints(Recipe)
    for name in values:
        if name not in wanted:
            raise UsageError(
                f"A recipe has no field {shorten(name)!r}.{close_matches(name, wanted)}"
            )
    return {name: _checked(name, values[name], wanted[name]) for name in values}


def differences(then: Recipe, now: Recipe) -> list[str]:
    """Return what differs between two recipes, except scores: 'torch: 2.6.0 then, 2.7.0 now'."""
    old, new = ({**vars(recipe), **recipe.libraries} for recipe in (then, now))
    for values in (old, new):
        for name in ("libraries", "guide_score", "judge_score"):
            del values[name]
    return [
        f"{name}: {old.get(name, 'absent')} then, {new.get(name, 'absent')} now"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def save_png(
    picture: Image.Image,
    recipe: Recipe,
    path: str | os.PathLike,
    *,
    overwrite: bool = False,
    trace: list[dict[str, float]] | None = None,
) -> None:
    """Write an image and its recipe to a PNG, completely or not at all. Make its folder. `trace` is
    that of `Report.rows`.

    Raises:
        UsageError: the file exists and `overwrite` is not set.
        ClipguideError: it cannot be written.
    """
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(CHUNK, _encodable(recipe.to_json()))
    chunks.add_text("parameters", _encodable(recipe.parameters()))  # tEXt if Latin-1 will do
    if trace:
        chunks.add_itxt(TRACE, json.dumps(trace), zip=True)
    write_png(picture, path, overwrite=overwrite, chunks=chunks)


def write_file(
    path: str | os.PathLike, write: Callable[[Path], None], *, overwrite: bool = False
) -> None:
    """Call `write` with a temporary file next to `path`, and move it there. Otherwise as
    `save_png`."""
    path = Path(path)
    with _temporary(path) as temporary:
        write(temporary)
        _move(temporary, path, overwrite=overwrite)


def write_png(
    picture: Image.Image,
    path: str | os.PathLike,
    *,
    overwrite: bool = False,
    chunks: PngImagePlugin.PngInfo | None = None,
) -> None:
    """Write a PNG to a temporary file next to `path`, and move it there. Otherwise as `save_png`.
    """
    path = Path(path)
    with _temporary(path) as temporary:
        with temporary.open("wb") as stream:
            # a copy: Pillow keeps what it saves by on the image, where two threads would share it
            picture.copy().save(stream, "PNG", pnginfo=chunks)
        _move(temporary, path, overwrite=overwrite)


def prepare(path: str | os.PathLike) -> None:
    """Make the folder of a file. Raise ClipguideError if the file could not be written there."""
    with _temporary(Path(path)):
        pass


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield an empty file next to `path`, and delete it at the end. An OSError becomes a
    ClipguideError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        advice = "free some space" if error.errno in FULL else "choose another place"
        reason = error.strerror or str(error)
        raise ClipguideError(f"{path} cannot be written ({reason}): {advice}.") from None


def read_fields(path: str | os.PathLike) -> dict[str, typing.Any]:
    """Return the fields of the recipe in a PNG, or of those in a JSON file, which may be a part.

    Raises:
        UsageError: the file cannot be read, or has no recipe.
    """
    try:
        with open(path, "rb") as stream:
            head = stream.read(len(PNG))
            text = (head + stream.read(4 * MAX_JSON)).decode() if head != PNG else None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is neither a PNG nor JSON in UTF-8.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    if text is None:
        return vars(read_png(path))
    try:
        return fields_of(text)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def read_png(path: str | os.PathLike) -> Recipe:
    """Return the recipe in a PNG. Raise UsageError if there is none, or it is not one of clipguide.
    """
    text = _read_text(path, CHUNK)
    if text is None:
        raise UsageError(f"{path} has no recipe: clipguide did not make it, or its text is gone.")
    try:
        return from_json(text)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def read_trace(path: str | os.PathLike) -> list[dict[str, float]]:
    """Return the trace in a PNG, one table per step. Raise UsageError if there is none, or it is
    not a trace."""
    text = _read_text(path, TRACE)
    if text is None:
        raise UsageError(f"{path} has no trace: draw it with --trace.")
    try:
        rows = json.loads(text, parse_constant=_refuse_constant) if len(text) <= MAX_JSON else None
    except (ValueError, RecursionError):
        rows = None
    good = isinstance(rows, list) and 0 < len(rows) <= MAX_ITEMS * 10
    if not good or not all(_is_traced(row) for row in rows):
        raise UsageError(f"{path} has a trace that clipguide did not write.")
    return rows


def _is_traced(row: object) -> bool:
    return (
        isinstance(row, dict)
        and {"step", "noise"} <= row.keys() <= set(TRACED)
        and all(type(value) in (int, float) and abs(value) < MAX_NUMBER for value in row.values())
    )


def _read_text(path: str | os.PathLike, chunk: str) -> str | None:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()  # a text chunk may follow the pixels
            return image.text.get(chunk)
    except FileNotFoundError:
        raise UsageError(f"There is no image {path}.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise UsageError(f"{path} is not a PNG that can be read.") from None


def _move(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Rename a file. Without `overwrite`, raise UsageError if the target exists, even if it came
    late."""
    if not overwrite:
        try:
            os.link(temporary, path)
            return
        except OSError:  # the name is taken, or the file system has no hard links
            refuse_existing(path)
    temporary.replace(path)


def refuse_existing(path: Path) -> None:
    """Raise UsageError if there is a file at `path`."""
    if os.path.lexists(path):
        raise UsageError(
            f"{path} is there already: give --force (overwrite=True) or choose another name."
        )


def _encodable(text: str) -> str:
    """Return the text without what UTF-8 cannot hold. The name of a model's file may have any
    bytes."""
    return text.encode(errors="replace").decode()


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _checked(name: str, value: object, kind: object) -> object:
    """Return the value as `kind`. Raise UsageError for another type. JSON has lists where a recipe
    has tuples."""
    good = False
    if kind is str:
        good = isinstance(value, str) and len(value) <= MAX_TEXT
    elif kind is int:
        good = type(value) is int and 0 <= value < MAX_NUMBER
    elif kind is float or (kind == float | None and value is not None):
        good = type(value) in (int, float) and abs(value) < MAX_NUMBER
    elif kind == float | None:
        good = True
    elif kind == tuple[int, ...]:
        value = tuple(value) if isinstance(value, list) else ()
        good = 0 < len(value) <= MAX_ITEMS and all(
            type(item) is int and 0 <= item < MAX_NUMBER for item in value
        )
    elif kind == dict[str, str]:
        good = (
            isinstance(value, dict)
            and len(value) <= MAX_ITEMS
            and all(isinstance(item, str) and len(item) <= MAX_TEXT for item in value.values())
        )
    if not good:
        raise UsageError(
            f"The recipe's {name} must be {KINDS.get(kind, 'a number')}, not {str(value)[:40]!r}."
        )
    return value
