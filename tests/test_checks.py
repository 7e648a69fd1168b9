"""The command line's own rules refuse what the library refuses, and nothing else."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import typer
from clipguide.pipelines.canvas_kinds import CANVASES
from clipguide.pipelines.drawing import LIMITS, Drawing
from clipguide.pipelines.generation import Generation
from typer.main import get_command

from clipguide.canvases.base import Canvas
from clipguide.cli import checks
from clipguide.cli.app import app
from clipguide.clip.base import DTYPES, SHORT
from clipguide.clip.names import MINI
from clipguide.errors import UsageError
from clipguide.export.run import TARGETS
from clipguide.finetune.config import FinetuneConfig
from clipguide.guidance.auto import choose, times_plain
from clipguide.guidance.decoder_names import KINDS, parsed
from clipguide.guidance.ladder import RUNGS
from clipguide.guidance.methods import METHODS, configure
from clipguide.objectives.pixels import Palette
from clipguide.rerank import rank
from clipguide.rewards import KINDS as REWARDS
from clipguide.rewards import wanted

NUMBERS = (-math.inf, -1000, -1, 0, 0.5, 1, 2, 4.5, 256, 257, 1000, 1001, 10_001, 1e7, math.nan)
WORDS = ("nope", "sample", "noise", "difference", "max", "ssp", "prompt", "null", "0.1@0..0.5")
WINDOWS = ((0.1, 1.0), (0.2, 0.9), (0.9, 0.2), (-1, 1), (0, 2), (math.nan, 1))
FIXED = {"window": WINDOWS, "fixed": WORDS, "of": WORDS, "potential": WORDS, "resampling": WORDS}
FIXED |= {"interpolant": (*WORDS, "vp"), "white": (True, False)}
FIXED |= dict.fromkeys(("sketch_scheduler", "sketch_adapter"), WORDS)


def refuses(ask, *arguments, **settings) -> bool:
    try:
        ask(*arguments, **settings)
    except UsageError as error:
        assert str(error)
        return True
    return False


def kind_of(value, default) -> bool:
    """Whether the command line would pass it: whole numbers where the default is one."""
    return not (type(default) is int and not float(value).is_integer())


@pytest.mark.parametrize(
    ("text", "wrong"),
    [*((f"clip:{weight}", True) for weight in ("20", "-10.5", "0", "x", "nan", "")),
     ("pikscore", True), ("clip:-10", False), ("clip:.5", False), ("clip=mini:20", False),
     ("vlm=http://h:8000", False), ("clip=", True), ("clip= ", True), ("clip=:0.5", True)],
)  # fmt: skip
def test_rewards(text, wrong):
    assert refuses(wanted, text) == wrong == refuses(checks.reward, "--reward", [text])


@pytest.mark.parametrize("text", ["0.5", "nan", "inf", "-1"])
def test_budgets_below_plain(text):
    assert refuses(choose, float(text)) and refuses(checks.budget, "--budget", text)


@pytest.mark.parametrize("text", ["0s", "-3s", "nans", "infs"])
def test_budgets_of_no_time(text):
    assert refuses(checks.budget, "--budget", text)
    assert refuses(times_plain, text, lambda: 1.0)


@pytest.mark.parametrize("verb", checks.VERBS)
def test_a_rule_is_of_a_parameter(verb):
    """The rule of a name that no parameter has would never be applied."""
    names = {parameter.name for parameter in get_command(app).commands[verb].params}
    assert set(checks.VERBS[verb]) <= names


@pytest.mark.parametrize("method", checks.METHODS)
def test_methods(method):
    assert set(checks.METHODS) == set(METHODS)
    fields = {f.name: f.default for f in dataclasses.fields(METHODS[method])}
    none = set() if METHODS[method].windowed else {"window", "every"}
    assert set(checks.METHODS[method]) == set(fields) - {"each"} - none
    for name, rule in checks.METHODS[method].items():
        values = FIXED.get(name, NUMBERS)
        if name == "strength":
            values = (*WORDS, "-1", "0", "nan", "2", "0.1>0.3")
        for value in values:
            if values is NUMBERS and not kind_of(value, 1 if name == "finish" else fields[name]):
                continue
            given = int(value) if type(fields[name]) is int or name == "finish" else value
            other = {"number": max(4, given)} if name == "finish" else {}
            if name in ("rho", "mu"):
                other = {"mu": 1.0} if name == "rho" else {}
            found = refuses(rule, name, given)
            if name == "finish" and given > 10_000:
                other = {}
            options = {name: given, **other}
            assert found == refuses(configure, method, options), (name, given)


def test_methods_options_of_others():
    from clipguide.cli.app import app

    options = typer.main.get_command(app).commands["generate"].params
    spelt = {option.name: max(option.opts, key=len) for option in options}

    def check(method: str | None, **given) -> None:
        checks.check("generate", {"method": method, **given}, spelt)

    def told(method: str | None, **given) -> str:
        with pytest.raises(UsageError) as raised:
            check(method, **given)
        return str(raised.value)

    assert told(None, quota=4).startswith("shortcut has no option --quota: leave it out")
    assert told("embedding", iterations=3).startswith("embedding has no option --iterations: ")
    for method in ("best-of", "noise", "rollover"):
        assert told(method, window="0.1,1").startswith(f"{method} has no option --window: ")
        assert told(method, every=1).startswith(f"{method} has no option --every: ")
    told_of = told("shortcut", lookahead_steps=3)
    assert told_of.startswith("shortcut has no option --lookahead-steps: leave it out")
    assert told_of.endswith("or give --method lookahead.")
    assert told("auto", lookahead_steps=3) == "auto sets --lookahead-steps itself: leave it out."
    assert "--window, --strength" in told("auto", window="0.1,1", strength="0.1")
    assert told("auto", cutouts=3, decoder="vae").startswith("auto sets --cutouts, --decoder its")
    check("auto", budget="4")
    check("lookahead", lookahead_steps=3, steps=30)
    assert "--lookahead-steps must be from 1 to 10000" in told("lookahead", lookahead_steps=0)


def test_decoders():
    assert all(parsed(name) for name in checks.DECODERS)
    assert set(checks.RUNGS) == set(RUNGS)
    assert len(checks.DECODERS) == len(KINDS) + 2 * len(RUNGS)


def test_names():
    assert set(checks.CLIPS) == set(MINI)
    assert set(checks.DTYPES) == {*DTYPES, *SHORT}
    assert set(checks.REWARDS) == set(REWARDS)
    assert set(checks.EXPORTS) == set(TARGETS)
    with pytest.raises(RuntimeError) as told:
        torch.device("nope")
    known = str(told.value).partition("one of ")[2].partition(" device type")[0]
    assert set(checks.DEVICES) == set(known.split(", "))


@pytest.mark.parametrize("name", ["best_of", "steps", "refine", "cutouts", "seed", "cfg"])
def test_generate(name):
    for value in NUMBERS:
        if kind_of(value, 0.5 if name == "cfg" else 1):
            given = value if name == "cfg" else int(value)
            found = refuses(checks.VERBS["generate"][name], name, given)
            assert found == refuses(Generation, **{name: given}), value


def test_optimize():
    rules = dict(checks.VERBS["optimize"])
    rules["temperature"] = rules["softness"]
    assert set(LIMITS) - set(rules) == {"decay", "score_every"}  # of Python alone
    other = {"init_weight": {"init": "a.png"}, "palette_weight": {"palette": ("#fff",)}}
    for name in LIMITS.keys() & rules.keys():
        default = 1.0 if LIMITS[name][1] % 1 or name in ("lr", "zoom", "rotate") else 1
        for value in (-1, 0, 0.05, 1, 2, 9, 1000, 5000, 2e6, *LIMITS[name]):
            if not kind_of(value, default):
                continue
            settings = {name: value, **other.get(name, {})}
            if name == "grow":
                settings["steps"] = 100_000
            found = refuses(rules[name], name, value)
            assert found == refuses(Drawing(**settings).check, "vqgan"), (name, value)
    for name in ("views", "start", "symmetry"):
        for value in ("plain", "warped", "vqgan-clip", "disco", "light", "own", "horizontal",
                      "vertical", "nope"):  # fmt: skip
            found = refuses(rules[name], name, value)
            assert found == refuses(Drawing(**{name: value}).check, "vqgan"), value
    for name in CANVASES:
        rules["canvas"]("canvas", name)


@pytest.mark.parametrize("side", [0, 1, 7, 8, 8192, 8193])
def test_sides(side):
    def canvas():
        Canvas(16, side, [torch.Generator()])

    assert refuses(checks.sides, "--size", f"16x{side}") == refuses(canvas)


@pytest.mark.parametrize("text", ["#ff0000", "#ff0000, #00FF00", "red", "#12", ",", "#ff0000,", ""])
def test_colours(text):
    parts = [part.strip() for part in text.split(",")]
    assert refuses(checks.colours, "--palette", text) == refuses(Palette, parts)


@pytest.mark.parametrize(
    ("given", "named"),
    [({"mask": "a.png"}, "--init"), ({"init_weight": 1.0}, "--init"),
     ({"palette_weight": 2.0}, "--palette"), ({"softness": 1.0}, "--canvas vqgan")],
)  # fmt: skip
def test_what_an_option_of_optimize_needs(given, named):
    names = "mask", "init", "init_weight", "palette", "palette_weight", "softness"
    every = {**dict.fromkeys(names), "canvas": "pixels"}
    spelt = {name: "--" + name.replace("_", "-") for name in every}
    checks._check_company(every, spelt)
    with pytest.raises(UsageError, match=named):
        checks._check_company({**every, **given}, spelt)
    renamed = {"temperature" if k == "softness" else k: v for k, v in given.items()}
    assert refuses(Drawing(**renamed).check, "pixels")


@pytest.mark.parametrize("name", ["method", "loss", "epochs", "steps", "batch", "chunk", "rank",
                                  "patience", "lr"])  # fmt: skip
def test_finetune(name):
    default = {f.name: f.default for f in dataclasses.fields(FinetuneConfig)}[name]
    words = ("head", "lora", "lit", "full", "softmax", "sigmoid", "auto", "nope")
    whole = type(default) is int or name == "steps"
    for value in words if isinstance(default, str) else NUMBERS:
        if isinstance(default, str) or kind_of(value, 1 if whole else 1.0):
            given = int(value) if whole else value
            found = refuses(checks.VERBS["finetune"][name], name, given)
            assert found == refuses(FinetuneConfig, **{name: given}), value


def test_rerank():
    score_B, unit_BD = torch.tensor([0.2, 0.1]), torch.eye(2)
    for value in (-1.5, -1, 0, 1, 1.5, math.nan):
        found = refuses(checks.VERBS["rerank"]["duplicate"], "duplicate", value)
        assert found == refuses(rank, score_B, unit_BD, duplicate=value), value
