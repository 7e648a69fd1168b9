"""Draw images for reviewers to rate one by one, and collect their verdicts.

    python -m training.eyes draw PROMPTS FOLDER     # one image of each line, in random order
    python -m training.eyes count FOLDER            # reads FOLDER/*.tsv, writes training/eyes.json
    python -m training.eyes pairs FOLDER 8:3 8:2    # two settings side by side, steps:scale
    python -m training.eyes preferred FOLDER        # counts the answers of FOLDER/*.tsv

A reviewer is a person, or an AI model that sees images. Those of eyes.json are two AI models, which
saw each image by itself, in opposite orders. Each reviewer writes one TSV file with a line for each
image: its number, a tab, and "good", "so-so" or "bad". More columns can follow. "good" means that
anybody would name the object with its colour and number, and would keep the image. "bad" means that
nobody would, or that it shows another thing.

For pairs, the answer is "A" for the left image, "B" for the right one, or "=". Both images have the
same map and the same initial noise, and which is left is by chance.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import torch
import typer
from PIL import Image

from clipguide import TextToImage
from clipguide.errors import UsageError
from clipguide.mini.names import AMONG, BETWEEN
from clipguide.mini.pipeline import MiniPipeline
from training import common
from training.evaluate.ledger import Settings

EYES = Path(__file__).parent / "eyes.json"
VERDICTS = ("good", "so-so", "bad")
app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def draw(prompts: Path, folder: Path) -> None:
    """Draw each prompt with seed 0, as `clipguide generate` does, and write key.json."""
    torch.set_num_threads(1)
    asked = lines(prompts)
    random.Random(0).shuffle(asked)
    folder.mkdir(parents=True, exist_ok=True)
    model, key = TextToImage(), {}
    for k, prompt in enumerate(asked):
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


@app.command()
def pairs(folder: Path, one: str, other: str, count: int = 60, seed: int = 0) -> None:
    """Draw things of the memory in two settings of the generator, and write key.json. Nothing
    selects or steers."""
    pipe = MiniPipeline.from_pretrained(common.MINI / "generator")
    pipe.set_progress_bar_config(disable=True)
    names = [line.split(BETWEEN)[0].split(AMONG)[0] for line in pipe.memory.config.things]
    rng, key = random.Random(seed), {}
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(rng.sample(names, count)):
        page = Image.new("RGB", (2 * 256 + 40, 256), "grey")
        order = rng.sample([one, other], 2)
        for place, setting in enumerate(order):
            steps, scale = setting.split(":")
            generator = torch.Generator().manual_seed(k)
            (image,) = pipe(
                prompt := f"a {name}",
                num_inference_steps=int(steps),
                map_guidance_scale=float(scale),
                generator=generator,
            ).images
            page.paste(image, (296 * place, 0))
        page.save(folder / f"{k:03d}.png")
        key[f"{k:03d}"] = {"prompt": prompt, "A": order[0], "B": order[1]}
    (folder / "key.json").write_text(json.dumps(key, indent=1), encoding="utf-8")


@app.command()
def preferred(folder: Path) -> None:
    """Print how often reviewers preferred each setting."""
    key = json.loads((folder / "key.json").read_text(encoding="utf-8"))
    answers: Counter[str] = Counter()
    for path in sorted(folder.glob("*.tsv")):
        for line in path.read_text(encoding="utf-8").splitlines():
            number, said = line.split("\t")[:2]
            if said not in ("A", "B", "="):
                raise UsageError(f"{path.name}: {said!r} is none of A, B, =.")
            answers["neither" if said == "=" else key[number][said]] += 1
    print(", ".join(f"{name}: {number}" for name, number in answers.most_common()))


def lines(prompts: Path) -> list[str]:
    """Return the prompts of a text file: its lines, except empty ones and those with a # first."""
    found = [line.strip() for line in prompts.read_text(encoding="utf-8").splitlines()]
    return [line for line in found if line and not line.startswith("#")]


def weights() -> dict[str, str]:
    """Return the digests of the generator, the guide and the judge."""
    return Settings().weights("generator", "guide", "judge")


if __name__ == "__main__":
    app()
