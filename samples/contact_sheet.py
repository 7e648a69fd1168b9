"""The contact sheet: 64 prompts at seed 0 and the default settings, none picked.

They are every second one of a list of 120 that was written before the model was trained, and six
in other languages and styles.
"""

from pathlib import Path

import typer
from PIL import Image

import clipguide
from clipguide import images

PROMPTS = [
    " ".join(prompt.split())
    for prompt in """a red fox, a white horse, an elephant, a brown bear, a hummingbird, a penguin,
    a tiger face, a purple octopus, a monarch butterfly, a dinosaur, a dragon, a hedgehog, sushi,
    a slice of chocolate cake, a pizza with extra cheese, a green apple, a banana, a strawberry,
    an avocado, an ice cream cone, a loaf of bread, a carrot, a snowy mountain, an autumn leaf,
    a full moon and stars, a desert cactus, a volcano, a campfire, a purple rose, a red mushroom,
    a lighthouse, a red barn, a tent in the forest, a bridge, a red car, a blue bicycle,
    a steam train, a rocket launch, a hot air balloon, a motorcycle, an acoustic guitar, a trumpet,
    a camera, a laptop computer, a pair of scissors, a key, a magnifying glass, a crown,
    a gift box with a ribbon, a soccer ball, an astronaut, a ghost, a man with a beard, a baby,
    a cat and a dog, two blue fish, a flat icon of a fox, un gato negro, красный дракон, 🦊,
    a 3d snowman, 赤い車, une pomme verte, 🍕""".split(",")
]
# What the sheet's font has no letters for.
LABELS = {"красный дракон": "red dragon (Russian)", "赤い車": "red car (Japanese)"}
LABELS |= {"🦊": "the fox emoji", "🍕": "the pizza emoji"}
OUT = Path(__file__).with_name("contact-sheet.png")


def main(quick: bool = False, out: Path = OUT) -> None:
    """Draw every prompt, eight in a row."""
    draw = clipguide.TextToImage()
    drawn = []
    for prompt in PROMPTS[:1] if quick else PROMPTS:
        drawn += draw(prompt, seed=0, steps=4 if quick else None)
        print(f"{prompt}: judge {drawn[-1].judge_score:.3f}", flush=True)
    half = [p.image.resize((128, 128), Image.Resampling.LANCZOS) for p in drawn]
    labels = [LABELS.get(p.recipe.prompt, p.recipe.prompt) for p in drawn]
    images.contact_sheet(half, labels=labels, columns=8).save(out)


if __name__ == "__main__":
    typer.run(main)
