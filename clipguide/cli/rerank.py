"""clipguide rerank: sort images by score."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ClipguideError, UsageError, close_matches
from . import console
from . import options as shared
from .embedding import Images, Options, open_pictures, with_options
from .rows import Format, Printed, Rows
from .score import checked
from .sureness import WIDTH as SURE
from .sureness import Scored, word
from .values import best_device

if TYPE_CHECKING:
    import torch

    from ..clip import Clip
    from ..rerank import Criterion, Order
    from ..rewards import Reward
    from .embedding import Pictures

CRITERIA = ("text", "negative", "aesthetic")
COLUMNS = 6  # columns of the contact sheet
SIDE = 256  # largest side of its images, in pixels


@with_options
def rerank(
    images: Images,
    options: Options,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text", "-t", metavar="TEXT", help="What the images should show. Repeatable."
        ),
    ] = None,
    negative: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="What the images should not show. Repeatable."),
    ] = None,
    aesthetic: Annotated[
        Path | None,
        typer.Option(
            metavar="HEAD", help="The file of an aesthetic head for this CLIP, in safetensors."
        ),
    ] = None,
    reward: shared.RankBy = None,
    question: shared.Question = "",
    weight: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=X",
            help="The weight of text, negative or aesthetic. Repeatable. For a reward, write "
            "--reward NAME:WEIGHT. [default: 1 each]",
        ),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option(
            "--top", "-k", min=1, metavar="K", help="The number of images to keep. [default: all]"
        ),
    ] = None,
    diversity: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="X",
            help="How different the kept images are: 0 sorts by score alone, 1 prefers images "
            "that differ most.",
        ),
    ] = 0.0,
    drop_duplicates: Annotated[
        bool, typer.Option("--drop-duplicates", help="Drop near-duplicates of a better image.")
    ] = False,
    duplicate: Annotated[
        float,
        typer.Option(
            min=-1,
            max=1,
            metavar="COSINE",
            help="The cosine similarity from which two images count as duplicates.",
        ),
    ] = 0.98,
    contact_sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A PNG that shows the images that are kept.")
    ] = None,
    copy_to: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Copy the images that are kept to this folder, as 01-name.png and so on.",
        ),
    ] = None,
    link_to: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Make symbolic links to the kept images in this folder, with the "
            "same names."
        ),
    ] = None,
    format: Printed = Format.text,
) -> None:
    """Sort images by score, the best first.

    The score is the cosine similarity with --text, minus that with --negative. If you give an
    option several times, its mean counts. With --aesthetic or --reward, each criterion is first
    rescaled over these images, and the score is their sum.

    In the output, score is what the images are sorted by. A column for each criterion follows, and
    then a word such as "very sure". The word rates the match with --text alone: "very sure" means
    that at least 99 % of unrelated texts score lower.
    """
    texts, negatives = ([checked(one) for one in given or []] for given in (text, negative))
    if not (texts or negatives or aesthetic or reward):
        raise UsageError(
            "There is nothing to rank by: give --text, --negative, --aesthetic or --reward."
        )
    weights = _weights(weight)
    if copy_to and link_to:
        raise UsageError("Give --copy-to or --link-to, not both.")
    _check_outputs(copy_to or link_to, contact_sheet)
    with console.plain_speech():
        from ..rerank import combine, rank

        rewards = _rewards(reward or [], texts, question, options)
        pictures = open_pictures(images, options)
        judges = _judges(pictures.clip, texts, negatives, aesthetic, options.trust_pickle)
        paths, unit_BD = _embed(pictures)
        if paths:
            criteria = _criteria(judges, unit_BD, weights) + _rewarded(rewards, paths, texts)
            shares = _shares(pictures.clip, texts, unit_BD)
            order = rank(
                combine(criteria),
                unit_BD,
                keep=keep,
                diversity=diversity,
                duplicate=duplicate if drop_duplicates else None,
            )
            _print(format, order, paths, criteria, shares)
            best = [paths[place] for place in order.best]
            if contact_sheet:
                _draw(contact_sheet, best, [order.relevance[place] for place in order.best])
            if copy_to or link_to:
                _place(best, copy_to or link_to, link=link_to is not None)
        pictures.finish()


def _weights(given: list[str] | None) -> dict[str, float]:
    """Return the weight of each criterion from "name=x"; the default is 1."""
    weights = dict.fromkeys(CRITERIA, 1.0)
    for one in given or []:
        name, _, number = one.partition("=")
        if name not in weights:
            raise UsageError(f"There is no criterion {name!r}.{close_matches(name, CRITERIA)}")
        try:
            weights[name] = float(number)
        except ValueError:
            raise UsageError(f"--weight is NAME=NUMBER, as in {name}=0.5, not {one!r}.") from None
    return weights


def _check_outputs(folder: Path | None, sheet: Path | None) -> None:
    """Raise UsageError if the images cannot be placed there. Create nothing yet."""
    if folder is not None and os.path.lexists(folder) and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: choose another for the images.")
    if sheet is not None:
        if sheet.suffix.lower() != ".png":
            raise UsageError(f"The contact sheet is a PNG: end {str(sheet)!r} in .png.")
        if os.path.lexists(sheet):
            raise UsageError(f"{sheet} is there already: choose another name.")


def _judges(
    clip: Clip, texts: list[str], negatives: list[str], head: Path | None, trust: bool
) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Return functions from unit vectors_BD to score_B, by the names of the criteria."""
    judges: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
    for name, group in {"text": texts, "negative": negatives}.items():
        if group:
            text_ND = clip.encode_text(group).float().cpu()
            judges[name] = lambda unit_BD, text_ND=text_ND: (unit_BD @ text_ND.T).mean(1)
    if head is not None:
        from .. import Aesthetic

        judges["aesthetic"] = Aesthetic(clip, head, trust_pickle=trust).score_vectors
    return judges


