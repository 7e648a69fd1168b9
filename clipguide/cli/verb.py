"""The layout of the help of each command, and the old names of options."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand

from . import checks, console

SECTIONS = {  # heading -> options, for all commands
    "Steering": "clip-prompt negative reward question select method strength window every inner "
    "momentum travel fixed budget cutouts views decoder tiny memory refine judge",
    "Options of one method": "number finish look of quota enough potential sharpness rising "
    "threshold resampling eta interpolant lookahead-steps scale temperature together "
    "sketch-scheduler sketch-cfg iterations candidate-steps draft-steps rate white prior patience "
    "rho mu",
    "Sampling": "steps like cfg cfg-window seed size count best-of exact safety-checker",
    "Canvas": "canvas softness seconds lr ema grow smooth start init init-weight mask image-prompt "
    "prompt-at tile symmetry palette palette-weight sds fade zoom rotate shift frame-every",
    "Recipe": "config trust",
    "Query": "text texts pairs reference labels image plus where hybrid diversity page top metric "
    "prefix long templates few-shot none calibrate weight aesthetic duplicate drop-duplicates "
    "identical word",
    "Data": "image-column caption-column label-column names share test dry-run images captions "
    "prune",
    "Training": "epochs minutes chunk loss rank augment",
    "Retention": "retain allow wise-ft",
    "With --for-guiding": "for-guiding against norm epsilon attack-steps",
    "Reading images": "recursive alpha frames icc megapixels fast urls batch workers strict cache "
    "no-cache verify",
    "Models": "model clip device dtype bf16 compile trust-pickle",
    "Output": "out force resume grid preview video compare trace json quiet format contact-sheet "
    "copy-to link-to open confusion explain to int8 fp16",
    "Index": "db engine actors",
    "List": "things",
    "The page": "host port auth allow-host no-browser",
    "Report": "draw",
}
OF_DRAWING = ("Steering", "Options of one method", "Sampling", "Canvas")
HEADING = {option: title for title, options in SECTIONS.items() for option in options.split()}
RENAMED = {  # command -> old name of an option: its name; for one release
    "generate": {"--animate": "--video", "--guide": "--clip-prompt"},
    "optimize": {"--every": "--frame-every", "--temperature": "--softness"},
    "rerank": {"--keep": "--top"},
    "search": {"--minus": "--negative"},
    "duplicates": {"--exact": "--identical", "--threshold": "--duplicate"},
    "export": {"--pictures": "--images"},
    "finetune": {"--look": "--dry-run"},
}
EXAMPLES = {
    "generate": """
        clipguide generate "a red fox" --seed 7
        clipguide generate "an apple" "a blue car" --count 2 --best-of 2 --grid --out images/
        clipguide generate --config a-red-fox-7.png --seed 8
        clipguide generate "a fox" --model DIFFUSERS_FOLDER --clip ViT-L-14/openai --dtype bfloat16
    """,
    "optimize": """
        clipguide optimize "a red fox" --seconds 30
        clipguide optimize "a sunflower" --canvas vqgan --video sunflower.gif
        clipguide optimize "a fish" --canvas fourier --sds 0 --out fish.png
    """,
    "replay": """
        clipguide replay a-red-fox-7.png
        clipguide replay a-red-fox-7.png --out again.png
        clipguide replay a-red-fox-7.png --device cpu --json
    """,
    "plot": """
        clipguide plot a-red-fox-7.png
        clipguide plot a-red-fox-7.png --out curves.png
        clipguide plot a-red-fox-7.png --force
    """,
    "score": """
        clipguide score photos/ --text "a red fox"
        clipguide score a.png b.png --text "a fox" --text "a dog" --metric probability
        clipguide score --pairs captions.csv --metric clipscore --format json
    """,
    "rerank": """
        clipguide rerank images/ --text "a red fox" --top 5
        clipguide rerank images/ --text "a fox" --negative "a dog" --drop-duplicates
        clipguide rerank images/ --text "a fox" --top 9 --contact-sheet best.png
    """,
    "classify": """
        clipguide classify photos/ --labels fox,owl,car
        clipguide classify photos/ --labels labels.txt --top 3 --format csv
        clipguide classify photos/ --labels fox,owl --none
    """,
    "embed": """
        clipguide embed photos/ --out photos.npz
        clipguide embed "photos/*.jpg" --clip mini-judge --out photos.parquet
        clipguide embed photos/ --out photos.npz --force
    """,
    "index": """
        clipguide index photos/
        clipguide index photos/ --db photos.index --captions captions.csv
        clipguide index s3://bucket/photos --engine ray --db s3://bucket/index
    """,
    "search": """
        clipguide search "a red fox" --top 20
        clipguide search "a beach" --plus "at night:0.5" --negative people
        clipguide search --image fox.png --where "width > 512" --contact-sheet found.html
    """,
    "duplicates": """
        clipguide duplicates
        clipguide duplicates --duplicate 0.95 --contact-sheet copies.html
        clipguide duplicates --identical --json
    """,
    "ui": """
        clipguide ui
        clipguide ui --port 8000 --no-browser
        clipguide ui --host 0.0.0.0 --auth NAME:PASSWORD
    """,
    "export": """
        clipguide export --to onnx --out exported/
        clipguide export --to onnx --int8 --clip mini-judge --out exported/
        clipguide export --to hf --clip ViT-B-32/laion2b_s34b_b79k --out exported/
    """,
    "finetune": """
        clipguide finetune photos/ --dry-run
        clipguide finetune photos/ --out my-clip
        clipguide finetune captions.csv --method lit --epochs 5 --out my-clip
    """,
    "invert": """
        clipguide invert photos/ --word blorvek
        clipguide invert photos/ --word blorvek --like creature
        clipguide invert a.png b.png c.png --word blorvek --out blorvek.safetensors
    """,
    "models": """
        clipguide models
        clipguide models --things
        clipguide models --things fox
    """,
    "doctor": """
        clipguide doctor
        clipguide doctor --no-draw
        clipguide doctor --json
    """,
    "config": """
        clipguide config
        clipguide config --json
        CLIPGUIDE_STEPS=50 clipguide config
    """,
}


class Verb(TyperCommand):
    """A command whose help groups the options under headings, and ends with examples."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self._renamed(args))

    def asks_help(self, args: list[str]) -> bool:
        """Return whether -h or --help is among the words, and is not the value of an option."""
        takes, waits = self._takes(), ""
        for arg in args:
            if not waits and arg in ("-h", "--help", "--"):
                return arg != "--"
            waits = "" if waits else waiting(arg, takes)
        return False

    def _takes(self) -> set[str]:
        """Return the options that take values."""
        return {name for p in self.params if not getattr(p, "is_flag", False) for name in p.opts}

    def _renamed(self, args: list[str]) -> list[str]:
        """Return the words of a command line with the present names of options. A word that is the
        value of an option is left as it is."""
        renamed = RENAMED.get(self.name or "", {})
        takes = self._takes()
        takes |= {old for old, new in renamed.items() if new in takes}
        names = {name for parameter in self.params for name in parameter.opts}
        short = "--format" in names and "--json" not in names  # --json is --format json
        found, value_of = [], ""
        for k, arg in enumerate(args):
            if arg == "--" and not value_of:
                return [*found, *args[k:]]
            name, equals, value = arg.partition("=")
            if value_of:
                found.append("text" if (value_of, arg) == ("--format", "table") else arg)
                value_of = ""
                continue
            value_of = waiting(arg, takes)
            if short and arg in ("--json", "-0"):
                arg = "--format=json" if arg == "--json" else "--format=paths0"
            elif short and arg == "--format=table":  # its old name
                arg = "--format=text"
            elif name in renamed:
                arg = renamed[name] + equals + value
                console.complain(f"{name} is called {renamed[name]} now; {name} will go.")
            found.append(arg)
        return found

    def invoke(self, ctx: Any) -> Any:
        spelt = {p.name: max(p.opts, key=len) for p in self.params}
        checks.check(self.name or "", ctx.params, spelt)
        return super().invoke(ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the line of usage. A required argument stands there as it is."""
        pieces = super().collect_usage_pieces(ctx)
        return [re.sub(r"^\{([^{}]+)\}", r"\1", piece) for piece in pieces]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        rows: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                named, told = record
                title = heading(self.name or "", parameter)
                named = named.split()[0] if title == "Arguments" else plain(named)
                rows.setdefault(title, []).append((named, told))
        last = rows.pop("Help")
        for title in (title for title in ("Arguments", *SECTIONS) if title in rows):
            with formatter.section(title):
                formatter.write_dl(rows[title])
        with formatter.section("Help"):
            formatter.write_dl(last)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Examples"):
            for line in examples(self.name or ""):
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def waiting(arg: str, takes: set[str]) -> str:
    """Return the option whose value is the next word, or "". `takes` are the options that take
    values."""
    if arg.startswith("--"):
        return arg if arg in takes else ""
    if arg.startswith("-"):
        for k, letter in enumerate(arg[1:], start=1):  # -qo PATH is -q -o PATH, -oPATH is -o PATH
            if f"-{letter}" in takes:
                return f"-{letter}" if k == len(arg) - 1 else ""
    return ""


def heading(verb: str, parameter: Any) -> str:
    """Return the heading of an argument or option."""
    names = [name.removeprefix("--") for name in parameter.opts if name.startswith("--")]
    if not names:
        return "Arguments"
    title = next((HEADING[name] for name in names if name in HEADING), "Help")
    if verb in ("finetune", "invert") and title in (*OF_DRAWING, "Query", "Reading images"):
        return "Training"
    if verb not in ("generate", "optimize") and title in OF_DRAWING:
        return "Query"
    if verb == "optimize" and title == "Options of one method":
        return "Sampling"
    return title


def plain(named: str) -> str:
    """Return the name of an option and its metavar, in one kind of letters: N, X, TEXT, PATH, a|b.
    """
    for theirs, ours in (("int", "N"), ("float", "X"), ("str", "TEXT"), ("path", "PATH")):
        named = named.replace(f"<{theirs}>", ours)
    return re.sub(r"<([^<>]*\|[^<>]*)>", r"\1", named.replace(" <list[str]>", ""))


def examples(verb: str) -> list[str]:
    """Return the command lines of the examples of a command."""
    return [line.strip() for line in EXAMPLES[verb].strip().splitlines()]
