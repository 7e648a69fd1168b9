"""What the memory of the embedded generator finds in a prompt."""

from __future__ import annotations

import time

import pytest

from clipguide.mini.names import Names, singular, written

THINGS = {  # English names, other names, keywords
    "fox": (["fox"], ["zorro", "狐", "🦊"], ["animal"]),
    "black cat": (["black cat"], ["gato negro"], ["cat", "animal"]),
    "cat": (["cat", "kitty"], ["gato", "猫"], ["animal", "pet"]),
    "fire engine": (["fire engine"], [], ["engine", "fire", "truck"]),
    "truck": (["truck"], [], ["delivery"]),
    "fire": (["fire"], [], ["flame"]),
    "hot beverage": (["coffee", "hot beverage"], [], ["tea"]),
    "bouquet": (["bouquet"], [], ["flower"]),
    "flower": (["flower"], ["rose"], []),
    "bear": (["bear"], ["beer"], ["animal"]),
    "beer": (["beer"], [], []),
    "clover": (["four leaf clover"], [], []),
    "glass": (["glass"], [], []),
    "bow and arrow": (["bow and arrow"], [], []),
    "bow": (["bow"], [], []),
    "arrow": (["arrow"], [], []),
    "sailboat": (["boat", "sailboat"], [], ["sailing"]),
    "knot": (["knot"], [], ["boat", "sailing"]),
    "tent": (["tent"], [], ["camping"]),
    "forest": (["forest"], [], []),
    "man": (["man"], [], []),
    "person with red hair": (["person with red hair"], [], ["hair"]),
    "car": (["car"], ["車", "coche"], []),
    "ambulance": (["ambulance"], ["車"], []),
    "check mark": (["check mark"], ["coche"], []),
    "ice": (["ice cream"], [], []),
    "cone": (["soft ice cream"], [], ["cone"]),
    "mountain": (["mountain"], [], []),
    "snow": (["snow capped mountain"], [], []),
    "sun": (["sun"], [], []),
    "medal": (["gold medal"], [], []),
    "bridge": (["bridge at night"], [], []),
    "shade": (["umbrella", "yellow umbrella"], [], []),
    "rain": (["umbrella", "umbrella with rain"], [], []),
    "cake": (["cake", "sweet cake"], [], []),
    "heart": (["heart"], [], []),
    "scissors": (["scissors"], [], []),
    "burning heart": (["heart on fire"], [], []),
    "shortcake": (["cake", "shortcake"], [], ["slice"]),
}
NAMES = Names(map(written, *zip(*THINGS.values())), {"negro": "black", "赤い": "red"})


