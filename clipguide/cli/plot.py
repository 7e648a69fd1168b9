"""clipguide plot: what steering saw while it drew a picture."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from . import console, naming

TITLES = {
    "guide": "guide and judge, cosine",
    "loss": "loss",
    "gradient": "rms of the gradient",
    "noise": "noise level",
}


def plot(
    picture: Annotated[Path, typer.Argument(help="A PNG drawn with --trace.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(metavar="PATH", help="[default: the picture's name, -trace.png]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Draw the scores, the loss and the gradient of each step of a picture drawn with --trace."""
    from ..recipe import read_trace

    rows = read_trace(picture)
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("clipguide plot needs matplotlib: pip install 'clipguide[bench]'.")
    out = out or picture.with_name(f"{picture.stem}-trace.png")
    naming.claim([out], force=force)
    _write(rows, out, title=picture.name, force=force)
    console.tell(out)


def _write(rows: list[dict[str, float]], out: Path, *, title: str, force: bool) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    from ..recipe import write_png

    figure = Figure(figsize=(8, 8), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, (name, label) in zip(figure.subplots(len(TITLES), sharex=True), TITLES.items()):
        for line in ("guide", "judge") if name == "guide" else (name,):
            seen = [(k, row[line]) for k, row in enumerate(rows) if line in row]
            axes.plot(*zip(*seen) if seen else ([], []), marker=".", label=line)
        axes.set_ylabel(label)
        if name == "guide":
            axes.legend(loc="lower right")
    axes.set_xlabel("evaluation")
    figure.suptitle(title.replace("$", r"\$"))
    canvas.draw()
    picture = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba())
    write_png(picture.convert("RGB"), out, overwrite=force)
