"""The tab that searches the index: by text, by image, by both, or by an image of the index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import ClipguideError, UsageError
from . import files, parts, words

if TYPE_CHECKING:
    import gradio as gr
    from PIL import Image

    from ..retrieval import Hit, Index, Query
    from .models import Models

COUNTS = (12, 24, 48, 96)  # images per page
MOST = 960  # largest number of images


@dataclass(frozen=True)
class Found:
    """The query, and the hits so far, from `seen` results of the index. The path `but` is left out.
    `over` says that there are no more."""

    query: Query | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    hits: tuple[Hit, ...] = ()
    seen: int = 0
    but: str = ""
    line: str = ""
    over: bool = True


def search(
    models: Models,
    text: str | None,
    upload: str | None,
    where: str | None,
    hybrid: bool,
    diversity: float,
    count: int,
    plus: str | None = None,
    minus: str | None = None,
) -> Found:
    """Return the first images of a query. It adds the prompts of `plus`, and subtracts those of
    `minus`. Raise UsageError for an impossible query."""
    from ..prompts import parse
    from ..retrieval import compose, encode_texts

    text, where, plus, minus = map(words.checked, (text, where, plus, minus))
    if not text and not upload and not plus:
        raise UsageError("There is nothing to search for: give a text or an image.")
    weighed = [(text, 1.0)] if text else []
    for sign, given in ((1, plus), (-1, minus)):
        weighed += [(p.text, sign * p.weight) for p in parse(given).parts] if given else []
    index, clip = models.index()
    terms = []
    if upload:
        how = {"alpha": "white", "icc": False, **index.settings}
        picture = files.uploaded(upload, alpha=how["alpha"], icc=how["icc"])
        terms.append((clip.encode_pictures([picture])[0].float().cpu(), 1.0))
    if weighed:
        texts, weights = zip(*weighed, strict=True)
        terms += zip(encode_texts(clip, texts), weights, strict=True)
    query = compose(terms, text=text if text and len(terms) == 1 else None)
    settings = {"where": where or None, "hybrid": bool(hybrid), "diversity": float(diversity)}
    return _next(index, Found(query, {**settings, "k": int(count)}))


def more(models: Models, found: Found) -> Found:
    """Return the same query with the next images added."""
    if found.query is None or found.over:
        return found
    return _next(models.index()[0], found)


def similar(models: Models, found: Found, place: int, count: int) -> Found:
    """Return images of the index that resemble a hit."""
    from ..retrieval import Query

    if place >= len(found.hits):
        raise UsageError("That image is not shown any more: pick another.")
    hit = found.hits[place]
    index = models.index()[0]
    query = Query(index.vector(hit.path))
    return _next(index, Found(query, {"k": int(count)}, but=hit.path))


def picked(found: Found, place: int) -> tuple[Image.Image, str]:
    """Return a hit in full, if the file has not changed since it was indexed, and its facts."""
    from ..retrieval import page

    hit = found.hits[place]
    picture, note = files.indexed(hit), ""
    if picture is None:
        picture = page.opened(hit.thumbnail)
        note = "The file is gone, a link, or not the one that was indexed: this is its thumbnail."
    known = {"better_than": hit.better_than, "note": note}
    return picture, words.facts(hit.path, hit.score, hit.facts, **known)


def cells(found: Found) -> list[tuple[Image.Image, str]]:
    """Return thumbnails and labels for a grid."""
    from ..retrieval import page

    return [
        (page.opened(hit.thumbnail), f"{words.scored(hit.score, hit.better_than)} {_name(hit)}")
        for hit in found.hits
    ]


def build(models: Models) -> None:
    """Build the components of the tab, and connect them."""
    import gradio as gr

    with gr.Row(equal_height=False, elem_classes="work"):
        with gr.Column(scale=2, min_width=300, elem_classes="asked"):
            text = parts.text("Text", "a red fox on snow", "query")
            start = gr.Button("Search", variant="primary", elem_id="search")
            picture = parts.upload("query-picture")
        with gr.Column(scale=3, min_width=300, elem_classes="shown"):
            line = gr.HTML(words.said("Say what the images show."), elem_id="found-line")
            with gr.Column(visible=False, elem_id="picked") as panel:
                full = gr.Image(
                    show_label=False,
                    interactive=False,
                    format="jpeg",
                    buttons=["fullscreen"],
                    elem_id="full",
                )
                about = gr.HTML(elem_id="about")
                like = gr.Button("More like this", elem_id="like")
            grid = parts.gallery("grid", preview=False)
            further = gr.Button("Show more", visible=False, elem_id="further")
        with gr.Column(scale=2, min_width=300, elem_classes="settings"):
            with gr.Accordion("More and less", open=False, elem_id="sums"):
                plus = parts.text("Plus", "at night:0.5", "plus", info="Added to the query.")
                minus = parts.text("Minus", "people", "minus", info="Taken from the query.")
            with gr.Accordion("Filters", open=False, elem_id="filters"):
                where = parts.text(
                    "Condition",
                    "date > '2024-01-01' and width > 512",
                    "where",
                    info="Columns: path, folder, size, mtime, width, height, format, date, camera, "
                    "prompt, caption.",
                )
                hybrid = gr.Checkbox(label="Search in captions and prompts as well")
                diversity = gr.Slider(0, 1, value=0, step=0.05, label="Variety")
                count = gr.Dropdown(COUNTS, value=COUNTS[1], label="Images at a time")
    fields = [text, where, plus, minus]
    triggers = [*(field.submit for field in fields), start.click, picture.upload]
    asked = [text, picture, where, hybrid, diversity, count, plus, minus]
    place = _wire_panel(found := gr.State(Found()), grid, [panel, full, about])
    _wire(models, triggers, asked, [found, grid, line, further, panel], like, [place, count])
    parts.follow([*triggers, like.click], "#found-line")


def _wire(
    models: Models,
    triggers: Sequence[Any],
    asked: Sequence[gr.Component],
    shown: Sequence[gr.Component],
    like: gr.Button,
    liked: Sequence[gr.Component],
) -> None:
    """Connect queries, more results and similar images. Each fills the grid again."""
    import gradio as gr

    def attempt(function: Callable[..., Found], old: Found, *given: Any) -> tuple:
        try:
            new = function(models, *given)
        except ClipguideError as error:
            told = words.said(words.sentence(error), wrong=True)
            return old, gr.skip(), told, gr.skip(), gr.skip()
        grid = gr.update(value=cells(new), selected_index=None)
        close = gr.update(visible=False) if new.query is not old.query else gr.skip()
        return new, grid, words.said(new.line), gr.update(visible=not new.over), close

    found, _, _, further, _ = shown
    look = {
        "outputs": shown,
        "show_progress": "minimal",
        "api_visibility": "private",
        "concurrency_id": "look",
        "concurrency_limit": 1,
        "trigger_mode": "always_last",  # text that was typed in the meantime is searched next
    }
    gr.on(
        triggers, lambda old, *given: attempt(search, old, *given), inputs=[found, *asked], **look
    )
    further.click(lambda old: attempt(more, old, old), inputs=[found], **look)
    like.click(
        lambda old, place, count: attempt(similar, old, old, place, count),
        inputs=[found, *liked],
        **look,
    )


def _wire_panel(found: gr.State, grid: gr.Gallery, panel: Sequence[gr.Component]) -> gr.State:
    """Connect the panel that shows the selected image. Return its index."""
    import gradio as gr

    def pick(found: Found, event: gr.SelectData) -> tuple:
        return event.index, gr.update(visible=True), *picked(found, event.index)

    pick.__annotations__["event"] = gr.SelectData
    place = gr.State(0)
    hidden = {"show_progress": "minimal", "api_visibility": "private"}
    grid.select(pick, inputs=[found], outputs=[place, *panel], **hidden).then(
        None, js=parts.scroll("#picked"), api_visibility="private"
    )
    return place


def _next(index: Index, found: Found) -> Found:
    """Return the hits so far, and the next ones."""
    settings = dict(found.settings)
    k = settings.pop("k") + bool(found.but and not found.hits)
    answer = index.search(found.query, k=k, offset=found.seen, **settings)
    hits = [hit for hit in answer.hits if hit.path != found.but]
    line = f"{len(found.hits) + len(hits)} of {answer.total} images, the best first."
    if not hits:
        line = "There are no more images." if found.hits else "No image is left."
    together, seen = (*found.hits, *hits), found.seen + len(answer.hits)
    over = len(answer.hits) < k or seen >= min(MOST, answer.total)
    return replace(found, hits=together, seen=seen, line=line, over=over)


def _name(hit: Hit) -> str:
    name = hit.path.rsplit("/", 1)[-1]
    return name.encode(errors="replace").decode()
