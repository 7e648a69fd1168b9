"""clipguide score: compute how well images fit texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..prompts import check_text, read_lines, shorten
from . import console, pairs
from .embedding import Options, open_pictures, with_options
from .options import among
from .rows import ENDS, SEPARATORS, WIDTH, Format, Printed, Rows
from .sureness import WIDTH as SURE
from .sureness import Scored, word

if TYPE_CHECKING:
    import torch

    from ..clip import Clip


WORDED = WIDTH + SURE  # width of a column of scores with words


class Metric(str, Enum):
    cosine = "cosine"
    clipscore = "clipscore"
    refclipscore = "refclipscore"
    probability = "probability"


@with_options
def score(
    options: Options,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGES",
            help="Images: files, folders, patterns in quotes, - to read names from standard input, "
            "or an .npz or .parquet that embed wrote.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", "-t", metavar="TEXT", help="A text to compare with. Repeatable."),
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file with one text per line.")
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="A reference text for refclipscore. Repeatable."),
    ] = None,
    pairs_file: Annotated[
        Path | None,
        typer.Option(
            "--pairs",
            metavar="FILE",
            help="A table (csv, tsv, jsonl, parquet) with the columns image and text, and "
            "reference if you want, in place of IMAGES and --text. Paths are relative to the "
            "folder of the table.",
        ),
    ] = None,
    metric: Annotated[
        Metric,
        typer.Option(
            help="The score. cosine: the cosine similarity. clipscore: 2.5 max(cosine, 0). "
            "refclipscore: the harmonic mean of clipscore and the similarity of the text to the "
            "nearest reference. probability: the softmax over the texts, or sigmoids for a "
            "SigLIP."
        ),
    ] = Metric.cosine,
    prefix: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="A text that goes before every text, such as 'A photo depicts ', as in the paper "
            "of CLIPScore.",
        ),
    ] = "",
    long: Annotated[
        str,
        typer.Option(
            metavar="cut|chunk",
            autocompletion=among("cut", "chunk"),
            help="What to do with a text that is too long for the CLIP. cut: cut its end. chunk: "
            "encode it in windows, and average their embeddings.",
        ),
    ] = "cut",
    format: Printed = Format.text,
) -> None:
    """Score images against texts.

    The command prints each score as soon as it has read the image, and the mean to stderr. The word
    next to a score says what share of unrelated texts score lower: "very sure" is at least 99 %.
    """
    if long not in ("cut", "chunk"):
        raise UsageError(f"--long is cut or chunk, not {shorten(long)!r}.")
    if pairs_file is not None:
        if images or text or texts or reference:
            raise UsageError("--pairs names images and texts: give no others.")
        with console.plain_speech():
            _score_pairs(pairs_file, metric, prefix, long, format, options)
        return
    captions = _texts(text, texts)
    references = [checked(one) for one in reference or []]
    _check(metric, captions, references)
    with console.plain_speech():
        _score(images or [], captions, references, metric, prefix, long, format, options)


def _score(
    images: Sequence[str],
    captions: list[str],
    references: list[str],
    metric: Metric,
    prefix: str,
    long: str,
    format: Format,
    options: Options,
) -> None:
    """Score each image against each text."""
    from .. import scores

    pictures = open_pictures(images, options, prints=True)
    clip = pictures.clip
    if metric is Metric.probability and len(captions) == 1 and not clip.logit_bias:
        raise UsageError("The probability of one text alone is always 1: give two --text.")
    caption_ND = _encode(clip, captions, prefix, long)
    reference_RD = _encode(clip, references, prefix, long) if references else None
    measure = _measure(metric, clip, caption_ND, reference_RD)
    many = len(captions) > 1
    plain = format in (*SEPARATORS, *ENDS) or metric is Metric.probability  # has its own meaning
    beside = None if plain else Scored(clip, captions, template=f"{prefix}{{}}")
    width = WIDTH if plain else WORDED
    names = [shorten(caption, width).rjust(width) for caption in captions]
    head = "  ".join([*names, "path"]) if many else None
    printer, means = Rows(format, ["path", *captions], head=head), Means(metric.value, captions)
    for embedded in pictures:
        unit_1D = embedded.unit_D[None]
        cosine_1N = scores.cosine(unit_1D, caption_ND)
        row = measure(cosine_1N)[0].tolist()
        record = {"path": embedded.path, "scores": dict(zip(captions, row, strict=True))}
        shown = [f"{value:.4f}" for value in row]
        if beside:
            (shares,) = beside.shares(unit_1D, cosine_1N)
            record["better_than"] = dict(zip(captions, shares, strict=True))
            both = zip(shown, shares, strict=True)
            shown = [f"{one} {word(share):{SURE}}" for one, share in both]
        shown = [one.rjust(width if many else 0) for one in shown]
        printer.add(
            cells=[embedded.path, *row], line="  ".join([*shown, embedded.path]), record=record
        )
        means.add(row)
    printer.close()
    means.tell()
    pictures.finish()


def _score_pairs(
    file: Path, metric: Metric, prefix: str, long: str, format: Format, options: Options
) -> None:
    """Score each image against the text of its row."""
    rows = pairs.read(file, references=metric is Metric.refclipscore)
    first = next(rows, None)
    if first is None:
        raise UsageError(f"There are no rows in {file}.")
    pictures = open_pictures([str(file)], options, prints=True)
    clip = pictures.clip
    if metric is Metric.probability and not clip.logit_bias:
        raise UsageError(
            f"The CLIP {clip.name} gives probabilities among several texts, and a pair has one: "
            "give --metric clipscore, or a SigLIP."
        )
    printer, means = Rows(format, ["path", "text", "score"]), Means(metric.value, [""])
    for part, unit_BD in pairs.embed(chain([first], rows), pictures):
        caption_BD = _encode(clip, [row.text for row in part], prefix, long)
        cosine_B1 = (unit_BD * caption_BD).sum(1, keepdim=True).clamp(-1, 1)
        for row, caption_D, cosine_1 in zip(part, caption_BD, cosine_B1):
            reference_RD = None
            if metric is Metric.refclipscore:
                reference_RD = _encode(clip, row.references, prefix, long)
            measure = _measure(metric, clip, caption_D[None], reference_RD)
            value = measure(cosine_1[None])[0].tolist()
            printer.add(
                cells=[row.image, row.text, *value],
                line=f"{value[0]:.4f}  {row.image}  {row.text}",
                record={"path": row.image, "text": row.text, "score": value[0]},
            )
            means.add(value)
    printer.close()
    means.tell()
    pictures.finish()


def _measure(
    metric: Metric, clip: Clip, caption_ND: torch.Tensor, reference_RD: torch.Tensor | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return scores_BN of cosines_BN by a metric."""
    from .. import scores

    if metric is Metric.clipscore:
        return scores.clip_score
    if metric is Metric.refclipscore:
        return lambda cosine_BN: scores.ref_clip_score(
            scores.clip_score(cosine_BN), caption_ND, reference_RD
        )
    if metric is Metric.probability:
        logits: dict[str, Any] = {"logit_scale": clip.logit_scale, "logit_bias": clip.logit_bias}
        return lambda cosine_BN: scores.probability(cosine_BN, **logits)
    return lambda cosine_BN: cosine_BN


