"""Check options before anything slow is imported.

The library checks its arguments itself, but its modules import torch. Each command applies these
rules first, which takes milliseconds. The library checks again what passes. tests/test_checks.py
compares each rule with the library: the library refuses whatever the rule refuses.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import mini
from ..errors import UsageError, close_matches
from ..registry import ADDED, GROUP
from ..schedules import schedule
from ..sizes import check_size
from . import values
from .options import REWARDS

Rule = Callable[[str, Any], None]


def between(
    low: float, high: float = math.inf, *, above: bool = False, below: bool = False
) -> Rule:
    """Return a rule for a number from low to high. `above` and `below` exclude the ends."""

    def rule(name: str, value: float) -> None:
        good = math.isfinite(value) and low <= value <= high
        if not good or (above and value == low) or (below and value == high):
            start = f"above {low:g}" if above else f"from {low:g}"
            end = f" to {'below ' if below else ''}{high:g}" if math.isfinite(high) else ""
            raise UsageError(f"{name} must be {start}{end}, not {value:g}.")

    return rule


def one_of(*known: str, kind: str = "", plugins: bool = False) -> Rule:
    """Return a rule for one of some names. With `plugins`, the rule accepts any name that another
    package may have registered."""

    def rule(name: str, value: str) -> None:
        what = kind or name.removeprefix("--")
        if plugins and ((what, value) in ADDED or importlib.metadata.entry_points(group=GROUP)):
            return
        if value not in known:
            raise UsageError(f"There is no {what} {value!r}.{close_matches(value, known)}")

    return rule


def anything(name: str, value: Any) -> None:
    """Accept any value. Only the library can check it."""


def window(name: str, value: str | tuple[float, float]) -> None:
    """Check two noise levels: the lower one stands first."""
    try:
        low, high = (map(float, value.split(",")) if isinstance(value, str) else value)
    except ValueError:
        raise UsageError(f"{name} takes two noise levels, as 0.2,0.9, not {value!r}.") from None
    if not 0 <= low < high <= 1:
        raise UsageError(f"{name} lies in [0, 1], the lower first, not {value}.")


def strength(name: str, value: str) -> None:
    """Check a number from 0, or a schedule of such numbers."""
    try:
        pieces = schedule(value).pieces
    except UsageError as error:
        raise UsageError(f"{name} must be a number from 0, or a schedule: {error}") from None
    if any(end < 0 for piece in pieces for end in (piece.first, piece.last)):
        raise UsageError(f"{name} must be a number from 0, not below it in {value!r}.")


def budget(name: str, value: str) -> None:
    """Check a number, or a number of seconds."""
    number, seconds = _number(value.strip().removesuffix("s")), value.strip().endswith("s")
    if math.isnan(number):
        raise UsageError(
            "A budget is a multiple of the cost of plain sampling, such as 4, or seconds for each "
            f"image, such as 30s, not {value!r}."
        )
    if seconds and not 0 < number < math.inf:
        raise UsageError(f"A budget in seconds must be above 0, not {value!r}.")
    if not seconds and not 1 <= number < math.inf:
        raise UsageError(
            f"The budget is × the cost of plain sampling, so at least 1, not {number:g}."
        )


def _number(text: str) -> float:
    """Return the number of a text; not a number if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def clip(name: str, value: str) -> None:
    """Check the name of a CLIP, as far as possible without open_clip's list of names."""
    if not set("/+*@~:") & set(value) and value not in CLIPS and not os.path.exists(value):
        raise UsageError(
            f"There is no CLIP {value!r}.{close_matches(value, CLIPS)} Give {' or '.join(CLIPS)}, "
            "a folder, a file of OpenAI's, or an open_clip model and tag."
        )


def judge(name: str, value: str) -> None:
    """Check the name of a CLIP. The empty name means no judge."""
    if value:
        clip(name, value)


def model(name: str, value: str) -> None:
    """Check the name of a generator, as far as possible without the hub."""
    if "/" not in value and value != "mini" and not os.path.isdir(value):
        raise UsageError(f"There is no model {value!r}.{close_matches(value, ['mini'])}")


def device(name: str, value: str) -> None:
    """Check the kind of a device. torch checks later whether the machine has it."""
    one_of(*DEVICES, kind="device")(name, value.partition(":")[0])


def file(name: str, value: os.PathLike | Sequence[os.PathLike]) -> None:
    """Check that each file exists."""
    for one in value if isinstance(value, (list, tuple)) else [value]:
        if not os.path.exists(one):
            raise UsageError(f"There is no file {one}.")


def image(name: str, value: os.PathLike | Sequence[os.PathLike]) -> None:
    """Check that each file exists, and is an image by its header."""
    from ..reading import check_header

    file(name, value)
    for one in value if isinstance(value, (list, tuple)) else [value]:
        check_header(Path(one))


