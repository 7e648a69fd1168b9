import math

import pytest

from clipguide.errors import UsageError
from clipguide.prompts import ImagePart, Part, Prompt, compose, parse


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a red fox", [("a red fox", 1)]),
        ("  a   red\tfox\n", [("a red fox", 1)]),
        ("a red fox:1.5", [("a red fox", 1.5)]),
        ("a red fox : 2", [("a red fox", 2)]),
        ("fox | oil painting:0.5 | blur:-1", [("fox", 1), ("oil painting", 0.5), ("blur", -1)]),
        ("fox:1e-2|(.5):.5", [("fox", 0.01), ("(.5)", 0.5)]),
        ("ratio 3:4", [("ratio 3:4", 1)]),
        (r"ratio 3\:4", [("ratio 3:4", 1)]),
        (r"ratio 3\:4:2", [("ratio 3:4:2", 1)]),
        (r"this \| that", [("this | that", 1)]),
        (r"back\\slash", [("back\\slash", 1)]),
        (r"a \n b", [(r"a \n b", 1)]),
        ("title: a fox", [("title: a fox", 1)]),
        ("a:b:2", [("a:b", 2)]),
        ("fox:", [("fox:", 1)]),
        ("赤い狐:0.5", [("赤い狐", 0.5)]),
        ("Ω and é", [("Ω and é", 1)]),
        ("fox:0 | owl", [("fox", 0), ("owl", 1)]),
        ("a clock at 12:30", [("a clock at 12:30", 1)]),
        ("a fox at 12:30 | snow:0.5", [("a fox at 12:30", 1), ("snow", 0.5)]),
        ("a fox (red):-2", [("a fox (red)", -2)]),
        ('"a fox":2', [('"a fox"', 2)]),
        ("a fox!:2", [("a fox!:2", 1)]),
        ("a 🦊:2", [("a fox face", 2)]),
        ("❤️:2", [("heavy black heart", 2)]),
        (r"year\:2023", [("year:2023", 1)]),
        ("fox:10 | owl:-10", [("fox", 10), ("owl", -10)]),
    ],
)
def test_parts_and_weights(prompt, parts):
    assert parse(prompt).parts == tuple(Part(text, weight) for text, weight in parts)


def test_text_joins_the_positive_parts():
    assert parse("fox | oil painting:0.5 | blur:-1 | fog:0").text == "fox, oil painting"
    assert parse("blur:-1").text == ""


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("🦊", "fox face"),
        ("a 🦊 and an 🍎", "a fox face and an red apple"),
        ("❤️", "heavy black heart"),
        ("👍🏽", "thumbs up sign"),
        ("👩‍🚀", "woman rocket"),
        ("© 20°", "© 20°"),
    ],
)
def test_emoji_are_read_by_name(prompt, text):
    assert parse(prompt).text == text


@pytest.mark.parametrize(
    "prompt", ["", "  \n", "|", "fox |", "| fox", "fox || owl", ":2", "\u200d"]
)
def test_empty(prompt):
    with pytest.raises(UsageError, match="empty"):
        parse(prompt)


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf", "NaN", "1e999"])
def test_weights_are_finite(weight):
    with pytest.raises(UsageError, match="finite"):
        parse(f"fox:{weight}")


@pytest.mark.parametrize("prompt", ["year:2023", "a fox:11", "owl:-10.5 | fox", "fox:300"])
def test_a_number_too_large_for_a_weight_is_said(prompt):
    """With the way to write it as text, which then is what the generator gets."""
    with pytest.raises(UsageError, match="A weight is from -10 to 10") as caught:
        parse(prompt)
    escaped = str(caught.value).removesuffix(".").rpartition(" ")[2]
    assert parse(escaped).parts[0].weight == 1 and ":" in parse(escaped).text


def test_all_weights_zero():
    with pytest.raises(UsageError, match="weight 0"):
        parse("fox:0 | owl:0")


def test_not_text():
    with pytest.raises(UsageError, match="UTF-8"):
        parse("fox \udcff")


def test_a_long_prompt_is_read_in_full():
    prompt = parse(" ".join(["fox"] * 5000) + ":2")
    assert len(prompt.text.split()) == 5000 and math.isclose(prompt.parts[0].weight, 2)


def test_pictures_are_parts():
    picture, other = object(), object()
    prompt = compose("a fox | fog:-0.5", picture, ImagePart(other, 2), Part("owl", 3), parse("elk"))
    assert prompt.text == "a fox, owl, elk"
    texts = [part.text for part in prompt.parts]
    assert texts == ["a fox", "fog", "", "", "owl", "elk"]
    assert [part.weight for part in prompt.parts] == [1, -0.5, 1, 2, 3, 1]
    assert prompt.parts[2].image is picture and prompt.parts[3].image is other
    assert compose(picture).text == ""


@pytest.mark.parametrize("parts", [(), (Part("fox", 0),), (ImagePart(object(), 0), Part("a", 0))])
def test_a_prompt_made_by_hand_has_a_weight(parts):
    with pytest.raises(UsageError, match="whose weight is not 0"):
        Prompt(parts)


@pytest.mark.parametrize("part", [Part("fox", math.nan), ImagePart(object(), math.inf)])
def test_a_prompt_made_by_hand_has_finite_weights(part):
    with pytest.raises(UsageError, match="finite number"):
        Prompt((Part("owl"), part))


@pytest.mark.parametrize("prompt", ["a fox | a fox:-1", "a fox:0.5 | a dog:0 | a fox:-0.5"])
def test_weights_that_cancel_are_refused(prompt):
    with pytest.raises(UsageError, match="cancel each other out"):
        parse(prompt)


def test_weights_that_sum_to_zero_over_other_texts_are_a_direction():
    assert parse("a fox | a dog:-1").text == "a fox"
