"""Components that the tabs share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import words

if TYPE_CHECKING:
    import gradio as gr


def text(label: str, placeholder: str, name: str, **settings: Any) -> gr.Textbox:
    """Return a text field of one line that grows to four. Enter submits it."""
    import gradio as gr

    lines = {"lines": 1, "max_lines": 4, "max_length": words.LONGEST}
    return gr.Textbox(label=label, placeholder=placeholder, elem_id=name, **lines, **settings)


def gallery(name: str, *buttons: str, preview: bool = True) -> gr.Gallery:
    """Return a gallery of images, in as many columns as fit (`page.CSS`)."""
    import gradio as gr

    return gr.Gallery(
        show_label=False,
        fit_columns=False,
        object_fit="contain",
        height="auto",
        allow_preview=preview,
        interactive=False,
        format="jpeg",
        elem_id=name,
        buttons=list(buttons),
    )


def upload(name: str) -> gr.Image:
    """Return a field to drop, paste or choose an image. Its value is the path of the file.
    `files.uploaded` reads it safely."""
    import gradio as gr

    image = gr.Image(
        label="Picture",
        placeholder="Drop, paste or choose an image",
        sources=["upload", "clipboard"],
        type="filepath",
        height=180,
        buttons=[],
        elem_id=name,
    )
    image.preprocess = lambda payload: payload.path if payload is not None else None
    return image


def scroll(place: str) -> str:
    """Return JavaScript that scrolls to new results, on a phone to the top."""
    return (
        f"() => document.querySelector('{place}')?.scrollIntoView("
        "{block: innerWidth < 700 ? 'start' : 'nearest'})"
    )


def follow(triggers: Sequence[Any], place: str) -> None:
    """Scroll there after any of these events."""
    import gradio as gr

    gr.on(triggers, None, js=scroll(place), api_visibility="private")
