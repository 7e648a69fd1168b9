"""The whole page: its three tabs, its style, its queue."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from . import files, generate_tab, rerank_tab, search_tab
from .models import Models

if TYPE_CHECKING:
    import gradio as gr

WAITING = 16  # waiting events before the page says that the queue is full
SESSIONS = 100  # sessions whose answers are remembered
LOOKED_AT = 3600  # seconds between checks for old files
CSS = """
.gradio-container, .gradio-container .main.app { padding: 8px !important; }
#head h1 { margin: 0; font-size: 1.25rem; }
.gallery-container .grid-wrap {
  max-height: none !important; min-height: 0 !important; overflow: visible !important;
}
.gallery-container .thumbnail-item { height: auto !important; aspect-ratio: auto !important; }
.gallery-container .thumbnail-item img { height: auto !important; aspect-ratio: 1; }
.gallery-container .caption-label {
  position: static !important; max-width: none !important; white-space: normal !important;
  overflow-wrap: anywhere; border: 0 !important; text-align: left; opacity: 1 !important;
}
.gallery-container .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(min(130px, 45%), 1fr)) !important;
}
#drawn .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(min(240px, 100%), 1fr)) !important;
}
p[role=status] { margin: 0; padding: .25rem 0; overflow-wrap: anywhere; }
button[role=tab].selected { color: var(--primary-700) !important; }
.dark button[role=tab].selected { color: var(--primary-400) !important; }
p.wrong { color: var(--error-text-color); }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .75rem; margin: 0; }
.facts dt { opacity: .7; }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.trace { margin: 0; max-width: 30rem; }
.trace svg { width: 100%; height: auto; display: block; }
.trace text { fill: currentColor; font-size: 11px; opacity: .8; }
.trace .axis { stroke: currentColor; fill: none; opacity: .4; }
.trace polyline { fill: none; stroke-width: 2; }
.trace polyline.guide { stroke: #e8590c; }
.trace polyline.judge { stroke: #1c7ed6; stroke-dasharray: 5 3; }
.trace span.guide { color: #e8590c; margin-right: 1rem; }
.trace span.judge { color: #1c7ed6; }
.dark .trace span.judge { color: #74c0fc; }
.dark .trace polyline.judge { stroke: #74c0fc; }
@media (min-width: 700px) {
  .work { display: grid !important; grid-template-columns: 2fr 3fr; align-items: start; }
  .work > .asked { grid-column: 1; grid-row: 1; }
  .work > .settings { grid-column: 1; grid-row: 2; }
  .work > .shown { grid-column: 2; grid-row: 1 / 3; }
}
#picked { scroll-margin-top: 1rem; }
#full img { max-height: 60vh; }
footer { display: none !important; }
"""
PASTE = """() => document.addEventListener('paste', event => {
  const file = [...event.clipboardData.files].find(one => one.type.startsWith('image/'));
  const place = document.querySelector('#query-picture');
  const input = place?.querySelector('input[type=file]');
  if (!file || !input || !place.offsetParent) return;
  event.preventDefault();
  const data = new DataTransfer();
  data.items.add(file);
  input.files = data.files;
  input.dispatchEvent(new Event('change', {bubbles: true}));
})"""  # paste an image anywhere on the search tab to search for it


def build(models: Models, folder: str | os.PathLike) -> gr.Blocks:
    """Return the page. Its uploads and images lie only in `folder`. Gradio reads the folder from an
    environment variable, so there is one page per process."""
    os.environ["GRADIO_TEMP_DIR"] = os.fspath(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    old = (LOOKED_AT, files.OLDEST)
    with gr.Blocks(title="clipguide", analytics_enabled=False, delete_cache=old) as blocks:
        gr.HTML("<h1>clipguide</h1>", elem_id="head")
        with gr.Tabs():
            with gr.Tab("Generate", id="generate"):
                generate_tab.build(models, os.fspath(folder))
            with gr.Tab("Search", id="search"):
                search_tab.build(models)
            with gr.Tab("Rerank", id="rerank"):
                rerank_tab.build(models)

        def left(request: gr.Request) -> None:
            models.stops.stop(request.session_hash)

        left.__annotations__["request"] = gr.Request
        blocks.unload(left)
    blocks.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
    blocks.state_session_capacity = SESSIONS
    return blocks


def theme() -> gr.Theme:
    """Return a theme with fonts of the system: no font is downloaded."""
    import gradio as gr

    return gr.themes.Default(
        primary_hue="orange",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
    )
