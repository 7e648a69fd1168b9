"""The custom pipelines for people of the community's: loaded by diffusers' own loader."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionImg2ImgPipeline
from hf_folder import write_hf_clip
from PIL import Image

from clipguide import Cutouts, Similarity, UsageError, load_clip, steer
from clipguide.errors import ClipguideWarning

FOLDER = Path(__file__).resolve().parents[1] / "pipelines"
ARGUMENTS = {"num_inference_steps": 4, "output_type": "pt"}


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory):
    return write_hf_clip(tmp_path_factory.mktemp("hf"))


@pytest.fixture
def guided(generator_folder, hf_folder):
    return load(generator_folder, hf_folder, "clip_guided.py")


@pytest.fixture
def redrawn(generator_folder, hf_folder):
    return load(generator_folder, hf_folder, "clip_guided_img2img.py")


def load(generator_folder, hf_folder, name: str) -> DiffusionPipeline:
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    pipe = DiffusionPipeline.from_pretrained(
        generator_folder,
        custom_pipeline=str(FOLDER / name),
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
    objective = Similarity(load_clip(hf_folder), prompts, views=Cutouts(number=3))
    with steer(pipe, objective, strength=0.2):
        theirs = pipe(prompts, generator=generators(1, 2), **ARGUMENTS).images
    assert torch.equal(mine, theirs)
    plain = pipe(prompts, generator=generators(1, 2), **ARGUMENTS).images
    assert not torch.equal(mine, plain)
    off = guided(prompts, generator=generators(1, 2), clip_guidance_scale=0, **ARGUMENTS).images
    assert torch.equal(off, plain)


def test_the_example_of_the_page(generator_folder, hf_folder):
    """docs/coming-from.md's block, with tiny models in the place of those that it names."""
    page = (FOLDER.parent / "docs" / "coming-from.md").read_text(encoding="utf-8")
    (code,) = [c for c in re.findall("```python\n(.*?)```", page, re.S) if "custom_pipeline" in c]
    names = {
        "openai/clip-vit-base-patch32": hf_folder,
        "stable-diffusion-v1-5/stable-diffusion-v1-5": generator_folder,
        "pipelines/clip_guided.py": FOLDER / "clip_guided.py",
        "num_inference_steps=30": "num_inference_steps=2",
    }
    for there, here in names.items():
        assert there in code
        code = code.replace(there, str(here))
    told: dict = {}
    exec(compile(code, "coming-from.md", "exec"), told)
    assert isinstance(told["image"], Image.Image)


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


def picture(width: int = 32, height: int = 32) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def test_img2img_is_steer(redrawn, pipe, hf_folder):
    """The same bits as `steer` around the plain pipeline, two prompts at once; 0 is plain."""
    prompts = ["a red fox", "a zebra"]
    settings = {"image": picture(), "strength": 0.7, **ARGUMENTS}
    mine = redrawn(prompts, generator=generators(1, 2), num_cutouts=3, **settings).images
    plain_pipe = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    plain_pipe.set_progress_bar_config(disable=True)
    objective = Similarity(load_clip(hf_folder), prompts, views=Cutouts(number=3))
    with steer(plain_pipe, objective, strength=0.2):
        theirs = plain_pipe(prompts, generator=generators(1, 2), **settings).images
    assert torch.equal(mine, theirs)
    plain = plain_pipe(prompts, generator=generators(1, 2), **settings).images
    assert not torch.equal(mine, plain)
    off = redrawn(prompts, generator=generators(1, 2), clip_guidance_scale=0, **settings).images
    assert torch.equal(off, plain)


def test_img2img_picture(redrawn):
    """PIL images come to the size asked for, else the model's; the rest stay as they are."""

    def run(image, **more):
        return redrawn("a fox", image=image, generator=generators(1), **ARGUMENTS, **more).images

    assert run(picture(100, 70)).shape == (1, 3, 32, 32)
    assert run([picture(100, 70)], height=48, width=40).shape == (1, 3, 48, 40)
    tensor = torch.rand(1, 3, 40, 48, generator=generators(3)[0])
    assert run(tensor).shape == (1, 3, 40, 48)
    with pytest.warns(ClipguideWarning, match="height and width are ignored"):
        assert run(tensor, height=32).shape == (1, 3, 40, 48)
    with pytest.warns(ClipguideWarning, match="latents are ignored"):
        run(picture(), latents=torch.zeros(1, 4, 8, 8))
    with pytest.raises(UsageError, match="no image to begin with"):
        run(None)


def test_img2img_its_other_arguments(redrawn):
    drawn = [
        redrawn(
            "a fox",
            image=picture(),
            clip_prompt=text,
            use_cutouts=False,
            generator=generators(1, 2),
            num_images_per_prompt=2,
            **ARGUMENTS,
        ).images
        for text in ("a zebra", "an owl")
    ]
    assert drawn[0].shape == (2, 3, 32, 32)
    assert not torch.equal(*drawn)


def test_img2img_is_called_as_the_communitys(redrawn):
    """By position too: their order, then what was added."""
    theirs = (
        "prompt height width image strength num_inference_steps guidance_scale "
        "num_images_per_prompt eta clip_guidance_scale clip_prompt num_cutouts use_cutouts "
        "generator latents output_type return_dict"
    )
    assert list(inspect.signature(redrawn.__call__).parameters) == [
        *theirs.split(),
        "negative_prompt",
    ]
