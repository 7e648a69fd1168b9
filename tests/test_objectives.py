"""Objectives: finite differences, batch against single, composition, known values."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from clipguide.clip import load_clip
from clipguide.errors import ClipguideError
from clipguide.images import to_pil
from clipguide.objectives import Range, Similarity, TotalVariation, _dot, _spherical
from clipguide.views import Cutouts

PROMPTS = ["a red fox", "a zebra | stripes:0.5 | blur:-1", "xylophone:2 | fox:-0.5"]


@pytest.fixture(scope="module")
def clip64(clip_folder):
    return load_clip(str(clip_folder), dtype="float64")


def images(number: int = 3, low: float = 0.1, high: float = 0.9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return low + (high - low) * torch.rand(
        number, 3, 36, 36, generator=generator, dtype=torch.float64
    )


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def objectives(clip, prompts):
    return {
        "spherical": Similarity(clip, prompts, views=None),
        "dot": Similarity(clip, prompts, views=None, kind="dot"),
        "views": Similarity(clip, prompts, views=Cutouts(number=2)),
        "total variation": TotalVariation(),
        "range": Range(),
        "sum": Similarity(clip, prompts, views=Cutouts(number=1))
        + 0.3 * TotalVariation()
        + Range() * 2,
    }


NAMES = ["spherical", "dot", "views", "total variation", "range", "sum"]


@pytest.mark.parametrize("name", NAMES)
def test_gradient_by_finite_differences(clip64, name):
    """Each image's own loss along random directions, in float64."""
    objective = objectives(clip64, PROMPTS)[name]
    image = images(low=-0.3, high=1.3) if name == "range" else images()
    image.requires_grad_()
    loss_B = objective(image, generators(1, 2, 3))
    assert loss_B.shape == (3,)
    for i in range(3):
        (gradient,) = torch.autograd.grad(loss_B[i], image, retain_graph=True)
        assert torch.count_nonzero(gradient[[j for j in range(3) if j != i]]) == 0
        direction = torch.randn(image.shape, generator=generators(i)[0]).double()
        with torch.no_grad():
            ahead, behind = (
                objective(image + step * direction, generators(1, 2, 3))[i]
                for step in (1e-6, -1e-6)
            )
        expected = (ahead - behind) / 2e-6
        assert_close((gradient * direction).sum(), expected, rtol=2e-4, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_batch_equals_single(clip64, name):
    batch = objectives(clip64, PROMPTS)[name](images(), generators(1, 2, 3))
    for i, seed in enumerate((1, 2, 3)):
        alone = objectives(clip64, PROMPTS[i])[name](images()[i : i + 1], generators(seed))
        assert_close(batch[i], alone[0], rtol=1e-9, atol=1e-12)


def test_one_prompt_for_all_and_k_images_a_prompt(clip64):
    image = images(6)
    one = Similarity(clip64, "a red fox", views=None)(image)
    assert_close(one, Similarity(clip64, ["a red fox"] * 6, views=None)(image))
    two = Similarity(clip64, ["a red fox", "a zebra"], views=None)(image)
    assert_close(two[:3], one[:3])
    assert_close(two[3:], Similarity(clip64, "a zebra", views=None)(image[3:]))
    with pytest.raises(ClipguideError, match="4 prompts do not divide 6 images"):
        Similarity(clip64, ["a", "b", "c", "d"])(image)
    with pytest.raises(ClipguideError, match="no prompts"):
        Similarity(clip64, [])


def test_weights(clip64):
    """Σ w·d / Σ |w|, written out."""
    image = images(1)
    parts = {text: Similarity(clip64, text, views=None)(image) for text in ("fox", "owl")}
    mixed = Similarity(clip64, "fox:3 | owl:-1", views=None)(image)
    assert_close(mixed, (3 * parts["fox"] - parts["owl"]) / 4)
    assert_close(Similarity(clip64, "fox:-2", views=None)(image), -parts["fox"])


def test_distances():
    """Half the squared angle, and 1 − cos; finite gradients where vectors meet or oppose."""
    for angle in (0.0, 0.3, math.pi / 2, 3.0, math.pi):
        unit = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        text = torch.tensor([1.0, 0.0], dtype=torch.float64)
        unit.requires_grad_()
        assert _spherical(unit, text).item() == pytest.approx(angle**2 / 2, abs=4e-3)
        assert _dot(unit, text).item() == pytest.approx(1 - math.cos(angle))
        (gradient,) = torch.autograd.grad(_spherical(unit, text), unit)
        assert gradient.isfinite().all()


def test_known_values():
    flat = torch.full((1, 3, 8, 8), 0.5)
    assert TotalVariation()(flat).item() == 0
    ramp = torch.arange(8).float().expand(1, 3, 8, 8) / 10
    assert TotalVariation()(ramp).item() == pytest.approx(0.01)
    assert Range()(flat).item() == 0
    assert Range()(flat + 1).item() == pytest.approx(0.25)
    assert Range()(flat - 1).item() == pytest.approx(0.25)


def test_score_is_the_cosine(clip):
    image = images(2).float()
    text = clip.encode_text(["a red fox"])
    similarity = Similarity(clip, "a red fox")
    assert_close(similarity.score(image), clip.similarity(clip.encode_image(image), text)[:, 0])
    pictures = to_pil(image)
    assert_close(
        similarity.score_pictures(pictures), (clip.encode_pictures(pictures) @ text.T)[:, 0]
    )
    assert_close(similarity.score(image), similarity.score_pictures(pictures), atol=0.01, rtol=0)
    repelled = Similarity(clip, "a red fox | owl:-1").score(image)
    assert_close(repelled, (similarity.score(image) - Similarity(clip, "owl").score(image)) / 2)


def test_without_generators_a_call_repeats(clip):
    objective = Similarity(clip, "a red fox")
    first = objective(images(2).float())
    assert torch.equal(objective(images(2).float()), first)


def test_text_bits_do_not_depend_on_neighbours(clip):
    alone = Similarity(clip, "a red fox")._text_BPD
    among = Similarity(clip, ["a zebra", "a red fox", "a"])._text_BPD
    assert torch.equal(alone[0, 0], among[1, 0])


def test_padding_changes_no_bit(clip):
    """A prompt beside one of more parts: value and gradient, as alone with the same batch shape."""
    short, long = "a fox:2 | owl | blur:-0.3", "a | b | c | d | e"
    image = images(2).float().requires_grad_()
    results = []
    for prompts in ([short, short], [short, long]):
        loss_B = Similarity(clip, prompts)(image, generators(1, 2))
        results.append((loss_B[0], torch.autograd.grad(loss_B[0], image)[0]))
        results[-1] += (Similarity(clip, prompts).score(image)[0],)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_composition(clip):
    similarity = Similarity(clip, "a red fox")
    whole = 2 * similarity + TotalVariation() * 0.5
    assert [type(leaf).__name__ for leaf in whole.leaves()] == ["Similarity", "TotalVariation"]
    image = images(2).float()
    assert_close(whole(image), 2 * similarity(image) + 0.5 * TotalVariation()(image))
    with pytest.raises(TypeError):
        similarity + 1
    with pytest.raises(ClipguideError, match="spherical, dot, not 'cosine'"):
        Similarity(clip, "a", kind="cosine")
