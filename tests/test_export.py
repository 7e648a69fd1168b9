"""CLIPs taken elsewhere: what is written is run there, and must be what torch makes."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONTEXT_LENGTH, IMAGE_SIZE, write_clip, write_tokenizer
from hf_folder import write_hf_clip, write_hf_siglip
from PIL import Image
from torch.testing import assert_close
from typer.testing import CliRunner

from clipguide.cli.app import app
from clipguide.clip import load_clip, load_parts, resize
from clipguide.errors import ClipguideError, ClipguideWarning, UsageError
from clipguide.export import export
from clipguide.export.onnx import session
from clipguide.export.probes import drawings
from clipguide.export.quantise import _weights_alone
from clipguide.export.towers import ImageTower

SIZES = [
    (32, 32),
    (128, 128),
    (100, 60),
    (61, 97),
    (20, 45),
    (300, 301),
    (33, 32),
    (35, 32),
    (7, 3),
]
TEXTS = [
    "a red fox",
    "",
    "狐 und ein Füchslein",
    "A  RED\nfox",
    "a red fox jumps over it all again",
]
VIT = {"image_size": IMAGE_SIZE, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8}


def write_open_clip(folder: Path, *, seed: int = 0, embed_dim: int = 24, **config) -> Path:
    """An open_clip folder of any configuration, with random weights and the tiny tokenizer, its
    matrices doubled so that images do not look alike."""
    import open_clip
    from safetensors.torch import save_file

    size = write_tokenizer(folder)
    text = {
        "context_length": CONTEXT_LENGTH,
        "vocab_size": size,
        "width": 32,
        "heads": 2,
        "layers": 2,
        "hf_tokenizer_name": "tokenizer",
    }
    text |= config.pop("text_cfg", {})
    model_cfg = {"embed_dim": embed_dim, "vision_cfg": VIT, "text_cfg": text, **config}
    preprocess = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}
    preprocess |= {"interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess})
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "w.safetensors")
    (folder / "w.safetensors").rename(folder / "open_clip_model.safetensors")
    return folder


def vit(folder: Path, **config) -> Path:
    return write_open_clip(folder, quick_gelu=True, **config)


def siglip(folder: Path) -> Path:
    return write_open_clip(
        folder,
        custom_text=True,
        init_logit_bias=-10,
        vision_cfg={"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"}
        | {"image_size": IMAGE_SIZE},
        embed_dim=64,
        text_cfg={"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    )


def convnext(folder: Path) -> Path:
    return write_open_clip(
        folder,
        vision_cfg={"timm_model_name": "test_convnext", "timm_proj": "linear", "timm_pool": ""}
        | {"image_size": IMAGE_SIZE},
    )


FAMILIES = {
    "efficientnet": lambda folder: write_clip(folder, seed=0),
    "vit": vit,
    "siglip": siglip,
    "convnext": convnext,
    "hf-clip": write_hf_clip,
    "hf-siglip": write_hf_siglip,
}


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["squash", "shortest", "longest"])
def test_the_resize_inside_is_that_of_clip(clip_folder, mode, interpolation):
    """Two products with matrices against torch's own antialiased resize, crop and padding."""
    clip = load_clip(str(clip_folder))
    config = {"resize_mode": mode, "interpolation": interpolation, "fill_color": 128}
    clip.preprocess = clip.preprocess | config
    tower = ImageTower(clip)
    random = torch.Generator().manual_seed(0)
    for size in SIZES:
        image_23HW = torch.rand(2, 3, *size, generator=random) * 1.4 - 0.2
        expected = resize(image_23HW, clip.preprocess, IMAGE_SIZE)
        assert_close(tower.squared(image_23HW), expected, atol=3e-6, rtol=0)


@pytest.fixture(
    scope="module", params=["efficientnet", pytest.param("vit", marks=pytest.mark.slow)]
)
def small(request, tmp_path_factory):
    """A tiny CLIP, exported in float32, float16 and int8."""
    home = tmp_path_factory.mktemp("small")
    parts = load_parts(FAMILIES[request.param](home / "clip"))
    return parts, export(parts, to="onnx", out=home / "out", int8=True, fp16=True)


def test_onnx_of_any_size_and_batch(small):
    check_onnx(*small)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["siglip", "convnext", "hf-clip", "hf-siglip"])
def test_onnx_of_other_families(tmp_path, family):
    parts = load_parts(FAMILIES[family](tmp_path / "clip"))
    check_onnx(parts, export(parts, to="onnx", out=tmp_path / "out", int8=True, fp16=True))