def reward(name: str, given: Sequence[str]) -> None:
    """Check the names of rewards, as NAME[=WHERE[#MODEL]][:WEIGHT]."""
    for value in given:
        before, equals, where = value.partition("=")
        named, weighted, weight = before.partition(":")
        one_of(*REWARDS, kind="reward", plugins=True)(name, named.strip())
        if weighted and not equals and not 0 < abs(_number(weight)) <= 10:
            raise UsageError(f"The weight of a reward is from −10 to 10, and not 0: {value!r}.")
        if equals and not where.partition(":")[0].strip():
            raise UsageError(f"Nothing stands after the = of {value!r}: leave the = out.")


def sides(name: str, value: str) -> None:
    """Check the sides of an image that is optimised."""
    for side in values.sides(value):
        if not 8 <= side <= 8192:
            raise UsageError(f"{name} takes sides of 8 to 8192 pixels, not {side}.")


def colours(name: str, value: str) -> None:
    """Check colours between commas, each as #rrggbb."""
    for colour in value.split(","):
        if not re.fullmatch(r"\s*#[0-9a-fA-F]{6}\s*", colour):
            raise UsageError(
                f"{name} takes colours as #rrggbb, with commas between them, not {value!r}."
            )


CLIPS = ("mini", "mini-judge")
DEVICES = (
    "cpu", "cuda", "ipu", "xpu", "mkldnn", "opengl", "opencl", "ideep", "hip", "ve", "fpga",
    "maia", "xla", "lazy", "vulkan", "mps", "meta", "hpu", "mtia", "privateuseone",
)  # fmt: skip
DTYPES = ("float32", "float16", "bfloat16", "float64", "fp16", "bf16", "fp32")
EXPORTS = ("onnx", "hf", "torch-export")
RUNGS = ("whole", "single", "layers", "half", "tiles2", "tiles4", "tiles8")
DECODERS = ("auto", "vae", "linear", "tiny", *(f"{k}:{r}" for k in ("vae", "tiny") for r in RUNGS))
WHOLE, TWO, POSITIVE = between(1, 10_000), between(2, 10_000), between(0)
EVERY: dict[str, Rule] = {"window": window, "every": WHOLE}
SHORTCUT: dict[str, Rule] = EVERY | {
    "strength": strength,
    "inner": WHOLE,
    "momentum": between(0, 1, below=True),
    "travel": WHOLE,
    "fixed": one_of("sample", "noise"),
}
CONDITIONING = one_of("prompt", "null", "maps", kind="embedding")
METHODS: dict[str, Mapping[str, Rule]] = {
    "shortcut": SHORTCUT,
    "backprop": SHORTCUT | {"rho": POSITIVE, "mu": POSITIVE},
    "best-of": {
        "number": WHOLE,
        "finish": WHOLE,
        "look": between(0, 1, above=True, below=True),
    },
    "drafts": {
        "number": WHOLE,
        "iterations": WHOLE,
        "candidate_steps": WHOLE,
        "draft_steps": WHOLE,
        "rate": POSITIVE,
        "momentum": between(0, 1, below=True),
        "of": CONDITIONING,
    },
    "embedding": EVERY | {"rate": POSITIVE, "of": CONDITIONING},
    "lookahead": EVERY | {
        "number": TWO,
        "steps": WHOLE,
        "scale": POSITIVE,
        "sharpness": POSITIVE,
        "temperature": between(0, above=True),
        "together": WHOLE,
        "sketch_scheduler": anything,
        "sketch_adapter": anything,
        "sketch_cfg": POSITIVE,
    },
    "noise": {
        "iterations": WHOLE,
        "rate": POSITIVE,
        "white": anything,
        "prior": POSITIVE,
        "momentum": between(0, 1, below=True),
        "patience": WHOLE,
    },
    "particles": EVERY | {
        "number": TWO,
        "potential": one_of("difference", "max", "sum"),
        "sharpness": POSITIVE,
        "rising": between(0, 1),
        "threshold": POSITIVE,
        "resampling": one_of("systematic", "residual", "ssp"),
        "eta": between(0, 1),
    },
    "rollover": {
        "quota": TWO,
        "eta": between(0, 1, above=True),
        "strength": strength,
        "interpolant": one_of("vp", "own"),
        "enough": between(-math.inf),
    },
}  # fmt: skip
OF_METHODS = tuple(dict.fromkeys(name for rules in METHODS.values() for name in rules))
COMMON: dict[str, Rule] = {
    "clip": clip,
    "judge": judge,
    "device": device,
    "reward": reward,
    "select": reward,
}
THOUSAND, CANVAS_STEPS, WEIGHT = between(1, 1000), between(1, 100_000), between(0, 1e6)
VERBS: dict[str, Mapping[str, Rule]] = {
    "generate": {
        "best_of": THOUSAND,
        "steps": THOUSAND,
        "refine": between(0, 1000),
        "cutouts": between(0, 256),
        "seed": between(0, 2**63 - 1),
        "cfg": between(-1000, 1000, above=True, below=True),
        "cfg_window": window,
        "decoder": one_of(*DECODERS),
        "budget": budget,
        "memory": between(0),
        "dtype": one_of(*DTYPES),
        "model": model,
        "like": image,
    },
    "optimize": {
        "canvas": one_of("pixels", "fourier", "vqgan", "latent", plugins=True),
        "steps": CANVAS_STEPS,
        "cutouts": between(1, 4096),
        "grow": between(1, 8),
        "every": CANVAS_STEPS,
        "patience": CANVAS_STEPS,
        "lr": between(0, 1000, above=True),
        "ema": between(0, 0.99999),
        "smooth": WEIGHT,
        "init_weight": WEIGHT,
        "palette_weight": WEIGHT,
        "sds": between(0, 10),
        "fade": between(0, 1),
        "softness": WEIGHT,
        "size": sides,
        "palette": colours,
        "zoom": between(0.1, 10),
        "rotate": between(-360, 360),
        "views": one_of("plain", "warped", "vqgan-clip", "disco"),
        "start": one_of("light", "own"),
        "symmetry": one_of("horizontal", "vertical"),
        "init": image,
        "mask": image,
        "image_prompt": image,
        "dtype": one_of(*DTYPES),
    },
    "score": {"texts": file, "pairs_file": file},
    "rerank": {"duplicate": between(-1, 1, above=True)},
    "search": {"image": image, "texts": file},
    "export": {"to": one_of(*EXPORTS, kind="export to")},
    "ui": {"model": model, "port": between(0, 65_535)},
    "finetune": {
        "method": one_of("head", "lora", "lit", "full"),
        "loss": one_of("softmax", "sigmoid"),
        "epochs": between(0, above=True),
        "steps": between(1),
        "batch": between(2),
        "chunk": between(1),
        "rank": between(1),
        "patience": between(1),
        "lr": between(0, above=True),
        "share": between(0, 1, above=True, below=True),
        "allow": between(0, 100),
    },
}


