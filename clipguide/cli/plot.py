"""clipguide plot: plot the trace of an image."""

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
    "angle": "degrees from guidance",
    "trust": "the judge's factor of the strength",
    "noise": "noise level, sigma",
}
LINES = {"guide": ("guide", "judge"), "noise": ("noise", "sigma")}


def plot(
    picture: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGE", help="A PNG that generate --trace drew.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The PNG to write. [default: the name of the image with -trace added]",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Overwrite a file that exists.")
    ] = False,
) -> None:
    """Plot the trace of an image: what steering did at each step.

    The plot has the scores, the loss, the norm of the gradient and the noise level. With
    classifier-free guidance, it also has the angle between the guidance and the steering: 0 degrees
    is the same direction, 180 degrees the opposite one.
    """
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

    titles = {name: label for name, label in TITLES.items() if _seen(rows, name)}
    figure = Figure(figsize=(8, 2 * len(titles)), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(len(titles), sharex=True, squeeze=False)[:, 0]
    for axes, (name, label) in zip(panels, titles.items()):
        lines = _seen(rows, name)
        for line, seen in lines.items():
            axes.plot(*zip(*seen), marker=".", label=line)
        axes.set_ylabel(label)
        if len(lines) > 1:
            axes.legend(loc="best")
    axes.set_xlabel("evaluation")
    figure.suptitle(title.replace("$", r"\$"))
    canvas.draw()
    picture = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba())
    write_png(picture.convert("RGB"), out, overwrite=force)


def _seen(rows: list[dict[str, float]], name: str) -> dict[str, list[tuple[int, float]]]:
    """Return the lines of one panel: the steps that have a value, and the values."""
    lines = {
        line: [(k, row[line]) for k, row in enumerate(rows) if line in row]
        for line in LINES.get(name, (name,))
    }
    return {line: seen for line, seen in lines.items() if seen}
