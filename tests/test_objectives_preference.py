"""Aesthetic heads and preference models of random weights, against their formulas."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from hf_folder import write_hf_clip
from objective_checks import check_gradient, check_rows, images
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from clipguide.clip import load_clip
from clipguide.errors import ClipguideError, UsageError
from clipguide.images import to_pil
from clipguide.objectives import Aesthetic, HPSv2, ImageReward, PickScore, Preference, Similarity
from clipguide.views import Cutouts

PROMPTS = ["a red fox", "a zebra | stripes:0.5 | blur:-1", "xylophone:2 | fox:-0.5"]
TINY = "clipguide-tiny"  # a made architecture of open_clip


@pytest.fixture(scope="module")
def clip64(clip_folder):
    return load_clip(str(clip_folder), dtype="float64")


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Both layouts, in both formats; the MLP as the predictor's own nn.Sequential makes it."""
    folder = tmp_path_factory.mktemp("heads")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear = nn.Linear(24, 1)
        mlp = nn.Module()
        mlp.layers = nn.Sequential(
            nn.Linear(24, 40), nn.Dropout(0.2), nn.Linear(40, 30), nn.Dropout(0.2),
            nn.Linear(30, 20), nn.Dropout(0.1), nn.Linear(20, 10), nn.Linear(10, 1),
        )  # fmt: skip
    for name, head in {"linear": linear, "mlp": mlp.eval()}.items():
        torch.save(head.state_dict(), folder / f"{name}.pth")
        save_file(head.state_dict(), folder / f"{name}.safetensors")
    return folder, {"linear": linear, "mlp": mlp.layers}


@pytest.fixture(scope="module")
def pick_folder(tmp_path_factory):
    return write_hf_clip(tmp_path_factory.mktemp("pick"), seed=1)


@pytest.fixture(scope="module")
def hps(tmp_path_factory):
    """A tiny open_clip architecture, its model and the pickle of its weights as HPSv2 ships it."""
    import open_clip

    folder = tmp_path_factory.mktemp("hps")
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}
    (folder / f"{TINY}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{TINY}.json")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, _, transform = open_clip.create_model_and_transforms(TINY, load_weights=False)
    state = model.state_dict()
    torch.save({"epoch": 3, "state_dict": state}, folder / "hps.pt")
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "hps.safetensors")
    return folder, model.eval(), transform, open_clip.get_tokenizer(TINY)


@pytest.mark.parametrize("layout", ["linear", "mlp"])
def test_aesthetic(clip64, heads, layout):
    folder, modules = heads
    image = images()
    with torch.no_grad():
        expected = modules[layout].double()(clip64.encode_image(image))[:, 0]
    for file, trust in ((f"{layout}.safetensors", False), (f"{layout}.pth", True)):
        aesthetic = Aesthetic(clip64, folder / file, trust_pickle=trust)
        assert_close(aesthetic(image), -expected)
        assert_close(aesthetic.score(image), expected)
    pictures = to_pil(image)
    with torch.no_grad():
        expected = modules[layout](clip64.encode_pictures(pictures))[:, 0]
    assert_close(aesthetic.score_pictures(pictures), expected)
    views = Aesthetic(clip64, folder / f"{layout}.safetensors", views=Cutouts(number=2), chunk=2)
    for objective in (aesthetic, views):
        check_gradient(objective, image)
        check_rows(objective, image)


def test_heads_that_are_refused(clip64, judge, heads, tmp_path):
    folder, _ = heads
    with pytest.raises(UsageError, match="a pickle, not safetensors: give trust_pickle=True"):
        Aesthetic(clip64, folder / "linear.pth")
    with pytest.raises(UsageError, match="no weights"):
        Aesthetic(clip64, tmp_path / "none.pth", trust_pickle=True)
    for name in ("bad.safetensors", "bad.pth"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(ClipguideError, match="cannot be read"):
            Aesthetic(clip64, tmp_path / name, trust_pickle=True)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ClipguideError, match="no state dict"):
        Aesthetic(clip64, tmp_path / "list.pth", trust_pickle=True)
    torch.save({"weight": Unsafe()}, tmp_path / "unsafe.pth")
    with pytest.raises(ClipguideError, match="cannot be read"):
        Aesthetic(clip64, tmp_path / "unsafe.pth", trust_pickle=True)
    for tensors, message in (
        ({"weight": torch.ones(1, 768), "bias": torch.ones(1)}, "reads 768 numbers, and the CLIP"),
        ({"weight": torch.ones(2, 24), "bias": torch.ones(2)}, "do not fit each other"),
        ({"weight": torch.ones(24), "bias": torch.ones(1)}, "do not fit each other"),
        ({"head.weight": torch.ones(1, 24)}, "known layout"),
        ({f"layers.{i}.weight": torch.ones(1, 24) for i in (0, 3, 6, 9, 11)}, "known layout"),
    ):
        save_file(tensors, tmp_path / "head.safetensors")
        with pytest.raises(UsageError, match=message):
            Aesthetic(clip64, tmp_path / "head.safetensors")


