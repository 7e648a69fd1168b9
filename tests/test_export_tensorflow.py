"""A CLIP in TensorFlow: it runs where TensorFlow and onnx2tf are installed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch._dynamo  # before TensorFlow, beside whose LLVM Triton's does not load
from conftest import write_clip
from torch.testing import assert_close

tf = pytest.importorskip("tensorflow")
pytest.importorskip("onnx2tf")

from clipguide.clip import load_parts  # noqa: E402
from clipguide.export import export  # noqa: E402

SIZES = [(32, 32), (64, 100), (45, 20), (33, 32)]
TEXTS = ["a red fox", "", "a fox"]


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_a_saved_model_of_any_size_and_batch(tmp_path, mode):
    """Its two signatures, loaded by TensorFlow alone, against torch."""
    from tokenizers import Tokenizer

    preprocess = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}
    preprocess |= {"interpolation": "bicubic", "resize_mode": mode}
    parts = load_parts(write_clip(tmp_path / "clip", seed=0, preprocess=preprocess))
    out = tmp_path / "out"
    done = export(parts, to="saved-model", out=out)
    assert min(found.lowest for found in done.agreement.values()) > 0.999
    clip = parts.clip()
    run = tf.saved_model.load(str(out)).signatures
    for count, size in enumerate(SIZES, start=1):
        image_B3HW = torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(count))
        given = np.ascontiguousarray(image_B3HW.permute(0, 2, 3, 1).numpy())
        image_BD = torch.from_numpy(run["image"](image=tf.constant(given))["vectors"].numpy())
        assert ((image_BD * clip.encode_image(image_B3HW)).sum(1) > 0.999).all()
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    tokens_BL = tf.constant([one.ids for one in tokenizer.encode_batch(TEXTS)], tf.int64)
    text_BD = torch.from_numpy(run["text"](tokens=tokens_BL)["vectors"].numpy())
    assert_close(text_BD, clip.encode_text(TEXTS), atol=1e-3, rtol=0)
    assert not list(out.glob("*.onnx*"))
    assert json.loads((out / "clip.json").read_text())["to"] == "saved-model"
