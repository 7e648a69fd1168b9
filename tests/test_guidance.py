"""Steering: invariants on every scheduler, the shortcut's arithmetic, and what goes wrong."""

from __future__ import annotations

import inspect
import math
import time
import warnings

import diffusers
import pytest
import torch
from conftest import write_clip, write_generator
from torch.testing import assert_close

from clipguide.clip import load_clip
from clipguide.errors import ClipguideError, ClipguideWarning, UsageError
from clipguide.guidance import BestOf, Shortcut, guides, steer
from clipguide.guidance.decoders import Decoder
from clipguide.guidance.descent import descend
from clipguide.guidance.run import Run
from clipguide.objectives import Objective, Similarity, TotalVariation, fresh_generators
from clipguide.views import Cutouts

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

STEPS = 4
SCHEDULERS = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "DDPM": ("DDPMScheduler", {"clip_sample": False}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "LCM": ("LCMScheduler", {"clip_sample": False}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}
PAIRS = [(name, kind) for name in SCHEDULERS for kind in ("epsilon", "v_prediction")]
SCHEDULERS["DDIM zero SNR"] = (  # as the embedded generator's
    "DDIMScheduler",
    {"clip_sample": False, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
)
PAIRS.append(("DDIM zero SNR", "v_prediction"))


class Broken(Objective):
    """Not a number for the first image, from the third call on."""

    calls = 0

    def __call__(self, image_B3HW, generators=None):
        self.calls += 1
        loss_B = image_B3HW.square().flatten(1).mean(1)
        bad_B = torch.tensor([self.calls > 2] + [False] * (len(loss_B) - 1))
        return loss_B * torch.where(bad_B, math.nan, 1.0)


def use(pipe, name: str, kind: str = "v_prediction"):
    class_name, config = SCHEDULERS[name]
    pipe.scheduler = getattr(diffusers, class_name)(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=kind,
        **config,
    )
    return pipe


def draw(pipe, seeds=(3, 4), steps=STEPS, prompt="a fox", **settings) -> torch.Tensor:
    """image_B3HW in [0, 1]."""
    return pipe(
        [prompt] * len(seeds),
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="pt",
        **settings,
    ).images


def bytes_of(image: torch.Tensor) -> torch.Tensor:
    return (image * 255).round().int()


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_every_scheduler(pipe, clip, name, kind):
    """Strength 0 changes no bit, 1e-9 next to nothing, and more raises the score; a run repeats."""
    use(pipe, name, kind)
    plain = draw(pipe)
    with steer(pipe, "a red fox", clip=clip, strength=0):
        assert torch.equal(draw(pipe), plain)
    with steer(pipe, "a red fox", clip=clip, strength=1e-9, window=(0, 1)) as s:
        assert_close(draw(pipe), plain, atol=1e-4, rtol=0)
    assert s.report.steered == len(s.report.trace) >= STEPS
    with steer(pipe, "a red fox", clip=clip, strength=0.4) as s:
        steered = draw(pipe)
        assert torch.equal(draw(pipe), steered)
    objective = Similarity(clip, "a red fox", views=None)
    assert (objective.score(steered) > objective.score(plain)).all()


@pytest.mark.parametrize("name", ["DDIM", "Euler a", "DPM++ 2M"])
def test_batch_equals_single(pipe, clip, name):
    """Each image with its own prompt, seed and views, in a batch and alone."""
    use(pipe, name)
    prompts = ["a red fox", "zebra | stripes:2", "owl:3"]
    with steer(pipe, prompts, clip=clip):
        batch = bytes_of(draw(pipe, seeds=(1, 2, 3)))
    for i, prompt in enumerate(prompts):
        with steer(pipe, prompt, clip=clip):
            alone = bytes_of(draw(pipe, seeds=(i + 1,)))[0]
        difference = (batch[i] - alone).abs()
        assert difference.max() <= 2
        assert (difference == 0).float().mean() >= 0.999


def test_no_trace_is_left(pipe, clip):
    draw(pipe)  # a pipeline keeps the settings of its latest call
    before = dict(pipe.__dict__), dict(pipe.scheduler.__dict__)
    hooks = dict(pipe.unet._forward_hooks)
    trainable = [parameter.requires_grad for parameter in pipe.vae.parameters()]
    signature = inspect.signature(pipe.scheduler.step)
    with steer(pipe, "a red fox", clip=clip):
        assert inspect.signature(pipe.scheduler.step) == signature  # pipelines look at it
    with pytest.raises(RuntimeError, match="stop"), steer(pipe, "a red fox", clip=clip):
        raise RuntimeError("stop")

    def interrupt(step):
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        steer(pipe, "a red fox", clip=clip, on_step=interrupt),
    ):
        draw(pipe)
    assert pipe.unet._forward_hooks == hooks
    assert pipe.__dict__ == before[0]
    assert pipe.scheduler.__dict__.keys() == before[1].keys()
    assert [parameter.requires_grad for parameter in pipe.vae.parameters()] == trainable
    assert any(trainable)


def test_a_step_of_ones_own_is_put_back(pipe, clip):
    original = pipe.scheduler.step
    pipe.scheduler.step = lambda *arguments, **settings: original(*arguments, **settings)
    mine = pipe.scheduler.step
    with steer(pipe, "a red fox", clip=clip):
        assert pipe.scheduler.step is not mine
    assert pipe.scheduler.step is mine


def test_steering_twice(pipe, clip):
    with (
        steer(pipe, "a red fox", clip=clip),
        pytest.raises(ClipguideError, match="steered already"),
        steer(pipe, "a zebra", clip=clip),
    ):
        pass
    plain = draw(pipe)
    s = steer(pipe, "a red fox", clip=clip)
    for _ in range(2):  # a context may be entered again
        with s:
            assert not torch.equal(draw(pipe), plain)
    assert torch.equal(draw(pipe), plain)


def test_two_pipelines_do_not_meet(pipe, clip, generator_folder):
    other = diffusers.StableDiffusionPipeline.from_pretrained(generator_folder, safety_checker=None)
    other.set_progress_bar_config(disable=True)
    plain = draw(other)
    with steer(pipe, "a red fox", clip=clip):
        assert torch.equal(draw(other), plain)


def pull(x0, gradient, *, noise: float, config: Shortcut):
    """The moves of x0 at a noise level."""
    return descend(x0, [(1.0, gradient)], size=config.size(noise), inner=config.inner)


def gradient_of(pipe, objective, batch: int):
    run = Run(
        scheduler=pipe.scheduler,
        decode=Decoder(pipe),
        objective=objective,
        generators=fresh_generators(batch),
        streams=fresh_generators(batch),
        warn=pytest.fail,
    )
    return run.gradient


def test_move_lowers_the_loss_by_its_own_measure(pipe, clip):
    """rms(delta) = strength·sin²(πn/2)·rms(x0), against the gradient, and the loss falls."""
    x0 = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [0.1, 1.0, 10.0]
    ).view(3, 1, 1, 1)
    decode = Decoder(pipe)
    objective = Similarity(clip, "a red fox", views=None) + 0.1 * TotalVariation()
    config = Shortcut(strength=0.01, window=(0, 1), every=1, inner=1)
    moved = pull(x0, gradient_of(pipe, objective, 3), noise=0.5, config=config)
    rms = moved.delta.square().mean((1, 2, 3)).sqrt() / x0.square().mean((1, 2, 3)).sqrt()
    assert_close(rms, torch.full((3,), 0.01 * math.sin(math.pi / 4) ** 2))
    x0.requires_grad_()
    loss_B = objective(decode(x0))
    assert_close(moved.first.loss_B, loss_B)
    (gradient,) = torch.autograd.grad(loss_B.sum(), x0)
    cosine = torch.cosine_similarity(gradient.flatten(1), moved.delta.flatten(1))
    assert_close(cosine, -torch.ones(3))
    assert (objective(decode(x0 + moved.delta)) < loss_B).all()
    assert torch.equal(moved.first.image_N3HW, decode(x0))


