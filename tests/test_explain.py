"""Heat maps: attention spelt out is the same attention, relevance against a float64 reference of
its own, towers in which the right place is known, and where mini points."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import IMAGE_SIZE
from hf_folder import write_hf_clip, write_hf_siglip
from PIL import Image
from test_clip import landscape
from test_clip_families import write_family
from torch import nn
from torch.testing import assert_close

from clipguide import mini
from clipguide.clip import Clip, load_clip, resize
from clipguide.errors import ClipguideError, UsageError
from clipguide.explain import explicit_attention, heat_maps, overlay
from clipguide.images import load, to_tensor

PICTURES = Path(__file__).parents[1] / "samples/pictures"
ORIGINAL = F.scaled_dot_product_attention
FAMILIES = ["ViT", "ResNet", "ConvNeXt", "CoCa", "SigLIP", "EVA", "MobileCLIP", "NFNet"]
HUGGING = {"hf-clip": write_hf_clip, "hf-siglip": write_hf_siglip}
TRANSFORMERS = ["ViT", "CoCa", "SigLIP", "EVA", *HUGGING]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A CLIP of a family, of random weights, loaded once."""
    loaded: dict[str, Clip] = {}

    def get(name: str) -> Clip:
        if name not in loaded:
            folder = tmp_path_factory.mktemp(name)
            path = HUGGING[name](folder) if name in HUGGING else write_family(folder, name)
            loaded[name] = load_clip(str(path))
        return loaded[name]

    return get