def check_onnx(parts, done):
    """Other sizes, batches and texts than were measured, run by onnxruntime alone."""
    exact = [found.lowest for name, found in done.agreement.items() if "-" not in name]
    assert len(exact) == 2 and min(exact) > 0.9999
    see, read = (session(done.folder / f"{kind}.onnx") for kind in ("image", "text"))
    clip = parts.clip()
    random = torch.Generator().manual_seed(1)
    for count, size in ((1, (IMAGE_SIZE, IMAGE_SIZE)), (3, (50, 90)), (2, (45, 20))):
        image_B3HW = torch.rand(count, 3, *size, generator=random)
        image_BD = torch.from_numpy(see(image_B3HW.numpy()))
        assert_close(image_BD, clip.encode_image(image_B3HW), atol=1e-4, rtol=0)
        assert_close(image_BD.norm(dim=1), torch.ones(count))
    tokens_BL = tokens_of(done.folder, TEXTS)
    text_BD = torch.from_numpy(read(tokens_BL))
    with pytest.warns(ClipguideWarning, match="is lost"):
        assert_close(text_BD, clip.encode_text(TEXTS), atol=1e-4, rtol=0)
    card = json.loads((done.folder / "clip.json").read_text())
    assert card == done.card
    assert card["fingerprint"] == clip.fingerprint
    assert card["logit_scale"] == pytest.approx(clip.logit_scale)
    assert card["preprocess"]["resize_mode"] == clip.resize_mode


def tokens_of(folder: Path, texts: list[str]) -> np.ndarray:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return np.array([one.ids for one in tokenizer.encode_batch(texts)])


def test_int8_and_fp16_tell_what_they_lose(small):
    parts, done = small
    files = [f"{kind}{suffix}.onnx" for kind in ("image", "text") for suffix in ("-fp16", "-int8")]
    for name in files:
        bar = 0.99 if "int8" in name else 0.999
        assert bar <= done.agreement[name].lowest < 1 - 1e-9
        assert done.card["files"][name]["cosine"]["lowest"] == done.agreement[name].lowest
        whole = re.sub("-(fp16|int8)", "", name)
        assert done.agreement[name].mean < done.agreement[whole].mean
        assert f"| {name} |" in (done.folder / "README.md").read_text()
    clip = parts.clip()
    image_13HW = torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(3))
    for suffix in ("-fp16", "-int8"):
        ours = session(done.folder / f"image{suffix}.onnx")(image_13HW.numpy())
        assert (torch.from_numpy(ours) * clip.encode_image(image_13HW)).sum() > 0.97


def test_weights_alone_are_the_weights_rounded(small, tmp_path):
    """Each channel of a weight is within half a step of what it was, and the graph still runs."""
    import onnx
    from onnx import numpy_helper

    _, done = small
    before = onnx.load(done.folder / "text.onnx")
    after = onnx.load(done.folder / "text.onnx")
    _weights_alone(after)
    onnx.save(after, tmp_path / "text.onnx")
    kept = {one.name: numpy_helper.to_array(one) for one in after.graph.initializer}
    found = 0
    for one in before.graph.initializer:
        if f"{one.name}_int8" in kept:
            array, rounded = numpy_helper.to_array(one), kept[f"{one.name}_int8"]
            scale = kept[f"{one.name}_scale"]
            shape = [-1 if n == len(scale) else 1 for n in array.shape]
            if shape.count(-1) == 1:
                steps = np.abs(array - rounded * scale.reshape(shape)) / scale.reshape(shape)
                assert steps.max() <= 0.5 + 1e-4
                found += 1
    assert found >= 5
    tokens_BL = tokens_of(done.folder, TEXTS)
    one, two = (session(folder / "text.onnx")(tokens_BL) for folder in (done.folder, tmp_path))
    assert 0.99 < (one * two).sum(1).min() < 1 - 1e-9


def test_torch_export_of_any_size_and_batch(clip_folder, tmp_path):
    parts = load_parts(clip_folder)
    done = export(parts, to="torch-export", out=tmp_path / "out")
    assert not any(key.startswith("model.text.") for key in weights_of(tmp_path / "out/image.pt2"))
    assert not any("visual" in key for key in weights_of(tmp_path / "out/text.pt2"))
    assert done.agreement["image.pt2"].lowest > 0.9999
    clip = parts.clip()
    files = (str(tmp_path / "out" / f"{kind}.pt2") for kind in ("image", "text"))
    see, read = (torch.export.load(file).module() for file in files)
    for count, size in ((1, (32, 32)), (5, (70, 40))):
        image_B3HW = torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0))
        assert_close(see(image_B3HW), clip.encode_image(image_B3HW), atol=1e-5, rtol=0)
    tokens_BL = torch.from_numpy(tokens_of(tmp_path / "out", ["a fox", "red", "x"]))
    expected = clip.encode_text(["a fox", "red", "x"])
    assert_close(read(tokens_BL), expected, atol=1e-5, rtol=0)
    assert_close(read(tokens_BL[:1]), expected[:1], atol=1e-5, rtol=0)