def _check(metric: Metric, captions: list[str], references: list[str]) -> None:
    if not captions:
        raise UsageError("There is no text to compare with: give --text, --texts or --pairs.")
    if metric is Metric.refclipscore and not references:
        raise UsageError("refclipscore compares with references: give --reference.")
    if metric is not Metric.refclipscore and references:
        raise UsageError(f"{metric.value} does not use --reference: give --metric refclipscore.")


def _texts(given: list[str] | None, file: Path | None) -> list[str]:
    """Return the texts to compare with, each once."""
    lines = read_lines(file, what="texts") if file is not None else []
    return list(dict.fromkeys([checked(text) for text in [*(given or []), *lines]]))


def checked(text: str) -> str:
    """Return a text to compare with, unchanged. Raise UsageError if it is empty, or not a text."""
    check_text(text)
    if not text.strip():
        raise UsageError("A text is empty: say what the images are compared with.")
    return text


def _encode(clip: Clip, texts: Sequence[str], prefix: str, long: str) -> torch.Tensor:
    return clip.encode_text([prefix + text for text in texts], long=long).float().cpu()


class Means:
    """Compute the mean score of each text, without keeping the scores."""

    def __init__(self, metric: str, texts: list[str]) -> None:
        self._metric, self._texts = metric, texts
        self._sums, self._count = [0.0] * len(texts), 0

    def add(self, scores: Sequence[float]) -> None:
        """Add the scores of one image."""
        self._sums = [total + score for total, score in zip(self._sums, scores, strict=True)]
        self._count += 1

    def tell(self) -> None:
        """Print the means on stderr."""
        if not self._count:
            return
        of = f"of {self._count} {'image' if self._count == 1 else 'images'}"
        for text, total in zip(self._texts, self._sums, strict=True):
            name = f" with {shorten(text)!r}" if len(self._texts) > 1 else ""
            typer.echo(f"mean {self._metric} {of}{name}: {total / self._count:.4f}", err=True)
