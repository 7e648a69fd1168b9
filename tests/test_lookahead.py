"""Lookahead: its move where the posterior is known, its sketches, and what is kept of them.

Shapes: K sketches, B samples, P prompts.
"""

from __future__ import annotations

import math
import warnings

import diffusers
import pytest
import torch
from test_guidance import draw, use
from test_methods import Brightness, settings
from tiny_pipelines import tiny
from torch.testing import assert_close

from clipguide.errors import ClipguideError, UsageError
from clipguide.guidance import Lookahead, steer
from clipguide.guidance.decoders import Decoder
from clipguide.guidance.levels import Level
from clipguide.guidance.methods.lookahead import _finite
from clipguide.guidance.run import At
from clipguide.objectives import Objective

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


# ------------------------------------------------------------ a posterior in closed form
def quantiles(number: int) -> torch.Tensor:
    """x0_K: the middles of so many parts of N(0, 1), each as likely as the others."""
    return torch.special.ndtri((torch.arange(number, dtype=torch.float64) + 0.5) / number).float()


def test_many_sketches_draw_from_the_tilted_gaussian():
    """x0 of N(0, 1), tilted by e^{λx0}, is N(λ, 1), so that E[x0 | x_t] grows by λσ²: α x_t becomes
    α x_t + λσ². With many sketches of the prior the move is that difference. They are the prior's
    quantiles, and so as good as many more of chance."""
    tilt, number = 0.6, 2000
    x0_KB = quantiles(number).view(-1, 1, 1, 1, 1)
    score_KB = x0_KB.flatten(1)
    for angle in (0.4, 0.8, 1.2):
        level = Level("epsilon", math.cos(angle), math.sin(angle))
        method = Lookahead(sharpness=tilt, temperature=1.0)  # d = 1: the exact kernel
        for value in (-1.0, 0.3, 1.5):
            x = torch.full((1, 1, 1, 1), value)
            move = method.move(At(0, 0, level, x, x, x), x0_KB, score_KB)
            assert_close(float(move), tilt * level.sigma**2, atol=0.005, rtol=0)


def test_a_mixture_of_two():
    """Prior: ½N(−2, s²) + ½N(2, s²), the reward x0. Tilted by e^{λx0}, component ±2 has the weight
    e^{±2λ} and the mean ±2 + λs²: E[x0 | x_t] of both by Bayes' rule, with no sketch."""
    spread, tilt = 0.3, 0.5
    x0_K = torch.cat([centre + spread * quantiles(2000) for centre in (-2, 2)])
    level = Level("epsilon", 0.6, 0.8)

    def mean(x: float, shift: float) -> float:
        variance = 0.36 * spread**2 + 0.64
        parts = []
        for centre in (-2.0, 2.0):
            m = centre + shift * spread**2
            log = shift * centre - (x - 0.6 * m) ** 2 / (2 * variance)
            parts.append((log, m + 0.6 * spread**2 / variance * (x - 0.6 * m)))
        weight = torch.tensor([log for log, _ in parts]).softmax(0)
        return float(sum(w * m for w, (_, m) in zip(weight, parts, strict=True)))

    method = Lookahead(sharpness=tilt, temperature=1.0)
    for value in (-1.0, 0.0, 0.4, 1.3):
        x = torch.full((1, 1, 1, 1), value)
        move = method.move(At(0, 0, level, x, x, x), x0_K.view(-1, 1, 1, 1, 1), x0_K[:, None])
        assert_close(float(move), mean(value, tilt) - mean(value, 0.0), atol=0.005, rtol=0)


# ------------------------------------------------------------ sketches
def evaluations(pipe) -> list[int]:
    """The batch of each evaluation of the denoiser from now on."""
    seen = []
    pipe.unet.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    return seen


