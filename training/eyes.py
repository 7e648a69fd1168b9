"""Draw images for reviewers to rate one by one, and collect their verdicts.

    python -m training.eyes draw PROMPTS FOLDER     # one image of each line, in random order
    python -m training.eyes count FOLDER            # reads FOLDER/*.tsv, writes training/eyes.json

A reviewer is a person, or an AI model that sees images. Those of eyes.json are two AI models, which
saw each image by itself, in opposite orders. Each reviewer writes one TSV file with a line for each
image: its number, a tab, and "good", "so-so" or "bad". More columns can follow. "good" means that
anybody would name the object with its colour and number, and would keep the image. "bad" means that
nobody would, or that it shows another thing.
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
    """Draw each prompt with seed 0, as `clipguide generate` does, and write key.json."""
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
    """Collect the verdicts of all reviewers and write eyes.json.

    Raises:
        UsageError: other weights drew the images, a verdict is unknown, or a reviewer has not
            exactly one verdict for each image.
    """
    key = json.loads((folder / "key.json").read_text(encoding="utf-8"))
    if key["weights"] != weights():
        raise UsageError("Other weights drew these images: draw them again.")
    said: dict[str, list[str]] = {number: [] for number in key["images"]}
    reviewers = sorted(folder.glob("*.tsv"))
    for path in reviewers:
        for line in path.read_text(encoding="utf-8").splitlines():
            number, verdict = line.split("\t")[:2]
            if verdict not in VERDICTS:
                raise UsageError(f"{path.name}: {verdict!r} is none of {', '.join(VERDICTS)}.")
            said[number].append(verdict)
    odd = [number for number, verdicts in said.items() if len(verdicts) != len(reviewers)]
    if odd or not reviewers:
        raise UsageError(f"Not every reviewer has one verdict for each image: {', '.join(odd)}.")
    rows = {
        row["prompt"]: {"guide": row["guide"], "judge": row["judge"], "said": said[number]}
        for number, row in key["images"].items()
    }
    found = {"weights": key["weights"], "reviewers": len(reviewers), "prompts": rows}
    EYES.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def weights() -> dict[str, str]:
    """Return the digests of the generator, the guide and the judge."""
    return Settings().weights("generator", "guide", "judge")


if __name__ == "__main__":
    app()