class Unsafe:
    """What weights_only refuses."""


def test_preference_is_the_scaled_cosine(clip64):
    image = images()
    preference = Preference(clip64, PROMPTS, scale=20.0)
    cosine_B = Similarity(clip64, PROMPTS).score(image)
    assert_close(preference(image), -20 * cosine_B)
    assert_close(preference.score(image), 20 * cosine_B)
    singles = [Preference(clip64, prompt, scale=20.0) for prompt in PROMPTS]
    check_gradient(preference, image)
    check_rows(preference, image, singles)
    assert isinstance(preference, Similarity) and len(preference.prompts) == 3


def test_pickscore(pick_folder):
    """As its card computes it: exp(logit scale) times the cosine, through transformers."""
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(pick_folder).eval()
    processor = CLIPProcessor.from_pretrained(pick_folder)
    pictures = to_pil(images(2))
    with torch.no_grad():
        pixels = processor(images=pictures, return_tensors="pt")
        tokens = processor(text=["a red fox"], return_tensors="pt")
        image_BD = F.normalize(model.get_image_features(**pixels).pooler_output, dim=-1)
        text_BD = F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
        expected = model.logit_scale.exp() * (image_BD @ text_BD.T)[:, 0]
    pick = PickScore(pick_folder, "a red fox")
    assert_close(pick.score_pictures(pictures), expected, atol=1e-4, rtol=1e-4)
    assert_close(pick(images(2).float()), -pick.score(images(2).float()))
    check_gradient(PickScore(pick_folder, PROMPTS, dtype="float64"), images())


def test_hpsv2(hps):
    """As score.py of HPSv2 computes it: the cosine, through open_clip."""
    folder, model, transform, tokenizer = hps
    pictures = to_pil(images(2))
    with torch.no_grad():
        image_BD = model.encode_image(torch.stack(list(map(transform, pictures))), normalize=True)
        text_BD = model.encode_text(tokenizer(["a red fox"]), normalize=True)
    for file, trust in (("hps.safetensors", False), ("hps.pt", True)):
        objective = HPSv2(folder / file, "a red fox", model=TINY, trust_pickle=trust)
        assert_close(objective.score_pictures(pictures), (image_BD @ text_BD.T)[:, 0])
    check_gradient(
        HPSv2(folder / "hps.safetensors", PROMPTS, model=TINY, dtype="float64"), images()
    )


def test_hpsv2_refuses(hps, heads):
    folder, *_ = hps
    with pytest.raises(UsageError, match="give trust_pickle=True"):
        HPSv2(folder / "hps.pt", "a", model=TINY)
    with pytest.raises(UsageError, match="no model 'ViT-H-15'. Did you mean .*ViT-H-14"):
        HPSv2(folder / "hps.safetensors", "a", model="ViT-H-15")
    with pytest.raises(ClipguideError, match=f"not those of a {TINY}"):
        HPSv2(heads[0] / "linear.safetensors", "a", model=TINY)


def test_image_reward_refuses(tmp_path):
    """What it computes is in test_rewards.py."""
    path, config = tmp_path / "ImageReward.pt", tmp_path / "med_config.json"
    with pytest.raises(UsageError, match="no file"):
        ImageReward(path, "a", config=config, trust_pickle=True)
    torch.save({"x": torch.zeros(1)}, path)
    config.write_text("{}")
    with pytest.raises(UsageError, match="trust_pickle=True"):
        ImageReward(path, "a", config=config)
    with pytest.raises(ClipguideError, match="are not ImageReward's"):
        ImageReward(path, "a", config=config, trust_pickle=True)
    for prompts in ([], [None], PROMPTS[:1] + [3]):
        with pytest.raises(UsageError, match="one text, or a list"):
            ImageReward(path, prompts, config=config, trust_pickle=True)
