"""What --help shows, and that an option means the same in every verb."""

from __future__ import annotations

import collections
import dataclasses
import re
import shlex

import pytest
import typer
from typer.testing import CliRunner

from clipguide.cli.app import app
from clipguide.cli.verb import HEADING, RENAMED, examples, heading

PROGRAM = typer.main.get_command(app)
VERBS = {name: verb for name, verb in PROGRAM.commands.items() if not hasattr(verb, "commands")}
SHORT = {"-o": "--out", "-n": "--count", "-k": "--top", "-q": "--quiet", "-f": "--force"}
SHORT |= {"-t": "--text", "-l": "--labels", "-w": "--word", "-h": "--help"}
run = CliRunner()


def options_of(verb: str) -> dict[str, object]:
    return {
        name: parameter
        for parameter in VERBS[verb].params
        for name in parameter.opts
        if name.startswith("--")
    }


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb):
    """Options stand under headings, and all they take is in one kind of letters."""
    shown = run.invoke(app, [verb, "--help"])
    assert shown.exit_code == 0
    names = {heading(verb, p) for p in VERBS[verb].params}
    assert "Help" not in names, [p.opts for p in VERBS[verb].params if heading(verb, p) == "Help"]
    for title in names:
        assert f"\n{title}:\n" in shown.stdout
    assert not re.search(r"<\w", shown.stdout)
    assert "{" not in shown.stdout.partition("\n\n")[0]


@pytest.mark.parametrize(
    "verb, usage", [("rerank", "IMAGES..."), ("replay", "IMAGE"), ("models", "[WORD]")]
)
def test_a_required_argument_stands_without_brackets(verb, usage):
    """Braces mean a choice in other programs."""
    shown = run.invoke(app, [verb, "--help"]).stdout
    assert shown.splitlines()[0].endswith(f" {verb} [OPTIONS] {usage}")
    (section,) = re.findall(r"\nArguments:\n(.+?)\n\n", shown, re.S)
    assert section.split()[0] == usage.strip("[].")


def test_steering_options_are_named():
    """`generate --help` says which options make the embedded generator steer, and that is so."""
    from clipguide.pipelines.generation import STEERED, Generation

    from clipguide import load_pipeline
    from clipguide.mini.pipeline import MiniPipeline

    pipe = load_pipeline("mini")
    told = " ".join(run.invoke(app, ["generate", "--help"]).stdout.split())
    without = re.search(r"method\" except (.+?)\. With --best-of", told)[1]
    without = without.replace(" and", ",").split(", ")
    known = options_of("generate")
    assert all(heading("generate", known[name]) == "Steering" for name in without)
    named = {"--clip-prompt": "guide"}
    assert all(heading("generate", known[name]) == "Steering" for name in named)
    fields = {"--negative": "x", "--refine": 1, "--select": ("clip",), "--question": "x?"}
    for name in set(without) - {"--judge"}:  # which is no setting of a run
        asked = Generation(**{name[2:]: fields[name]}).usual(pipe, ["a fox"])
        assert (asked.strength, asked.best_of) == (0, MiniPipeline.default_best_of), name
    settings = {"guide": "x", "cutouts": 2, "decoder": "vae", "tiny": "hub", "budget": 2}
    settings |= {"memory": 2.0, "rewards": ("clip",), "strength": 0.1}
    assert set(settings) == set(STEERED)
    for name, value in settings.items():
        asked = Generation(**{name: value}).usual(pipe, ["a fox"])
        assert asked.method == "shortcut" and asked.strength != 0, name
    for prompt, strength in (("a fox", 0), ("a fox | blur:-1", None)):
        asked = Generation(best_of=3).usual(pipe, [prompt])
        assert (asked.method, asked.strength, asked.best_of) == ("shortcut", strength, 3)
        number = MiniPipeline.default_best_of if strength == 0 else 1
        assert Generation().usual(pipe, [prompt]) == dataclasses.replace(asked, best_of=number)


