"""The texts of the page: messages of the library in the words of the page, facts, plots."""

from __future__ import annotations

import html
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ..errors import UsageError
from ..prompts import check_text

LONGEST = 2000  # largest number of characters of a text
OPTIONS = {
    "give a text or --image": "give a text or an image",
    "--where": "The filter",
    "--hybrid searches in words": "Captions and prompts are searched in words",
}
WIDTH, HEIGHT, LEFT, BOTTOM = 360, 140, 36, 20  # size of a plot in pixels
LINES = {"guide": "solid", "judge": "dashed"}
FACTS = ("date", "camera", "caption", "prompt")


def sentence(error: Exception) -> str:
    """Return a message in which options of the command line become controls of the page."""
    words = str(error)
    for option, there in OPTIONS.items():
        words = words.replace(option, there)
    return words


def said(words: str, *, wrong: bool = False) -> str:
    """Return a line that screen readers announce when it changes."""
    kind = "wrong" if wrong else "well"
    return f'<p role="status" aria-live="polite" class="{kind}">{_shown(words)}</p>'


def checked(text: str | None) -> str:
    """Return a text without blanks around it. Raise UsageError if it has more than LONGEST
    characters."""
    text = (text or "").strip()
    check_text(text)
    if len(text) > LONGEST:
        raise UsageError(f"The text has {len(text)} characters, and the page takes {LONGEST}.")
    return text


def score(value: float) -> str:
    """Return a score, with the same number of digits everywhere."""
    return f"{value:.3f}"


def scored(value: float, better_than: float | None) -> str:
    """Return a score with its word if that is known: "0.274 (very sure)"."""
    from ..unrelated import sure

    return score(value) if better_than is None else f"{score(value)} ({sure(better_than)})"


def facts(
    path: str,
    cosine: float,
    columns: dict[str, Any],
    *,
    better_than: float | None = None,
    note: str = "",
) -> str:
    """Return the facts about an image, as a list."""
    rows = {"score": score(cosine), "path": path}
    if better_than is not None:
        rows["score"] = scored(cosine, better_than)
        rows["score"] += f", better than {better_than:.1%} of unrelated texts"
    if columns.get("width"):
        rows["size"] = f"{columns['width']} x {columns['height']} {columns.get('format') or ''}"
    for name in FACTS:
        if value := columns.get(name):
            rows[name] = f"{value:%Y-%m-%d %H:%M}" if isinstance(value, datetime) else str(value)
    lines = "".join(f"<dt>{name}</dt><dd>{_shown(value)}</dd>" for name, value in rows.items())
    return f'<dl class="facts">{lines}</dl>' + (said(note) if note else "")


def plot(rows: Sequence[dict[str, float]]) -> str:
    """Return the cosine similarities of guide and judge over the steps, as a small SVG. The rows
    are those of `Report.rows`. Return nothing if there are none."""
    lines = {name: [(row["step"], row[name]) for row in rows if name in row] for name in LINES}
    lines = {name: line for name, line in lines.items() if line}
    if not lines:
        return ""
    scores = [score for line in lines.values() for _, score in line]
    low, high = min(scores), max(scores)
    low, high = (low, high) if high - low > 1e-6 else (low - 0.01, high + 0.01)
    last = max(1, max(step for line in lines.values() for step, _ in line))

    def at(step: float, score: float) -> str:
        x = LEFT + step / last * (WIDTH - LEFT - 10)
        return f"{x:.1f},{10 + (high - score) / (high - low) * (HEIGHT - BOTTOM - 20):.1f}"

    drawn, told = [], []
    for name, line in lines.items():
        points = " ".join(at(*point) for point in line)
        drawn.append(f'<polyline class="{name}" points="{points}"/>')
        told.append(f'<span class="{name}">{name} {line[-1][1]:.3f}</span>')
    base = HEIGHT - BOTTOM
    return (
        f'<figure class="trace"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Cosines of guide and judge over the steps">'
        f'<path class="axis" d="M{LEFT} 6V{base}H{WIDTH - 6}"/>'
        f'<text x="{LEFT - 4}" y="16" text-anchor="end">{high:.2f}</text>'
        f'<text x="{LEFT - 4}" y="{base - 4}" text-anchor="end">{low:.2f}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 5}">step 1</text>'
        f'<text x="{WIDTH - 6}" y="{HEIGHT - 5}" text-anchor="end">{last + 1:.0f}</text>'
        f"{''.join(drawn)}</svg><figcaption>{' '.join(told)}</figcaption></figure>"
    )


def _shown(text: str) -> str:
    """Return any text as HTML. Bytes that are not UTF-8 become question marks."""
    return html.escape(text.encode(errors="replace").decode())
