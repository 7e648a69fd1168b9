"""load_clip's names: devices and dtypes, ensembles, files of OpenAI's, and what is refused."""

from __future__ import annotations

import json
import shutil
import warnings

import open_clip
import pytest
import torch
import torch.nn.functional as F
from clipguide.pipelines.text_to_canvas import TextToCanvas
from clipguide.pipelines.text_to_image import TextToImage
from conftest import CONTEXT_LENGTH, write_clip
from hf_folder import write_hf_clip, write_hf_siglip
from test_clip import landscape
from torch.testing import assert_close

import clipguide
from clipguide import Cutouts, Ensemble, Similarity, load_clip
from clipguide.clip import check_clip, lasting_name
from clipguide.errors import ClipguideError, ClipguideWarning, UsageError
from clipguide.guidance import steer
from clipguide.images import to_tensor

LONG = "a red fox and a zebra and an owl sit on a tree by the old house at night"


@pytest.fixture(scope="module")
def both(clip_folder, judge_folder):
    return f"3*{clip_folder}+1*{judge_folder}@:float32"


@pytest.fixture(scope="module")
def ensemble(both):
    return load_clip(both)


PICTURES = [landscape(50, 40), landscape(40, 57, seed=1), landscape(32, 32, seed=2)]


# names


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        ("@cpu", torch.float32),
        ("@:bf16", torch.bfloat16),
        ("@cpu:bfloat16", torch.bfloat16),
        ("@cpu:0:float64", torch.float64),
        ("@:fp32", torch.float32),
    ],
)
def test_a_device_and_a_dtype(clip_folder, clip, suffix, dtype):
    """They go before the arguments, and the name loads the same again."""
    placed = load_clip(f"{clip_folder}{suffix}", dtype="float32")
    assert placed.dtype == dtype and placed.device.type == "cpu"
    assert placed.name == f"{clip_folder}{suffix}"
    expected = load_clip(clip_folder, dtype=str(dtype).removeprefix("torch."))
    assert torch.equal(placed.encode_pictures(PICTURES), expected.encode_pictures(PICTURES))


@pytest.mark.parametrize("suffix", ["@", "@@", "@gpu", "@cpu:", "@cpu:float31", "@bfloat16", "@:"])
def test_no_device_and_no_dtype(suffix):
    with pytest.raises(UsageError, match=r"After the @ of .* as in mini@cpu, .*There is no d"):
        load_clip(f"mini{suffix}")


@pytest.mark.parametrize("name", ["clip@cpu", "a+b", "0.5*a", "x@y+z"])
def test_a_path_that_exists_wins(clip_folder, tmp_path, name):
    shutil.copytree(clip_folder, tmp_path / name)
    assert load_clip(tmp_path / name).name == str(tmp_path / name)
    assert load_clip(f"{tmp_path / name}@:bf16").dtype == torch.bfloat16


