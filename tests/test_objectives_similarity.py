"""Similarity to images, by direction and in chunks; init similarity."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from objective_checks import check_gradient, check_rows, generators, gradient_of, images
from PIL import Image
from torch.testing import assert_close

from clipguide.clip import load_clip
from clipguide.errors import ClipguideError, UsageError
from clipguide.images import to_pil
from clipguide.objectives import KINDS, InitSimilarity, Similarity
from clipguide.prompts import ImagePart, compose
from clipguide.views import Cutouts

VIEWS = Cutouts(number=2)


@pytest.fixture(scope="module")
def clip64(clip_folder):
    return load_clip(str(clip_folder), dtype="float64")


@pytest.fixture(scope="module")
def source():
    """Three images, 28 x 20."""
    generator = torch.Generator().manual_seed(9)
    return torch.rand(3, 3, 28, 20, generator=generator, dtype=torch.float64)


def directional(clip, source_image, prompts, views=None):
    return Similarity(
        clip, prompts, kind="directional", source="a photo", source_image=source_image, views=views
    )


PROMPTS = ["a red fox", "a zebra | stripes:0.5 | blur:-1", "xylophone:2 | fox:-0.5"]
MAKE = {
    "picture": lambda clip, source, prompts, i: Similarity(clip, source[i], views=None),
    "picture views": lambda clip, source, prompts, i: Similarity(clip, source[i], views=VIEWS),
    "directional": lambda clip, source, prompts, i: directional(clip, source[i], prompts[i]),
    "directional views": lambda clip, source, prompts, i: directional(
        clip, source[i], prompts[i], VIEWS
    ),
    "init": lambda clip, source, prompts, i: InitSimilarity(clip, source[i]),
    "init views": lambda clip, source, prompts, i: InitSimilarity(clip, source[i], views=VIEWS),
    "chunk": lambda clip, source, prompts, i: Similarity(clip, prompts[i], views=VIEWS, chunk=2),
}


@pytest.mark.parametrize("name", MAKE)
def test_gradient_and_rows(clip64, source, name):
    make = MAKE[name]
    batch = make(clip64, source, PROMPTS, slice(None))
    check_gradient(batch, images())
    check_rows(batch, images(), [make(clip64, source, PROMPTS, i) for i in range(3)])


def test_directional_by_its_formula(clip64, source):
    """1 − cos(ΔI, ΔT), written out; soft to 10⁻⁶ of a squared length."""
    image = images()
    for i, text in enumerate(("a red fox", "an owl", "a zebra")):
        start, goal = clip64.encode_text(["a photo"])[0], clip64.encode_text([text])[0]
        change = clip64.encode_image(image[i : i + 1]) - clip64.encode_image(source[i : i + 1])
        expected = 1 - F.cosine_similarity(change[0], goal - start, dim=0)
        loss = directional(clip64, source[i], text)(image[i : i + 1])[0]
        assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_directional_where_the_image_is_its_source(clip64):
    """Finite, and along the wanted direction: the gradient of −u·ΔT, unit ΔT, over 10⁻³."""
    image = images(1)
    gradient = gradient_of(directional(clip64, image[0], "a red fox"), image)
    wanted = F.normalize(
        clip64.encode_text(["a red fox"]) - clip64.encode_text(["a photo"]), dim=-1
    )
    x = image.clone().requires_grad_()
    (expected,) = torch.autograd.grad(-(clip64.encode_image(x) * wanted).sum() / 1e-3, x)
    assert_close(gradient, expected)


def test_source_is_seen_in_the_same_views(clip64):
    image = images(2)
    loss_B = InitSimilarity(clip64, image, views=Cutouts(number=3))(image, generators(1, 2))
    assert_close(loss_B, torch.zeros(2).double(), atol=1e-12, rtol=0)
    other = InitSimilarity(clip64, image.flip(0), views=Cutouts(number=3))
    assert (other(image, generators(1, 2)) > 1e-4).all()


def test_generators_advance_once(clip64, source):
    """As for a similarity without a source, so that what follows in a sum draws the same."""
    one, other = generators(7), generators(7)
    InitSimilarity(clip64, source[0], views=VIEWS)(images(1), one)
    Similarity(clip64, "a fox", views=VIEWS)(images(1), other)
    assert torch.equal(one[0].get_state(), other[0].get_state())


def test_init_is_one_minus_cosine(clip64, source):
    unit_BD, init_BD = clip64.encode_image(images()), clip64.encode_image(source)
    expected = 1 - (unit_BD * init_BD).sum(1)
    assert_close(InitSimilarity(clip64, source)(images()), expected)
    assert_close(InitSimilarity(clip64, list(source))(images()), expected)
    assert_close(InitSimilarity(clip64, source[0])(images())[0], expected[0])


def test_image_prompts(clip64, source):
    """A tensor as the engine sees it; a PIL image through the checkpoint's own transform."""
    image = images(2)
    unit_BD = clip64.encode_image(image)
    goal = clip64.encode_image(source[:1])
    assert_close(
        Similarity(clip64, source[0], kind="dot", views=None)(image), 1 - (unit_BD @ goal.T)[:, 0]
    )
    picture = to_pil(source[:1])[0]
    goal = clip64.encode_pictures([picture])
    for prompt in (picture, compose(picture), [picture, picture], compose(ImagePart(picture, 3))):
        loss_B = Similarity(clip64, prompt, kind="dot", views=None)(image)
        assert_close(loss_B, 1 - (unit_BD @ goal.T)[:, 0])
    grey = picture.convert("LA")  # any mode
    assert Similarity(clip64, grey, views=None)(image).isfinite().all()