# ------------------------------------------------------------ the options of methods
GIVEN = {  # a value of each field of a method that is not its default
    "window": (0.2, 0.9), "every": 2, "number": 5, "finish": 2, "look": 0.5, "strength": 0.3,
    "inner": 2, "momentum": 0.5, "travel": 2, "fixed": "noise", "potential": "max",
    "sharpness": 2.0, "rising": 0.5, "threshold": 0.4, "resampling": "ssp", "eta": 0.5,
    "quota": 5, "interpolant": "own", "enough": 0.5, "steps": 5, "scale": 2.0,
    "temperature": 0.2, "together": 4, "sketch_scheduler": "LCMScheduler", "sketch_cfg": 1.0,
    "iterations": 5, "candidate_steps": 5, "draft_steps": 3, "rate": 0.2, "white": False,
    "prior": 2.0, "patience": 3, "rho": 2.0, "mu": 0.5, "of": "null",
}  # fmt: skip
IN_PYTHON = {"each", "sketch_adapter"}  # fields of methods that the command does not offer


def built_in() -> dict[str, type]:
    from clipguide.cli.steering import NAMES
    from clipguide.guidance.methods import METHODS

    return {name: METHODS[name] for name in NAMES if name != "auto"}


def takers(field: str) -> dict[str, object]:
    """The methods that accept a value of the field and use it, with their defaults."""
    from clipguide.errors import UsageError
    from clipguide.guidance.methods import configure

    found = {}
    for name, kind in built_in().items():
        try:
            configure(name, {field: GIVEN[field]})
        except UsageError:
            continue
        found[name] = next(f.default for f in dataclasses.fields(kind) if f.name == field)
    return found


def of_methods() -> dict[str, object]:
    """The options of `generate` that are fields of methods, by the name of the field."""
    fields = {f.name for kind in built_in().values() for f in dataclasses.fields(kind)}
    assert fields == set(GIVEN) | IN_PYTHON
    titles = ("Steering", "Options of one method")
    named = {p.name: p for p in VERBS["generate"].params if heading("generate", p) in titles}
    named["steps"] = named.pop("lookahead_steps")
    assert not IN_PYTHON & set(named)
    return {field: named[field] for field in GIVEN}


def named_in(told: str) -> set[str]:
    """The methods that stand before the colon of a help text: "noise with --no-white: …"."""
    return set(re.sub(r" (with|on) .*", "", told.partition(":")[0]).split(", "))


@pytest.mark.parametrize("field", GIVEN)
def test_help_names_the_methods_that_take_an_option(field):
    """The methods themselves say which take it; so do the rules of the command."""
    from clipguide.cli import checks

    assert named_in(of_methods()[field].help) == set(takers(field))
    assert {name for name, rules in checks.METHODS.items() if field in rules} == set(takers(field))


@pytest.mark.parametrize("field", GIVEN)
def test_help_names_the_default_of_each_method(field):
    """The first default is that of all methods which are not named behind it."""
    told = re.search(r"\[default: (.+)\]$", of_methods()[field].help)[1]
    first, *others = told.split(", but ")
    others = dict(reversed(one.split(" for ")) for one in others)
    assert set(others) <= set(takers(field))
    for method, default in takers(field).items():
        shown = others.get(method, first)
        if isinstance(default, bool):
            shown, default = shown == "white", default
            assert shown is default
        elif default is None:
            assert not re.match(r"\d", shown)
        elif isinstance(default, tuple):
            assert tuple(map(float, shown.split(","))) == default
        else:
            assert shown == (default if isinstance(default, str) else f"{default:g}")


def test_a_wrong_name_of_a_method_would_be_found():
    assert named_in("noise, embedding: the number of steps.") != set(takers("iterations"))
    assert "rollover" not in takers("window") and "best-of" not in takers("every")
    assert takers("momentum") == {"shortcut": 0.0, "backprop": 0.0, "noise": 0.9, "drafts": 0.9}


def test_a_heading_holds_only_what_there_is():
    assert set(HEADING) <= {name[2:] for verb in VERBS for name in options_of(verb)}


def test_summaries_fit_a_line():
    for line in run.invoke(app, ["--help"], terminal_width=80).stdout.splitlines()[1:]:
        assert len(line) <= 80 and not line.endswith("..."), line


@pytest.mark.parametrize("verb", VERBS)
def test_examples_parse(verb, tmp_path, monkeypatch):
    (tmp_path / "a-red-fox-7.png").write_text("{}")  # a recipe that says nothing
    monkeypatch.chdir(tmp_path)
    assert len(examples(verb)) >= 3
    for line in examples(verb):
        words = shlex.split(line)
        words = words[words.index("clipguide") + 1 :]
        assert words[0] == verb
        context = VERBS[verb].make_context(verb, words[1:])
        assert not context.args


