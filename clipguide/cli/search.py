"""clipguide search: find images in an index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from . import console
from .index import BOTH, Db
from .options import Device
from .rows import Format, Printed, Rows
from .sureness import WIDTH as SURE
from .sureness import Scored, word

if TYPE_CHECKING:
    import torch

    from ..clip import Clip
    from ..retrieval import Answer, Hit, Index, Query


def search(
    text: Annotated[
        str | None,
        typer.Argument(metavar="TEXT", help="What the images should show.", show_default=False),
    ] = None,
    db: Db = None,
    k: Annotated[
        int,
        typer.Option(
            "--top", "-k", metavar="K", help="The number of images, or of lines with --texts."
        ),
    ] = 10,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            "--image", metavar="FILE", help="An image that the results should resemble. "
            "Repeatable."
        ),
    ] = None,
    plus: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="A text to add to the query, such as 'at night:0.5' with half the "
            "weight. Repeatable.",
        ),
    ] = None,
    negative: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="A text to subtract from the query. Repeatable."),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="SQL",
            help="A condition in SQL, such as \"date > '2024-01-01' and width > 512\". Columns: "
            "path, folder, size, mtime, width, height, format, date, camera, prompt, caption, "
            "indexed_at.",
        ),
    ] = None,
    hybrid: Annotated[
        bool, typer.Option("--hybrid", help="Also search the words of captions and prompts.")
    ] = False,
    diversity: Annotated[
        float,
        typer.Option(
            metavar="X",
            help="How different the results are: 0 sorts by score alone, 1 prefers images that "
            "differ most.",
        ),
    ] = 0.0,
    page: Annotated[
        int, typer.Option(metavar="N", help="The page of results; each has --top images.")
    ] = 1,
    texts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --image, rank the lines of this file for that image. This needs no index.",
        ),
    ] = None,
    contact_sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A .png or .html file that shows the results."),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show the results in the browser.")] = False,
    format: Printed = Format.text,
    clip: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The CLIP. [default: that of the index; for --texts mini+mini-judge]",
        ),
    ] = None,
    device: Device = None,
    trust_pickle: Annotated[
        bool,
        typer.Option(
            "--trust-pickle", help="Read weights from a pickle or a JIT archive, which can run "
            "code."
        ),
    ] = False,
) -> None:
    """Search an index by text, by image or by both.

    The query is the sum of the texts and images, each with its weight. --negative subtracts a text.
    The score is the cosine similarity with the sum. If the query is one text, a percentage follows
    the score: the share of unrelated texts whose best match in the index scores lower. If the
    percentage is low, the index probably has no such image. A high percentage does not prove that
    it has one.
    """
    from ..retrieval import filters, places
    from ..retrieval import page as pages

    if k < 1 or page < 1:
        raise UsageError(f"--top and --page count from 1, not {min(k, page)}.")
    if not 0 <= diversity <= 1:
        raise UsageError(f"--diversity is from 0 to 1, not {diversity:g}.")
    for one in [text] if text is not None else []:
        if not one.strip():
            raise UsageError("The text is empty: say what to search for.")
    if contact_sheet is not None:
        pages.check(contact_sheet)
    if texts is not None:
        if not image or text is not None or plus or negative:
            raise UsageError("--texts says which lines an image shows: give it --image alone.")
        with console.plain_speech():
            _print_texts(image, texts, k, clip or BOTH, device, trust_pickle, format)
        return
    if text is None and not image and not plus:
        raise UsageError("There is nothing to search for: give a text or --image.")
    if where is not None:
        filters.checked(where)
    places.check_index(places.default_path() if db is None else db)
    with console.plain_speech():
        from ..retrieval import Index

        index = Index(db)
        model = _load(index, clip, device, trust_pickle)
        query = _query(index, model, text, image or [], plus or [], negative or [])
        answer = index.search(
            query,
            k=k,
            offset=(page - 1) * k,
            where=where,
            hybrid=hybrid,
            diversity=diversity,
        )
        _print(answer, format, page)
        _show(answer, text or "search", contact_sheet, open_)


def _load(index: Index, name: str | None, device: str | None, trust_pickle: bool) -> Clip:
    """Load the CLIP of an index, by the name that was given or that of the index. Raise UsageError
    if it is another CLIP."""
    from .values import best_device

    return index.load(name, device=device or best_device(), trust_pickle=trust_pickle)


def _query(
    index: Index,
    clip: Clip,
    text: str | None,
    images: list[Path],
    plus: list[str],
    minus: list[str],
) -> Query:
    """Return the sum of all parts of the query. With --hybrid, a single text also searches words.
    """
    from ..prompts import parse
    from ..retrieval import compose, encode_texts

    weighed = [(text, 1.0)] if text is not None else []
    for sign, given in ((1, plus), (-1, minus)):
        weighed += [(p.text, sign * p.weight) for one in given for p in parse(one).parts]
    terms = [(unit_D, 1.0) for unit_D in _embed(clip, images, **index.settings)]
    if weighed:
        names, weights = zip(*weighed, strict=True)
        terms += zip(encode_texts(clip, names), weights, strict=True)
    return compose(terms, text=text if len(terms) == 1 else None)


def _embed(clip: Clip, images: list[Path], **settings: object) -> list[torch.Tensor]:
    """Return the vectors of images. Raise UsageError if one cannot be read."""
    from ..engine import Engine

    units = []
    for embedded in Engine(clip, **settings).embed(images):
        if embedded.error is not None:
            raise UsageError(embedded.error)
        units.append(embedded.unit_D)
    return units


def _print(answer: Answer, format: Format, page: int) -> None:
    from ..retrieval.search import RECORD

    rows = Rows(format, RECORD)
    for hit in answer.hits:
        record = hit.record()
        line = "  ".join([f"{hit.score:.4f}", *_share(hit), hit.path])
        rows.add(cells=[record[name] for name in RECORD], line=line, record=record)
    rows.close()
    if not answer.hits:
        console.complain("No image is left." if page == 1 else "There are no more images.")


def _share(hit: Hit) -> list[str]:
    """Return the share of unrelated texts that score lower, and its word, if they are known."""
    if hit.better_than is None:
        return []
    return [f"{hit.better_than:5.1%} {word(hit.better_than):{SURE}}"]


def _show(answer: Answer, title: str, sheet: Path | None, open_: bool) -> None:
    """Write the page of results, if one is asked for and there are results."""
    import tempfile

    from ..retrieval import page

    if not answer.hits or not (sheet or open_):
        return
    if sheet is None:
        sheet = Path(tempfile.mkdtemp(prefix="clipguide-")) / "search.html"
    cells = [
        (hit.path, "  ".join([f"{hit.score:.3f}", *_share(hit)]), hit.thumbnail)
        for hit in answer.hits
    ]
    page.write(sheet, title, [("", cells)])
    console.complain(f"{sheet} is written.")
    if open_:
        typer.launch(str(sheet))


def _print_texts(
    images: list[Path],
    file: Path,
    k: int,
    name: str,
    device: str | None,
    trust_pickle: bool,
    format: Format,
) -> None:
    """Print the lines of a file that fit an image, the best first."""
    from .. import load_clip
    from ..prompts import read_lines
    from ..retrieval import compose, encode_texts
    from .values import best_device

    lines = list(dict.fromkeys(read_lines(file, what="texts")))
    clip = load_clip(name, device=device or best_device(), trust_pickle=trust_pickle)
    query = compose([(unit_D, 1.0) for unit_D in _embed(clip, images)])
    cosine_N = encode_texts(clip, lines) @ query.unit_D
    best = cosine_N.argsort(descending=True, stable=True)[:k].tolist()
    texts, cosine_1K = [lines[n] for n in best], cosine_N[best][None]
    (shares,) = Scored(clip, texts).shares(query.unit_D[None], cosine_1K)
    rows = Rows(format, ["text", "score", "better_than"])
    for text, cosine, share in zip(texts, cosine_1K[0].tolist(), shares, strict=True):
        record = {"text": text, "score": cosine, "better_than": share}
        line = f"{cosine:.4f} {word(share):{SURE}}  {text}"
        rows.add(cells=list(record.values()), line=line, record=record)
    rows.close()
