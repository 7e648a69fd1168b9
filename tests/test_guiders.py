"""Steering beside other guidances: APG, CFG-Zero* and perturbed attention (PAG), as diffusers has
them, on tiny models of random weights.

Shapes: B images, 3 channels of H x W pixels.
"""

from __future__ import annotations

import inspect

import diffusers
import pytest
import torch
from clipguide.pipelines.modular import steered
from test_modular import blocks_of, draw, folders, loaded  # noqa: F401 (a fixture)
from tiny_pipelines import draw as draw_plain
from tiny_pipelines import tiny

from clipguide.guidance import Particles, Rollover, steer
from clipguide.objectives import Objective

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Bright(Objective):
    def __call__(self, image_B3HW, generators=None):
        return -image_B3HW.flatten(1).mean(1)


def perturbed(layer: str) -> diffusers.PerturbedAttentionGuidance:
    return diffusers.PerturbedAttentionGuidance(
        guidance_scale=3.0,
        perturbed_guidance_scale=2.0,
        perturbed_guidance_start=0.0,
        perturbed_guidance_stop=1.0,
        perturbed_guidance_config=diffusers.LayerSkipConfig(
            indices=[0], fqn=layer, skip_attention=False, skip_attention_scores=True, skip_ff=False
        ),
    )


GUIDERS = {
    "APG": lambda layer: diffusers.AdaptiveProjectedGuidance(guidance_scale=3.0, eta=0.5),
    "CFG-Zero*": lambda layer: diffusers.ClassifierFreeZeroStarGuidance(guidance_scale=3.0),
    "PAG": perturbed,
}
LAYERS = "mid_block.attentions.0.transformer_blocks"  # diffusers perturbs no layer of SD3's


@pytest.mark.parametrize(
    ("name", "family"),
    [("APG", "SDXL"), ("APG", "SD3"), ("CFG-Zero*", "SD3"), ("PAG", "SDXL")],
)
def test_guiders(folders, name, family):  # noqa: F811
    """0 changes no bit of what the guider draws, 0.3 lowers every image's objective; the guider
    does something of its own."""
    folder, settings = folders[family]
    images = {}
    for strength in (None, 0.0, 0.3):
        blocks = blocks_of(family)
        pipe = loaded(blocks if strength is None else steered(blocks), folder)
        pipe.update_components(guider=GUIDERS[name](LAYERS))
        more = {"clip_prompt": Bright(), "clip_strength": strength} if strength is not None else {}
        images[strength] = draw(pipe, settings, **more).images
    usual = loaded(blocks_of(family), folder)
    usual.update_components(guider=diffusers.ClassifierFreeGuidance(guidance_scale=3.0))
    assert not torch.equal(draw(usual, settings).images, images[None])
    assert torch.equal(images[0.0], images[None])
    assert (Bright()(images[0.3]) < Bright()(images[0.0])).all()


def pag(kind: str):
    """A pipeline of diffusers' own with perturbed attention."""
    plain, given = tiny(kind)
    made = {
        "SD 1.5": diffusers.StableDiffusionPAGPipeline,
        "SDXL": diffusers.StableDiffusionXLPAGPipeline,
        "SD3": diffusers.StableDiffusion3PAGPipeline,
        "PixArt-Sigma": diffusers.PixArtSigmaPAGPipeline,
        "Sana": diffusers.SanaPAGPipeline,
    }[kind]
    layers = {"SD 1.5": ["down_blocks.1"], "SDXL": ["down_blocks.1"]}.get(kind, ["blocks.0"])
    known = inspect.signature(made).parameters
    parts = {name: part for name, part in plain.components.items() if name in known}
    extra = {"requires_safety_checker": False} if kind == "SD 1.5" else {}
    return made(**parts, pag_applied_layers=layers, **extra), given


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *((kind, "shortcut") for kind in ("SD 1.5", "SDXL", "SD3", "PixArt-Sigma", "Sana")),
        ("SD 1.5", "backprop"),
        ("SD 1.5", Particles(number=2, every=1)),
        ("SD3", Rollover(quota=2)),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_pag_pipelines(kind, method):
    """The three parts of a batch go through; an image with it is not the one without it."""
    pipe, given = pag(kind)
    plain = draw_plain(pipe, given, pag_scale=2.0)
    assert not torch.equal(draw_plain(pipe, given, pag_scale=0.0), plain)
    options = {"strength": 0.3} if isinstance(method, str) else {}
    with steer(pipe, Bright(), method=method, **options) as s:
        image = draw_plain(s if method == "backprop" else pipe, given, pag_scale=2.0)
    assert image.isfinite().all() and s.report.steered >= 1
    if options:
        assert (Bright()(image) < Bright()(plain)).all()
    assert torch.equal(draw_plain(pipe, given, pag_scale=2.0), plain)


def test_pag_with_a_window_for_the_guidance():
    """The window is ignored, and said: what PAG evaluates is in three parts."""
    pipe, given = pag("SD 1.5")
    with pytest.warns(UserWarning, match="cfg_window is ignored"), steer(
        pipe, Bright(), cfg_window=(0.2, 0.5)
    ):
        draw_plain(pipe, given, pag_scale=2.0)


