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


class OddPipeline(diffusers.StableDiffusionPipeline.__mro__[1]):
    """Not in the table, nor of a base that is."""

    __init__ = diffusers.StableDiffusionPipeline.__init__
    __call__ = diffusers.StableDiffusionPipeline.__call__


for _name in vars(diffusers.StableDiffusionPipeline):
    if not _name.startswith("__"):
        setattr(OddPipeline, _name, vars(diffusers.StableDiffusionPipeline)[_name])


class OddScheduler(diffusers.DDIMScheduler.__mro__[1], diffusers.DDIMScheduler.__mro__[2]):
    """A DDIM by another name, of none of the table's classes."""


for _name, _value in vars(diffusers.DDIMScheduler).items():
    if _name not in ("__dict__", "__weakref__", "__doc__", "__module__"):
        setattr(OddScheduler, _name, _value)


def test_a_family_and_a_scheduler_of_ones_own(pipe):
    """The name that the first error says is all that it takes."""
    odd = OddPipeline(**pipe.components, requires_safety_checker=False)
    odd.set_progress_bar_config(disable=True)
    with pytest.raises(ClipguideError, match=r'register_family\("OddPipeline", like='):
        steer(odd, Bright())
    register_family("OddPipeline", like="StableDiffusionPipeline")
    object.__setattr__(odd, "scheduler", OddScheduler(**_config(pipe)))
    try:
        with pytest.raises(ClipguideError, match="OddScheduler cannot be steered yet"):
            steer(odd, Bright())
        table.register("OddScheduler", like="DDIMScheduler")
        plain = draw(odd)
        with steer(odd, Bright()):
            assert Bright()(draw(odd)).mean() < Bright()(plain).mean()
    finally:
        latents.FAMILIES.unregister("OddPipeline")
        table.SCHEDULERS.unregister("OddScheduler")
    for name in ("register_family", "register_scheduler"):
        module = latents if name == "register_family" else table
        with pytest.raises(UsageError, match="There is no"):
            module.register("Another", like="Nothing")


def _config(pipe) -> dict:
    keep = ("beta_schedule", "prediction_type", "clip_sample", "timestep_spacing", "steps_offset")
    return {name: pipe.scheduler.config[name] for name in keep}


def test_a_method_of_ones_own(pipe):
    with pytest.raises(UsageError, match="A method is a dataclass"):
        register_method(Bright)
    with pytest.raises(UsageError, match="There is a method 'shortcut' already"):
        register_method(Shortcut)
    assert list(METHODS) == [
        "best-of", "shortcut", "particles", "rollover", "lookahead", "noise", "backprop"
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
        from clipguide.pipelines.drawing import CANVASES
        assert "SparklePipeline" in latents.FAMILIES and "sparkle" in CANVASES
        assert "SparkleScheduler" in schedulers.SCHEDULERS
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