def test_sketches_are_batched_and_of_the_prompt(pipe):
    """Five sketches of two prompts in batches of up to two; all images of a prompt share them; a
    prompt alone, one sketch at a time, has the same."""
    use(pipe, "DDIM")
    seen = evaluations(pipe)
    images, scores = [], []
    for together in (2, 1):
        with steer(pipe, Brightness(), method=Lookahead(number=5, steps=2, together=together)) as s:
            images.append(s(**settings(guidance_scale=1.0)).images)
            scores.append(torch.stack(s.report.candidates))
        sizes = {2: [4, 4, 4, 4, 2, 2], 1: [2] * 10}[together]
        assert seen == sizes + [2] * 4
        seen.clear()
    assert scores[0].shape == (5, 2)
    assert_close(scores[0], scores[1], atol=1e-5, rtol=0)
    assert_close(images[0], images[1], atol=1e-4, rtol=0)
    given = settings((3, 4), guidance_scale=1.0, num_images_per_prompt=2)
    given["prompt"] = "a fox"
    with steer(pipe, Brightness(), method=Lookahead(number=5, steps=2, together=2)) as s:
        shared = s(**given).images
    assert_close(shared, images[0], atol=1e-4, rtol=0)


def test_sketches_are_kept_for_further_seeds_and_drawn_anew_for_anything_else(pipe):
    """The same bits as without them; another prompt, objective, weight or setting has its own."""
    use(pipe, "DDIM")
    method, seen = Lookahead(number=3, steps=2), evaluations(pipe)
    run = settings((5,), guidance_scale=1.0)

    def drawn(method, objective=None, steering=None, **others) -> tuple[torch.Tensor, int]:
        seen.clear()
        with steer(pipe, objective or Brightness(), method=method, **(steering or {})) as s:
            image = s(**{**run, **others, "generator": torch.Generator().manual_seed(5)}).images
        return image, len(seen) - 4

    fresh, spent = drawn(Lookahead(number=3, steps=2))
    assert spent == 2
    assert drawn(method, prompt=["a fox"], generator=torch.Generator().manual_seed(9))[1] == 2
    again, spent = drawn(method)
    assert spent == 0 and torch.equal(again, fresh)
    assert drawn(method, prompt=["an owl"])[1] == 2
    assert drawn(method, 2 * Brightness())[1] == 2
    assert drawn(method, guidance_scale=2.0)[1] == 2
    window = {"cfg_window": (0.2, 0.6)}
    assert drawn(method, steering=window, guidance_scale=2.0)[1] == 2
    decoders = [lambda x, by=by: (by * x[:, :3]).sigmoid() for by in (1, 2)]
    for decoder in (*decoders, "linear"):
        assert drawn(method, steering={"decoder": decoder})[1] == 2
        assert drawn(method, steering={"decoder": decoder})[1] == 0
    assert drawn(method)[1] == 0
    with torch.no_grad():
        next(pipe.unet.parameters()).add_(0.01)
    assert drawn(method)[1] == 2
    with torch.no_grad():
        next(pipe.unet.parameters()).sub_(0.01)


def test_a_sketch_without_a_score_counts_as_the_worst():
    """Of its own prompt; where no sketch of a prompt has one they are alike."""
    nan, inf = math.nan, math.inf
    score_KP = torch.tensor([[3.0, nan, 1.0], [nan, nan, -inf], [5.0, -inf, inf]])
    expected = torch.tensor([[3.0, 0.0, 1.0], [3.0, 0.0, 1.0], [5.0, 0.0, 1.0]])
    assert torch.equal(_finite(score_KP), expected)


class Louder(Brightness):
    """The same in another unit."""

    def __call__(self, image_B3HW, generators=None):
        return 1000 * super().__call__(image_B3HW) - 7


def test_the_scores_have_no_unit(pipe):
    """λ is in units of 1 over their spread, so that a reward's own unit changes nothing."""
    use(pipe, "DDIM")
    images = []
    for objective in (Brightness(), Louder()):
        with steer(pipe, objective, method=Lookahead(number=4, steps=2, sharpness=1.0)) as s:
            images.append(s(**settings()).images)
    assert_close(images[1], images[0], atol=1e-4, rtol=0)
    with steer(pipe, Brightness(), method=Lookahead(number=4, steps=2, sharpness=2.0)) as s:
        assert not torch.allclose(s(**settings()).images, images[0], atol=1e-3)


def scored(pipe, seed: int) -> torch.Tensor:
    """Score_B of what the pipeline itself draws from a seed in two steps."""
    given = settings((seed,), steps=2, guidance_scale=1.0)
    latents = pipe(**{**given, "output_type": "latent"}).images
    with torch.no_grad():
        return -Brightness()(Decoder(pipe)(latents))


