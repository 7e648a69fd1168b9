"""Images for people to look at one by one, and what they said.

    python -m training.eyes draw PROMPTS FOLDER     # one image of each line, in an order by chance
    python -m training.eyes count FOLDER            # reads FOLDER/*.tsv, writes training/eyes.json

Each reader writes a file of their own: a line for each image, its number, "good", "so-so" or "bad",
with tabs between, and what else they like after that. Good: anybody would say what it is, with its
colour and number, and keep it. Bad: nobody would, or it is another thing.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
import typer

from clipguide import TextToImage
from clipguide.errors import UsageError
from training.evaluate.ledger import Settings

EYES = Path(__file__).parent / "eyes.json"
VERDICTS = ("good", "so-so", "bad")
app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def draw(prompts: Path, folder: Path) -> None:
    """Draw each prompt at seed 0 as `clipguide generate` does."""
    torch.set_num_threads(1)
    lines = [line.strip() for line in prompts.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    random.Random(0).shuffle(lines)
    folder.mkdir(parents=True, exist_ok=True)
    model, key = TextToImage(), {}
    for k, prompt in enumerate(lines):
        picture = model(prompt, seed=0)[0]
        picture.image.save(folder / f"{k:03d}.png")
        scores = {"guide": round(picture.guide_score, 4), "judge": round(picture.judge_score, 4)}
        key[f"{k:03d}"] = {"prompt": prompt, **scores}
        text = json.dumps({"weights": weights(), "images": key}, ensure_ascii=False, indent=1)
        (folder / "key.json").write_text(text, encoding="utf-8")


@app.command()
def count(folder: Path) -> None:
    """Put together what the readers said. UsageError for an image without a verdict."""
    key = json.loads((folder / "key.json").read_text(encoding="utf-8"))
    if key["weights"] != weights():
        raise UsageError("Other weights drew these images: draw them again.")
    said: dict[str, list[str]] = {number: [] for number in key["images"]}
    readers = sorted(folder.glob("*.tsv"))
    for path in readers:
        for line in path.read_text(encoding="utf-8").splitlines():
            number, verdict = line.split("\t")[:2]
            if verdict not in VERDICTS:
                raise UsageError(f"{path.name}: {verdict!r} is none of {', '.join(VERDICTS)}.")
            said[number].append(verdict)
    odd = [number for number, verdicts in said.items() if len(verdicts) != len(readers)]
    if odd or not readers:
        raise UsageError(f"Not every reader has one verdict for each image: {', '.join(odd)}.")
    rows = {
        row["prompt"]: {"guide": row["guide"], "judge": row["judge"], "said": said[number]}
        for number, row in key["images"].items()
    }
    found = {"weights": key["weights"], "readers": len(readers), "prompts": rows}
    EYES.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def weights() -> dict[str, str]:
    """The fingerprints of what draws and chooses."""
    return Settings().weights("generator", "guide", "judge")


if __name__ == "__main__":
    app()
