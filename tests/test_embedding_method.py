"""Moves of the prompt's embedding, and a window for classifier-free guidance."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from test_guidance import draw, use
from test_methods import Brightness, loss, settings
from tiny_pipelines import draw as sample
from tiny_pipelines import tiny
from torch.testing import assert_close

from clipguide.errors import ClipguideError, ClipguideWarning, UsageError
from clipguide.guidance import Embedding, Shortcut, steer
from clipguide.guidance.conditioning import Conditioning
from clipguide.guidance.levels import Level
from clipguide.guidance.run import At, Run
from clipguide.objectives import Objective

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


# ------------------------------------------------------------ the embedding
@pytest.mark.parametrize("of", ["prompt", "null"])
def test_it_gets_lower_and_leaves_the_pipeline_as_it_was(pipe, of):
    use(pipe, "DDIM")
    plain = draw(pipe, steps=6)
    images = []
    for _ in range(2):
        with steer(pipe, Brightness(), method=Embedding(of=of, rate=0.3)) as s:
            images.append(s(**settings(steps=6)).images)
    assert torch.equal(*images)
    assert (loss(images[0]) < loss(plain)).all()
    assert torch.equal(draw(pipe, steps=6), plain) and not pipe.unet._forward_pre_hooks
    with steer(pipe, Brightness(), method=Embedding(rate=0.0)) as s:
        assert torch.equal(s(**settings(steps=6)).images, plain)


def test_only_one_half_of_the_batch_is_told_otherwise(pipe):
    """The denoiser gets the embedding and the move, of the prompt or of none, and nothing else is
    changed; the first evaluation is that of the plain pipeline."""
    use(pipe, "DDIM")
    told = []
    pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: told.append(kwargs["encoder_hidden_states"].detach()),
        with_kwargs=True,
    )
    draw(pipe, steps=3)
    plain = told[0]
    halves = {"null": slice(0, 2), "prompt": slice(2, 4)}
    for of, other in (("prompt", "null"), ("null", "prompt")):
        moved, kept = halves[of], halves[other]
        told.clear()
        with Conditioning(pipe, of) as shift:
            draw(pipe, steps=1)
            with torch.no_grad():
                shift.shift += 0.5
            pipe.unet._forward_pre_hooks.move_to_end(next(iter(pipe.unet._forward_pre_hooks)))
            draw(pipe, steps=1)
        assert_close(shift.size_B, plain[moved].square().flatten(1).mean(1).sqrt())
        assert torch.equal(told[0], plain)
        assert_close(told[1][moved], plain[moved] + 0.5)
        assert torch.equal(told[1][kept], plain[kept])


def test_the_halves_of_the_embedded_generator_are_the_other_way_round():
    """Its prompt comes first: that half has the map, and is the one that is moved."""
    made, given = tiny("mini")
    told = []
    made.unet.register_forward_pre_hook(
        lambda module, args, kwargs: told.append((args[0], kwargs["encoder_hidden_states"])),
        with_kwargs=True,
    )
    for of in ("prompt", "null"):
        told.clear()
        with Conditioning(made, of) as shift:
            sample(made, given, steps=1)
            shift.shift = torch.full_like(shift.shift, 0.5)
            made.unet._forward_pre_hooks.move_to_end(next(iter(made.unet._forward_pre_hooks)))
            sample(made, given, steps=1)
        (x, plain), (_, moved) = told
        has_map = x[:, 8:].flatten(1).any(1)
        assert has_map.sum() == 2 and not plain[~has_map, :, :6].any()
        changed = (plain != moved).flatten(1).any(1)
        assert torch.equal(changed, has_map if of == "prompt" else ~has_map), of


def test_its_gradient_is_that_of_finite_differences(pipe):
    """At the first evaluation, by moving the embedding to and fro."""
    use(pipe, "DDIM")
    seen = {}

    class Spy(Embedding):
        def start(self, run):
            gradient = run.gradient

            def spy(x0, of=None):
                found = gradient(x0, of)
                seen.setdefault("value", found.value)
                return found

            run.gradient = spy
            return super().start(run)

    def after_one(shift_by: torch.Tensor | None) -> torch.Tensor:
        """The loss at x0 of the first evaluation."""
        found = {}

        def note(step):
            if step.index == 0:
                found["loss"] = loss(step.preview())

        with steer(pipe, Brightness(), method=Shortcut(strength=0.0), on_step=note, decoder="vae"):
            with Conditioning(pipe, "prompt") as moved:
                if shift_by is not None:
                    moved.shift = shift_by.clone().requires_grad_()
                draw(pipe, steps=4)
        return found["loss"]

    with steer(pipe, Brightness(), method=Spy(), decoder="vae") as s:
        s(**settings(steps=4))
    direction = torch.randn(seen["value"].shape, generator=torch.Generator().manual_seed(0))
    h = 0.05
    difference = (after_one(h * direction) - after_one(-h * direction)) / (2 * h)
    expected = (seen["value"] * direction).flatten(1).sum(1)
    assert_close(difference, expected, rtol=5e-2, atol=2e-5)


def test_on_a_gaussian_it_goes_along_the_posteriors_slope():
    """x0 | c ~ N(c, 1), so that E[x0 | x_t, c] = α x_t + σ² c where α² + σ² = 1: the gradient of
    −a·x0 by c is −σ² a, and c moves along a by rate · rms(c), whatever its length."""
    a = torch.tensor([[[0.8, -0.4, 0.0]]])

    class Linear(Objective):
        def __call__(self, image_B3HW, generators=None):
            return -(image_B3HW.flatten(1) * a[0]).sum(1)

    level = Level("epsilon", 0.6, 0.8)
    for scale in (1.0, 1e-3):
        shift = SimpleNamespace(
            shift=torch.zeros(2, 1, 3, requires_grad=True), size_B=torch.tensor([2.0, 3.0])
        )
        x = torch.randn(2, 3, 1, 1, generator=torch.Generator().manual_seed(0))
        x0 = 0.6 * x + 0.64 * shift.shift.view(2, 3, 1, 1)
        run = Run(
            scheduler=None, decode=lambda x0: x0, objective=scale * Linear(), warn=None,
            generators=[torch.Generator()] * 2, streams=[], memory=shift,
        )  # fmt: skip
        epsilon = level.epsilon(x0, x)
        outcome = Embedding(rate=0.1).start(run)(At(0, 0, level, x, epsilon, x0))
        rms = (a.square().mean()).sqrt()
        expected = 0.1 * torch.tensor([2.0, 3.0])[:, None, None] * a / rms
        assert_close(shift.shift.detach(), expected)
        assert_close(outcome.gradient_B, torch.full((2,), 0.64 * scale * rms.item()))
    moved = shift.shift.detach().clone()
    run.weight, run.factor_B = 3.0, torch.tensor([0.5, 0.0])  # the second is not steered any more
    x0 = 0.6 * x + 0.64 * shift.shift.view(2, 3, 1, 1)
    Embedding(rate=0.1).start(run)(At(1, 0, level, x, epsilon.detach(), x0))
    length_B = torch.tensor([1.5, 0.0])
    assert_close(shift.shift.detach(), moved + length_B[:, None, None] * expected)


def test_a_gradient_that_is_not_a_number_moves_nothing():
    """Of that image; the other one's embedding is moved."""

    class Half(Objective):
        def __call__(self, image_B3HW, generators=None):
            return image_B3HW.flatten(1).sum(1) * torch.tensor([torch.nan, 1.0])

    shift = SimpleNamespace(
        shift=torch.zeros(2, 1, 3, requires_grad=True), size_B=torch.ones(2)
    )
    x, level = torch.zeros(2, 3, 1, 1), Level("epsilon", 0.6, 0.8)
    run = Run(
        scheduler=None, decode=lambda x0: x0, objective=Half(), warn=None,
        generators=[torch.Generator()] * 2, streams=[], memory=shift,
    )  # fmt: skip
    x0 = shift.shift.view(2, 3, 1, 1) + x
    outcome = Embedding(rate=0.1).start(run)(At(0, 0, level, x, x, x0))
    assert outcome.finite_B.tolist() == [False, True]
    assert not shift.shift[0].any()
    assert_close(shift.shift[1].detach(), torch.full((1, 3), -0.1))