def weights_of(path: Path) -> list[str]:
    """The names of what a .pt2 holds, but for the few numbers of batch norms."""
    state = torch.export.load(str(path)).state_dict
    return [name for name, value in state.items() if value.numel() and ".bn" not in name]


@pytest.mark.slow
def test_torch_export_in_float16(clip_folder, tmp_path):
    done = export(load_parts(clip_folder), to="torch-export", out=tmp_path / "out", fp16=True)
    assert 0.999 < done.agreement["image-fp16.pt2"].lowest < 1 - 1e-9
    assert done.sizes["image-fp16.pt2"] < done.sizes["image.pt2"]


@pytest.mark.parametrize(
    "config",
    [
        {"quick_gelu": True},
        {"quick_gelu": False},
        {"custom_text": True, "text_cfg": {"pool_type": "eos"}},
    ],
)
def test_hf_is_equal_in_clip_model_and_processor(tmp_path, config):
    """Equal pixels and texts, equal vectors and logits, by transformers' classes alone."""
    from transformers import CLIPModel, CLIPProcessor

    if "text_cfg" in config:
        size = write_tokenizer(tmp_path / "files")
        config["text_cfg"] = config["text_cfg"] | {"eos_id": size - 1, "pad_id": size - 1}
    parts = load_parts(write_open_clip(tmp_path / "clip", **config))
    done = export(parts, to="hf", out=tmp_path / "out")
    assert done.agreement["image tower"].lowest > 0.9999
    model = CLIPModel.from_pretrained(tmp_path / "out").eval()
    processor = CLIPProcessor.from_pretrained(tmp_path / "out")
    clip = parts.clip()
    pictures, texts = drawings(IMAGE_SIZE, count=6), ["a red fox", "fo re x", "a house, red!"]
    words = {"padding": "max_length", "truncation": True, "max_length": CONTEXT_LENGTH}
    given = processor(images=pictures, text=texts, return_tensors="pt", **words)
    expected = torch.stack([parts.transform(picture) for picture in pictures])
    assert (given["pixel_values"] - expected).abs().mean() < 0.02  # torchvision's rounding
    with torch.no_grad():
        logits = model(**given | {"pixel_values": expected}).logits_per_image
    ours = clip.logit_scale * clip.encode_pictures(pictures) @ clip.encode_text(texts).T
    assert_close(logits, ours, atol=1e-3, rtol=0)
    again = load_clip(tmp_path / "out")  # and clipguide reads it too
    assert_close(again.encode_pictures(pictures), clip.encode_pictures(pictures), atol=0.05, rtol=0)
    assert_close(again.encode_text(texts), clip.encode_text(texts), atol=1e-5, rtol=0)