def test_forty_columns():
    shown = run.invoke(app, ["generate", "--help"], terminal_width=40)
    assert shown.exit_code == 0 and "--seed" in shown.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_one_letter_means_one_option(verb):
    """-o is --out wherever there is one, and nothing else."""
    for long, parameter in options_of(verb).items():
        for short in (name for name in parameter.opts if not name.startswith("--")):
            assert SHORT[short] == long
        for short in (short for short, name in SHORT.items() if name == long and short != "-h"):
            assert short in parameter.opts, f"{verb} {long} has no {short}"


def test_an_option_takes_the_same_kind_of_value_everywhere():
    """A flag here and a value there would be two meanings."""
    flags = collections.defaultdict(set)
    for verb in VERBS:
        for name, parameter in options_of(verb).items():
            flags[name].add(parameter.is_flag)
    assert not [name for name, found in flags.items() if len(found) > 1]


@pytest.mark.parametrize(
    "verb, old", [(verb, old) for verb, names in RENAMED.items() for old in names]
)
def test_an_old_name_is_taken_with_a_warning(verb, old, capsys):
    new = RENAMED[verb][old]
    parameter = options_of(verb)[new]
    assert old not in options_of(verb)
    needed = {"generate": ["fox"], "optimize": ["fox"], "rerank": ["a.png"], "search": ["fox"]}
    needed |= {"finetune": ["photos"], "export": ["--to", "onnx", "--out", "o"]}
    if parameter.is_flag:
        spellings = [[old]]
    else:
        value = "2" if new in ("--top", "--frame-every", "--clip-prompt") else "a.gif"
        value = "0.5" if new in ("--softness", "--duplicate") else value
        spellings = [[old, value], [f"{old}={value}"]]
    for words in spellings:
        context = VERBS[verb].make_context(verb, [*needed.get(verb, []), *words])
        assert context.get_parameter_source(parameter.name).name == "COMMANDLINE"
        told = capsys.readouterr().err
        assert f"{old} is called {new} now" in told


@pytest.mark.parametrize("words", [["--format", "table"], ["--format=table"]])
def test_a_table_is_called_text(words):
    context = VERBS["score"].make_context("score", ["a.png", "--text", "table", *words])
    assert context.params["format"].value == "text" and context.params["text"] == ["table"]


def test_json_is_short_for_a_format():
    for verb, given in (("score", ["a.png"]), ("search", ["fox"]), ("duplicates", [])):
        assert VERBS[verb].make_context(verb, [*given, "--json"]).params["format"].value == "json"
        assert VERBS[verb].make_context(verb, [*given, "-0"]).params["format"].value == "paths0"
    assert VERBS["doctor"].make_context("doctor", ["--json"]).params["as_json"] is True


@pytest.mark.parametrize(
    "verb, words, name, value",
    [
        ("score", ["a.png", "--text", "--json"], "text", ["--json"]),
        ("score", ["a.png", "-t", "--json"], "text", ["--json"]),
        ("score", ["a.png", "--prefix", "--format=table", "--text", "a"], "prefix",
         "--format=table"),
        ("search", ["--plus", "--minus"], "plus", ["--minus"]),
        ("rerank", ["a.png", "-t", "--keep=3"], "text", ["--keep=3"]),
        ("rerank", ["a.png", "--text", "--"], "text", ["--"]),
        ("generate", ["fox", "-qo", "--animate"], "out", "--animate"),
        ("generate", ["fox", "-o--animate"], "out", "--animate"),
    ],
)  # fmt: skip
def test_a_value_is_not_renamed(verb, words, name, value, capsys):
    """What an option takes may look like another option."""
    assert VERBS[verb].make_context(verb, list(words)).params[name] == value
    assert not capsys.readouterr().err


def test_an_option_behind_a_value_is_renamed(capsys):
    words = ["a.png", "--text", "fox", "-t", "owl", "--keep", "3", "--json"]
    context = VERBS["rerank"].make_context("rerank", words)
    assert context.params["text"] == ["fox", "owl"] and context.params["keep"] == 3
    assert context.params["format"].value == "json"
    assert "--keep is called --top now" in capsys.readouterr().err


def test_behind_two_dashes_nothing_is_renamed(capsys):
    context = VERBS["generate"].make_context("generate", ["fox", "--", "--animate"])
    assert context.params["prompts"] == ["fox", "--animate"]
    assert not capsys.readouterr().err
