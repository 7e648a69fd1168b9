"""Images whose range is another than [0, 1]: of integers, of floats, in tensors and in files."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from test_clip import landscape
from torch.testing import assert_close

from clipguide import InitSimilarity, Similarity, TotalVariation, images
from clipguide.errors import ClipguideWarning, UsageError

BYTES = torch.from_numpy(np.array(landscape(40, 30))).permute(2, 0, 1)[None]
UNIT = BYTES.float() / 255


def measures(clip):
    yield clip.encode_image
    yield Similarity(clip, "a red fox", views=None)
    yield Similarity(clip, "a red fox", views=None).score
    yield InitSimilarity(clip, landscape(32, 32), views=None)
    yield TotalVariation()
    yield 2 * TotalVariation() + Similarity(clip, "a red fox")


@pytest.mark.parametrize("kind", [torch.uint8, torch.uint16])
def test_integers_are_divided_by_their_range(clip, kind):
    image = BYTES if kind == torch.uint8 else (BYTES.int() * 257).to(kind)
    for measure in measures(clip):
        assert_close(measure(image), measure(UNIT), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_other_integers_are_refused(clip, kind):
    for measure in measures(clip):
        with pytest.raises(UsageError, match=r"An image of int\d+ has no range that is known"):
            measure((BYTES // 2).to(kind))


def test_floats_far_above_one_are_warned_of(clip):
    for measure in measures(clip):
        with pytest.warns(ClipguideWarning, match=r"values up to 2\d\d.*divide it by its range"):
            measure(BYTES.float())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            measure(4 * UNIT - 1)  # as a sampler's first estimate may be


def test_a_gradient_passes(clip):
    image = UNIT.clone().requires_grad_()
    Similarity(clip, "a red fox", views=None)(image).sum().backward()
    assert image.grad.norm() > 0


GREY = np.asarray(landscape(20, 16).convert("L"))


@pytest.mark.parametrize(
    "values",
    [
        GREY.astype(np.float32) / 255,
        GREY.astype(np.float32),
        GREY.astype(np.float32) * 257,
        GREY.astype(np.int32),
        GREY.astype(np.int32) * 257,
        GREY.astype(np.uint16) * 257,
        GREY.astype(np.uint8),
    ],
    ids=["unit", "float bytes", "float words", "int bytes", "int words", "words", "bytes"],
)
@pytest.mark.parametrize("ending", ["tiff", "pil"])
def test_a_file_of_other_numbers_is_seen_as_it_is(tmp_path, values, ending):
    """By what is in it: its numbers say whether they are of 1, 8 or 16 bits."""
    picture = Image.fromarray(values)
    if ending != "pil":
        file = tmp_path / f"a.{ending}"
        picture.save(file)
        picture = file
    assert (np.asarray(images.load(picture))[..., 0] == GREY).all()


def test_a_dark_picture_of_sixteen_bits_stays_dark(tmp_path):
    Image.fromarray(GREY.astype(np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(images.load(tmp_path / "a.png")).max() == 1


def test_numbers_beyond_sixteen_bits_are_spread(tmp_path):
    """As heights in metres times a thousand are: from the least to the greatest, and told of."""
    values = GREY.astype(np.int32) * 100_000 - 5_000_000
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.warns(ClipguideWarning, match="numbers from .* to .* spread from black to white"):
        shown = np.asarray(images.load(tmp_path / "a.tiff"))[..., 0].astype(float)
    expected = (GREY.astype(float) - GREY.min()) / (int(GREY.max()) - int(GREY.min())) * 255
    assert np.abs(shown - expected).max() <= 0.5
