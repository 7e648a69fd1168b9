"""Options that the commands which draw share."""

from __future__ import annotations

from typing import Annotated

import typer

Count = Annotated[int, typer.Option("--count", "-n", help="Pictures a prompt.")]
Seed = Annotated[
    int | None,
    typer.Option(
        help="Seed of the first picture; the next ones count up. [default: a new one]",
    ),
]
Out = Annotated[
    str | None,
    typer.Option(
        "--out",
        "-o",
        metavar="PATH",
        help="A PNG, a folder, or a pattern with {prompt}, {seed}, {index}. "
        "[default: {prompt}-{seed}.png]",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a line for each file.")]
ReportAsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Device = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps. [default: the best there is]"),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress bar; print the paths alone.")
]
