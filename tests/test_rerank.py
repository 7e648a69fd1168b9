"""Order against brute force in numpy, invariants, and copies of the samples' drawings."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.testing import assert_close

from clipguide import load_clip, mini
from clipguide.errors import ClipguideError, UsageError
from clipguide.images import load
from clipguide.rerank import Criterion, combine, duplicates, mmr, plain_order, rank

PICTURES = Path(__file__).parents[1] / "samples/pictures"


def scored(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.manual_seed(seed)
    relevance_B = torch.rand(count, generator=random)
    return relevance_B, F.normalize(torch.randn(count, 5, generator=random), dim=-1)


def greedy(relevance: np.ndarray, similarity: np.ndarray, trade: float, keep: int) -> list[int]:
    """Carbonell and Goldstein's definition, spelt out; `trade` is their lambda."""
    chosen, left = [], list(range(len(relevance)))
    while left and len(chosen) < keep:
        values = [
            trade * relevance[i] - (1 - trade) * max(similarity[i][j] for j in chosen)
            if chosen
            else relevance[i]
            for i in left
        ]
        chosen.append(left.pop(int(np.argmax(values))))
    return chosen


@pytest.mark.parametrize("diversity", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_mmr_is_the_greedy_definition(diversity, seed):
    relevance_B, unit_BD = scored(30, seed)
    relevance_B, unit_BD = relevance_B.double(), unit_BD.double()
    similarity_BB = unit_BD @ unit_BD.T
    ours = mmr(relevance_B, lambda place: similarity_BB[place], diversity=diversity, keep=12)
    assert ours == greedy(relevance_B.numpy(), similarity_BB.numpy(), 1 - diversity, 12)


@pytest.mark.parametrize("diversity", [0.3, 0.7])
def test_rank_stretches_both_to_one_range(diversity):
    """Whatever the CLIP: a relevance in other units and cosines in a narrow cone change nothing."""
    relevance_B, unit_BD = scored(25)
    unit_BD = F.normalize(unit_BD + 3 * torch.eye(5)[0], dim=-1).double()
    best = rank(relevance_B, unit_BD, diversity=diversity).best
    assert rank(5 * relevance_B - 7, unit_BD, diversity=diversity).best == best
    first = int(relevance_B.argmax())
    cosine_BB = (unit_BD @ unit_BD.T).numpy()
    low = cosine_BB[first].min()
    stretched_B = (relevance_B - relevance_B.min()) / (relevance_B.max() - relevance_B.min())
    expected = greedy(
        stretched_B.double().numpy(), (cosine_BB - low) / (1 - low), 1 - diversity, 25
    )
    assert best == expected != plain_order(relevance_B)


def test_no_diversity_is_a_plain_sort():
    relevance_B, unit_BD = scored(40)
    expected = sorted(range(40), key=lambda i: -relevance_B[i])
    assert rank(relevance_B, unit_BD).best == expected
    assert rank(relevance_B, unit_BD, keep=7).best == expected[:7]
    assert rank(relevance_B, unit_BD, keep=1000).best == expected
    assert rank(relevance_B, unit_BD, diversity=1e-12).best == expected
    assert rank(relevance_B, unit_BD, diversity=0.5, keep=1000).best[0] == expected[0]


@pytest.mark.parametrize("options", [{}, {"diversity": 0.4}, {"duplicate": 0.8}, {"keep": 5}])
def test_the_input_order_does_not_matter(options):
    relevance_B, unit_BD = scored(30)
    shuffled = torch.randperm(30, generator=torch.manual_seed(5))
    there = rank(relevance_B[shuffled], unit_BD[shuffled], **options)
    here = rank(relevance_B, unit_BD, **options)
    assert [int(shuffled[place]) for place in there.best] == here.best
    copies = {int(shuffled[i]): int(shuffled[j]) for i, j in there.duplicate_of.items()}
    assert copies == here.duplicate_of


def test_ties_go_to_the_first():
    same_BD = torch.eye(6)
    assert rank(torch.zeros(6), same_BD).best == list(range(6))
    assert rank(torch.zeros(6), same_BD, diversity=0.5).best == list(range(6))
    assert rank(torch.tensor([1.0, 2, 1, 2]), same_BD[:4], diversity=0.0).best == [1, 3, 0, 2]
    alike_BD = same_BD[[0, 0, 0]]
    assert rank(torch.zeros(3), alike_BD, duplicate=0.9).duplicate_of == {1: 0, 2: 0}
    assert rank(torch.zeros(1), alike_BD[:1], diversity=1.0).best == [0]


def test_duplicates_are_of_a_better_one_that_is_kept():
    relevance_B, unit_BD = scored(60)
    best = plain_order(relevance_B)
    copies = duplicates(unit_BD, best, 0.7)
    kept = [place for place in best if place not in copies]
    assert copies and len(kept) > 5
    cosine_BB = unit_BD @ unit_BD.T
    for one, other in itertools.combinations(kept, 2):
        assert cosine_BB[one, other] < 0.7
    for copy, original in copies.items():
        before = [place for place in kept if best.index(place) < best.index(copy)]
        assert original == next(place for place in before if cosine_BB[copy, place] >= 0.7)
    order = rank(relevance_B, unit_BD, duplicate=0.7)
    assert order.best == kept and order.duplicate_of == copies


def test_criteria_of_one_unit_are_added_as_they_are():
    text_B, negative_B = torch.rand(8, generator=torch.manual_seed(1)), torch.rand(8)
    total_B = combine([Criterion("text", text_B), Criterion("negative", negative_B, -0.5)])
    assert_close(total_B, text_B.double() - 0.5 * negative_B.double())
    assert_close(combine([Criterion("aesthetic", text_B, 2.0, "head")]), 2 * text_B.double())


def test_criteria_of_other_units_are_standardised():
    random = np.random.default_rng(0)
    text, negative, looks = random.random(9), random.random(9) / 5, 1 + 9 * random.random(9)
    total_B = combine(
        [
            Criterion("text", torch.tensor(text)),
            Criterion("negative", torch.tensor(negative), -1.0),
            Criterion("aesthetic", torch.tensor(looks), 0.5, "head"),
        ]
    )
    scale = np.sqrt((text.var() + negative.var()) / 2)
    expected = (text - text.mean() - (negative - negative.mean())) / scale
    expected += 0.5 * (looks - looks.mean()) / looks.std()
    assert_close(total_B, torch.tensor(expected))
    again_B = combine(
        [
            Criterion("text", torch.tensor(text * 100)),
            Criterion("negative", torch.tensor(negative * 100), -1.0),
            Criterion("aesthetic", torch.tensor(looks - 50), 0.5, "head"),
        ]
    )
    assert_close(again_B, total_B, msg="units do not matter")


def test_a_criterion_by_which_all_are_alike_counts_for_nothing():
    text_B = torch.rand(5)
    same = Criterion("aesthetic", torch.full((5,), 5.3), 10.0, "head")
    assert plain_order(combine([Criterion("text", text_B), same])) == plain_order(text_B)


def test_bad_input():
    relevance_B, unit_BD = scored(4)
    for options, message in [
        ({"keep": 0}, "At least one"),
        ({"diversity": 1.5}, "between 0 and 1"),
        ({"diversity": float("nan")}, "between 0 and 1"),
        ({"duplicate": 1.01}, "at most 1"),
        ({"duplicate": float("nan")}, "at most 1"),
    ]:
        with pytest.raises(UsageError, match=message):
            rank(relevance_B, unit_BD, **options)
    with pytest.raises(UsageError, match="nothing to rank by"):
        combine([])
    with pytest.raises(UsageError, match="weight of text"):
        Criterion("text", relevance_B, float("inf"))
    with pytest.raises(UsageError, match="not all finite"):
        Criterion("text", relevance_B / 0)
    with pytest.raises(UsageError, match="not \\[3, 4\\]"):
        combine([Criterion("text", relevance_B), Criterion("negative", relevance_B[:3])])


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return load(Image.open(stream))


COPIES = {
    "recompressed": lambda picture: jpeg(picture, 50),
    "half the size": lambda picture: picture.resize((80, 80), Image.Resampling.LANCZOS),
    "twice the size": lambda picture: picture.resize((320, 320), Image.Resampling.BICUBIC),
    "cropped by 2 % a side": lambda picture: picture.crop((3, 3, 157, 157)),
}


@pytest.fixture(scope="module")
def drawings():
    try:
        mini.check("guide")
    except ClipguideError:
        pytest.skip("the package was built without its models")
    clip = load_clip("mini")
    pictures = [load(path) for path in sorted(PICTURES.glob("*.png"))]
    return clip, pictures, clip.encode_pictures(pictures)


@pytest.mark.parametrize("copy", COPIES)
def test_copies_of_drawings_are_dropped_and_no_drawing_is(copy, drawings):
    """At the default threshold, of mini; each copy as one of its own original."""
    clip, pictures, unit_BD = drawings
    count = len(pictures)
    both_BD = torch.cat([unit_BD, clip.encode_pictures([COPIES[copy](p) for p in pictures])])
    copies = duplicates(both_BD, range(2 * count))
    assert copies == {count + i: i for i in range(count)}