class Tower(nn.Module):
    """A tower made by hand, with what else `Clip` asks for."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.visual, self.context_length = nn.Module(), 8
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.visual.preprocess_cfg = {
            "size": side,
            "mean": [0.0] * 3,
            "std": [1.0] * 3,
            "interpolation": "bilinear",
            "resize_mode": "squash",
        }

    def encode_text(self, tokens_BL):
        return torch.eye(3)[: len(tokens_BL)]


class Averaging(Tower):
    """Convolutions that do nothing: the embedding is the mean colour."""

    def __init__(self) -> None:
        super().__init__(32)
        self.fine = nn.Conv2d(3, 3, 4, stride=4, groups=3, bias=False)
        self.coarse = nn.Conv2d(3, 3, 2, stride=2, groups=3, bias=False)
        nn.init.constant_(self.fine.weight, 1 / 16)
        nn.init.constant_(self.coarse.weight, 1 / 4)

    def encode_image(self, image_B3HW):
        return self.coarse(self.fine(image_B3HW)).mean((2, 3))


class Attending(Tower):
    """Patches of 4 px that attend to each other, twice; the first token is what it saw of them."""

    def __init__(self) -> None:
        super().__init__(32)
        self.patch = nn.Conv2d(3, 3, 4, stride=4, groups=3, bias=False)
        nn.init.constant_(self.patch.weight, 1 / 16)

    def encode_image(self, image_B3HW):
        x_BLD = self.patch(image_B3HW).flatten(2).transpose(1, 2)
        x_BLD = torch.cat([torch.full_like(x_BLD[:, :1], 0.1), x_BLD], 1)
        for _ in range(2):
            x_BLD = x_BLD + F.scaled_dot_product_attention(*[x_BLD[:, None]] * 3)[:, 0]
        return x_BLD[:, 0]


class AttendingAlike(Attending):
    """The same without a first token: all that the patches saw is averaged."""

    def encode_image(self, image_B3HW):
        x_BLD = self.patch(image_B3HW).flatten(2).transpose(1, 2)
        for _ in range(2):
            x_BLD = x_BLD + F.scaled_dot_product_attention(*[x_BLD[:, None]] * 3)[:, 0]
        return x_BLD.mean(1)


def by_hand(tower: Tower) -> Clip:
    def tokenize(texts, context_length=8):
        return torch.tensor([[len(text)] * context_length for text in texts])

    return Clip(tower, transform=None, tokenizer=tokenize, name="by hand")


def square(colour: str, box: tuple[int, int, int, int], size=(32, 32)) -> Image.Image:
    picture = Image.new("RGB", size, "black")
    picture.paste(colour, box)
    return picture


@pytest.mark.parametrize("name", [*FAMILIES, *HUGGING])
def test_the_embedding_is_the_same_and_the_maps_are_in_range(name, family):
    clip, pictures = family(name), [landscape(90, 60), landscape(61, 97, seed=1)]
    image_B3HW = torch.cat(
        [resize(to_tensor([p]), clip.preprocess, clip.image_size) for p in pictures]
    )
    expected_BD = clip.encode_image(image_B3HW)
    kept = []
    with explicit_attention(kept.append):
        explicit_BD = clip.encode_image(image_B3HW.clone().requires_grad_())
    assert_close(explicit_BD, expected_BD, atol=1e-5, rtol=0)
    assert bool(kept) == (name not in ("ConvNeXt", "NFNet"))
    for probability in kept:
        assert_close(probability.sum(-1), torch.ones(probability.shape[:-1]))
    map_BNHW = heat_maps(clip, pictures, clip.encode_text(["a red fox", "an owl", "two zebras"]))
    assert map_BNHW.shape == (2, 3, clip.image_size, clip.image_size)
    assert map_BNHW.min() == 0 and map_BNHW.max() == 1
    assert all(high == 1 or high == 0 for high in map_BNHW.amax((2, 3)).flatten())
    assert (map_BNHW[0] - map_BNHW[1]).abs().max() > 0.1, "all images are alike"
    assert F.scaled_dot_product_attention is ORIGINAL
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in clip._model.modules())
    assert all(p.grad is None for p in clip._model.parameters())


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_are_explained_by_their_attention(name, family, monkeypatch):
    """Not by the features of their patches, which are all that Grad-CAM would see."""
    monkeypatch.setattr("clipguide.explain._features", None)
    clip = family(name)
    heat_maps(clip, [landscape(40, 40)], clip.encode_text(["a red fox"]))


@pytest.mark.parametrize("name", ["ResNet", "ConvNeXt", "MobileCLIP", "NFNet"])
def test_convolutions_are_explained_by_their_features(name, family, monkeypatch):
    monkeypatch.setattr("clipguide.explain._relevance", None)
    clip = family(name)
    heat_maps(clip, [landscape(80, 80)], clip.encode_text(["a red fox"]))


def test_relevance_is_that_of_chefer_et_al(family):
    """By transformers' own attention probabilities (eager) and a product in float64."""
    clip = family("hf-clip")
    vision, picture = clip._model.model.vision_model, landscape(IMAGE_SIZE, IMAGE_SIZE)
    text_ND = clip.encode_text(["a red fox", "an owl"])
    ours_NHW = heat_maps(clip, [picture], text_ND, contrast=False)[0]
    pixel_13HW = (to_tensor([picture]) - clip._mean_3[:, None, None]) / clip._std_3[:, None, None]
    vision.set_attn_implementation("eager")
    try:
        out = vision(pixel_values=pixel_13HW.requires_grad_(), output_attentions=True)
    finally:
        vision.set_attn_implementation("sdpa")
    unit_D = F.normalize(clip._model.model.visual_projection(out.pooler_output), dim=-1)[0]
    for map_HW, text_D in zip(ours_NHW, text_ND):
        gradients = torch.autograd.grad(unit_D @ text_D, out.attentions, retain_graph=True)
        relevance = np.eye(17)
        for probability, gradient in zip(out.attentions, gradients):
            product = (gradient * probability)[0].detach().numpy().astype(np.float64)
            relevance = relevance + np.maximum(product, 0).mean(0) @ relevance
        heat = torch.tensor(relevance[0, 1:].reshape(4, 4))
        heat = F.interpolate(heat[None, None], (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")[0, 0]
        expected = (heat - heat.min()) / (heat.max() - heat.min())
        assert_close(map_HW.double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tower", [Averaging, Attending, AttendingAlike])
def test_a_place_that_is_known(tower):
    """Red on the left, green below: each text's heat is on its square, and nowhere else."""
    clip = by_hand(tower())
    picture = square("red", (0, 8, 8, 16))
    picture.paste((0, 255, 0), (16, 24, 24, 32))
    red_HW, green_HW = heat_maps(clip, [picture], torch.eye(3)[:2])[0]
    for map_HW, (left, top) in ((red_HW, (0, 8)), (green_HW, (16, 24))):
        near = map_HW[max(0, top - 4) : top + 12, max(0, left - 4) : left + 12].sum()
        assert near / map_HW.sum() > 0.9
        assert map_HW[top + 4, left + 4] > 0.8
    assert heat_maps(clip, [square("blue", (0, 0, 8, 8))], torch.eye(3)[:1]).max() == 0


def test_contrast_is_the_difference_from_the_mean(clip):
    text_ND = clip.encode_text(["a red fox", "an owl"])
    picture = [landscape(50, 40)]
    apart = heat_maps(clip, picture, text_ND)
    assert_close(apart, heat_maps(clip, picture, text_ND - text_ND.mean(0), contrast=False))
    assert (apart - heat_maps(clip, picture, text_ND, contrast=False)).abs().max() > 0.1
    alone = heat_maps(clip, picture, text_ND[:1])
    assert_close(alone, heat_maps(clip, picture, text_ND[:1], contrast=False))
    assert heat_maps(clip, picture, text_ND[[0, 0]]).max() == 0, "alike: nothing tells them apart"


def test_an_ensemble_of_one_clip_twice_is_that_clip(clip):
    from clipguide.clip.ensemble import Ensemble

    both = Ensemble([clip, clip])
    texts, picture = ["a red fox", "an owl"], [landscape(50, 40)]
    alone = heat_maps(clip, picture, clip.encode_text(texts))
    assert_close(heat_maps(both, picture, both.encode_text(texts)), alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": torch.rand(5, 7, generator=torch.manual_seed(1)) > 0.3},
        {"attn_mask": torch.randn(5, 7, generator=torch.manual_seed(2))},
    ],
    ids=["plain", "causal", "scale", "mask", "bias"],
)
def test_explicit_attention_is_torchs(options):
    query, key, value = (
        torch.randn(2, 4, length, 8, generator=torch.manual_seed(length), requires_grad=True)
        for length in (5, 7, 7)
    )
    expected = ORIGINAL(query, key, value, **options)
    with explicit_attention(lambda probability: None):
        assert_close(F.scaled_dot_product_attention(query, key, value, **options), expected)
    shared = key[:, :2], value[:, :2]
    expected = ORIGINAL(query, *shared, enable_gqa=True)
    with explicit_attention(lambda probability: None):
        assert_close(F.scaled_dot_product_attention(query, *shared, enable_gqa=True), expected)


def test_attention_is_put_back_after_an_exception(family, monkeypatch):
    clip = family("ViT")

    def fail(image_B3HW):
        raise ZeroDivisionError

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(clip._model, "encode_image", fail)
        heat_maps(clip, [landscape(40, 40)], torch.eye(clip.embed_dim)[:1])
    assert F.scaled_dot_product_attention is ORIGINAL
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in clip._model.modules())


def test_another_thread_keeps_its_attention():
    x = torch.randn(1, 1, 4, 4, generator=torch.manual_seed(0), requires_grad=True)
    kept, results = [], []
    with explicit_attention(kept.append):
        thread = threading.Thread(
            target=lambda: results.append(F.scaled_dot_product_attention(x, x, x))
        )
        thread.start()
        thread.join()
        assert not kept
        F.scaled_dot_product_attention(x, x, x)
    assert len(kept) == 1 and results[0].equal(ORIGINAL(x, x, x))


def test_no_gradient_is_left_behind_under_no_grad(clip):
    with torch.no_grad():
        map_BNHW = heat_maps(clip, [landscape(40, 40)], clip.encode_text(["a red fox"]))
    assert not map_BNHW.requires_grad


def test_bad_input(clip):
    picture, text_ND = landscape(40, 40), clip.encode_text(["a red fox"])
    with pytest.raises(UsageError, match="no image"):
        heat_maps(clip, [], text_ND)
    for wrong in (text_ND[0], text_ND[:0], text_ND[:, 1:]):
        with pytest.raises(UsageError, match="vectors of 24 numbers"):
            heat_maps(clip, [picture], wrong)

    class Blind(Tower):
        def encode_image(self, image_B3HW):
            return image_B3HW.mean((2, 3))

    with pytest.raises(ClipguideError, match="neither the attention"):
        heat_maps(by_hand(Blind(32)), [picture], torch.eye(3)[:1])


@pytest.mark.parametrize("size", [(64, 64), (120, 48), (48, 121)])
@pytest.mark.parametrize("mode", ["squash", "shortest", "longest"])
def test_overlay_lies_where_the_tower_looked(mode, size):
    """A white spot, seen through the tower's own resize, comes back to its place."""
    picture = Image.new("RGB", size, "black")
    x, y = size[0] // 2 - 10, size[1] // 2 + 2
    picture.paste("white", (x, y, x + 12, y + 12))
    config = {"resize_mode": mode, "interpolation": "bilinear", "fill_color": 0}
    map_HW = resize(to_tensor([picture]), config, 64)[0, 0]
    hot = np.asarray(overlay(Image.new("RGB", size), map_HW, resize_mode=mode)).astype(int)
    assert hot.shape == (size[1], size[0], 3)
    spot = np.asarray(picture)[..., 0] > 0
    warm = hot.sum(-1) > 150
    assert (warm & spot).sum() / (warm | spot).sum() > 0.6
    black = overlay(picture, torch.zeros(64, 64), resize_mode=mode)
    assert black.tobytes() == picture.tobytes(), "no heat, no change"


def pair(names: list[str], chance: random.Random) -> tuple[Image.Image, list[tuple]]:
    """Two drawings, of any size and height, one in each half of a white square; their boxes."""
    picture, boxes = Image.new("RGB", (320, 320), "white"), []
    for half, name in enumerate(names):
        side = chance.choice([112, 128, 144])
        left, top = half * 160 + chance.randint(0, 160 - side), chance.randint(0, 320 - side)
        picture.paste(load(PICTURES / f"{name}.png").resize((side, side)), (left, top))
        boxes.append((left, top, left + side, top + side))
    return picture, boxes


@pytest.mark.parametrize(("name", "pairs"), [("mini", 60), ("mini-judge", 15)])
def test_mini_points_at_what_is_named(name, pairs):
    """The pointing game (Zhang et al. 2016) over pairs of the samples' drawings: heat in the half,
    heat in the drawing's box, and the hottest place in the box."""
    try:
        mini.check("guide" if name == "mini" else "judge")
    except ClipguideError:
        pytest.skip("the package was built without its models")
    clip, chance = load_clip(name), random.Random(0)
    stems = sorted(path.stem for path in PICTURES.glob("*.png"))
    halves, insides, points = [], [], []
    for _ in range(pairs):
        names = chance.sample(stems, 2)
        picture, boxes = pair(names, chance)
        text_ND = clip.encode_text([f"a {name.replace('-', ' ')}" for name in names])
        scale = clip.image_size / picture.width
        for half, (map_HW, box) in enumerate(zip(heat_maps(clip, [picture], text_ND)[0], boxes)):
            left, top, right, bottom = (int(edge * scale) for edge in box)
            middle = clip.image_size // 2
            mine = map_HW[:, middle:] if half else map_HW[:, :middle]
            row, column = divmod(int(map_HW.argmax()), clip.image_size)
            halves.append(float(mine.sum() / map_HW.sum()))
            insides.append(float(map_HW[top:bottom, left:right].sum() / map_HW.sum()))
            points.append(left <= column < right and top <= row < bottom)
    figures = [float(np.mean(values)) for values in (halves, insides, points)]
    print(f"{name}: half {figures[0]:.3f}, box {figures[1]:.3f}, point {figures[2]:.3f}")
    assert figures[0] > 0.95 and figures[1] > 0.85 and figures[2] > 0.95