def test_steered_sample_is_that_of_the_moved_x0(pipe, clip):
    """A DDIM step after steering is the step written out with x0 + delta and its own noise."""
    use(pipe, "DDIM", "epsilon")
    scheduler = pipe.scheduler
    generator = torch.Generator().manual_seed(0)
    sample, output = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[4]
    alpha_bar = scheduler.alphas_cumprod[t]
    previous = scheduler.alphas_cumprod[t - 100]
    with steer(pipe, "a red fox", clip=clip, strength=0.3) as s:
        stepped = pipe.scheduler.step(output, t, sample).prev_sample
    noise = s.report.trace[0].noise
    assert noise == pytest.approx(2 / math.pi * math.acos(alpha_bar.sqrt()))
    x0 = (sample - (1 - alpha_bar).sqrt() * output) / alpha_bar.sqrt()
    x0 = (
        x0
        + pull(
            x0,
            gradient_of(pipe, Similarity(clip, "a red fox"), 1),
            noise=noise,
            config=s.method,
        ).delta
    )
    epsilon = (sample - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()
    assert_close(stepped, previous.sqrt() * x0 + (1 - previous).sqrt() * epsilon)


def test_strength_does_not_depend_on_steps(pipe):
    """A denoiser that always sees the same noise, pulled the same way: how far the result moves."""

    class Brighter(Objective):
        def __call__(self, image_B3HW, generators=None):
            return -image_B3HW.flatten(1).mean(1)

    scheduler = use(pipe, "Euler", "epsilon").scheduler
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    target = torch.ones(1, 4, 8, 8)
    moved = []
    for steps in (10, 25, 60):
        scheduler.set_timesteps(steps)
        sample = target + scheduler.sigmas[0] * noise
        with steer(pipe, Brighter(), strength=0.01, window=(0.2, 0.9)):
            for t in scheduler.timesteps:
                scheduler.scale_model_input(sample, t)
                sample = pipe.scheduler.step(noise, t, sample).prev_sample
        moved.append(float((sample - target).square().mean().sqrt()))
    assert max(moved) < 1.4 * min(moved)
    assert 0.01 < min(moved) < 0.05


def test_generators_are_drawn_from(pipe, clip):
    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def drawn(views):
        with steer(pipe, "a red fox", clip=clip, generators=views):
            return draw(pipe)

    first = drawn(generators(1, 2))
    assert torch.equal(drawn(generators(1, 2)), first)
    assert not torch.equal(drawn(generators(1, 3))[1], first[1])
    with pytest.raises(ClipguideError, match="samples 2 images, and there are 3 generators"):
        drawn(generators(1, 2, 3))


def test_window_every_inner(pipe, clip):
    with steer(pipe, "a red fox", clip=clip, window=(0.4, 0.8)) as s:
        draw(pipe, steps=20)
    looked_at = [step.noise for step in s.report.trace if step.loss_B is not None]
    assert looked_at == [step.noise for step in s.report.trace if 0.4 <= step.noise <= 0.8]
    assert s.report.steered == len(looked_at) > 4
    with steer(pipe, "a red fox", clip=clip, every=3) as s:
        draw(pipe, steps=12)
    assert [i for i, step in enumerate(s.report.trace) if step.loss_B is not None] == [0, 3, 6, 9]
    with steer(pipe, "a red fox", clip=clip, inner=3, strength=0.05) as s:
        three = draw(pipe)
    with steer(pipe, "a red fox", clip=clip, inner=1, strength=0.05) as s:
        assert not torch.equal(draw(pipe), three)


def test_report_and_steps(pipe, clip, judge):
    seen = []

    def look(step):
        image = step.preview()
        seen.append((step.index, step.total, step.guide_score_B, step.judge_score_B, image.shape))

    with steer(
        pipe, "a red fox", clip=clip, judge=judge, score_every=4, window=(0.3, 1), on_step=look
    ) as s:
        draw(pipe, steps=10)
    assert [index for index, *_ in seen] == list(range(10))
    assert {(total, shape) for _, total, _, _, shape in seen} == {(10, (2, 3, 32, 32))}
    scored = [step.index for step in s.report.trace if step.judge_score_B is not None]
    assert scored == [0, 4, 8, 9]
    assert torch.equal(seen[-1][3], s.report.judge_score_B)
    assert torch.equal(seen[-1][2], s.report.trace[9].guide_score_B)
    assert s.report.warnings == []
    noise = [step.noise for step in s.report.trace]
    assert noise == sorted(noise, reverse=True)


def test_watching_changes_no_bit(pipe, clip, judge):
    with steer(pipe, "a red fox", clip=clip):
        unwatched = draw(pipe)
    with steer(
        pipe, "a red fox", clip=clip, judge=judge, score_every=1, on_step=lambda s: s.preview()
    ):
        assert torch.equal(draw(pipe), unwatched)


def test_a_gradient_that_is_not_a_number(pipe):
    """Named, skipped for that image alone, whose steering stops after three; the other image's goes
    on to the end."""
    broken = Broken()
    with pytest.warns(ClipguideWarning) as caught, steer(pipe, broken) as s:
        image = draw(pipe, steps=10)
    messages = [str(warning.message) for warning in caught]
    assert messages == s.report.warnings
    assert [message.split(":")[0] for message in messages[:3]] == [
        f"The gradient of image 0 is not a number at step {k}" for k in (2, 3, 4)
    ]
    assert messages[3] == "Steering of image 0 stops after 3 gradients that are no numbers."
    assert len(messages) == 4
    assert (s.report.skipped, s.report.steered) == (3, broken.calls) and broken.calls > 8
    assert image.isfinite().all()


class Mended(Objective):
    """Brightness, which is not a number for the first image until it was asked three times."""

    calls = 0

    def __call__(self, image_B3HW, generators=None):
        self.calls += 1
        loss_B = -image_B3HW.flatten(1).mean(1)
        return torch.stack([loss_B[0] * (torch.nan if self.calls <= 3 else 1.0), *loss_B[1:]])


def test_steering_that_stopped_does_not_come_back(pipe):
    """After three gradients that are no numbers: though the later ones are, the image stays plain,
    and the other one is steered."""
    use(pipe, "DDIM")
    plain = draw(pipe, steps=8)
    with pytest.warns(ClipguideWarning, match="image 0 stops"), steer(pipe, Mended()) as s:
        image = draw(pipe, steps=8)
    assert s.report.skipped == 3 and s.report.steered > 4
    assert_close(image[0], plain[0], atol=1e-5, rtol=0)
    assert (image[1] - plain[1]).abs().max() > 1e-3


@pytest.mark.parametrize("room", [2, 0])
def test_memory_runs_out(pipe, clip, monkeypatch, room):
    """The same views, fewer at a time, said once; not a crash, nor another image."""
    objective = Similarity(clip, "a fox", views=Cutouts(number=4))
    with steer(pipe, objective):
        roomy = draw(pipe)
    encode, asked = clip.encode_image, []

    def cramped(image_B3HW):
        asked.append(len(image_B3HW))
        if len(image_B3HW) > room:
            raise torch.OutOfMemoryError("no memory")
        return encode(image_B3HW)

    monkeypatch.setattr(clip, "encode_image", cramped)
    if not room:
        with pytest.warns(ClipguideWarning), pytest.raises(ClipguideError, match="single view"):
            with steer(pipe, objective):
                draw(pipe)
        return
    with pytest.warns(ClipguideWarning, match="Memory ran out") as caught:
        with steer(pipe, objective) as s:
            image = draw(pipe)
    assert len(caught) == 1 and s.report.warnings == [str(caught[0].message)]
    # all at once by three plans of the decoder, 8 at a time, 4 at a time
    assert sum(number > room for number in asked) == 5
    assert_close(image, roomy, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(pipe, clip, dtype):
    """The pipeline's own type stays, the gradient is taken in float32, and the score rises."""
    pipe = pipe.to(dtype)
    seen = []

    class Watched(Similarity):
        def __call__(self, image_B3HW, generators=None):
            seen.append(image_B3HW.dtype)
            return super().__call__(image_B3HW, generators)

    plain = draw(pipe)
    with steer(pipe, Watched(clip, "a red fox"), strength=0.2) as s:
        steered = draw(pipe)
    assert set(seen) == {torch.float32}
    assert steered.dtype == plain.dtype
    assert pipe.vae.dtype == pipe.unet.dtype == dtype
    assert s.report.skipped == 0
    objective = Similarity(clip, "a red fox", views=None)
    assert (objective.score(steered.float()) > objective.score(plain.float())).all()
    with steer(pipe, "a red fox", clip=clip, strength=0):
        assert torch.equal(draw(pipe), plain)


def test_inference_mode(pipe, clip):
    with steer(pipe, "a red fox", clip=clip):
        expected = draw(pipe)
        with torch.inference_mode():
            assert torch.equal(draw(pipe), expected)


def test_without_classifier_free_guidance_and_many_images_a_prompt(pipe, clip):
    with steer(pipe, ["a red fox", "a zebra"], clip=clip) as s:
        images = pipe(
            ["a fox", "a zebra"],
            num_images_per_prompt=2,
            guidance_scale=1,
            num_inference_steps=3,
            output_type="pt",
        ).images
    assert len(images) == len(s.report.guide_score_B) == 4


def test_settings_without_effect_are_warned_of(pipe, clip, judge):
    with pytest.warns(ClipguideWarning, match="clip is ignored"):
        steer(pipe, TotalVariation(), clip=clip)
    with pytest.warns(ClipguideWarning, match="judge is ignored"):
        steer(pipe, TotalVariation(), judge=judge)
    with (
        pytest.warns(ClipguideWarning, match="No step was steered"),
        steer(pipe, "a red fox", clip=clip, window=(0.9999, 1)),
    ):
        draw(pipe, steps=2)
    with (
        pytest.warns(ClipguideWarning, match="scheduler was replaced"),
        steer(pipe, "a red fox", clip=clip),
    ):
        use(pipe, "UniPC")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ClipguideWarning)
        with steer(pipe, "a red fox", clip=clip, judge=judge):
            draw(pipe, steps=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": math.nan}, "strength must be a number from 0, not nan"),
        ({"strength": "0.1>-0.1"}, "strength must be a number from 0, not below it"),
        ({"strength": "strong"}, "no piece of a schedule"),
        ({"strength": -1}, "strength must be a number from 0, not -1"),
        ({"window": (0.5, 0.2)}, "window lies in"),
        ({"window": (-1, 1)}, "window lies in"),
        ({"every": 0}, "must be a whole number from 1"),
        ({"inner": 0}, "must be a whole number from 1"),
        ({"inner": 2.5}, "must be a whole number from 1 to 10000, not 2.5"),
        ({"every": "2"}, "must be a whole number from 1"),
        ({"window": 0.5}, "window lies in"),
        ({"travel": 10**9}, "`travel` must be a whole number"),
        ({"number": 8}, "shortcut has no option number"),
        ({"method": BestOf, "each": "1"}, "`each` is a method"),
        ({"score_every": 0}, "score_every must be a whole number from 1"),
    ],
)
def test_settings_out_of_range(pipe, clip, settings, message):
    with pytest.raises(UsageError, match=message):
        steer(pipe, "a red fox", clip=clip, **settings)