def _rewards(
    asked: list[str], texts: list[str], question: str, options: Options
) -> list[tuple[float, Reward]]:
    """Return the rewards with their weights, without loading them. Raise UsageError for an unknown
    reward, or one that needs a text if there is none."""
    from ..rewards import Reward, wanted

    found = []
    for text in asked:
        one = wanted(text)
        if one.kind.reads and not texts:
            raise UsageError(f"The reward {one.name} needs a text: give --text.")
        name = str(replace(one, weight=1.0))
        settings = {"question": question, "key": os.environ.get(shared.KEY, "")}
        settings |= {"device": options.device or best_device()}
        made = Reward(name, texts or "an image", trust_pickle=options.trust_pickle, **settings)
        found.append((one.weight, made))
    return found


def _rewarded(
    rewards: list[tuple[float, Reward]], paths: list[str], texts: list[str]
) -> list[Criterion]:
    """Return the mean score of each image over the texts, for each reward."""
    import torch

    from ..images import load
    from ..rerank import Criterion

    found = []
    for weight, reward in rewards:
        reward.load()
        each = [reward.towards(text) for text in texts] or [reward]
        with console.Count(f"scoring by {reward.asked.name}") as count:
            rows = []
            for path in paths:
                picture = load(path)
                rows.append(sum(one.score_pictures([picture])[0] for one in each) / len(each))
                count(len(rows), len(paths))
        name = str(reward.asked)
        found.append(Criterion(name, torch.stack(rows), weight, name))
    return found


def _criteria(
    judges: dict[str, Callable[[torch.Tensor], torch.Tensor]],
    unit_BD: torch.Tensor,
    weights: dict[str, float],
) -> list[Criterion]:
    from ..rerank import Criterion

    signs, units = {"negative": -1}, {"aesthetic": "aesthetic"}
    return [
        Criterion(
            name, judge(unit_BD), weights[name] * signs.get(name, 1), units.get(name, "cosine")
        )
        for name, judge in judges.items()
    ]


def _embed(pictures: Pictures) -> tuple[list[str], torch.Tensor]:
    """Return the paths and unit vectors_BD of all readable images, each path once."""
    import torch

    vectors = {embedded.path: embedded.unit_D for embedded in pictures}
    return list(vectors), torch.stack(list(vectors.values())) if vectors else torch.empty(0, 0)


def _shares(clip: Clip, texts: list[str], unit_BD: torch.Tensor) -> list[float] | None:
    """Return the share of unrelated texts that score lower, for each image: the mean over the
    texts. None if there is no text."""
    if not texts:
        return None
    text_ND = clip.encode_text(texts).float().cpu()
    rows = Scored(clip, texts).shares(unit_BD, unit_BD @ text_ND.T)
    return [sum(row) / len(row) for row in rows]


def _print(
    format: Format,
    order: Order,
    paths: list[str],
    criteria: list[Criterion],
    shares: list[float] | None,
) -> None:
    """Print a row for each image that is kept. Print a line on stderr for each copy that is
    dropped."""
    names = [criterion.name for criterion in criteria]
    columns = ["rank", "path", "score", *names, *(["better_than"] if shares else [])]
    sure = ["sure?".ljust(SURE)] if shares else []
    head = "  ".join(["rank", "  score", *(name.rjust(9) for name in names), *sure, "path"])
    rows = Rows(format, columns, head=head)
    for number, place in enumerate(order.best, start=1):
        scores = [float(criterion.score_B[place]) for criterion in criteria]
        score = order.relevance[place]
        cells = [number, paths[place], score, *scores, *([shares[place]] if shares else [])]
        said = [f"{word(shares[place]):{SURE}}"] if shares else []
        shown = "  ".join([*(f"{value:9.4f}" for value in scores), *said])
        rows.add(
            cells=cells,
            line=f"{number:4}  {score:7.4f}  {shown}  {paths[place]}",
            record=dict(zip(columns, cells, strict=True)),
        )
    rows.close()
    for copy, original in order.duplicate_of.items():
        console.complain(f"{paths[copy]} is dropped: it is a copy of {paths[original]}.")


def _draw(sheet: Path, best: list[str], scores: list[float]) -> None:
    from ..images import contact_sheet, load
    from ..recipe import write_png

    pictures = []
    for path in best:
        pictures.append(load(path))
        pictures[-1].thumbnail((SIDE, SIDE))
    labels = [
        console.one_line(f"{number} {score:.3f} {os.path.basename(path)}")
        for number, (path, score) in enumerate(zip(best, scores, strict=True), start=1)
    ]
    write_png(contact_sheet(pictures, labels=labels, columns=COLUMNS), sheet)


def _place(best: list[str], folder: Path, *, link: bool) -> None:
    """Copy or link the images into a folder, numbered from 01. Raise UsageError before the first
    one if a name is taken."""
    digits = max(2, len(str(len(best))))
    targets = [
        folder / f"{number:0{digits}}-{os.path.basename(path)}"
        for number, path in enumerate(best, start=1)
    ]
    if taken := next(filter(os.path.lexists, targets), None):
        raise UsageError(f"{taken} is there already: choose another folder, or an empty one.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, target in zip(best, targets, strict=True):
            if link:
                os.symlink(os.path.abspath(path), target)
            else:
                with open(path, "rb") as source, open(target, "xb") as copy:
                    shutil.copyfileobj(source, copy)
                shutil.copystat(path, target)
    except OSError as error:
        raise ClipguideError(
            f"{error.filename or folder} cannot be placed in {folder}: {error.strerror or error}."
        ) from None