def test_other_families():
    pipe, given = tiny("SD3")
    given = {**given, "num_inference_steps": 3, "output_type": "pt"}
    plain = pipe(**given, generator=torch.Generator().manual_seed(1)).images
    with steer(pipe, Brightness(), method=Embedding(rate=0.5)) as s:
        image = s(**given, generator=torch.Generator().manual_seed(1)).images
    assert image.isfinite().all() and loss(image).mean() < loss(plain).mean()


def test_what_it_refuses(pipe):
    for wrong in ({"rate": -1}, {"of": "prompts"}):
        with pytest.raises(UsageError):
            Embedding(**wrong)
    with (
        pytest.raises(ClipguideError, match="embedding that can be moved"),
        steer(pipe, Brightness(), method=Embedding(of="null")) as s,
    ):
        s(**settings(guidance_scale=1.0))
    assert not pipe.unet._forward_pre_hooks


# ------------------------------------------------------------ the window of guidance
def test_outside_of_the_window_there_is_no_guidance(pipe):
    """Nowhere: the bits of guidance_scale 1 but for the batch; everywhere: those of the pipeline;
    else the scheduler gets the output with the prompt alone at those noise levels."""
    use(pipe, "DDIM")
    plain, alone = draw(pipe, steps=6), draw(pipe, steps=6, guidance_scale=1.0)
    idle = {"method": Shortcut(strength=0.0)}
    with steer(pipe, Brightness(), cfg_window=(0, 1), **idle):
        assert torch.equal(draw(pipe, steps=6), plain)
    with steer(pipe, Brightness(), cfg_window=(0.0, 1e-6), **idle):
        assert_close(draw(pipe, steps=6), alone, atol=1e-4, rtol=0)
    raw, given = [], []
    step = pipe.scheduler.step
    pipe.unet.register_forward_hook(lambda m, args, out: raw.append(out[0].detach()))

    def spied(model_output, *args, **kwargs):
        given.append(model_output)
        return step(model_output, *args, **kwargs)

    pipe.scheduler.step = spied
    try:
        with steer(pipe, Brightness(), cfg_window=(0.4, 0.8), **idle) as s:
            some = draw(pipe, steps=6)
    finally:
        del pipe.scheduler.step
    assert not torch.equal(some, plain) and not torch.equal(some, alone)
    inside = []
    for row, both, output in zip(s.report.trace, raw, given, strict=True):
        uncond, cond = both.chunk(2)
        inside.append(0.4 <= row.noise <= 0.8)
        expected = uncond + 7.5 * (cond - uncond) if inside[-1] else cond
        assert_close(output, expected, atol=1e-5, rtol=1e-5)
    assert 0 < sum(inside) < 6


