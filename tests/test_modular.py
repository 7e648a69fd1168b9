"""Modular Diffusers: diffusers' own blocks and loader, with tiny models of random weights.

Shapes: B images, 3 channels of H x W pixels.
"""

from __future__ import annotations

import re
from pathlib import Path

import diffusers
import pytest
import torch
from clipguide.pipelines.modular import Steered, steered
from tiny_pipelines import BATCH, HEIGHT, WIDTH, tiny

from clipguide import Similarity, TotalVariation, UsageError, steer
from clipguide.errors import ClipguideError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

BLOCKS = {
    "SDXL": "StableDiffusionXLAutoBlocks",
    "SDXL image to image": "StableDiffusionXLAutoBlocks",
    "SDXL inpainting": "StableDiffusionXLAutoBlocks",
    "SD3": "StableDiffusion3AutoBlocks",
    "FLUX": "FluxAutoBlocks",
    "FLUX.2": "Flux2KleinAutoBlocks",
    "Qwen-Image": "QwenImageAutoBlocks",
    "Z-Image": "ZImageAutoBlocks",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved pipeline of each name, and the settings it is called with."""
    saved = {}
    for name in BLOCKS:
        pipe, settings = tiny(name)
        folder = tmp_path_factory.mktemp("modular")
        pipe.save_pretrained(folder)
        saved[name] = folder, settings
    return saved


def blocks_of(name: str):
    """Diffusers' own, but for the text encoders."""
    blocks = getattr(diffusers, BLOCKS[name])()
    blocks.sub_blocks.pop("text_encoder")
    return blocks


def loaded(blocks, folder):
    pipe = blocks.init_pipeline(str(folder))
    pipe.load_components()
    return pipe


def draw(pipe, settings, **more):
    """The state of a run of three steps."""
    generator = [torch.Generator().manual_seed(3 + i) for i in range(BATCH)]
    return pipe(**settings, num_inference_steps=3, output_type="pt", generator=generator, **more)


class Watched(TotalVariation):
    """Keeps the shapes that it saw."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __call__(self, image_B3HW, generators=None):
        self.shapes.add(tuple(image_B3HW.shape))
        return super().__call__(image_B3HW, generators)


@pytest.mark.parametrize("name", BLOCKS)
def test_steered(folders, name):
    """0 changes no bit; 0.3 lowers the objective of every image, seen at the size it is drawn."""
    folder, settings = folders[name]
    plain_B3HW = draw(loaded(blocks_of(name), folder), settings).images
    pipe, objective = loaded(steered(blocks_of(name)), folder), Watched()
    zero_B3HW = draw(pipe, settings, clip_prompt=objective, clip_strength=0.0).images
    assert torch.equal(zero_B3HW, plain_B3HW)
    state = draw(pipe, settings, clip_prompt=objective, clip_strength=0.3)
    assert objective.shapes == {(BATCH, 3, HEIGHT, WIDTH)}
    assert (objective(state.images) < objective(plain_B3HW)).all()
    assert state.report.steered >= 1  # where the noise is in the window


def test_towards_a_prompt(folders, clip):
    """The prompt, or clip_prompt, by the CLIP among the components: the bits of `steer`."""
    folder, settings = folders["SDXL"]
    pipe, objective = loaded(steered(blocks_of("SDXL")), folder), Similarity(clip, "a red fox")
    pipe.update_components(clip=clip)
    mine_B3HW = draw(pipe, settings, clip_prompt="a red fox").images
    plain_pipe = loaded(blocks_of("SDXL"), folder)
    plain_B3HW = draw(plain_pipe, settings).images
    with steer(plain_pipe, objective, strength=0.2):
        assert torch.equal(draw(plain_pipe, settings).images, mine_B3HW)
    generators = [torch.Generator() for _ in range(BATCH)]
    before_B = objective(plain_B3HW, generators)
    assert (objective(mine_B3HW, [torch.Generator() for _ in range(BATCH)]) < before_B).all()
    by_prompt = draw(pipe, settings, prompt="a red fox").images
    assert torch.equal(by_prompt, mine_B3HW)
    narrow = draw(pipe, settings, prompt="a red fox", clip_window=(0.9, 1.0))
    assert narrow.report.steered == 1


def test_the_example_of_the_page(folders):
    """docs/coming-from.md's block up to the call, with tiny models in the place of those that it
    names; the call's arguments are those of the test above."""
    page = (Path(__file__).parents[1] / "docs" / "coming-from.md").read_text(encoding="utf-8")
    (code,) = [c for c in re.findall("```python\n(.*?)```", page, re.S) if "AutoBlocks" in c]
    code, call = code.rstrip().rsplit("\n", 1)
    assert "clip_prompt=" in call and "clip_strength=" in call
    folder, _ = folders["SDXL"]
    for there, here in {
        "stabilityai/stable-diffusion-xl-base-1.0": str(folder),
        "ViT-B-32/laion2b_s34b_b79k": "mini",
        "StableDiffusionXLAutoBlocks())": "blocks_of('SDXL'))",
    }.items():
        assert there in code
        code = code.replace(there, here)
    told: dict = {"blocks_of": blocks_of}
    exec(compile(code, "coming-from.md", "exec"), told)
    assert told["pipe"].components["clip"].name == "mini"


def test_workflows_stay_steered():
    """What diffusers picks out of the blocks keeps the steering, in every workflow."""
    blocks = diffusers.StableDiffusionXLAutoBlocks()
    original = str(blocks)
    mine = steered(blocks)
    assert str(blocks) == original
    for name in mine.available_workflows:
        picked = mine.get_workflow(name).sub_blocks.values()
        assert sum(isinstance(block, Steered) for block in picked) == 1
    assert {"clip_prompt", "clip_strength", "clip_window"} <= set(mine.input_names)
    assert "clip" in mine.component_names and "report" in mine.intermediate_output_names


def test_a_loop_alone():
    loop = diffusers.StableDiffusionXLAutoBlocks().get_workflow("text2image")
    loop = loop.sub_blocks["denoise.denoise"]
    assert steered(loop).block is loop


def test_errors(folders):
    folder, settings = folders["SDXL"]
    pipe = loaded(steered(blocks_of("SDXL")), folder)
    with pytest.raises(UsageError, match="nothing to steer towards: give clip_prompt"):
        draw(pipe, settings)
    pipe.vae = None
    with pytest.raises(ClipguideError, match="this pipeline has no VAE"):
        draw(pipe, settings, clip_prompt="a fox")
    with pytest.raises(ClipguideError, match="has no loop that denoises"):
        steered(blocks_of("SDXL").sub_blocks["decode"])
    folder, settings = folders["FLUX"]
    pipe = loaded(blocks_of("FLUX"), folder)
    with pytest.raises(ClipguideError, match="put its blocks through clipguide.pipelines.modular"):
        with steer(pipe, TotalVariation()):
            draw(pipe, settings)
