"""Checkpoints of open_clip's training, as its own script leaves them."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
from test_clip import landscape
from torch.testing import assert_close

from clipguide import load_clip
from clipguide.clip import lasting_name, load_parts
from clipguide.errors import ClipguideError, UsageError
from clipguide.images import to_tensor

MODEL, OTHER = "clipguide-tiny", "clipguide-other"
TOWER = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Of a model that open_clip knows by name."""
    folder = tmp_path_factory.mktemp("configs")
    for name, width in ((MODEL, 8), (OTHER, 12)):
        config = {"embed_dim": width, "vision_cfg": TOWER, "text_cfg": TEXT}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return open_clip.create_model(MODEL, load_weights=False).eval()


def save(file, model, prefix="module."):
    optimizer = torch.optim.AdamW([p for p in model.parameters()][:3])
    state = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    facts = {"epoch": 5, "name": "run", "state_dict": state, "optimizer": optimizer.state_dict()}
    file.parent.mkdir(exist_ok=True)
    torch.save(facts, file)
    return file


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_as_open_clip_trained_it(trained, tmp_path, monkeypatch, prefix):
    save(tmp_path / "logs" / "epoch_5.pt", trained, prefix)
    monkeypatch.chdir(tmp_path)
    name = f"{MODEL}/logs/epoch_5.pt"
    clip = load_clip(name)
    text_ND = clip.encode_text(["a red fox"])
    with torch.no_grad():
        expected = trained.encode_text(open_clip.get_tokenizer(MODEL)(["a red fox"]), True)
    assert_close(text_ND, expected, atol=1e-5, rtol=0)
    if prefix:
        return
    absolute = lasting_name(name)
    assert absolute == f"{MODEL}/{tmp_path / 'logs' / 'epoch_5.pt'}"
    monkeypatch.chdir("/")
    assert load_clip(absolute).fingerprint == clip.fingerprint
    assert clip.encode_image(to_tensor([landscape(64, 64)])).isfinite().all()
    load_parts(absolute).save(tmp_path / "folder")
    assert load_clip(tmp_path / "folder").fingerprint == clip.fingerprint


def test_what_is_wrong_with_it(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "logs" / "epoch_5.pt", trained)
    with pytest.raises(UsageError, match="is a checkpoint of a training: name its open_clip model"):
        load_clip("logs/epoch_5.pt")
    with pytest.raises(ClipguideError, match="are not those of a clipguide-other"):
        load_clip(f"{OTHER}/logs/epoch_5.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UsageError, match="is no checkpoint of open_clip's training"):
        load_clip(f"{MODEL}/list.pt")
    with pytest.raises(UsageError, match="There is no CLIP"):
        load_clip("ViT-B-33/logs/epoch_5.pt")
