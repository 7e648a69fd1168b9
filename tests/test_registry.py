"""Tables that packages add to, by hand and by an entry point: a plug-in of one file."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import diffusers
import pytest
import torch
from test_guidance import draw

from clipguide.errors import ClipguideError, UsageError
from clipguide.guidance import METHODS, Shortcut, latents, register_family, register_method, steer
from clipguide.guidance import schedulers as table
from clipguide.objectives import Objective
from clipguide.registry import Registry

PLUGIN = Path(__file__).parent.parent / "samples" / "plugin"


def test_a_registry():
    names = Registry("colour", {"red": 1})
    assert names.register("blue", 2) == 2 and dict(names) == {"red": 1, "blue": 2}
    with pytest.raises(UsageError, match="There is a colour 'red' already"):
        names.register("red", 3)
    names.register("red", 3, replace=True)
    with pytest.raises(UsageError, match="There is no colour 'bleu'. Did you mean blue"):
        names.find("bleu")
    names.unregister("red")
    assert list(names) == ["blue"] and len(names) == 1


class Bright(Objective):
    def __call__(self, image_B3HW, generators=None):
        return -image_B3HW.flatten(1).mean(1)


def test_a_family_and_a_scheduler_of_ones_own(pipe):
    """Classes that the tables lack; what the first error says is all that it takes."""
    odd = diffusers.StableDiffusionSAGPipeline(**pipe.components, requires_safety_checker=False)
    odd.set_progress_bar_config(disable=True)
    name = "StableDiffusionSAGPipeline"
    with pytest.raises(ClipguideError, match=rf'register_family\("{name}", like='):
        steer(odd, Bright())
    register_family(name, like="StableDiffusionPipeline")
    keep = ("beta_schedule", "prediction_type", "timestep_spacing", "steps_offset")
    config = {key: pipe.scheduler.config[key] for key in keep}
    odd.scheduler = diffusers.CogVideoXDDIMScheduler(clip_sample=False, **config)
    try:
        with pytest.raises(ClipguideError, match="CogVideoXDDIMScheduler cannot be steered yet"):
            steer(odd, Bright())
        table.register("CogVideoXDDIMScheduler", like="DDIMScheduler")
        plain = draw(odd, sag_scale=0.0)
        with steer(odd, Bright()):
            assert Bright()(draw(odd, sag_scale=0.0)).mean() < Bright()(plain).mean()
    finally:
        latents.FAMILIES.unregister(name)
        table.SCHEDULERS.unregister("CogVideoXDDIMScheduler")
    for module in (latents, table):
        with pytest.raises(UsageError, match="There is no"):
            module.register("Another", like="Nothing")


def test_a_method_of_ones_own(pipe):
    with pytest.raises(UsageError, match="A method is a dataclass"):
        register_method(Bright)
    with pytest.raises(UsageError, match="There is a method 'shortcut' already"):
        register_method(Shortcut)
    assert list(METHODS) == [
        "best-of", "shortcut", "particles", "rollover", "lookahead", "noise", "backprop",
        "embedding", "drafts",
    ]


def test_a_plug_in_of_one_file(tmp_path, generator_folder):
    """Installed, as pip would: its file and its entry point; everything that it adds is there."""
    info = tmp_path / "clipguide_sparkle-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: clipguide-sparkle\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[clipguide]\nsparkle = clipguide_sparkle\n")
    source = (PLUGIN / "clipguide_sparkle.py").read_text()
    (tmp_path / "clipguide_sparkle.py").write_text(source)
    script = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import clipguide, diffusers, torch
        assert "clipguide_sparkle" not in sys.modules
        pipe = diffusers.DiffusionPipeline.from_pretrained({str(generator_folder)!r})
        pipe.set_progress_bar_config(disable=True)
        dark = clipguide.make_objective("dark")
        def draw(call):
            generator = torch.Generator().manual_seed(1)
            settings = {{"num_inference_steps": 3, "output_type": "pt"}}
            return call("a fox", generator=generator, **settings).images
        plain = draw(pipe)
        with clipguide.steer(pipe, dark, method="sparkle", size=0.1) as s:
            assert dark(draw(s)) < dark(plain)
        from clipguide.guidance import latents, schedulers
        from clipguide.pipelines.canvas_kinds import CANVASES
        assert "SparklePipeline" in latents.FAMILIES and "sparkle" in CANVASES
        assert "SparkleScheduler" in schedulers.SCHEDULERS
        assert clipguide.Reward("darkness")(draw(pipe)).shape == (1,)
        from clipguide.rewards import wanted
        assert wanted("darkness:0.5").weight == 0.5  # as --reward reads it
        reward = clipguide.Reward("darkness")
        assert torch.equal(reward.score(plain), -plain.flatten(1).mean(1))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=300)


def test_a_plug_in_that_fails_is_warned_of(tmp_path):
    info = tmp_path / "clipguide_broken-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: clipguide-broken\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[clipguide]\nbroken = clipguide_nowhere\n")
    script = f"""
        import sys, warnings
        sys.path.insert(0, {str(tmp_path)!r})
        from clipguide.registry import load_plugins
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert load_plugins() == ()
        assert "The plug-in broken cannot be imported" in str(caught[0].message)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=300)


def test_torch_is_not_needed_to_register():
    """A registry imports nothing heavy."""
    script = "import sys, clipguide.registry; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert torch.__version__