def test_what_cannot_be_steered(pipe, clip):
    with pytest.raises(ClipguideError, match="2 prompts do not divide 3 images"):
        with steer(pipe, ["a red fox", "a zebra"], clip=clip):
            draw(pipe, seeds=(1, 2, 3))
    pipe.scheduler = diffusers.ScoreSdeVeScheduler()
    with pytest.raises(ClipguideError, match="ScoreSdeVeScheduler cannot be steered yet"):
        steer(pipe, "a red fox", clip=clip)
    pipe.scheduler = None
    with pytest.raises(ClipguideError, match="has no scheduler"):
        steer(pipe, "a red fox", clip=clip)

    class OddPipeline:
        scheduler = diffusers.DDIMScheduler()

    with pytest.raises(ClipguideError, match="OddPipeline cannot be steered: "):
        steer(OddPipeline(), "a red fox", clip=clip)


def test_default_clip(pipe, monkeypatch):
    """mini for the embedded generator alone; others by the table, or none."""
    with pytest.raises(UsageError, match="Which CLIP should guide this StableDiffusionPipeline"):
        steer(pipe, "a red fox")
    folder = pipe.config["_name_or_path"]
    assert not guides.is_mini(folder)
    monkeypatch.setattr(guides.mini, "FOLDER", type(guides.mini.FOLDER)(folder).parent)
    assert guides.is_mini(str(guides.mini.FOLDER / "generator"))
    pipe.register_to_config(_name_or_path=str(guides.mini.FOLDER / "generator"))
    assert guides.default_clip(pipe) == "mini"
    pipe.register_to_config(_name_or_path="somewhere/else")
    pipe.unet.register_to_config(cross_attention_dim=768)
    assert guides.default_clip(pipe) == "ViT-B-32/laion2b_s34b_b79k"


