"""Any CLIP: preprocessing against the checkpoint's own, texts that are cut, wrong names."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import CONTEXT_LENGTH, IMAGE_SIZE, write_clip
from PIL import Image
from torch.testing import assert_close

from clipguide.clip import clamp_with_gradient, fingerprint, load_clip, resize
from clipguide.errors import ClipguideError, ClipguideWarning, UsageError
from clipguide.images import to_tensor


def landscape(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image with edges, gradients and a little grain, as natural ones have."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    random = np.random.default_rng(seed)
    disc = ((x - 0.3) ** 2 + (y - 0.4) ** 2 < 0.04) * 0.5
    stripes = (np.sin(40 * x + 15 * y) > 0.3) * 0.25 * (y > 0.5)
    grey = 0.2 + 0.5 * x * y + disc + stripes
    colour = np.stack([grey, grey * 0.7 + 0.2 * y, 1 - grey], -1)
    colour += random.normal(0, 0.03, colour.shape)
    return Image.fromarray((colour.clip(0, 1) * 255).astype(np.uint8))


SIZES = [(32, 32), (128, 128), (100, 60), (61, 97), (20, 45), (300, 301)]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["squash", "shortest", "longest"])
def test_resize_is_that_of_open_clip(mode, interpolation):
    """Pixel by pixel against open_clip's PIL transform, which rounds to 8 bits. (Where bicubic
    overshoots black or white, Pillow also clips between its passes, in an order that varies.)"""
    from open_clip import image_transform

    transform = image_transform(
        IMAGE_SIZE,
        is_train=False,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        resize_mode=mode,
        interpolation=interpolation,
        fill_color=128,
    )
    config = {"resize_mode": mode, "interpolation": interpolation, "fill_color": 128}
    for size in SIZES:
        picture = landscape(*size).point(lambda value: 64 + value // 2)
        ours = resize(to_tensor([picture]), config, IMAGE_SIZE)
        assert_close(ours[0], transform(picture), atol=1.6 / 255, rtol=0)


@pytest.mark.parametrize("mode", ["squash", "shortest", "longest"])
def test_encode_image_is_encode_pictures(tmp_path, mode):
    clip = load_clip(
        str(
            write_clip(
                tmp_path / mode,
                seed=3,
                preprocess={
                    "mean": [0.48, 0.46, 0.41],
                    "std": [0.27, 0.26, 0.28],
                    "interpolation": "bicubic",
                    "resize_mode": mode,
                },
            )
        )
    )
    for i, size in enumerate(SIZES):
        pictures = [landscape(*size, seed=i)]
        cosine = (clip.encode_image(to_tensor(pictures)) * clip.encode_pictures(pictures)).sum()
        assert cosine > 0.999


def test_embeddings_are_unit_vectors(clip):
    image_BD = clip.encode_image(torch.rand(3, 3, 40, 20))
    text_ND = clip.encode_text(["a red fox", "a zebra"])
    assert image_BD.dtype == text_ND.dtype == torch.float32
    assert image_BD.shape == (3, clip.embed_dim)
    assert_close(image_BD.norm(dim=1), torch.ones(3))
    assert_close(text_ND.norm(dim=1), torch.ones(2))
    assert_close(clip.similarity(image_BD, text_ND)[1, 0], image_BD[1].dot(text_ND[0]))
    assert clip.logit_scale == pytest.approx(1 / 0.07, rel=1e-3)
    assert clip.logit_bias == 0
    assert clip.image_size == IMAGE_SIZE
    assert clip.context_length == CONTEXT_LENGTH


def test_embeddings_are_open_clips_own(clip, clip_folder):
    import open_clip

    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{clip_folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip_folder}")
    picture = landscape(50, 40)
    with torch.no_grad():
        image_BD = model.eval().encode_image(transform(picture)[None], normalize=True)
        text_BD = model.encode_text(tokenizer(["A Red fox"]), normalize=True)
    assert_close(clip.encode_pictures([picture]), image_BD)
    assert_close(clip.encode_text(["a red fox"]), text_BD)


def test_gradient_by_finite_differences(clip_folder):
    """Through resize, normalisation and network, in float64."""
    clip = load_clip(str(clip_folder), dtype="float64")
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 48, 40, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    text = clip.encode_text(["a red fox"])[0]
    image.requires_grad_()
    (gradient,) = torch.autograd.grad((clip.encode_image(image) @ text).sum(), image)
    for seed in range(3):
        direction = torch.randn(image.shape, generator=generator.manual_seed(seed)).double()
        with torch.no_grad():
            ahead, behind = (
                clip.encode_image(image + step * direction)[0] @ text for step in (1e-6, -1e-6)
            )
        expected = (ahead - behind) / 2e-6
        assert_close((gradient * direction).sum(), expected, rtol=1e-4, atol=1e-9)


def test_clamp_passes_gradients_that_lead_inside():
    x = torch.tensor([-0.5, -0.5, 0.5, 1.5, 1.5], requires_grad=True)
    clamp_with_gradient(x).backward(torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0]))
    assert clamp_with_gradient(x).tolist() == [0, 0, 0.5, 1, 1]
    # descent subtracts: a gradient of 1 lowers x, which leads 1.5 inside and -0.5 farther out
    assert x.grad.tolist() == [0, -1, 1, 1, 0]


def test_long_text_is_cut_and_told(clip):
    """The same as the text without its lost words, and the warning names them."""
    text = "a red fox jumps over the lazy dog"
    with pytest.warns(ClipguideWarning, match="'the lazy dog' is lost") as caught:
        cut, whole = clip.encode_text([text, "a red fox"])
    assert len(caught) == 1
    tokens = clip._tokenizer([text])[0]
    assert tokens[-1] == tokens.max()  # the end token is kept
    assert not torch.equal(cut, whole)
    with pytest.warns(ClipguideWarning, match="is lost"):
        clip.encode_text(["word " * 5000])
    with pytest.warns(ClipguideWarning, match="'x+…?' is lost"):
        clip.encode_text(["x" * 100])


@pytest.mark.parametrize("text", ["a fox", "", "狐", "Лиса", "🦊", "a red fox jumps"])
def test_text_that_fits_is_not_warned_of(clip, text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clip.encode_text([text]).isfinite().all()


def test_fingerprint_tells_weights_and_preprocessing(clip, clip_folder, judge, tmp_path):
    assert clip.fingerprint == load_clip(str(clip_folder)).fingerprint
    assert clip.fingerprint != judge.fingerprint
    assert len(clip.fingerprint) == 64
    copy = tmp_path / "copy"
    shutil.copytree(clip_folder, copy)
    config = json.loads((copy / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.4, 0.5, 0.5]
    (copy / "open_clip_config.json").write_text(json.dumps(config))
    assert load_clip(str(copy)).fingerprint != clip.fingerprint
    layer = torch.nn.Linear(2, 2)
    before = fingerprint({"layer": layer})
    layer.weight.data[0, 0] += 1
    assert fingerprint({"layer": layer}) != before


def test_half_precision_is_near(clip, clip_folder):
    half = load_clip(str(clip_folder), dtype="bfloat16")
    picture = to_tensor([landscape(50, 40)])
    assert half.encode_image(picture).dtype == torch.float32
    assert (half.encode_image(picture) * clip.encode_image(picture)).sum() > 0.99


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mini-juge", "Did you mean mini-judge"),
        ("ViT-B-32/laion2b_s34b_b79", "Did you mean ViT-B-32/laion2b_s34b_b79k"),
        ("qqqqqqq", "Give mini or mini-judge, a folder"),
    ],
)
def test_unknown_name(name, message):
    with pytest.raises(UsageError, match=message):
        load_clip(name)


def test_unknown_dtype():
    with pytest.raises(UsageError, match="Did you mean float32"):
        load_clip("mini", dtype="float31")


def test_folder_that_is_no_clip(tmp_path, clip_folder):
    with pytest.raises(UsageError, match="has no open_clip_config.json"):
        load_clip(str(tmp_path))
    copy = tmp_path / "copy"
    shutil.copytree(clip_folder, copy)
    weights = copy / "open_clip_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ClipguideError, match="cannot be loaded"):
        load_clip(str(copy))
    weights.unlink()
    with pytest.raises(UsageError, match="no weights in a .safetensors file"):
        load_clip(str(copy))
    weights.write_bytes(whole)
    config = json.loads((copy / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = ""
    (copy / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="names no tokenizer"):
        load_clip(str(copy))
    (copy / "open_clip_config.json").write_text("{}")
    with pytest.raises(UsageError, match="is not the configuration of a CLIP"):
        load_clip(str(copy))


def test_random_picture_scores_near_chance(clip):
    """Guards the fixtures: the tiny CLIP tells images and texts apart."""
    image_BD = clip.encode_image(torch.rand(2, 3, 32, 32))
    assert not math.isclose(float(image_BD[0] @ image_BD[1]), 1, abs_tol=1e-4)


def test_a_text_tower_of_transformers(tmp_path):
    """It could read 512 tokens; the checkpoint's window of 8 counts, and what it cuts is told."""
    import open_clip
    from safetensors.torch import save_file
    from transformers import BertConfig, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "fox", "owl"]
    folder, bert = tmp_path / "clip", tmp_path / "bert"
    folder.mkdir()
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertConfig(vocab_size=len(words), intermediate_size=16, **sizes).save_pretrained(bert)
    write_clip(tmp_path / "other", seed=0)
    config = json.loads((tmp_path / "other" / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] = {
        "hf_model_name": str(bert),
        "hf_model_pretrained": False,
        "hf_tokenizer_name": "tokenizer",
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": "linear",
        "context_length": 8,
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    source = f"local-dir:{folder}"
    model = open_clip.create_model(source, load_weights=False, pretrained_hf=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    clip = load_clip(str(folder))
    assert clip.context_length == 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short = clip.encode_text(["a red fox"])
    tokens = torch.tensor([[2, 4, 5, 6, 3]])
    expected = model.eval().encode_text(tokens, normalize=True)
    assert_close(short, expected, atol=1e-5, rtol=0)
    with pytest.warns(ClipguideWarning, match="reads 8 tokens"):
        clip.encode_text(["a red fox a red fox a red owl"])


def test_texts_read_by_several_threads(clip):
    """Whether a text is cut is asked of the tokenizer with another length: that reaches no other
    thread."""
    texts = [[f"{'word ' * (k % 12)}fox"] for k in range(60)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClipguideWarning)
        alone = torch.cat([clip.encode_text(text) for text in texts])
        with ThreadPoolExecutor(4) as pool:
            for _ in range(5):
                assert_close(torch.cat(list(pool.map(clip.encode_text, texts))), alone)
