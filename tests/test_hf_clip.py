"""A CLIP of transformers, against transformers itself."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from conftest import CONTEXT_LENGTH
from hf_folder import write_hf_clip
from torch.testing import assert_close

from clipguide import load_clip
from clipguide.errors import ClipguideError, ClipguideWarning, UsageError
from clipguide.images import to_pil, to_tensor

TEXTS = ["a red fox", "an owl", "a"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_hf_clip(tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def clip(folder):
    return load_clip(folder)


@pytest.fixture(scope="module")
def reference(folder):
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def processor(folder):
    from transformers import CLIPProcessor

    return CLIPProcessor.from_pretrained(folder)


def pictures(size=(48, 40), number=2):
    generator = torch.Generator().manual_seed(1)
    smooth = torch.rand(number, 3, 6, 6, generator=generator)
    return to_pil(F.interpolate(smooth, size, mode="bicubic").clamp(0, 1))


def test_texts(clip, reference, processor):
    with torch.no_grad():
        tokens = processor(text=TEXTS, return_tensors="pt", padding=True)
        expected = reference.get_text_features(**tokens).pooler_output
    assert_close(clip.encode_text(TEXTS), F.normalize(expected, dim=-1))


def test_pictures(clip, reference, processor):
    with torch.no_grad():
        pixels = processor(images=pictures(), return_tensors="pt")
        expected = F.normalize(reference.get_image_features(**pixels).pooler_output, dim=-1)
    assert_close(clip.encode_pictures(pictures()), expected)


def test_tensors_are_seen_as_pictures(clip):
    """As tensors of the images' own pixels, but for the rounding to 8 bits after the resize."""
    for size in [(48, 40), (40, 57), (20, 20)]:
        seen_BD = clip.encode_image(to_tensor(pictures(size)))
        assert_close(seen_BD, clip.encode_pictures(pictures(size)), atol=0.01, rtol=0)
        assert (seen_BD[0] - seen_BD[1]).abs().max() > 0.05


def test_loading_is_quiet(folder, capfd):
    load_clip(folder)
    assert capfd.readouterr() == ("", "")


def test_contract(clip, reference, folder):
    assert clip.image_size == 32 and clip.embed_dim == 16 and clip.context_length == CONTEXT_LENGTH
    assert clip.logit_scale == pytest.approx(reference.logit_scale.exp().item())
    assert clip.logit_bias == 0
    assert clip.fingerprint == load_clip(folder).fingerprint
    unit_BD = clip.encode_image(torch.rand(2, 3, 32, 32))
    assert_close(unit_BD.norm(dim=1), torch.ones(2))


def test_gradient_by_finite_differences(folder):
    clip = load_clip(folder, dtype="float64")
    generator = torch.Generator().manual_seed(3)
    image = 0.3 + 0.4 * torch.rand(1, 3, 40, 36, generator=generator, dtype=torch.float64)
    image.requires_grad_()
    goal = clip.encode_text(["a red fox"])
    (gradient,) = torch.autograd.grad((clip.encode_image(image) * goal).sum(), image)
    direction = torch.randn(image.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        ahead, behind = (
            (clip.encode_image(image + step * direction) * goal).sum() for step in (1e-5, -1e-5)
        )
    assert_close((gradient * direction).sum(), (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-10)


def test_a_long_text_is_cut_and_told_of(clip):
    with pytest.warns(ClipguideWarning, match="is lost"):
        unit_D = clip.encode_text(["a red fox " * 30])[0]
    assert unit_D.isfinite().all()


def test_squashed(folder, tmp_path, reference):
    """A processor that resizes both sides, and crops nothing."""
    shutil.copytree(folder, tmp_path / "squash")
    change(
        tmp_path / "squash" / "preprocessor_config.json",
        size={"height": 32, "width": 32},
        do_center_crop=False,
    )
    from transformers import CLIPImageProcessor

    clip = load_clip(tmp_path / "squash")
    pixels = CLIPImageProcessor.from_pretrained(tmp_path / "squash")(
        images=pictures(), return_tensors="pt"
    )
    with torch.no_grad():
        expected = F.normalize(reference.get_image_features(**pixels).pooler_output, dim=-1)
    assert_close(clip.encode_pictures(pictures()), expected)
    assert_close(clip.encode_image(to_tensor(pictures())), expected, atol=0.01, rtol=0)


def change(file, **settings):
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"shortest_edge": 40}}, "does something else"),
        ({"crop_size": {"height": 32, "width": 30}}, "does something else"),
        ({"do_normalize": False}, "does something else"),
        ({"rescale_factor": 0.5}, "does something else"),
        ({"resample": 0}, "does something else"),
    ],
)
def test_processors_that_are_refused(folder, tmp_path, settings, message):
    shutil.copytree(folder, tmp_path / "other")
    change(tmp_path / "other" / "preprocessor_config.json", **settings)
    with pytest.raises(UsageError, match=message):
        load_clip(tmp_path / "other")


def test_folders_that_are_refused(folder, tmp_path):
    with pytest.raises(UsageError, match="There is no CLIP"):
        load_clip(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="and no config.json"):
        load_clip(tmp_path)
    shutil.copytree(folder, tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").rename(tmp_path / "away")
    with pytest.raises(
        UsageError, match="no weights in a .safetensors file: give trust_pickle=True"
    ):
        load_clip(tmp_path / "clip")
    with pytest.raises(ClipguideError, match="cannot be loaded"):
        load_clip(tmp_path / "clip", trust_pickle=True)
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ClipguideError, match="cannot be loaded"):
        load_clip(tmp_path / "clip")
    change(tmp_path / "clip" / "config.json", model_type="blip")
    with pytest.raises(UsageError, match="of type 'blip', neither a CLIP nor a SigLIP"):
        load_clip(tmp_path / "clip")
    for text in ("[]", "{"):
        (tmp_path / "clip" / "config.json").write_text(text)
        with pytest.raises(UsageError, match="not the configuration"):
            load_clip(tmp_path / "clip")
    with pytest.raises(UsageError, match="no dtype 'float23'"):
        load_clip(folder, dtype="float23")


def test_a_pickle_only_where_it_is_trusted(folder, tmp_path, clip, reference):
    shutil.copytree(folder, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(reference.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(UsageError, match="trust_pickle=True"):
        load_clip(tmp_path / "pickled")
    trusted = load_clip(tmp_path / "pickled", trust_pickle=True)
    assert trusted.fingerprint == clip.fingerprint