def test_hf_in_float16_and_of_transformers_own(tmp_path):
    from transformers import CLIPModel

    parts = load_parts(write_hf_clip(tmp_path / "clip"))
    done = export(parts, to="hf", out=tmp_path / "out", fp16=True)
    assert 0.999 < done.agreement["image tower"].lowest < 1 - 1e-9
    model = CLIPModel.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float16
    assert parts.model.model.dtype == torch.float32  # what was given is left as it was


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (lambda folder: write_clip(folder, seed=0), "its image tower is a EfficientNet"),
        (siglip, "its image tower is a VisionTransformer, not a vision transformer of CLIP's"),
        (
            lambda folder: vit(folder, text_cfg={"no_causal_mask": True}),
            "its text tower is not causal",
        ),
        (
            lambda folder: vit(folder, vision_cfg=VIT | {"ls_init_value": 0.1}),
            "its blocks are not CLIP's",
        ),
        (lambda folder: vit(folder, init_logit_bias=-10), "it was trained by SigLIP's loss"),
        (
            lambda folder: vit(folder, vision_cfg=VIT | {"pool_type": "avg"}),
            "its image tower does not pool by the class token",
        ),
    ],
)
def test_hf_says_why_not(tmp_path, write, why):
    parts = load_parts(write(tmp_path / "clip"))
    with pytest.raises(UsageError, match=f"cannot become a CLIPModel of transformers: ({why})"):
        export(parts, to="hf", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_openai_tokenizer_as_one_file(tmp_path):
    """open_clip's own tokenizer, read by the package tokenizers: the same ids."""
    import open_clip

    from clipguide.export import tokens

    class Known:
        context_length = 77
        name = "known"
        describe = None
        tokenizer = open_clip.SimpleTokenizer()

        def _tokenizer(self, texts):
            return self.tokenizer(texts, context_length=77)

    from clipguide.export.probes import sample_texts

    texts = sample_texts()
    assert tokens.write(Known(), Known(), tmp_path, texts) == "tokenizer.json"
    more = ["a cat's 3 dogs!!", "ÄÖ ß ⛄ 12:30", "<3 it's  they'll", "naïve café", "x" * 500]
    assert tokens_of(tmp_path, more).tolist() == Known()._tokenizer(more).tolist()


def test_the_lines_of_the_page_run(small, tmp_path, monkeypatch):
    """docs/export.md, on an export named as in it; and the README.md of an export is the same."""
    parts, done = small
    page = (Path(__file__).parent.parent / "docs" / "export.md").read_text()
    (code,) = re.findall("```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    os.symlink(done.folder, tmp_path / "my-clip")
    picture = drawings(IMAGE_SIZE, count=1)[0]
    picture.save("fox.png")
    spaces: dict = {}
    exec(code, spaces)
    clip = parts.clip()
    expected = clip.encode_text(["a fox", "a house"]) @ clip.encode_pictures([picture])[0]
    found = torch.from_numpy(spaces["cosines"])
    assert_close(found, expected, atol=2e-2, rtol=0)
    assert code.replace("my-clip", done.folder.name) in (done.folder / "README.md").read_text()


def run(*arguments: object) -> object:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_the_command(tmp_path):
    out, folder = tmp_path / "out", vit(tmp_path / "clip")
    for i, picture in enumerate(drawings(IMAGE_SIZE, count=4)):
        picture.save(tmp_path / f"{i}.png")
    said = run("--clip", folder, "--to", "hf", "--out", out, "--images", tmp_path)
    assert said.exit_code == 0, said.output
    assert re.search(r"image tower  cosine 1\.00000, at the lowest \S+ of 4\n", said.output)
    card = json.loads((out / "clip.json").read_text())
    assert card["measured_on"] == "images given and texts"
    assert str(tmp_path) not in (out / "clip.json").read_text() + (out / "README.md").read_text()
    again = run("--clip", folder, "--to", "hf", "--out", out)
    assert again.exit_code == 2 and "is there already" in again.output
    (out / "old").write_text("of before")
    forced = run("--clip", folder, "--to", "hf", "--out", out, "--force")
    assert forced.exit_code == 0 and not (out / "old").exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "onx"], "There is no export to 'onx'. Did you mean onnx?"),
        (["--to", "hf", "--int8"], "int8 is made for onnx, not for hf"),
        (["--to", "saved-model"], "There is no export to 'saved-model'"),
        (["--to", "onnx", "--clip", "mini+mini-judge"], "are several CLIPs: name one"),
        (["--to", "onnx", "--clip", "mni"], "Did you mean mini"),
        (["--to", "onnx", "--images", "nowhere.png"], "nowhere.png"),
        (["--to", "hf", "--clip", "mini"], "mini cannot become a CLIPModel of transformers"),
    ],
)
def test_bad_input(tmp_path, arguments, message):
    said = run(*arguments, "--out", tmp_path / "out")
    assert said.exit_code == 2
    assert message in said.output
    assert "Traceback" not in said.output
    assert not any(tmp_path.iterdir())


def test_force_replaces_nothing_but_an_export(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    said = run("--to", "hf", "--out", tmp_path / "mine", "--force")
    assert said.exit_code == 2 and "is no folder that clipguide made so" in said.output
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_packages_that_are_not_installed(tmp_path, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "onnx" in name else real(name)
    )
    said = run("--to", "onnx", "--out", tmp_path / "out")
    assert said.exit_code == 2
    assert "pip install 'clipguide[export]'" in said.output


@pytest.mark.parametrize("to", ["hf", pytest.param("onnx", marks=pytest.mark.slow), "torch-export"])
def test_a_full_disk(tmp_path, to):
    """Nothing is left, and an export that was there stays whole."""
    out, parts = tmp_path / "out", load_parts(vit(tmp_path / "clip"))
    export(parts, to="hf", out=out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(ClipguideError, match=f"{out} cannot be written"):
            export(parts, to=to, out=out, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["clip", "out"]


def test_a_tower_that_disagrees_is_not_kept(tmp_path, monkeypatch):
    """The check is of what was written: another activation does not pass."""
    parts = load_parts(vit(tmp_path / "clip"))
    monkeypatch.setattr("clipguide.export.hf._activation", lambda block: "gelu_pytorch_tanh")
    with pytest.raises(ClipguideError, match="tower for transformers was not written: it"):
        export(parts, to="hf", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pictures_are_at_least_two(clip_folder, tmp_path):
    one = [Image.new("RGB", (40, 40), "red")]
    with pytest.raises(UsageError, match="at least two images"):
        export(load_parts(clip_folder), to="onnx", out=tmp_path / "out", pictures=one)


def test_the_command_is_quick_to_import():
    """Nothing heavy is imported before it is asked for."""
    code = "import sys, clipguide.cli.export; print('torch' in sys.modules, 'onnx' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "False"]