@pytest.mark.parametrize("method", [{}, {"method": "particles", "number": 2}])
def test_it_composes_with_steering(pipe, clip, method):
    use(pipe, "DDIM")
    with steer(pipe, "a red fox", clip=clip, **method):
        whole = draw(pipe, steps=5)
    with steer(pipe, "a red fox", clip=clip, cfg_window=(0.3, 0.9), **method):
        image = draw(pipe, steps=5)
    assert image.isfinite().all() and not torch.equal(image, whole)


def test_what_the_window_refuses(pipe):
    for wrong in ((0.5, 0.2), (0, 2), 3, "0.1,0.2"):
        with pytest.raises(UsageError, match="cfg_window lies in"):
            steer(pipe, Brightness(), cfg_window=wrong)
    with pytest.raises(UsageError, match="leave cfg_window out"):
        steer(pipe, Brightness(), method="backprop", cfg_window=(0.2, 0.8))


def test_where_both_are_not_known_it_is_said():
    pipe, given = tiny("FLUX")
    given = {**given, "num_inference_steps": 3, "output_type": "pt"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClipguideWarning)
        with steer(pipe, Brightness(), cfg_window=(0.2, 0.8), method=Shortcut(strength=0.0)) as s:
            pipe(**given, generator=torch.Generator().manual_seed(1))
    assert len([w for w in s.report.warnings if "cfg_window is ignored" in w]) == 1


def test_where_there_is_no_guidance_the_window_changes_nothing(pipe):
    """And there is nothing to warn of."""
    use(pipe, "DDIM")
    plain = draw(pipe, steps=3, guidance_scale=1.0)
    with steer(pipe, Brightness(), cfg_window=(0.4, 0.8), method=Shortcut(strength=0.0)) as s:
        assert torch.equal(draw(pipe, steps=3, guidance_scale=1.0), plain)
    assert not s.report.warnings