@pytest.mark.parametrize(
    "prompt, thing, colour",
    [
        ("a red fox", "fox", "red"),
        ("FOXES", "fox", None),
        ("a fox, flat icon", "fox", None),
        ("a photo of a gray fox at night", "fox", "grey"),
        ("a black cat", "black cat", "black"),  # the longer name
        ("a black and white cat", "cat", "black"),
        ("a kitty", "cat", None),
        ("un zorro negro", "fox", "black"),
        ("a red steamboat", "sailboat", "red"),  # the end of a compound
        ("a delivery bobcat at sea", "cat", None),  # a compound before a keyword
        ("un gato negro", "black cat", "black"),
        ("赤い狐", "fox", "red"),
        ("🦊", "fox", None),
        ("a fire truck", "fire engine", None),  # all words, of names and keywords
        ("a red truck", "truck", "red"),
        ("a cup of coffee", "hot beverage", None),
        ("a cup of tea", "hot beverage", None),  # a keyword of one thing
        ("a bouquet of flowers", "bouquet", None),
        ("a glass of beer", "beer", None),  # not the Dutch bear
        ("a four leaf clover", "clover", None),  # no number
        ("a bow and arrow", "bow and arrow", None),
        ("a tent in the forest", "tent", None),
        ("a fox tent", "tent", None),  # the last of a compound
        ("a sailing boat", "sailboat", None),  # by its name, not by keywords alone
        ("a blue tent near a red fox", "tent", "blue"),
        ("a fox on a green hill", "fox", None),
        ("a cat holding a glass", "cat", None),
        ("a red fox and a blue tent", "fox", "red"),
        ("a woman with red hair", "person with red hair", None),  # the hair is red
        ("a man in a red car", "man", None),
        ("a blue campfire", "fire", "blue"),
        ("an ice cream cone", "cone", None),  # all words, against a name of two
        ("an ice cream", "ice", None),
        ("a snowy mountain", "snow", None),  # the noun of an adjective
        ("a sunny day", "sun", None),
        ("a crimson fox", "fox", "red"),  # a shade
        ("an umbrella in the rain", "rain", None),  # of two with the same name
        ("a yellow umbrella", "shade", "yellow"),
        ("a slice of cake", "shortcake", None),  # by the word before "of"
        ("a sweet cake", "cake", None),
        ("a gold medal", "medal", None),  # as a part of a name, it is none
        ("赤い車", "car", "red"),  # the plainest of what a foreign word names
        ("un coche negro", "car", "black"),
    ],
)
def test_found(prompt, thing, colour):
    found = NAMES.find(prompt)
    assert found is not None
    assert [list(THINGS)[k] for k in found.things] == [thing]
    assert found.colour == colour


@pytest.mark.parametrize(
    "prompt",
    [
        "", "of", "a", "freedom", "a windmill in the forest", "a dog and a cat", "three foxes",
        "an animal", "a windmill, a fox", "赤い", "a seafox",
    ],
)  # fmt: skip
def test_not_found(prompt):
    """No thing, one that stands beside what is asked for, several, or a keyword of many."""
    assert NAMES.find(prompt) is None


NUMBERS = ("three red foxes", "2 tents in the forest")


@pytest.mark.parametrize(
    "prompt, things, prompts",
    [
        ("a red fox and a cat", ["fox", "cat"], ("a red fox", "a cat")),
        ("a fox to the left of a tent", ["fox", "tent"], ("a fox", "a tent")),
        ("a fox to the right of a tent", ["tent", "fox"], ("a tent", "a fox")),
        ("a fox next to a tent, flat", ["fox", "tent"], ("a fox", "a tent")),
        ("un zorro y un gato negro", ["fox", "black cat"], ("un zorro", "un gato negro")),
        ("a red fox and a white fox", ["fox", "fox"], ("a red fox", "a white fox")),
        ("three red foxes", ["fox"] * 3, ("a red fox",) * 3),
        ("2 tents in the forest", ["tent"] * 2, ("a tent in the forest",) * 2),
        ("a fox, a cat and a tent", ["fox", "cat", "tent"], ("a fox", "a cat", "a tent")),
        ("a red fox, cat, and a tent", ["fox", "cat", "tent"], ("a red fox", "cat", "a tent")),
        ("a tent and cats", ["tent", "cat", "cat"], ("a tent", "a cat", "a cat")),
        ("red foxes and tents", ["fox"] * 2 + ["tent"] * 2, ("a red fox",) * 2 + ("a tent",) * 2),
        ("a fox, a tent and cats", ["fox", "tent", "cat", "cat"],
         ("a fox", "a tent", "a cat", "a cat")),
        ("two foxes and a cat", ["fox", "fox", "cat"], ("a fox", "a fox", "a cat")),
        ("a cat, two foxes and a tent", ["cat", "fox", "fox", "tent"],
         ("a cat", "a fox", "a fox", "a tent")),
        ("two foxes and cats", ["fox", "fox", "cat", "cat"], ("a fox",) * 2 + ("a cat",) * 2),
        ("three foxes and cats", ["fox"] * 3 + ["cat"], ("a fox",) * 3 + ("cats",)),
        ("a fox, !!, a cat and ?", None, None),
        ("a fox and scissors", ["fox", "scissors"], ("a fox", "scissors")),  # one thing's name
        ("a fox, a cat, flat and shiny", None, None),
        ("a fox, a cat and a hen", None, None),
        ("a fox, a cat, a tent", None, None),
    ],
)
def test_scenes(prompt, things, prompts):
    found = NAMES.scene(prompt)
    if things is None:
        assert found is None
        return
    assert [list(THINGS)[k] for named in found.objects for k in named.things] == things
    assert found.prompts == prompts and found.same is (prompt in NUMBERS) and found.ground is None
    assert not found.above