def test_another_scheduler_for_the_sketches(pipe):
    """Drawn by LCM, so that they are LCM's own samples; the image is DDIM's, and the pipeline has
    its scheduler again, whatever happens."""
    use(pipe, "DDIM")
    own = pipe.scheduler
    method = Lookahead(number=2, steps=2, sketch_scheduler="LCMScheduler", sketch_cfg=1.0)
    with steer(pipe, Brightness(), method=method) as s:
        image = s(**settings((3,))).images
        scores = torch.stack(s.report.candidates)[:, 0]
    assert pipe.scheduler is own and image.isfinite().all()
    pipe.scheduler = diffusers.LCMScheduler.from_config(own.config)
    wanted = torch.cat([scored(pipe, seed=(k + 1) * 1_000_000) for k in range(2)])
    pipe.scheduler = own
    assert_close(scores, wanted, atol=1e-5, rtol=0)
    with pytest.raises(UsageError, match="Did you mean LCMScheduler"), steer(
        pipe, Brightness(), method=Lookahead(sketch_scheduler="LCMSchedule")
    ) as s:
        s(**settings((3,)))
    assert pipe.scheduler is own

    class Wrong(Objective):
        def __call__(self, image_B3HW, generators=None):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), steer(pipe, Wrong(), method=method) as s:
        s(**settings((3,)))
    assert pipe.scheduler is own


def test_an_adapter_for_the_sketches(pipe):
    """The LoRA draws the sketches, and is off for the image; it was on before, and is again."""
    peft = pytest.importorskip("peft")
    use(pipe, "DDIM")
    plain = scored(pipe, seed=1_000_000)
    config = peft.LoraConfig(r=2, lora_alpha=64, target_modules=["to_q", "to_v", "to_out.0"],
                             init_lora_weights=False)  # fmt: skip
    torch.manual_seed(0)
    pipe.unet.add_adapter(config, adapter_name="fast")
    try:
        with_it = scored(pipe, seed=1_000_000)
        assert not torch.allclose(with_it, plain, atol=1e-4)
        method = Lookahead(
            number=2, steps=2, scale=1e-9, sketch_adapter="fast", sketch_cfg=1.0
        )
        with steer(pipe, Brightness(), method=method) as s:
            image = s(**settings((3,))).images
            first = s.report.candidates[0]
        assert_close(first, with_it, atol=1e-5, rtol=0)
        assert torch.equal(scored(pipe, seed=1_000_000), with_it)  # on again
        own = Lookahead(number=2, steps=2)  # its sketches are of the adapters that are active
        with steer(pipe, Brightness(), method=own) as s:
            s(**settings((3,)))
            on = s.report.candidates[0]
            pipe.unet.disable_adapters()
            s(**settings((3,)))
            assert not torch.allclose(s.report.candidates[0], on, atol=1e-4)
        assert_close(image, draw(pipe, seeds=[3]), atol=1e-5, rtol=0)
        with pytest.raises(ClipguideError, match="no LoRA adapter"), steer(
            pipe, Brightness(), method=Lookahead(sketch_adapter="slow")
        ) as s:
            s(**settings((3,)))
    finally:
        pipe.unet.delete_adapters("fast")


@pytest.mark.parametrize("family", ["SD image to image", "FLUX", "SD3"])
def test_other_families(family):
    pipe, given = tiny(family)
    given = {**given, "num_inference_steps": 4, "output_type": "pt"}
    with steer(pipe, Brightness(), method=Lookahead(number=3, steps=3)) as s, (
        warnings.catch_warnings()
    ):
        warnings.simplefilter("error", FutureWarning)
        image = s(**given, generator=torch.Generator().manual_seed(1)).images
    assert image.isfinite().all() and torch.stack(s.report.candidates).shape == (3, 2)


def test_the_published_size():
    method = Lookahead.published(steps=4)
    assert (method.number, method.steps, method.scale) == (50, 4, 12.5)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = float((1 - betas).cumprod(0)[200])  # ᾱ of Stable Diffusion at t = 200
    noise = math.atan2(math.sqrt(1 - kept), math.sqrt(kept)) / (math.pi / 2)
    assert method.window == (pytest.approx(noise, abs=0.02), 1.0)


def test_bad_values():
    for wrong in ({"together": 0}, {"sketch_cfg": -1}, {"sketch_scheduler": 3}):
        with pytest.raises(UsageError):
            Lookahead(**wrong)
