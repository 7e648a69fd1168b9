"""Render the model cards: a text of `training/cards/` with the figures of `training/figures.json`.

The YAML head (name, licence, task, data) gets `figures`, and the text a table of them. A figure
that was measured with other weights than those in the folder is marked.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from clipguide import mini
from training.evaluate.ledger import FIGURES, HERE, NAMES, Figure, Ledger, fingerprint

TEXTS = HERE / "cards"
MARK = "<!-- figures -->"
STALE = "measured on earlier weights"


def render(text: str, figures: list[Figure], weights: str, name: str) -> str:
    """Return a card: `text` with the figures of the model `name`, whose fingerprint is `weights`.
    """
    _, head, body = text.split("---\n", 2)
    own = [f for f in figures if f.key.startswith(f"{name}: ")]
    shown = {_named(f, name): f.shown() for f in own}
    known = yaml.safe_dump({**yaml.safe_load(head), "figures": shown}, allow_unicode=True,
                           sort_keys=False, width=100)
    rows = ["| figure | measured | target | n | date | note |", "|---|---|---|---|---|---|"]
    for found in own:
        bar = {True: f"{found.bar}, met", False: f"{found.bar}, **missed**", None: ""}[found.met()]
        stale = found.weights.get(name, weights) != weights
        note = "; ".join(part for part in (found.note, STALE if stale else "") if part)
        what = _named(found, name)
        rows.append(f"| {what} | {found.shown()} | {bar} | {found.n} | {found.date} | {note} |")
    table = "\n".join(rows) if own else "Not measured yet."
    return f"---\n{known}---\n{body.replace(MARK, table)}"


def _named(found: Figure, model: str) -> str:
    """Return the name of a figure for the cards and the site."""
    what = found.key.removeprefix(f"{model}: ")
    return NAMES.get(what, what)


def card(name: str, folder: Path) -> str:
    """Return the card for the folder of the embedded model `name`."""
    text = (TEXTS / f"{name}.md").read_text(encoding="utf-8")
    return render(text, list(Ledger(FIGURES).figures.values()), fingerprint(folder), name)


def write_all() -> None:
    """Write the README.md of every embedded model that has a folder."""
    for name in mini.MODELS:
        folder = mini.FOLDER / name
        if folder.is_dir():
            (folder / "README.md").write_text(card(name, folder), encoding="utf-8")
            print(folder / "README.md")