@pytest.mark.parametrize(
    "prompt, things, prompts, ground",
    [
        ("a red fox on a tent", ["fox", "tent"], ("a red fox", "a tent"), None),
        ("a fox sitting on top of a tent", ["fox", "tent"], ("a fox sitting", "a tent"), None),
        ("a fox under the tent, flat", ["tent", "fox"], ("the tent", "a fox"), None),
        ("a fox over a tent at night", ["fox", "tent"], ("a fox", "a tent"), "night"),
        ("a fox on a hen", None, None, None),
        ("a fox on a red fox", None, None, None),
        ("a heart on fire", None, None, None),  # a name
        ("a heart above a fire", ["heart", "fire"], ("a heart", "a fire"), None),
    ],
)
def test_one_above_the_other(prompt, things, prompts, ground):
    found = NAMES.scene(prompt)
    if things is None:
        assert found is None
        return
    assert [list(THINGS)[k] for named in found.objects for k in named.things] == things
    assert found.prompts == prompts and found.above and found.ground == ground


@pytest.mark.parametrize(
    "prompt, things, prompts, ground",
    [
        ("a red fox on a yellow background", ["fox"], ("a red fox",), "yellow"),
        ("A fox with a plain light blue backdrop, flat", ["fox"], ("a fox",), "blue"),
        ("a fox against a navy background", ["fox"], ("a fox",), "blue"),
        ("a fox and a cat at night", ["fox", "cat"], ("a fox", "a cat"), "night"),
        ("three foxes on a pink ground", ["fox"] * 3, ("a fox",) * 3, "pink"),
        ("a fox at night in the forest", ["fox"], ("a fox in the forest",), "night"),
    ],
)
def test_grounds(prompt, things, prompts, ground):
    found = NAMES.scene(prompt)
    assert [list(THINGS)[k] for named in found.objects for k in named.things] == things
    assert found.prompts == prompts and found.ground == ground


@pytest.mark.parametrize(
    "prompt",
    ["a fox", "a bow and arrow", "a four leaf clover", "a black and white cat", "a fox and a hen",
     "a hen and a fox", "five foxes", "a fox and a fox", "three foxes and two cats", "three hens",
     "and", "two", "", "a fox on a nice background", "a hen at night", "a bridge at night",
     "a fox, camping and a cat", "two foxes, three cats and a tent",
     "a fox, a cat, a tent, a man and a sun",
     "a fox on a background of blue", "on a red background", "a fox on a red hill"],
)  # fmt: skip
def test_no_scenes(prompt):
    """One object, one that has a joint or a number in its name, one that is not known, or more."""
    assert NAMES.scene(prompt) is None


def test_the_plural_is_taken_off():
    assert [*map(singular, ("foxes", "cats", "glass", "glasses", "bus", "狐", "gas"))] == [
        "fox", "cat", "glass", "glass", "bus", "狐", "gas",
    ]  # fmt: skip


def test_a_long_prompt_is_read_soon():
    """Of megabytes, too."""
    before = time.process_time()
    for prompt in ("a fox and " * 10**5, "on " * 10**5, "a fox, " * 10**5, "two " * 10**5):
        NAMES.scene(prompt)
    assert time.process_time() - before < 5
