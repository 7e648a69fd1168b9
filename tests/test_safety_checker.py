"""A model's own safety checker: never dropped without a word, and kept where it is asked for."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from clipguide.pipelines.loading import load_pipeline
from clipguide.pipelines.text_to_image import TextToImage
from typer.testing import CliRunner

from clipguide import recipe as recipes
from clipguide.cli.app import app
from clipguide.errors import ClipguideWarning

DRAW = {"steps": 2, "seed": 3, "cfg": 1.0}


@pytest.fixture(scope="module")
def checked_folder(generator_folder, tmp_path_factory):
    """The tiny generator with a tiny checker of diffusers' own class that finds fault with all."""
    from diffusers import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    vision = {**sizes, "image_size": 32, "patch_size": 16, "intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CLIPConfig(vision_config=vision, text_config=sizes, projection_dim=8)
        checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data.fill_(-2.0)  # any cosine is above
    folder = tmp_path_factory.mktemp("checked")
    pipe = StableDiffusionPipeline.from_pretrained(generator_folder, safety_checker=None)
    pipe.register_modules(
        safety_checker=checker,
        feature_extractor=CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
    )
    pipe.save_pretrained(folder)
    return folder


def test_it_is_left_out_with_a_word(checked_folder):
    with pytest.warns(ClipguideWarning, match="is left out: give safety_checker=True") as said:
        pipe = load_pipeline(str(checked_folder))
    assert pipe.safety_checker is None
    assert str(checked_folder) in str(said[0].message)


def test_it_is_kept_and_looks(checked_folder, generator_folder, clip_folder):
    """Kept, it is there, nothing is said of it, and a steered image that it finds fault with comes
    out black."""
    models = {"clip": str(clip_folder)}
    with warnings.catch_warnings():
        warnings.simplefilter("error", ClipguideWarning)
        kept = TextToImage(model=str(checked_folder), safety_checker=True, **models)
        none = TextToImage(model=str(generator_folder), **models)  # which has no checker
    assert type(kept.pipe.safety_checker).__name__ == "StableDiffusionSafetyChecker"
    assert np.asarray(kept("a fox", **DRAW)[0].image).max() == 0
    assert np.asarray(none("a fox", **DRAW)[0].image).max() > 0


def test_command(checked_folder, clip_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = ["generate", "a fox", "--model", str(checked_folder), "--clip", str(clip_folder)]
    run += ["--steps", "2", "--seed", "3", "--cfg", "1"]
    result = CliRunner().invoke(app, [*run, "--out", "a.png"])
    assert result.exit_code == 0 and "--safety-checker" in " ".join(result.stderr.split())
    result = CliRunner().invoke(app, [*run, "--safety-checker", "--out", "b.png"])
    assert result.exit_code == 0 and "safety" not in result.stderr
    assert recipes.read_png("b.png").seed == recipes.read_png("a.png").seed