def test_a_picture_beside_text(clip64, source):
    picture, image = to_pil(source[:1])[0], images(2)
    text = Similarity(clip64, "oil painting", views=None)(image)
    seen = Similarity(clip64, picture, views=None)(image)
    prompt = compose("oil painting:3", ImagePart(picture, -1))
    similarity = Similarity(clip64, prompt, views=None)
    assert_close(similarity(image), (3 * text - seen) / 4)
    assert similarity.prompts == (prompt,)
    again = Similarity(clip64, similarity.prompts, views=None)  # as a judge reads them
    assert torch.equal(again(image), similarity(image))


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
def test_chunks_change_nothing(clip, chunk):
    """Value and gradient within 1e-5, in float32."""
    image = images(2).float()
    whole = Similarity(clip, "a red fox", views=Cutouts(number=4))
    chunked = Similarity(clip, "a red fox", views=Cutouts(number=4), chunk=chunk)
    assert_close(chunked(image), whole(image), atol=1e-5, rtol=0)
    expected = gradient_of(whole, image)
    assert_close(
        gradient_of(chunked, image) / expected.std(), expected / expected.std(), atol=1e-5, rtol=0
    )
    with torch.no_grad():
        assert_close(chunked(image), whole(image), atol=1e-5, rtol=0)


def test_chunks_hold_less(clip):
    """The tensors alive between the forward and the backward pass."""

    def held(chunk):
        similarity = Similarity(clip, "a red fox", views=Cutouts(number=8), chunk=chunk)
        image = images(1).float().requires_grad_()
        bytes_ = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            bytes_[storage.data_ptr()] = storage.nbytes()
            return tensor

        gc.collect()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss_B = similarity(image)
        total = sum(bytes_.values())
        assert torch.autograd.grad(loss_B.sum(), image)[0].count_nonzero()
        return total

    assert held(1) < held(None) / 3


@pytest.mark.parametrize("size", [(9, 5), (70, 64)])
def test_any_size(clip, source, size):
    """Pictures smaller than what the CLIP sees, and sources of another size than the image."""
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    init = source[0].float()
    for objective in (
        Similarity(clip, init),
        InitSimilarity(clip, init, views=VIEWS),
        directional(clip, init, "a fox", VIEWS),
    ):
        assert objective(image).isfinite().all()
        assert gradient_of(objective, image).isfinite().all()


def test_bad_input(clip, source):
    with pytest.raises(UsageError, match="'sperical'. Did you mean spherical"):
        Similarity(clip, "a", kind="sperical")
    with pytest.raises(UsageError, match="Known: directional, dot, spherical"):
        Similarity(clip, "a", kind="euclid")
    assert set(KINDS) == {"directional", "dot", "spherical"}
    for chunk in (0, -1):
        with pytest.raises(UsageError, match="at least one view"):
            Similarity(clip, "a", chunk=chunk)
    for settings in (
        {"kind": "directional"},
        {"kind": "directional", "source": "a photo"},
        {"kind": "directional", "source_image": source},
        {"kind": "dot", "source": "a photo", "source_image": source},
    ):
        with pytest.raises(UsageError, match="takes a source"):
            Similarity(clip, "a", **settings)
    with pytest.raises(UsageError, match="says the same"):
        Similarity(clip, "owl | a fox", kind="directional", source="a fox", source_image=source)
    with pytest.raises(ClipguideError, match="2 source images do not divide 3 images"):
        InitSimilarity(clip, source[:2])(images().float())


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4, 3)), "a PIL image or a tensor, not ndarray"),
        (torch.rand(4, 4), "3 x H x W, not 4 x 4"),
        (torch.rand(1, 4, 4), "3 x H x W, not 1 x 4 x 4"),
        (torch.rand(3, 0, 4), "3 x H x W"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), r"floating-point numbers in \[0, 1\]"),
        (torch.full((3, 4, 4), 255.0), r"floating-point numbers in \[0, 1\]"),
        (torch.full((3, 4, 4), torch.nan), r"floating-point numbers in \[0, 1\]"),
    ],
)
def test_bad_pictures(clip, picture, message):
    with pytest.raises(UsageError, match=message):
        Similarity(clip, [picture])
    with pytest.raises(UsageError, match=message):
        InitSimilarity(clip, [picture])


def test_no_pictures(clip):
    with pytest.raises(UsageError, match="no image to compare"):
        InitSimilarity(clip, [])
    with pytest.raises(ClipguideError, match="no prompts"):
        Similarity(clip, torch.zeros(0, 3, 4, 4))
    assert Similarity(clip, [Image.new("RGB", (5, 5))] * 2)(images(2).float()).shape == (2,)