def test_clips_by_name(pipe, clip_folder, judge_folder):
    with steer(pipe, "a red fox", clip=str(clip_folder), judge=str(judge_folder)) as s:
        draw(pipe, steps=2)
    assert s.guide.clip.fingerprint == load_clip(str(clip_folder)).fingerprint
    assert s.report.judge_score_B is not None


def test_the_fixture_is_what_the_embedded_generator_is(tmp_path):
    folder = write_generator(tmp_path / "epsilon", prediction="epsilon")
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    assert pipe.scheduler.config.prediction_type == "epsilon"


def test_a_clip_of_more_pixels_than_the_picture_is_told_of(pipe, tmp_path):
    clip64 = load_clip(str(write_clip(tmp_path, seed=4, image_size=64)))
    with pytest.warns(ClipguideWarning, match="32x32 and is enlarged .* 64x64") as caught:
        with steer(pipe, "a red fox", clip=clip64) as s:
            draw(pipe)
    assert len(s.report.warnings) == len(caught) == 1
    with steer(pipe, "a red fox", clip=clip64, decoder="linear") as s:  # small on purpose
        draw(pipe)
    assert s.report.warnings == []


@pytest.mark.bench
def test_the_judge_takes_little_of_the_time(monkeypatch):
    from clipguide.pipelines.text_to_image import TextToImage

    model = TextToImage()
    spent = 0.0
    encode = model.judge.encode_image

    def timed(*args):
        nonlocal spent
        start = time.perf_counter()
        try:
            return encode(*args)
        finally:
            spent += time.perf_counter() - start

    model("a red fox")  # warm
    monkeypatch.setattr(model.judge, "encode_image", timed)
    start = time.perf_counter()
    for seed in range(4):
        model("a red fox", seed=seed)
    share = spent / (time.perf_counter() - start)
    print(f"the judge takes {share:.1%} of the time of default steering on mini")
    assert 0 < share <= 0.03


@pytest.mark.parametrize(
    ("decoder", "strength", "every", "told"),
    [
        ("linear", 1.0, 1, True),
        ("linear", "1@0..0.5", 1, True),
        ("linear", "0.2@0..0.5,0.6@0.5..1", 1, False),  # late moves are short
        ("linear", 0.5, 1, False),
        ("linear", 1.0, 3, True),
        ("linear", 0.5, 3, False),
        ("vae", 1.0, 1, False),
    ],
)
def test_a_strength_that_misleads_the_linear_decoder_is_said(
    pipe, clip, decoder, strength, every, told
):
    """Once a run, whatever the schedule; not where the gradient is exact."""
    with steer(pipe, "a red fox", clip=clip, strength=strength, every=every, decoder=decoder) as s:
        draw(pipe)
    assert sum("With the linear decoder, a strength" in one for one in s.report.warnings) == told
