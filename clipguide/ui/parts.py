"""Components that the tabs share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import words

if TYPE_CHECKING:
    import gradio as gr


def text(label: str, placeholder: str, name: str, **settings: Any) -> gr.Textbox:
    """A line of text that Enter submits, and that grows to four."""
    import gradio as gr

    lines = {"lines": 1, "max_lines": 4, "max_length": words.LONGEST}
    return gr.Textbox(label=label, placeholder=placeholder, elem_id=name, **lines, **settings)


def gallery(name: str, *buttons: str, preview: bool = True) -> gr.Gallery:
    """Pictures in as many columns as there is room for, as `page.CSS` says."""
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
    """A place to drop, paste or choose an image. It gives the file's path, and leaves reading it,
    with its dangers, to `files.uploaded`."""
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
    """JavaScript that brings what is new to where it is seen, on a phone to the top."""
    return (
        f"() => document.querySelector('{place}')?.scrollIntoView("
        "{block: innerWidth < 700 ? 'start' : 'nearest'})"
    )


def follow(triggers: Sequence[Any], place: str) -> None:
    """Scroll there when any of these happens."""
    import gradio as gr

    gr.on(triggers, None, js=scroll(place), api_visibility="private")
