"""The contact sheet: fifty prompts at seed 0 and the default settings, none picked.

`-` before a word in a label: that word was the negative.
"""

from pathlib import Path

import typer

import clipguide
from clipguide import images


def split(text: str) -> list[str]:
    """Prompts between commas."""
    return [" ".join(prompt.split()) for prompt in text.split(",")]


PLAIN = split("""a fox, a cat, an owl, a penguin, a butterfly, an octopus, a turtle, a banana,
    a carrot, a strawberry, a mushroom, a pizza, a sunflower, a cactus, a snowman, a rocket,
    a castle, an umbrella, a guitar, a camera""")
COLOURS = split("""a red car, a blue car, a green car, a red rose, a yellow rose, a blue butterfly,
    a green fish, a pink pig, a purple balloon, an orange cat, a blue house, a black cat""")
UNSEEN = split("""a yellow car, a red dog, a blue tulip, a pink bee, a purple snowman,
    a red dolphin, a green cloud, a purple panda, a red hamburger, a red mouse""")
WEIGHTS = ["a cat | a tiger:0.5", "a cat | a tiger:2", "a bear | a panda:1", "a rose | red:-1"]
NEGATIVE = [("a rose", "red"), ("a car", "red"), ("a balloon", "blue"), ("a cat", "orange")]
PROMPTS = [(prompt, "") for prompt in (*PLAIN, *COLOURS, *UNSEEN, *WEIGHTS)] + NEGATIVE
OUT = Path(__file__).with_name("contact-sheet.png")


def main(quick: bool = False, out: Path = OUT) -> None:
    """Draw every prompt, ten in a row; in colour pairs that training never saw, too."""
    draw = clipguide.TextToImage()
    pictures, labels = [], []
    for prompt, negative in PROMPTS[-1:] if quick else PROMPTS:
        pictures += draw(prompt, negative=negative, seed=0, steps=4 if quick else 30)
        labels.append(f"{prompt} -{negative}" if negative else prompt)
        print(f"{labels[-1]}: judge {pictures[-1].judge_score:.3f}")
    sheet = images.contact_sheet([p.image for p in pictures], labels=labels, columns=10)
    sheet.save(out)


if __name__ == "__main__":
    typer.run(main)