def test_a_lasting_name_means_the_same_from_anywhere(clip_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("own", "a word.st", "mini"):
        shutil.copytree(clip_folder, tmp_path / name)
    own, word = tmp_path / "own", tmp_path / "a word.st"
    for name, lasting in {
        "own": f"{own}",
        "./own@cpu:bf16": f"{own}@cpu:bf16",
        "own~a word.st~own@:float16": f"{own}~{word}~{own}@:float16",
        "mini": "mini",
        "mini~a word.st": f"mini~{word}",
        "0.7*mini+0.3*../x/./own@cpu": "0.7*mini+0.3*../x/./own@cpu",
        "0.7*own + 2*mini-judge": f"0.7*{own}+2*mini-judge",
        "own+mini@:bf16": f"{own}+mini@:bf16",
        "ViT-B-32/openai": "ViT-B-32/openai",
        "hf-hub:timm/x": "hf-hub:timm/x",
    }.items():
        assert lasting_name(name) == lasting
        assert lasting_name(lasting) == lasting
    monkeypatch.chdir(tmp_path.parent)
    assert load_clip(f"{own}+{own}@:bf16").dtype == torch.float32


# ensembles


def test_a_cosine_is_the_weighted_mean(ensemble, clip, judge):
    assert isinstance(ensemble, Ensemble) and ensemble.weights == (0.75, 0.25)
    assert ensemble.embed_dim == 48 and ensemble.context_length == CONTEXT_LENGTH
    texts, image_B3HW = ["a red fox", "an owl"], to_tensor([PICTURES[0]])

    def cosines(of):
        text_ND = of.encode_text(texts)
        units = of.encode_pictures(PICTURES), of.encode_image(image_B3HW), text_ND
        return [of.similarity(unit_BD, text_ND) for unit_BD in units]

    for ours, one, other in zip(*map(cosines, (ensemble, clip, judge)), strict=True):
        assert_close(ours, 0.75 * one + 0.25 * other, atol=1e-6, rtol=0)
    unit_BD = ensemble.encode_pictures(PICTURES)
    assert_close(unit_BD.norm(dim=1), torch.ones(3))
    prepared = [ensemble.prepare(picture) for picture in PICTURES]
    assert torch.equal(ensemble.encode_prepared(prepared), unit_BD)
    assert ensemble.logit_scale == pytest.approx(0.75 * clip.logit_scale + 0.25 * judge.logit_scale)
    assert ensemble.logit_bias == 0


def test_its_name_and_fingerprint(ensemble, both, clip, judge, clip_folder, judge_folder):
    assert ensemble.name == both
    made = Ensemble([clip, judge], weights=[3, 1])
    assert made.name == f"0.75*{clip_folder}+0.25*{judge_folder}"
    assert load_clip(made.name).fingerprint == made.fingerprint == ensemble.fingerprint
    others = [Ensemble([clip, judge]), Ensemble([judge, clip], weights=[3, 1]), clip, judge]
    assert len({other.fingerprint for other in [made, *others]}) == 5


def test_members_of_other_sizes_and_libraries(clip, tmp_path):
    """An open_clip model, a CLIP and a SigLIP; the largest image, the wider dtype."""
    larger = write_clip(tmp_path / "larger", seed=5, image_size=64)
    siglip = write_hf_siglip(tmp_path / "siglip")
    mixed = load_clip(f"{larger}@:bfloat16+{siglip}+{write_hf_clip(tmp_path / 'hf')}")
    assert mixed.image_size == 64 and mixed.dtype == torch.float32
    assert mixed.embed_dim == 24 + 32 + 16
    assert mixed.logit_bias == pytest.approx(-7.5 / 3)
    assert_close(mixed.encode_pictures(PICTURES).norm(dim=1), torch.ones(3))
    nested = Ensemble([mixed, clip])
    expected = nested.members[0].encode_text(["a"]) @ mixed.encode_text(["an owl"]).T
    expected = (expected + clip.encode_text(["a"]) @ clip.encode_text(["an owl"]).T) / 2
    assert_close(nested.encode_text(["a"]) @ nested.encode_text(["an owl"]).T, expected)


def test_it_is_guided_by_as_a_clip_is(both):
    """Similarity over it, by finite differences in float64; and the mean of its members'."""
    ensemble = load_clip(both.removesuffix("@:float32"), dtype="float64")
    objective = Similarity(ensemble, "a red fox", views=Cutouts(number=2), kind="dot")
    generator = torch.Generator().manual_seed(0)
    image = 0.3 + 0.4 * torch.rand(1, 3, 48, 40, generator=generator, dtype=torch.float64)
    image.requires_grad_()

    def loss(image_B3HW):
        return objective(image_B3HW, [torch.Generator().manual_seed(1)]).sum()

    (gradient,) = torch.autograd.grad(loss(image), image)
    direction = torch.randn(image.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        ahead, behind = (loss(image + step * direction) for step in (1e-6, -1e-6))
    assert_close((gradient * direction).sum(), (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-10)
    alone = [Similarity(member, "a red fox", views=None) for member in ensemble.members]
    together = Similarity(ensemble, "a red fox", views=None).score(image)
    assert_close(together, 0.75 * alone[0].score(image) + 0.25 * alone[1].score(image))


def test_another_dtype(ensemble):
    half = ensemble.astype("bfloat16")
    assert half.dtype == torch.bfloat16 and ensemble.dtype == torch.float32
    assert half.fingerprint == ensemble.fingerprint
    cosine_B = (half.encode_pictures(PICTURES) * ensemble.encode_pictures(PICTURES)).sum(1)
    assert 0.99 < cosine_B.min() < 1 and cosine_B.max() < 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mini+", "names a CLIP before and after each +"),
        ("+mini", "names a CLIP before and after each +"),
        ("0.5*", "names a CLIP before and after each +"),
        ("0.5*mini", "gives a weight to one CLIP alone"),
        ("much*mini+mini-judge", "'much' is no weight"),
        ("0.5*mini+0.5*mini-juge", "Did you mean mini-judge"),
        ("mini+mini@tpu:float16", "no device 'tpu'"),
    ],
)
def test_no_ensemble(name, message, tiny_mini):
    with pytest.raises(UsageError, match=message):
        load_clip(name)


@pytest.mark.parametrize("weights", [(-1, 2), (0, 0), (float("nan"), 1), (float("inf"), 1)])
def test_weights_that_are_refused(clip, judge, tiny_mini, weights):
    with pytest.raises(UsageError, match="finite numbers from 0 on, and not all 0"):
        Ensemble([clip, judge], weights=weights)
    with pytest.raises(UsageError, match="finite numbers from 0 on, and not all 0"):
        load_clip(f"{weights[0]}*mini+{weights[1]}*mini-judge")


def test_members_that_are_too_few(clip):
    for members in ([], [clip]):
        with pytest.raises(UsageError, match="at least two CLIPs"):
            Ensemble(members)
    with pytest.raises(UsageError, match="3 weights for an ensemble of 2"):
        Ensemble([clip, clip], weights=[1, 2, 3])
    one = Ensemble([clip, clip], weights=[1, 0])  # 0 is a weight
    assert_close(one.encode_text(["a"])[:, :24], clip.encode_text(["a"]))


# files


class Unsafe:
    def __reduce__(self):
        return print, ("run",)


def test_files_that_are_refused(tmp_path, capfd):
    def refused(match, error=UsageError, **settings):
        with pytest.raises(error, match=match) as caught:
            load_clip(tmp_path / "file.pt", **settings)
        assert str(caught.value).count(". ") <= 1

    (tmp_path / "file.pt").write_text("not weights")
    refused("neither a whole state dict, of tensors and nothing else, nor a JIT archive")
    landscape(20, 20).save(tmp_path / "file.pt", "png")
    refused("neither a whole state dict")
    torch.save({"weight": Unsafe()}, tmp_path / "file.pt")
    refused("neither a whole state dict", trust_pickle=True)  # it is not a matter of trust
    assert "run" not in capfd.readouterr().out
    for state in ([1], {}, torch.nn.Linear(2, 2).state_dict()):
        torch.save(state, tmp_path / "file.pt")
        refused("there is no token_embedding.weight", ClipguideError)
    torch.save({"state_dict": {}}, tmp_path / "file.pt")
    refused("is a checkpoint of a training: name its open_clip model before it")
    (tmp_path / "empty").touch()
    with pytest.raises(UsageError, match="neither a whole state dict"):
        load_clip(tmp_path / "empty")


def openai_state() -> dict[str, torch.Tensor]:
    import open_clip

    vision = {"image_size": 16, "patch_size": 8, "width": 64, "layers": 1}
    text = {"context_length": 12, "width": 64, "heads": 1, "layers": 1}
    return open_clip.CLIP(8, vision_cfg=vision, text_cfg=text).state_dict()


def test_state_dicts_that_do_not_fit(tmp_path):
    state = openai_state()
    changes = [
        ({"visual.layer1.0.conv1.weight": torch.ones(4, 4, 1, 1)}, "Unexpected key"),
        ({"ln_final.weight": torch.ones(128)}, "not those of a CLIP of OpenAI's"),
        ({"visual.proj": None}, "not those of a CLIP of OpenAI's"),
        ({"token_embedding.weight": torch.ones(100, 64)}, "it knows 100 tokens, not 49408"),
    ]
    for change, message in changes:
        changed = {key: value for key, value in {**state, **change}.items() if value is not None}
        torch.save(changed, tmp_path / "file.pt")
        with pytest.raises(ClipguideError, match=message):
            load_clip(tmp_path / "file.pt")


def test_a_file_of_another_name_is_warned_of(tmp_path):
    torch.save(openai_state(), tmp_path / "ViT-B-32.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ClipguideWarning)
        load_clip(tmp_path / "ViT-B-32.pt")
    (tmp_path / "ViT-B-32.pt").rename(tmp_path / "laion.pt")
    with pytest.warns(ClipguideWarning, match="laion.pt is taken for a CLIP of OpenAI's"):
        load_clip(tmp_path / "laion.pt")


def test_an_archive_only_where_it_is_trusted(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "file.pt")
    with pytest.raises(UsageError, match="a JIT archive, which holds code: give trust_pickle=True"):
        load_clip(tmp_path / "file.pt")
    with pytest.raises(ClipguideError, match="there is no token_embedding.weight"):
        load_clip(tmp_path / "file.pt", trust_pickle=True)


# folders


def test_weights_of_another_architecture(clip_folder, tmp_path):
    """An open_clip folder, and one of transformers, which would only warn, and draw the rest."""
    shutil.copytree(clip_folder, tmp_path / "clip")
    config = json.loads((tmp_path / "clip" / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["layers"] = 3
    (tmp_path / "clip" / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ClipguideError, match="not those of the model that its configuration"):
        load_clip(tmp_path / "clip")
    hf, siglip = write_hf_clip(tmp_path / "hf"), write_hf_siglip(tmp_path / "siglip")
    shutil.copy(hf / "model.safetensors", siglip / "model.safetensors")
    with pytest.raises(ClipguideError, match="(?s)siglip are not those .* is missing, one of|size"):
        load_clip(siglip)
    config = json.loads((hf / "config.json").read_text())
    for layers, message in ((3, "layers.2.* is missing, one of 16"), (1, "there is no place for")):
        config["text_config"]["num_hidden_layers"] = layers
        (hf / "config.json").write_text(json.dumps(config))
        with pytest.raises(ClipguideError, match=message):
            load_clip(hf)


def test_folders_with_a_pickle(clip_folder, clip, tmp_path):
    """open_clip would read one beside safetensors of another name."""
    copy = tmp_path / "copy"
    shutil.copytree(clip_folder, copy)
    weights = copy / "open_clip_model.safetensors"
    torch.save(clip._model.state_dict(), copy / "pytorch_model.bin")
    load_clip(copy)
    weights.rename(copy / "weights.safetensors")
    with pytest.raises(UsageError, match="open_clip reads pytorch_model.bin, which is a pickle"):
        load_clip(copy)
    (copy / "weights.safetensors").unlink()
    state = {"state_dict": load_file_of(clip_folder)}
    torch.save(state, copy / "pytorch_model.bin")
    assert load_clip(copy, trust_pickle=True).fingerprint == clip.fingerprint


def load_file_of(folder):
    from safetensors.torch import load_file

    return load_file(folder / "open_clip_model.safetensors")


@pytest.mark.parametrize("write", [write_hf_clip, lambda folder: write_clip(folder, seed=0)])
def test_a_tokenizer_without_its_vocabulary(write, tmp_path):
    """transformers would make one that reads every text as unknown."""
    folder = write(tmp_path)
    (folder / "vocab.json").unlink()
    (folder / "merges.txt").unlink()
    with pytest.raises(ClipguideError, match="reads every text alike"):
        load_clip(folder)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("bert", "neither a CLIP nor a SigLIP"), (None, "of type None")],
)
def test_other_models_of_transformers(tmp_path, kind, message):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(UsageError, match=message):
        load_clip(tmp_path)


# long texts


def test_windows_cover_all_words_and_are_averaged(clip):
    windows = clip._windows(LONG)
    assert len(windows) > 2 and " ".join(windows) == LONG
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # each fits, and with one word more it would not
        window_WD = clip.encode_text(windows)
    words = LONG.split()
    for window, following in zip(windows, windows[1:]):
        with pytest.warns(ClipguideWarning, match="is lost"):
            clip.encode_text([f"{window} {following.split()[0]}"])
    expected_D = F.normalize(window_WD.mean(0), dim=-1)
    assert_close(clip.encode_text([LONG], long="chunk")[0], expected_D)
    assert len(words) == sum(len(window.split()) for window in windows)


def test_a_text_that_fits_is_the_same(clip, ensemble):
    texts = ["a red fox", "", "an owl"]
    for one in (clip, ensemble):
        assert torch.equal(one.encode_text(texts, long="chunk"), one.encode_text(texts))


def test_texts_of_both_kinds_keep_their_order(clip):
    texts = [LONG, "a red fox", f"{LONG} {LONG}", "an owl"]
    together_ND = clip.encode_text(texts, long="chunk")
    for text, unit_D in zip(texts, together_ND, strict=True):
        assert_close(clip.encode_text([text], long="chunk")[0], unit_D)


def test_a_word_that_is_too_long_is_cut(clip):
    word = "qwertzuiop" * 4
    with pytest.warns(ClipguideWarning, match="is lost"):
        chunked = clip.encode_text([f"a fox {word} an owl"], long="chunk")
    with pytest.warns(ClipguideWarning, match="is lost"):
        parts_WD = clip.encode_text(["a fox", word, "an owl"])
    assert_close(chunked[0], F.normalize(parts_WD.mean(0), dim=-1))
    with pytest.raises(UsageError, match="cut or chunk, not 'wrap'"):
        clip.encode_text(["a"], long="wrap")


def test_public_names():
    assert "Ensemble" in clipguide.__all__ and "load_hf_clip" not in clipguide.__all__


@pytest.mark.parametrize("name", ["minni", "ViT-B-32/laion", "mini+minni", "a/b/c.pt", "mini@gpu"])
def test_a_name_is_checked_before_anything_is_loaded(pipe, name, monkeypatch):
    """The judge's too, which is loaded last."""
    with pytest.raises(UsageError) as expected:
        load_clip(name)
    monkeypatch.setattr(open_clip, "create_model_from_pretrained", None)  # nothing can be loaded
    refused = (
        lambda: check_clip(name),
        lambda: steer(pipe, "a fox", clip="mini", judge=name),
        lambda: TextToImage(model="/nowhere", judge=name),
        lambda: TextToImage(model="/nowhere", clip=name),
        lambda: TextToCanvas(canvas="vqgan", judge=name),
    )
    for try_it in refused:
        with pytest.raises(UsageError) as told:
            try_it()
        assert str(told.value) == str(expected.value)
    check_clip("mini+0.5*mini-judge@cpu")
