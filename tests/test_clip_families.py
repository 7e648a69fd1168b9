"""Each family of CLIPs, of random weights, against the library that it comes from: the same image
files, the same texts, the same zero-shot logits."""

from __future__ import annotations

import json
import string
import warnings

import open_clip
import pytest
import torch
import torch.nn.functional as F
from conftest import CONTEXT_LENGTH, write_clip, write_tokenizer
from hf_folder import write_hf_clip, write_hf_siglip, write_hf_siglip2
from PIL import Image
from safetensors.torch import save_file
from test_clip import landscape
from torch.testing import assert_close

from clipguide.clip import load_clip, load_parts
from clipguide.errors import UsageError
from clipguide.explain import heat_maps
from clipguide.images import load, to_tensor

TEXTS = ["a red fox", "An OWL,  on a tree!", "", "a photograph of two zebras"]
SIZES = [(32, 32), (90, 60), (61, 97), (300, 301)]
CLOSE = {"atol": 1e-5, "rtol": 0}

TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}


def timm(name: str, *, size: int = 32, pool: str = "avg", proj: str | None = "linear", **more):
    vision = {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": size}
    return {"embed_dim": 24, "vision_cfg": {**vision, **more}, "text_cfg": TEXT}


FAMILIES = {
    "ViT": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT},
    "ViT-quickgelu": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True},
    "ResNet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
        "text_cfg": TEXT,
    },
    "ConvNeXt": timm("test_convnext", size=64, pool=""),
    "CoCa": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 2}
        | {"output_tokens": True},
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "context_length": 76, "layers": 1, "attn_pooler_heads": 2},
    },
    "SigLIP": {
        **timm("test_vit", size=160, pool="map", proj="none"),
        "embed_dim": 64,
        "custom_text": True,
        "init_logit_scale": 2.5,
        "init_logit_bias": -9.5,
        "text_cfg": {
            **TEXT,
            "hf_tokenizer_name": "tokenizer",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
    },
    "EVA": {**timm("eva02_tiny_patch14_224", size=224, pool="token"), "custom_text": True},
    "MobileCLIP": {**timm("fastvit_mci0", size=64), "custom_text": True}
    | {"text_cfg": {**TEXT, "no_causal_mask": True}},
    "NFNet": timm("test_nfnet", size=64),
    "CustomText": {"embed_dim": 24, "custom_text": True, "vision_cfg": VIT, "text_cfg": TEXT},
}


