"""The tab that sorts uploaded images, the best first."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ClipguideError, UsageError
from . import files, parts, words

if TYPE_CHECKING:
    from PIL import Image

    from .models import Models

MOST = 64  # images
SIDE = 512  # pixels of a shown image
BATCH = 16  # images that are embedded together


def rerank(
    models: Models, uploads: Sequence[str] | None, text: str, negative: str, drop: bool
) -> tuple[list[tuple[Image.Image, str]], str]:
    """Return the images with rank, score and name, the best first, and a line about them. The score
    is the cosine similarity with a text, minus that with a negative text. The line names images
    that cannot be read.

    Raises:
        UsageError: no image can be read, there are more than MOST, or there is no text.
    """
    import torch

    from ..rerank import DUPLICATE, Criterion, combine, rank
    from ..retrieval import encode_texts

    text, negative = words.checked(text), words.checked(negative)
    if not uploads:
        raise UsageError("There are no images: choose or drop some.")
    if len(uploads) > MOST:
        raise UsageError(f"The page ranks up to {MOST} images, not {len(uploads)}.")
    if not text and not negative:
        raise UsageError("There is nothing to rank by: say what the images should show.")
    clip = models.ranker()
    prepared, pictures, names, wrong = _read(uploads, clip.prepare)
    unit_BD = torch.cat(
        [clip.encode_prepared(prepared[i : i + BATCH]) for i in range(0, len(prepared), BATCH)]
    )
    unit_BD = unit_BD.float().cpu()
    criteria = [
        Criterion(name, unit_BD @ encode_texts(clip, [given])[0], weight)
        for name, given, weight in (("text", text, 1.0), ("negative", negative, -1.0))
        if given
    ]
    order = rank(combine(criteria), unit_BD, duplicate=DUPLICATE if drop else None)
    shares: list[float | None] = [None] * len(names)
    if text:
        shares = [*models.unrelated(clip).shares(unit_BD, text, criteria[0].score_B)]
    ranked = []
    for number, place in enumerate(order.best, start=1):
        scored = words.scored(order.relevance[place], shares[place])
        ranked.append((pictures[place], f"{number}  {scored}  {names[place]}"))
    copies = f" {len(order.duplicate_of)} copies are left out." if order.duplicate_of else ""
    return ranked, " ".join([f"{len(ranked)} images, the best first.{copies}", *wrong])


def _read(
    uploads: Sequence[str], prepare: Callable[[Image.Image], Any]
) -> tuple[list, list[Image.Image], list[str], list[str]]:
    """Return the images as the encoder sees them, small ones to show, their names, and the faults
    of the others. One full-size image at a time is in memory. Raise UsageError if none is left."""
    prepared, small, names, wrong = [], [], [], []
    for path in uploads:
        try:
            picture = files.uploaded(path)
        except UsageError as error:
            wrong.append(str(error))
            continue
        prepared.append(prepare(picture))
        picture.thumbnail((SIDE, SIDE))
        small.append(picture)
        names.append(os.path.basename(path))
    if not small:
        raise UsageError(" ".join(wrong))
    return prepared, small, names, wrong


def build(models: Models) -> None:
    """Build the components of the tab, and connect them."""
    import gradio as gr

    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            text = parts.text("Text", "what the images should show", "rank-text")
            uploads = gr.File(
                label=f"Pictures, up to {MOST}",
                file_count="multiple",
                file_types=["image"],
                height=180,
                elem_id="rank-pictures",
            )
            start = gr.Button("Rank", variant="primary", elem_id="rank")
            negative = parts.text("Negative", "what they should not show", "rank-negative")
            drop = gr.Checkbox(label="Leave out copies of a better one")
        with gr.Column(scale=3, min_width=300):
            told = words.said("Choose images, and say what they should show.")
            line = gr.HTML(told, elem_id="ranked-line")
            grid = parts.gallery("ranked", "fullscreen")

    def run(*given: object) -> tuple:
        try:
            ranked, told = rerank(models, *given)
        except ClipguideError as error:
            return gr.skip(), words.said(words.sentence(error), wrong=True)
        return ranked, words.said(told)

    gr.on(
        triggers := [text.submit, negative.submit, start.click],
        run,
        inputs=[uploads, text, negative, drop],
        outputs=[grid, line],
        concurrency_id="look",
        concurrency_limit=1,
        show_progress="minimal",
        api_visibility="private",
    )
    parts.follow(triggers, "#ranked-line")
