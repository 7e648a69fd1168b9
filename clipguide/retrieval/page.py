"""Write thumbnails of an index to a page: a PNG sheet, or an HTML file without other files."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

ENDINGS = (".png", ".html")
COLUMNS = 5  # of the PNG sheet
SQUARE = 96  # side in pixels of the sign for a broken thumbnail
STYLE = """
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }
body { margin: 1rem auto; max-width: 75rem; padding: 0 1rem; }
section { border-top: 1px solid #8886; padding: .5rem 0; }
.row { display: flex; flex-wrap: wrap; gap: .75rem; }
figure { margin: 0; width: 12rem; }
img, .none { max-width: 100%; height: 10rem; object-fit: contain; }
.none { display: grid; place-items: center; background: #8882; }
figcaption { overflow-wrap: anywhere; font-size: .85em; }
"""
Cell = tuple[str, str, bytes | None]  # path, description, thumbnail


def check(path: str | os.PathLike) -> None:
    """Raise UsageError if `write` cannot write this page."""
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"{path} must end in .png or .html.")
    if os.path.lexists(path):
        raise UsageError(f"{path} is there already: choose another name.")


def write(
    path: str | os.PathLike, title: str, groups: Sequence[tuple[str, Sequence[Cell]]]
) -> None:
    """Write groups of images, each under its heading. Raise UsageError as `check`."""
    from ..images import contact_sheet
    from ..recipe import write_file, write_png

    path = Path(path)
    check(path)
    if path.suffix.lower() == ".html":
        text = _html(title, groups)
        write_file(path, lambda part: part.write_text(text, encoding="utf-8"))
        return
    cells = [cell for _, group in groups for cell in group]
    if not cells:
        raise UsageError("There are no images to draw on a sheet.")
    pictures = [opened(small) for _, _, small in cells]
    labels = [f"{line} {os.path.basename(name)}" for name, line, _ in cells]
    write_png(contact_sheet(pictures, labels=labels, columns=COLUMNS), path)


def opened(thumbnail: bytes | None) -> Image.Image:
    """Return a thumbnail as RGB. A broken one becomes a grey square with a cross."""
    return _decoded(thumbnail) or _cross()


def is_whole(thumbnail: bytes | None) -> bool:
    """Return whether there is a thumbnail that is not broken."""
    return _decoded(thumbnail) is not None


def _decoded(thumbnail: bytes | None) -> Image.Image | None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(thumbnail or b""), formats=["JPEG"]) as image:
            return image.convert("RGB")
    except Exception:  # Pillow raises various errors for damaged data
        return None


def _cross() -> Image.Image:
    from PIL import Image, ImageDraw

    square = Image.new("RGB", (SQUARE, SQUARE), "lightgrey")
    draw = ImageDraw.Draw(square)
    draw.line([(0, 0), square.size], fill="grey")
    draw.line([(0, square.height), (square.width, 0)], fill="grey")
    return square


def _html(title: str, groups: Sequence[tuple[str, Sequence[Cell]]]) -> str:
    sections = []
    for heading, cells in groups:
        figures = "".join(map(_figure, cells))
        sections.append(
            f'<section><h2>{html.escape(heading)}</h2><div class="row">{figures}</div></section>'
        )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{html.escape(title)}</h1>{''.join(sections)}</body></html>\n"
    )


def _figure(cell: Cell) -> str:
    path, line, thumbnail = cell
    name = html.escape(path.encode(errors="replace").decode())
    shown = '<div class="none">no preview</div>'
    if is_whole(thumbnail):
        data = base64.b64encode(thumbnail).decode()
        shown = f'<img alt="{name}" loading="lazy" src="data:image/jpeg;base64,{data}">'
    link = Path(os.path.abspath(path)).as_uri() if path.isprintable() else ""
    return (
        f'<figure><a href="{html.escape(link)}">{shown}</a>'
        f"<figcaption>{html.escape(line)}<br>{name}</figcaption></figure>"
    )
