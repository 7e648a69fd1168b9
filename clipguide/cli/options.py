"""Options that the commands which draw share."""

from __future__ import annotations

from typing import Annotated

import typer

Count = Annotated[int, typer.Option("--count", "-n", help="Images a prompt.")]
Seed = Annotated[
    int | None,
    typer.Option(
        help="Seed of the first image; the next ones count up. [default: a new one]",
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
KEY = "CLIPGUIDE_REWARD_KEY"  # of the environment: what the address of a reward knows its users by
Reward = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[:WEIGHT]",
        help="A reward: clip, siglip2, pickscore, hpsv2, hpsv3, imagereward, aesthetic, vqascore, "
        "vlm, dino, or a plug-in's; NAME=WHERE#MODEL says what is loaded, as "
        "vlm=http://localhost:8000/v1#qwen. Repeatable.",
        show_default=False,
    ),
]
Question = Annotated[
    str,
    typer.Option(
        metavar="TEXT",
        help="What vlm and vqascore ask, to be answered by yes or no; {} is the prompt.",
        show_default=False,
    ),
]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Read a reward's weights from a pickle.")
]
