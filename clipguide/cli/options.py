"""Options that several commands share."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable
from typing import Annotated

import typer

from ..registry import ADDED, load_plugins

DEVICES = ("cpu", "cuda", "mps")
REWARDS = (
    "clip", "siglip2", "pickscore", "hpsv2", "hpsv3", "imagereward", "aesthetic", "vqascore",
    "vlm", "dino", "sds",
)  # fmt: skip
DTYPES = ("float32", "float16", "bfloat16")


def among(*names: str) -> Callable[[str], list[str]]:
    """Return the completion of an option: these names. The option may accept others."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def registered(kind: str, *names: str) -> Callable[[str], list[str]]:
    """Return the completion of an option: these names, and those that plug-ins register.

    It imports the plug-ins that are installed, and nothing else of clipguide.

    Args:
        kind: the table of the names, such as "method".
    """

    def complete(incomplete: str) -> list[str]:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")  # a shell would show them in the command line
            load_plugins()
        added = sorted(name for table, name in ADDED if table == kind and name not in names)
        return among(*names, *added)(incomplete)

    return complete


def spelt(metavar: str | None) -> Callable[[str], list[str]] | None:
    """Return the completion for a metavar such as "white|drop", or None if it lists no values."""
    names = [name for name in (metavar or "").split("|") if name == name.lower()]
    return among(*names) if "|" in (metavar or "") and len(names) > 1 else None


Count = Annotated[int, typer.Option("--count", "-n", help="The number of images for each PROMPT.")]
Seed = Annotated[
    int | None,
    typer.Option(
        help="The seed of the first image. The seeds of the next images count up from it. "
        "[default: a random one]",
    ),
]
Out = Annotated[
    str | None,
    typer.Option(
        "--out",
        "-o",
        metavar="PATH",
        help="A PNG, a folder, or a pattern with {prompt}, {seed} or {index}. [default: "
        "{prompt}-{seed}.png]",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object per line, for each file.")
]
ReportAsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        autocompletion=among(*DEVICES),
        help="The device, such as cpu, cuda, cuda:1 or mps. [default: the fastest one]",
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show no progress bar, and print only the paths.")
]
KEY = "CLIPGUIDE_REWARD_KEY"  # environment variable with the key for a reward's server


def reward_option(does: str) -> object:
    """Return the type of --reward. `does` is what the command does by the reward, as its help says.
    """
    return Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:WEIGHT]",
            autocompletion=registered("reward", *REWARDS),
            help=f"{does} by a reward: clip, siglip2, pickscore, hpsv2, hpsv3, imagereward, "
            "aesthetic, vqascore, vlm, dino, sds, or one of a plug-in. NAME=WHERE#MODEL says what "
            "to load, such as vlm=http://localhost:8000/v1#qwen. Repeatable.",
            show_default=False,
        ),
    ]


SteerBy = reward_option("Also steer")
RankBy = reward_option("Also rank")
OfferBy = reward_option("Offer to steer and rank")
Question = Annotated[
    str,
    typer.Option(
        metavar="TEXT",
        help="A yes-or-no question for the rewards vlm and vqascore. {} stands for the prompt.",
        show_default=False,
    ),
]
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle", help="Read weights from a pickle or a JIT archive, which can run code."
    ),
]
