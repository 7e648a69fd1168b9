"""Measure the figures, one group at a time or all. The table at the end has every known figure.

Each figure is written to training/figures.json as soon as it is measured. A run with --limit is a
quick look: it prints its own table and writes no figures, unless --out names a file for them.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

from clipguide.errors import ClipguideError
from training.evaluate.ledger import FIGURES, Ledger, Settings

GROUPS = {  # name -> (module, function, what), cheapest first
    "cold": ("runtime", "cold", "the first command in a fresh process"),
    "bits": ("runtime", "bits", "same seed, batch against single, exact"),
    "vae": ("autoencoders", "vae", "the generator's autoencoder"),
    "vqgan": ("autoencoders", "vqgan", "the VQGAN"),
    "reader": ("maps", "measure", "the reader of maps; 144 samples"),
    "eyes": ("doubts", "eyes", "what people said of images; kept by training.eyes"),
    "clips": ("clips", "measure", "held-out drawings and the two styles never seen"),
    "together": ("clips", "together", "the same drawings by guide and judge, as best-of adds them"),
    "colours": ("clips", "colours", "colour words"),
    "synonyms": ("clips", "synonyms", "words never met with a picture"),
    "languages": ("clips", "languages", "names of things in other languages, by text alone"),
    "photos": ("photographs", "photos", "imagenet-sample-images; needs --photos"),
    "package-photos": ("photographs", "package_photos", "photographs of packages"),
    "unknown": ("doubts", "unknown", "warnings about what the generator cannot draw; 100 samples"),
    "generator": ("generator", "measure", "by the referee, plain and by default; 4,000 samples"),
    "steering": ("generator", "steering", "the default and shortcut against plain; 4,800 samples"),
    "gradients": ("gradients", "measure", "what the guides' gradients draw"),
}


def parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--limit", type=int, help="only so many cases: a quick look")
    common.add_argument("--out", type=Path, help=f"where figures go [{FIGURES.name}]")
    common.add_argument("--models", type=Path, help="a folder with all models, for trials")
    common.add_argument("--photos", type=Path, help="a copy of imagenet-sample-images")
    common.add_argument("--before", type=Path, help="an earlier autoencoder's folder, to compare")
    common.add_argument("--steps", type=int, default=Settings.steps, help="of the gradients")
    top = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True, metavar="GROUP")
    for name, (_, _, what) in GROUPS.items():
        commands.add_parser(name, parents=[common], help=what)
    commands.add_parser("all", parents=[common], help="every group, a failed one told at the end")
    commands.add_parser("table", parents=[common], help="what is known, without measuring")
    commands.add_parser("cards", help="write the figures into the models' cards")
    return top


def measure(name: str, settings: Settings, ledger: Ledger) -> str | None:
    """Run one group; what went wrong, or None."""
    module, function, _ = GROUPS[name]
    print(f"== {name}", flush=True)
    start = time.perf_counter()
    try:
        group = getattr(importlib.import_module(f"training.evaluate.{module}"), function)
        for found in group(settings):
            ledger.record(found)
            print(f"{found.key}: {found.shown()}  (n {found.n}; {found.note})", flush=True)
    except ClipguideError as error:
        return f"{name}: {error}"
    print(f"   {time.perf_counter() - start:.0f} s", flush=True)
    return None


def main() -> int:
    args = parser().parse_args()
    if args.command == "cards":
        from training.evaluate import cards

        cards.write_all()
        return 0
    settings = Settings(limit=args.limit, models=args.models, photos=args.photos,
                        before=args.before, steps=args.steps)
    quick = bool(args.limit or args.models) and not args.out
    ledger = Ledger(None if quick else args.out or FIGURES)
    names = {"all": list(GROUPS), "table": []}.get(args.command, [args.command])
    wrong = [error for name in names if (error := measure(name, settings, ledger))]
    print("\n" + ledger.table(ledger.new if quick else None))
    for error in wrong:
        print(error, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
