"""The custom pipeline for people of the community's: loaded by diffusers' own loader."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from hf_folder import write_hf_clip

from clipguide import Cutouts, Similarity, load_hf_clip, steer

FILE = Path(__file__).resolve().parents[1] / "pipelines/clip_guided.py"
ARGUMENTS = {"num_inference_steps": 4, "output_type": "pt"}


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory):
    return write_hf_clip(tmp_path_factory.mktemp("hf"))


@pytest.fixture
def guided(generator_folder, hf_folder):
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    pipe = DiffusionPipeline.from_pretrained(
        generator_folder,
        custom_pipeline=str(FILE),
        trust_remote_code=True,
        clip_model=CLIPModel.from_pretrained(hf_folder),
        feature_extractor=CLIPImageProcessor.from_pretrained(hf_folder),
        tokenizer_clip=CLIPTokenizer.from_pretrained(hf_folder),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_it_is_steer(guided, pipe, hf_folder):
    """The same bits as `steer` around the plain pipeline, two prompts at once; 0 is plain."""
    prompts = ["a red fox", "a zebra"]
    mine = guided(prompts, generator=generators(1, 2), num_cutouts=3, **ARGUMENTS).images
    objective = Similarity(load_hf_clip(hf_folder), prompts, views=Cutouts(number=3))
    with steer(pipe, objective, strength=0.1):
        theirs = pipe(prompts, generator=generators(1, 2), **ARGUMENTS).images
    assert torch.equal(mine, theirs)
    plain = pipe(prompts, generator=generators(1, 2), **ARGUMENTS).images
    assert not torch.equal(mine, plain)
    off = guided(prompts, generator=generators(1, 2), clip_guidance_scale=0, **ARGUMENTS).images
    assert torch.equal(off, plain)


def test_its_other_arguments(guided):
    one = guided(
        "a fox",
        clip_prompt="a zebra",
        use_cutouts=False,
        generator=generators(1, 2),
        num_images_per_prompt=2,
        **ARGUMENTS,
    ).images
    assert one.shape == (2, 3, 32, 32)
    again = guided(
        "a fox",
        clip_prompt="an owl",
        use_cutouts=False,
        generator=generators(1, 2),
        num_images_per_prompt=2,
        **ARGUMENTS,
    ).images
    assert not torch.equal(one, again)
