"""What `load_parts` reads and `Parts.save` writes: the same CLIP, whichever program's it is."""

from __future__ import annotations

import open_clip
import pytest
import torch
from conftest import IMAGE_SIZE
from hf_folder import write_hf_clip, write_hf_siglip
from test_clip import landscape
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from clipguide import load_clip
from clipguide.clip import load_parts
from clipguide.errors import UsageError

TEXTS = ["a red fox", "an owl"]
PICTURES = [landscape(50, 40), landscape(32, 32, seed=2)]


def same(first, second):
    assert first.fingerprint == second.fingerprint
    assert torch.equal(first.encode_text(TEXTS), second.encode_text(TEXTS))
    assert torch.equal(first.encode_pictures(PICTURES), second.encode_pictures(PICTURES))


TEXT = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
VIT = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
RESNET = {"image_size": 32, "layers": (1, 1, 1, 1), "width": 16, "patch_size": None}


def openai_file(folder, vision=VIT):
    state = open_clip.CLIP(32, vision, TEXT, quick_gelu=True).state_dict()
    torch.save({k: v for k, v in state.items() if k != "attn_mask"}, folder / "RN50.pt")
    return folder / "RN50.pt"


def resnet_file(folder):
    return openai_file(folder, RESNET)


@pytest.mark.parametrize("write", [write_hf_clip, write_hf_siglip, openai_file, resnet_file, None])
def test_a_saved_clip_is_the_same(tmp_path, clip_folder, write):
    torch.manual_seed(0)
    source = write(tmp_path) if write else clip_folder
    parts = load_parts(source)
    out = tmp_path / "out"
    parts.save(out)
    same(load_clip(out), load_clip(source))
    same(parts.clip(), load_clip(source))


def test_open_clip_itself_loads_it(tmp_path, clip_folder):
    load_parts(clip_folder).save(tmp_path)
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    tokens_BL = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS)
    unit_BD = torch.nn.functional.normalize(model.encode_text(tokens_BL), dim=-1)
    torch.testing.assert_close(unit_BD, load_clip(clip_folder).encode_text(TEXTS))


def test_a_frozen_copy_does_not_follow(clip_folder):
    parts = load_parts(clip_folder)
    clip = parts.clip()
    before = clip.encode_pictures(PICTURES)
    with torch.no_grad():
        for parameter in parts.model.parameters():
            parameter.mul_(0.5)
    assert torch.equal(clip.encode_pictures(PICTURES), before)


def test_normalised_as_the_tower_takes_them(clip_folder):
    parts = load_parts(clip_folder)
    image_B3HW = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    unit_BD = torch.nn.functional.normalize(parts.model.encode_image(parts.normalise(image_B3HW)))
    torch.testing.assert_close(unit_BD, parts.clip().encode_image(image_B3HW))


def test_several_are_none(clip_folder):
    with pytest.raises(UsageError, match="are several CLIPs: name one"):
        load_parts(f"{clip_folder}+{clip_folder}")


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_a_gradient_takes_no_product_for_each_place(tmp_path, dtype, rtol):
    """A ViT's projections went back by `bmm`, their weights copied for each place: in bfloat16 8 x
    the time. The gradient is that of the model alone."""

    class Products(TorchDispatchMode):
        stacked = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.stacked += function is torch.ops.aten.bmm.default
            return function(*args, **(kwargs or {}))

    parts = load_parts(str(openai_file(tmp_path)))
    clip = parts.clip().astype(dtype)
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with Products() as products:
        (gradient,) = torch.autograd.grad(clip.encode_image(image)[:, 0].sum(), image)
    assert products.stacked == 0
    model = parts.clip()._model.to(clip.dtype).requires_grad_(False)
    mean, std = (torch.tensor(clip.preprocess[k])[:, None, None] for k in ("mean", "std"))
    features_BD = model.encode_image(((image - mean) / std).to(clip.dtype)).float()
    unit_BD = torch.nn.functional.normalize(features_BD, dim=-1)
    with Products() as products:
        (expected,) = torch.autograd.grad(unit_BD[:, 0].sum(), image)
    assert products.stacked > 0
    assert_close(gradient, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))
    assert not any(module._forward_pre_hooks for module in clip._model.modules())
