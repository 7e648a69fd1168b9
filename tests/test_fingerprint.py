"""A fingerprint covers everything that changes a vector; that of images nothing else."""

from __future__ import annotations

import json
import shutil

import open_clip
import pytest
import torch
from conftest import IMAGE_SIZE, write_clip, write_tokenizer
from hf_folder import write_hf_clip
from safetensors.torch import load_file, save_file
from test_clip import landscape

from clipguide import load_clip
from clipguide.clip import load_parts

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
VISION = {"layers": 2, "width": 32, "head_width": 8, "patch_size": 8, "image_size": IMAGE_SIZE}


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A folder of open_clip's own ViT, whose heads and activation no weight tells."""
    folder = tmp_path_factory.mktemp("vit")
    size = write_tokenizer(folder)
    text = {"context_length": 16, "vocab_size": size, "width": 16, "heads": 2, "layers": 2}
    text |= {"hf_tokenizer_name": "tiny", "pool_type": "eos", "eos_id": size - 1}
    config = {
        "model_cfg": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": text, "custom_text": True},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"},
    }
    (folder / CONFIG).write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file({k: v * 3 for k, v in model.state_dict().items()}, folder / WEIGHTS)
    return folder


def changed(vit, folder, change):
    """The CLIP of the folder with another configuration."""
    shutil.copytree(vit, folder)
    config = json.loads((folder / CONFIG).read_text())
    change(config["model_cfg"], config["preprocess_cfg"])
    (folder / CONFIG).write_text(json.dumps(config))
    return load_clip(folder)


def vectors(clip):
    return clip.encode_pictures([landscape(50, 40)]), clip.encode_text(["a Red fox"])


CHANGES = {
    "head width": (lambda m, p: m["vision_cfg"].update(head_width=16), True, False),
    "QuickGELU": (lambda m, p: m.update(quick_gelu=True), True, True),
    "the activation's settings": (
        lambda m, p: m["vision_cfg"].update(act_kwargs={"approximate": "tanh"}),
        True,
        False,
    ),
    "epsilon": (lambda m, p: m["vision_cfg"].update(norm_kwargs={"eps": 0.1}), True, False),
    "heads of the text": (lambda m, p: m["text_cfg"].update(heads=4), False, True),
    "no mask": (lambda m, p: m["text_cfg"].update(no_causal_mask=True), False, True),
    "another mean": (lambda m, p: p.update(mean=[0.4] * 3), True, False),
    "another crop": (lambda m, p: p.update(resize_mode="shortest"), True, False),
}


@pytest.mark.parametrize("what", CHANGES)
def test_equal_weights_of_another_architecture(vit, tmp_path, what):
    change, image, text = CHANGES[what]
    before, after = load_clip(vit), changed(vit, tmp_path / "other", change)
    for old, new in zip(before._model.state_dict().values(), after._model.state_dict().values()):
        assert torch.equal(old, new), "the premise: the same weights"
    moved = [not torch.equal(a, b) for a, b in zip(vectors(before), vectors(after))]
    assert moved == [image, text], "the premise: which vectors change"
    assert before.fingerprint != after.fingerprint
    assert (before.image_fingerprint != after.image_fingerprint) == image


@pytest.mark.parametrize(
    "change",
    [
        lambda m, p: m["vision_cfg"].update(mlp_ratio=4.0, pool_type="tok"),
        lambda m, p: m["vision_cfg"].update(patch_dropout=0.5),
        lambda m, p: m["text_cfg"].update(hf_tokenizer_name="another-name"),
        lambda m, p: m.update(init_logit_scale=1.0),
    ],
)
def test_what_changes_no_vector_changes_no_fingerprint(vit, tmp_path, change):
    before, after = load_clip(vit), changed(vit, tmp_path / "other", change)
    assert all(torch.equal(a, b) for a, b in zip(vectors(before), vectors(after)))
    assert before.fingerprint == after.fingerprint


def swap(folder):
    vocabulary = json.loads((folder / "vocab.json").read_text())
    vocabulary["q"], vocabulary["z"] = vocabulary["z"], vocabulary["q"]
    (folder / "vocab.json").write_text(json.dumps(vocabulary))


def lose_a_merge(folder):
    lines = (folder / "merges.txt").read_text().splitlines()
    (folder / "merges.txt").write_text("\n".join(lines[:-1]) + "\n")


@pytest.mark.parametrize("change", [swap, lose_a_merge])
def test_another_tokenizer_changes_texts_alone(vit, tmp_path, change):
    shutil.copytree(vit, tmp_path / "other")
    change(tmp_path / "other")
    before, after = load_clip(vit), load_clip(tmp_path / "other")
    assert before.fingerprint != after.fingerprint
    assert before.image_fingerprint == after.image_fingerprint


@pytest.mark.parametrize(("method", "same"), [("lit", True), ("full", False)])
def test_after_a_change_of_the_text_tower_an_index_is_valid(clip_folder, tmp_path, method, same):
    """lit trains the text tower and the logits' scale: images' vectors are equal to the bit."""
    folder = tmp_path / "tuned"
    shutil.copytree(clip_folder, folder)
    state = load_file(folder / WEIGHTS)
    for name in state:
        if name.startswith("text.") or name == "logit_scale" or method == "full":
            state[name] = state[name] * 1.1 if state[name].is_floating_point() else state[name]
    save_file(state, folder / WEIGHTS)
    before, after = load_clip(clip_folder), load_clip(folder)
    assert torch.equal(vectors(before)[0], vectors(after)[0]) == same
    assert (before.image_fingerprint == after.image_fingerprint) == same
    assert before.fingerprint != after.fingerprint


@pytest.mark.parametrize(
    ("tower", "setting", "value"),
    [
        ("vision_config", "num_attention_heads", 4),
        ("vision_config", "hidden_act", "gelu"),
        ("text_config", "num_attention_heads", 4),
    ],
)
def test_a_folder_of_transformers(tmp_path, tower, setting, value):
    one, other = (write_hf_clip(tmp_path / name) for name in ("one", "other"))
    config = json.loads((other / "config.json").read_text())
    config[tower][setting] = value
    (other / "config.json").write_text(json.dumps(config))
    before, after = load_clip(one), load_clip(other)
    assert before.fingerprint != after.fingerprint
    differs = before.image_fingerprint != after.image_fingerprint
    assert differs == (tower == "vision_config")


def test_parts_say_what_their_clip_says(clip_folder, vit, tmp_path):
    for folder in (clip_folder, vit, write_hf_clip(tmp_path / "hf")):
        parts = load_parts(folder)
        assert parts.fingerprint == parts.clip().fingerprint == load_clip(folder).fingerprint
        parts.save(tmp_path / f"{folder.name}-saved")
        assert load_clip(tmp_path / f"{folder.name}-saved").fingerprint == parts.fingerprint


def test_names_and_devices_do_not_matter(clip_folder, tmp_path):
    other = write_clip(tmp_path / "copy", seed=0)
    assert load_clip(other).fingerprint == load_clip(clip_folder).fingerprint
    half = load_clip(clip_folder).astype("bfloat16")
    assert half.image_fingerprint == load_clip(clip_folder).image_fingerprint