def check(verb: str, given: Mapping[str, Any], spelt: Mapping[str, str]) -> None:
    """Check the options of a command. `spelt` maps a parameter to its name on the command line.

    Raises:
        UsageError: an option has a value that it cannot have.
    """
    for name, rule in (COMMON | dict(VERBS.get(verb, {}))).items():
        if given.get(name) is not None:
            rule(spelt[name], given[name])
    if verb == "generate":
        _check_method(given, spelt)
        _check_size(given)
        _check_like(given, spelt)
    if verb == "optimize":
        _check_company(given, spelt)


def _check_size(given: Mapping[str, Any]) -> None:
    """Raise UsageError for a size that the embedded generator does not draw. Other models say so
    when they are loaded."""
    if given.get("model") in (None, "mini") and given.get("size") is not None:
        folder = mini.path("generator")
        unet, vae = (
            json.loads((folder / part / "config.json").read_text("utf-8"))
            for part in ("unet", "vae")
        )
        factor, blocks = (2 ** (len(c["block_out_channels"]) - 1) for c in (vae, unet))
        native = factor * unet["sample_size"]
        check_size("mini", values.sides(given["size"]), native=native, grain=factor * blocks)


def _check_like(given: Mapping[str, Any], spelt: Mapping[str, str]) -> None:
    """Raise UsageError for an image that another generator than the embedded one would vary."""
    if given.get("like") is not None and given.get("model") not in (None, "mini"):
        raise UsageError(
            f"{spelt['like']} is for the embedded generator: leave it out, or leave "
            f"{spelt['model']} {given['model']} out."
        )


def _check_company(given: Mapping[str, Any], spelt: Mapping[str, str]) -> None:
    """Raise UsageError for an option of `optimize` without the one that it needs."""
    for name, needed, idle in (
        ("mask", "init", None),
        ("init_weight", "init", 0),
        ("palette_weight", "palette", 1),
    ):
        if given[name] not in (None, idle) and given[needed] is None:
            raise UsageError(
                f"{spelt[name]} needs {spelt[needed]}: give it, or leave {spelt[name]} out."
            )
    if given["softness"] and given["canvas"] != "vqgan":
        raise UsageError(
            f"{spelt['softness']} softens a VQGAN's codes: give --canvas vqgan, or leave it out."
        )


def _check_method(given: Mapping[str, Any], spelt: Mapping[str, str]) -> None:
    """Raise UsageError for an unknown method, or for an option that the method does not take."""
    method = given["method"] or "shortcut"  # a steering option selects this method
    one_of(*METHODS, "auto", kind="method", plugins=True)(spelt["method"], method)
    if method not in METHODS and method != "auto":
        return
    places = {name: "lookahead_steps" if name == "steps" else name for name in OF_METHODS}
    asked = {name: place for name, place in places.items() if given.get(place) is not None}
    if method == "auto":
        of_all = [place for place in ("cutouts", "decoder") if given.get(place) is not None]
        if named := ", ".join(spelt[place] for place in (*asked.values(), *of_all)):
            raise UsageError(f"auto sets {named} itself: leave it out.")
    for name, place in asked.items():
        if name not in METHODS[method]:
            others = " or ".join(other for other, rules in METHODS.items() if name in rules)
            raise UsageError(
                f"{method} has no option {spelt[place]}: leave it out, or give --method {others}."
            )
        METHODS[method][name](spelt[place], given[place])