def write_family(folder, name: str, *, preprocess: dict | None = None) -> str:
    """An open_clip folder of a family, of random weights and norms that have seen images."""
    config = json.loads(json.dumps(FAMILIES[name]))
    if config["text_cfg"].get("hf_tokenizer_name"):
        config["text_cfg"]["vocab_size"] = write_tokenizer(folder)
    both = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(both))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False).train()
    size = model.visual.image_size
    side = size if isinstance(size, int) else size[0]
    with torch.no_grad():  # far enough from the start to tell images apart
        for key, parameter in model.visual.named_parameters():
            if key.endswith("gamma"):
                parameter.fill_(0.3)
            elif parameter.ndim > 1 and not key.startswith("attn_pool"):  # CoCa's is sharp
                parameter.mul_(2)
        for _ in range(4 if "running_mean" in str(list(model.state_dict())) else 0):
            model.encode_image(torch.randn(4, 3, side, side))
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1 and "logit" not in key:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return str(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i, size in enumerate(SIZES):
        landscape(*size, seed=i).save(folder / f"{i}.jpg", quality=92)
    return sorted(folder.glob("*.jpg"))


def assert_same(clip, files, image_BD, text_ND, scale, bias=0.0) -> None:
    """Embeddings of files and texts, and logits, of a reference that did not make them unit."""
    image_BD, text_ND = F.normalize(image_BD, dim=-1), F.normalize(text_ND, dim=-1)
    ours_BD = clip.encode_pictures([load(file) for file in files])
    ours_ND = clip.encode_text(TEXTS)
    assert_close(ours_BD, image_BD, **CLOSE)
    assert_close(ours_ND, text_ND, **CLOSE)
    logits_BN = clip.logit_scale * clip.similarity(ours_BD, ours_ND) + clip.logit_bias
    assert_close(logits_BN, scale * image_BD @ text_ND.T + bias, atol=1e-5 * scale, rtol=0)
    # a reference that sees all alike would prove nothing
    assert (image_BD @ image_BD.T).min() < 0.99 and (text_ND @ text_ND.T).min() < 0.99


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_open_clips(family, files, tmp_path):
    source = write_family(tmp_path, family)
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{source}")
    tokens_NL = open_clip.get_tokenizer(f"local-dir:{source}")(TEXTS)
    pixels_B3HW = torch.stack([transform(Image.open(file)) for file in files])
    image_BD, text_ND = model.eval().encode_image(pixels_B3HW), model.encode_text(tokens_NL)
    clip = load_clip(source)
    bias = 0.0 if model.logit_bias is None else model.logit_bias.item()
    assert clip.context_length == TEXT["context_length"]
    assert (clip.logit_bias != 0) == (family == "SigLIP")
    assert_same(clip, files, image_BD, text_ND, model.logit_scale.exp().item(), bias)
    seen_BD = torch.cat([clip.encode_image(to_tensor([load(file)])) for file in files])
    assert F.cosine_similarity(seen_BD, image_BD).min() > 0.999


@torch.no_grad()
@pytest.mark.parametrize("write", [write_hf_clip, write_hf_siglip])
def test_it_is_transformers(write, files, tmp_path):
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    folder = write(tmp_path)
    model = AutoModel.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    read = TEXTS
    if write is write_hf_siglip:  # as big_vision trained them
        marks = str.maketrans("_", " ", string.punctuation.replace("_", ""))
        read = [" ".join(text.translate(marks).lower().split()) for text in TEXTS]
    tokens = AutoTokenizer.from_pretrained(folder)(
        read,
        padding="max_length",
        truncation=True,
        max_length=CONTEXT_LENGTH,
        return_tensors="pt",
    )
    pixels = [processor(Image.open(file), return_tensors="pt").pixel_values for file in files]
    output = model(input_ids=tokens.input_ids, pixel_values=torch.cat(pixels))
    clip = load_clip(folder)
    with pytest.warns(match="is lost"):  # the context is short: both cut
        assert_same(
            clip,
            files,
            output.image_embeds,
            output.text_embeds,
            model.logit_scale.exp().item(),
            getattr(model, "logit_bias", torch.zeros(1)).item(),
        )
        ours_BN = clip.encode_pictures([load(file) for file in files]) @ clip.encode_text(TEXTS).T
    logits_BN = clip.logit_scale * ours_BN + clip.logit_bias
    assert_close(logits_BN, output.logits_per_image, atol=2e-4, rtol=0)


@pytest.fixture(scope="module", params=["ViT", "ResNet"])
def openai(request, tmp_path_factory):
    """A model of OpenAI's layout, and a folder of it as a state dict and as a JIT archive."""
    vision = {
        "ViT": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 1},
        "ResNet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
    }[request.param]
    text = {**TEXT, "width": 64, "heads": 1}
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(1)
    model = open_clip.CLIP(24, vision_cfg=vision, text_cfg=text, quick_gelu=True).eval()
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    torch.save(model.state_dict(), folder / "ViT-B-32.pt")
    side = vision["image_size"]
    pixels, tokens = torch.ones(2, 3, side, side), torch.zeros(2, 24, dtype=torch.int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing
        traced = torch.jit.trace_module(model, {"encode_image": pixels, "encode_text": tokens})
        torch.jit.save(traced, folder / "ViT-L-14.pt")
    return model, side, folder


@torch.no_grad()
def test_it_is_openais(openai, files):
    """Of float32 weights, which are not rounded to float16 on the way; the reference is the archive
    itself. OpenAI's transform is written out: Resize, CenterCrop, ToTensor and Normalize."""
    _, side, folder = openai
    archive = torch.jit.load(folder / "ViT-L-14.pt")
    transform = open_clip.image_transform(
        side,
        is_train=False,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        interpolation="bicubic",
        resize_mode="shortest",
    )
    pixels_B3HW = torch.stack([transform(Image.open(file)) for file in files])
    image_BD = archive.encode_image(pixels_B3HW)
    text_ND = archive.encode_text(open_clip.tokenize(TEXTS, context_length=24).int())
    state = load_clip(folder / "ViT-B-32.pt")
    jit = load_clip(f"{folder / 'ViT-L-14.pt'}@cpu", trust_pickle=True)
    for clip in (state, jit):
        assert clip.context_length == 24 and clip.image_size == side
        assert_same(clip, files, image_BD, text_ND, 1 / 0.07)
    assert state.fingerprint == jit.fingerprint


def test_weights_in_float16_as_published(openai, files, tmp_path):
    """The published files hold float16: embeddings are those of these weights in float32."""
    model, _, folder = openai
    half = {key: value.half() for key, value in model.state_dict().items()}
    half["input_resolution"], half["context_length"] = torch.tensor(32), torch.tensor(24)
    torch.save(half, tmp_path / "RN50.pt")
    torch.save({key: value.float() for key, value in half.items()}, tmp_path / "RN101.pt")
    pictures = [load(file) for file in files]
    near = load_clip(tmp_path / "RN50.pt").encode_pictures(pictures)
    assert_close(near, load_clip(tmp_path / "RN101.pt").encode_pictures(pictures), **CLOSE)


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_tensors_are_seen_as_a_hundred_photographs(mode, tmp_path):
    """The differentiable path against the checkpoint's own transform, images of all shapes."""
    preprocess = {
        "mean": [0.48, 0.46, 0.41],
        "std": [0.27, 0.26, 0.28],
        "interpolation": "bicubic",
        "resize_mode": mode,
    }
    clip = load_clip(write_clip(tmp_path, seed=3, preprocess=preprocess))
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(24, 220, (100, 2), generator=generator).tolist()
    pictures = [landscape(*size, seed=i) for i, size in enumerate(sizes)]
    seen_BD = torch.cat([clip.encode_image(to_tensor([picture])) for picture in pictures])
    cosine_B = (seen_BD * clip.encode_pictures(pictures)).sum(1)
    assert cosine_B.min() >= 0.999
    assert (seen_BD @ seen_BD.T).min() < 0.99  # it tells the images apart


def test_a_siglip_reads_texts_as_it_was_trained(tmp_path):
    """Lower-cased and without punctuation, whatever the tokenizer in its folder does."""
    siglip = load_clip(write_hf_siglip(tmp_path / "siglip"))
    one, other = siglip.encode_text(["a red fox"]), siglip.encode_text([" A red_Fox,  (!) "])
    assert torch.equal(one, other)
    plain = load_clip(write_hf_clip(tmp_path / "clip"))
    one, other = plain.encode_text(["a red fox"]), plain.encode_text(["a red_fox!"])
    assert not torch.equal(one, other)


@torch.no_grad()
def test_a_siglip_2_of_flexible_resolution(tmp_path):
    """Pictures of all aspects in one batch are those that transformers sees one at a time."""
    from transformers import AutoImageProcessor, AutoModel

    folder = write_hf_siglip2(tmp_path)
    model = AutoModel.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    clip, sizes = load_clip(folder), [(64, 64), (100, 30), (20, 90), (33, 47), (8, 200)]
    pictures = [landscape(*size, seed=k) for k, size in enumerate(sizes)]
    expected = [
        model(**processor(images=[one], return_tensors="pt"), input_ids=torch.zeros(1, 16).long())
        for one in pictures
    ]
    expected_BD = torch.cat([one.image_embeds for one in expected])
    assert_close(clip.encode_pictures(pictures), expected_BD, atol=1e-5, rtol=0)
    assert (expected_BD @ expected_BD.T).triu(1).max() < 0.9999
    seen_BD = torch.cat([clip.encode_image(to_tensor([one])) for one in pictures])
    assert F.cosine_similarity(seen_BD, expected_BD).min() > 0.99
    half = clip.astype("bfloat16").encode_pictures(pictures)
    assert F.cosine_similarity(half, expected_BD).min() > 0.99
    assert clip.image_size == 32 and clip.logit_bias == -7.5
    with pytest.raises(UsageError, match="NaFlex.*neither trains nor exports"):
        load_parts(folder)
    with torch.enable_grad():
        image = to_tensor(pictures[1:2]).requires_grad_()
        clip.encode_image(image)[0, 0].backward()
        assert image.grad.abs().max() > 0
    with pytest.raises(UsageError, match="cannot be explained yet"):
        heat_maps(clip, pictures[:1], clip.encode_text(["a fox"]))
