"""The loop that trains the generator's networks, and the suitcase that its weights travel in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from clipguide.mini.details import Details
from clipguide.mini.memory import MapMemory
from clipguide.mini.styles import STYLES
from training import codes, details, pack, styles, vqgan
from training.loop import Loop, averaged
from training.samples import Samples

ROOT = Path(__file__).parents[1]


class Clock(Loop):
    """A loop whose clock moves by half a minute at each look, so that a run repeats."""

    seconds = 0.0

    @property
    def clock(self) -> float:
        self.seconds += 30
        return self.seconds


def train(folder, minutes, steps=None, **settings) -> Clock:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    loop = Clock(folder, model, minutes=minutes, lr=0.1, save_every=0.4, **settings)
    for k, done in enumerate(loop):
        assert 0 <= done < 1
        if steps is not None and k == steps:
            break
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(loop.index))
        loop.step((model(x) - x.sum(1, keepdim=True)).square().mean())
    return loop


def test_it_resumes(tmp_path):
    """Stopped in the middle and begun again: the same weights, to the bit."""
    whole = train(tmp_path / "whole", 10.0)
    train(tmp_path / "cut", 10.0, steps=7)
    again = train(tmp_path / "cut", 10.0)
    assert again.index == whole.index == 20
    for a, b in zip(again.model.state_dict().values(), whole.model.state_dict().values()):
        assert torch.equal(a, b)
    for a, b in zip(averaged(tmp_path / "cut").values(), whole.average.model.state_dict().values()):
        assert torch.equal(a, b)


def test_the_rate_falls_at_the_end(tmp_path):
    loop = train(tmp_path, 10.0, fall=0.5)
    assert loop.optimizer.param_groups[0]["lr"] < 0.1 * 20 / 200 * 0.21
    assert (tmp_path / "stable.pt").exists()


def test_more_minutes_go_on_from_before_the_fall(tmp_path):
    """And where that run is stopped before its own fall, from there."""
    train(tmp_path, 10.0, fall=0.5)
    stable = torch.load(tmp_path / "stable.pt", weights_only=True)
    assert stable["minutes"] == 5.0
    longer = train(tmp_path, 40.0, steps=3, fall=0.5)
    assert longer.index == stable["index"] + 3
    assert train(tmp_path, 40.0, steps=0, fall=0.5).index == stable["index"] + 3


def test_a_loss_that_is_no_number_is_left_out(tmp_path):
    loop = train(tmp_path, 10.0, steps=2)
    before = loop.model.weight.clone()
    loop.step((loop.model.weight * float("nan")).sum())
    assert torch.equal(before, loop.model.weight)


def test_factors_of_the_rate(tmp_path):
    loop = train(tmp_path, 10.0, steps=1, scale=lambda name: 0.5 if name == "bias" else 1.0)
    rates = {len(g["params"][0]): g["lr"] for g in loop.optimizer.param_groups}
    (bias,) = (g["lr"] for g in loop.optimizer.param_groups if g["factor"] == 0.5)
    assert bias == 0.5 * max(rates.values())


def test_a_factor_of_nought_holds_what_was_trained_before(tmp_path):
    """Also where the state on disk is of another factor: so the text encoder stays."""
    slow, still = ({"bias": 0.5}, {"bias": 0.0})
    settings = {"fall": 0.0, "scale": lambda name: slow.get(name, 1.0)}
    before = train(tmp_path, 5.0, **settings).model.state_dict()
    loop = train(tmp_path, 10.0, **{**settings, "scale": lambda name: still.get(name, 1.0)})
    assert loop.index == 20 and not torch.equal(loop.model.weight, before["weight"])
    assert torch.equal(loop.model.bias, before["bias"])


def test_weights_travel(tmp_path, monkeypatch):
    """In half precision and in parts; what comes back is a checkpoint to go on from."""
    monkeypatch.setattr(pack, "PART", 2000)
    state = {f"w{k}": torch.randn(30, 20) for k in range(3)} | {"n": torch.tensor(3)}
    pack.give(tmp_path / "out", state)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 3
    found = pack.received(tmp_path / "out")
    assert found.keys() == state.keys() and found["n"] == 3
    assert_close(found["w1"], state["w1"].half().float())
    model = train(tmp_path / "a", 10.0).model
    pack.keep(tmp_path / "b", dict(model.state_dict()))
    begun = train(tmp_path / "b", 10.0, steps=0)
    assert torch.equal(begun.model.weight, model.weight) and begun.index == 0


def test_styles_are_the_pipelines():
    assert styles.WORDS == STYLES
    assert sorted(styles.LABEL.values())[-1] == len(STYLES) - 1


@pytest.mark.parametrize("named", [0.25, 0.8, 1.0])
def test_so_many_captions_name_the_style(tmp_path, named):
    """The last of four does always; of the others so many that the share is `named`. A drawing of
    no style has none."""
    folder = tmp_path / "0"
    folder.mkdir()
    np.save(folder / "image.npy", np.zeros((2, 1, 1, 3), np.uint8))
    np.save(folder / "map.npy", np.zeros((2, 28, 4, 4), np.float16))
    np.save(folder / "label.npy", np.array([STYLES.index("glossy"), 0]))
    told = [["a fox", "fox", "un zorro", "a fox, glossy"], ["a cat", "cat", "chat", "kitty"]]
    (folder / "captions.json").write_text(json.dumps(told))
    (folder / "concept.json").write_text(json.dumps(["fox", "cat"]))
    samples, rng = Samples(tmp_path), np.random.default_rng(0)
    said = [samples.caption(0, rng, named) for _ in range(2000)]
    assert abs(np.mean(["glossy" in caption for caption in said]) - named) < 0.03
    assert {caption.split(",")[0] for caption in said} == {"a fox", "fox", "un zorro"}
    assert {samples.caption(1, rng, named) for _ in range(50)} == set(told[1])


def test_unused_codes_begin_again():
    """At latents of the images, none at a latent that is a code in use; where all are used, nothing
    moves, which once ended a training."""
    from diffusers import VQModel

    torch.manual_seed(0)
    model = VQModel(
        block_out_channels=(8,), latent_channels=4, norm_num_groups=4, num_vq_embeddings=6
    )
    image_B3HW = torch.rand(2, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        latents = model.quant_conv(model.encoder(image_B3HW))
        z_ND = latents.permute(0, 2, 3, 1).flatten(0, 2)
        weight = model.quantize.embedding.weight
        weight[0] = z_ND[0]
    before = weight.detach().clone()
    vqgan.revive(model, image_B3HW, torch.ones(6))
    assert torch.equal(weight, before)
    vqgan.revive(model, image_B3HW, torch.tensor([3.0, 0, 1, 0, 0, 2]))
    assert torch.equal(weight[[0, 2, 5]], before[[0, 2, 5]])
    far_KN = torch.cdist(weight[[1, 3, 4]].detach(), z_ND)
    assert (far_KN.amin(1) < 1e-5).all() and not (far_KN.argmin(1) == 0).any()


def test_a_codebook_grows_by_copies():
    """The shipped one, whose codes come first."""
    model, own = vqgan.shipped()
    assert model.quantize.embedding.weight.shape == (vqgan.CODES, 8) and own <= vqgan.CODES
    images = torch.rand(1, 3, 64, 64)
    db, used = vqgan.measure(model.eval(), images)
    assert 0 < used <= 64 / vqgan.CODES and db > 5


def test_a_pack_of_what_ships(tmp_path):
    """After `training.generator recover`, which leaves the autoencoder of 256 pixels and no text
    tower: what is unpacked elsewhere is what was packed."""
    here, there = tmp_path / "here", tmp_path / "there"
    state = {"w": torch.randn(3, 3).half().float()}
    for place in ("vae/large", "prior", "decoder"):
        pack.keep(here / place, state)
    for name in ("samples/axes.pt", "samples/eye.pt", "decoder/moments.pt"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({}, here / name)
    for name in ("samples/names.json", "text/tokenizer/vocab.json"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("{}")
    (here / "data").mkdir()
    rows = [{"index": k, "split": split} for k, split in enumerate(("train", "test", "train"))]
    (here / "data/manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    np.save(here / "data/colour-shares.npy", np.zeros(3))
    grey = np.full((3, 128, 128, 4), 200, np.uint8)
    np.save(here / "data/pictures.npy", grey)
    for cache, command in ((here, "make"), (there, "unpack")):
        told = {**os.environ, "CLIPGUIDE_TRAINING_CACHE": str(cache)}
        asked = [sys.executable, "-m", "training.pack", command]
        subprocess.run(asked, env=told, cwd=ROOT, check=True, timeout=200)
        if command == "make":
            shutil.copytree(here / "pack", there / "pack")
    for place in ("vae/large", "prior", "decoder"):
        assert torch.equal(averaged(there / place)["w"], state["w"])
    assert not (there / "vae/small").exists() and not (there / "text/prior.pt").exists()
    assert (there / "decoder/moments.pt").is_file()
    found = np.load(there / "data/pictures.npy")
    assert abs(found[0].astype(int) - grey[0]).max() < 4 and not found[1].any()


def test_codes_travel(tmp_path):
    """What comes back has the numbers as they are, bit by bit; the moments of Adam begin anew."""
    config = {"components": codes.COMPONENTS, "detail_channels": details.CHANNELS}
    model = codes.Codes(MapMemory(**config, size=5), torch.zeros(5, 8, 8, 8), Details())
    for value in (model.numbers, model.parts, model.numbers_square, model.visits):
        value.copy_(torch.rand(value.shape))
    before = model.state_dict()
    pack.give(tmp_path, codes.carried(before), half=False)
    assert len(pack.received(tmp_path)) == len(before) - 5
    after = codes.arrived(pack.received(tmp_path))
    model.load_state_dict(after)
    new = {"visits", *(f"{n}_{k}" for n in codes.RATES for k in ("mean", "square"))}
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - new)
    assert not any(after[name].any() for name in new)
