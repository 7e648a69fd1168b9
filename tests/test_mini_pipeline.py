"""The embedded generator's pipeline on tiny parts: text to map to image.

Shapes: B images, K channels of a map, C channels of latents.
"""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, PixArtTransformer2DModel
from tiny_pipelines import mini as tiny_mini_pipeline
from tiny_pipelines import noise
from torch.testing import assert_close

from clipguide import mini, steer
from clipguide.errors import UsageError
from clipguide.mini.conditions import conditions
from clipguide.mini.pipeline import MiniPipeline
from clipguide.mini.reader import MapReader, pool
from clipguide.mini.styles import STYLES, USUAL, labels_of, style_in, with_style


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(n) for n in numbers]


@pytest.fixture
def pipe() -> MiniPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe, _ = tiny_mini_pipeline()
        pipe.register_modules(
            prior=PixArtTransformer2DModel(
                num_attention_heads=2,
                attention_head_dim=8,
                in_channels=6,
                out_channels=6,
                num_layers=1,
                cross_attention_dim=16,
                sample_size=4,
                patch_size=1,
                caption_channels=16,
                use_additional_conditions=False,
            ).eval(),
            prior_scheduler=FlowMatchEulerDiscreteScheduler(),
            reader=MapReader(channels=6, text_channels=16, hidden=16, embed_dim=8).eval(),
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: MiniPipeline, prompt, generator, **more) -> torch.Tensor:
    few = {"num_inference_steps": 2, "prior_num_inference_steps": 3, "output_type": "pt"}
    return pipe(prompt, generator=generator, **few, **more).images


def test_alone_is_as_in_a_batch(pipe):
    """Prompts of other lengths beside it, which are padded, change nothing."""
    both = draw(pipe, ["a fox", "a small red apple beside a big blue whale"], seeds(1, 2))
    assert_close(draw(pipe, "a fox", seeds(1))[0], both[0], atol=1e-5, rtol=1e-5)
    again = draw(pipe, "a fox", seeds(1))
    assert torch.equal(again, draw(pipe, "a fox", seeds(1)))
    assert not torch.equal(again, draw(pipe, "a fox", seeds(3)))


def test_the_map_is_the_flow_of_its_prior(pipe):
    """Against Euler steps written out: x at t' is (1 - t'/t)·x0 + (t'/t)·x."""
    found = pipe.draw_maps(["a fox"], [""], steps=4, guidance_scale=2.5, generator=seeds(5))
    x = torch.randn(1, 6, 4, 4, generator=torch.Generator().manual_seed(5))
    hidden, mask = pipe.encode_prompt(["a fox", ""])
    with torch.no_grad():
        for t, after in ((1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)):
            told, untold = pipe.prior(
                torch.cat([x, x]),
                encoder_hidden_states=hidden,
                timestep=torch.full((2,), 1000 * t),
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                encoder_attention_mask=mask,
            ).sample.chunk(2)
            x0 = untold + 2.5 * (told - untold)
            x = (1 - after / t) * x0 + after / t * x
    assert_close(found, x, atol=1e-5, rtol=1e-5)


def test_new_noise_at_each_step_of_the_map(pipe):
    """Against the steps written out, with an eta between; the last step adds none."""
    few = {"steps": 2, "guidance_scale": 1.0, "eta": 0.6}
    found = pipe.draw_maps(["a fox"], [""], generator=seeds(5), **few)
    g = torch.Generator().manual_seed(5)
    x, fresh = (torch.randn(1, 6, 4, 4, generator=g) for _ in range(2))
    hidden, mask = pipe.encode_prompt(["a fox"])

    def x0(x, t):
        with torch.no_grad():
            return pipe.prior(
                x,
                encoder_hidden_states=hidden,
                timestep=torch.full((1,), 1000 * t),
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                encoder_attention_mask=mask,
            ).sample

    half = 0.5 * x0(x, 1.0) + 0.5 * (0.8 * x + 0.6 * fresh)
    assert_close(found, x0(half, 0.5), atol=1e-5, rtol=1e-5)


def test_the_reader_picks_one_of_several_maps(pipe):
    """Of each image's own candidates, the one whose cosine with its own prompt is highest."""
    prompts, few = ["a fox", "a small red apple beside a whale"], {"steps": 3, "guidance_scale": 2}
    picked = pipe.draw_maps(prompts, ["", ""], candidates=5, generator=seeds(1, 2), **few)
    hidden_BLD, mask_BL = pipe.encode_prompt(prompts)
    text_BD = pipe.reader.encode_text(pool(hidden_BLD, mask_BL))
    score_B = (pipe.reader.encode_map(picked) * text_BD).sum(1)
    assert_close(score_B, pipe.reader(picked, hidden_BLD, mask_BL))
    for k, prompt in enumerate(prompts):
        noise_5 = torch.randn(5, 6, 4, 4, generator=seeds(k + 1)[0])
        alone = [_map_of(pipe, prompt, noise[None], few) for noise in noise_5]
        cosines = [pipe.reader.encode_map(x) @ text_BD[k] for x in alone]
        assert max(cosines) - min(cosines) > 1e-4
        assert_close(score_B[k], max(cosines)[0], atol=1e-4, rtol=1e-4)
        best = alone[max(range(5), key=cosines.__getitem__)]
        assert_close(picked[k], best[0], atol=1e-4, rtol=1e-4)
    pipe.reader = None
    first = pipe.draw_maps(prompts, ["", ""], candidates=5, generator=seeds(1, 2), **few)
    one = pipe.draw_maps(prompts, ["", ""], generator=seeds(1, 2), **few)
    assert torch.equal(first, one)


def _map_of(pipe, prompt: str, start: torch.Tensor, few: dict) -> torch.Tensor:
    """The map that the prior draws from a noise that is given."""
    hidden, mask = pipe.encode_prompt([prompt, ""])
    x, steps, scale = start, few["steps"], few["guidance_scale"]
    with torch.no_grad():
        for k in range(steps, 0, -1):
            told, untold = pipe.prior(
                torch.cat([x, x]),
                encoder_hidden_states=hidden,
                timestep=torch.full((2,), 1000 * k / steps),
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                encoder_attention_mask=mask,
            ).sample.chunk(2)
            x = x + (untold + scale * (told - untold) - x) / k
    return x


def test_pooling_leaves_out_what_is_padded():
    hidden = torch.tensor([[[1.0, 2], [3, 4], [9, 9]]])
    assert_close(pool(hidden, torch.tensor([[1, 1, 0]])), torch.tensor([[3.0, 4, 2, 3]]))


def test_a_map_can_be_given(pipe):
    maps = pipe.draw_maps(["a fox"], [""], steps=3, guidance_scale=3.0, generator=seeds(1))
    noise = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(9))
    given = draw(pipe, "anything", seeds(7), maps=maps, latents=noise)
    assert torch.equal(given, draw(pipe, "anything", seeds(8), maps=maps, latents=noise))
    assert not torch.equal(given, draw(pipe, "anything", seeds(8), maps=maps + 1, latents=noise))


def test_styles(pipe):
    assert style_in("a fox, flat icon") == "flat" and style_in("a flatfish") is None
    assert labels_of(["a fox, flat icon", "a cat"], "3d") == [STYLES.index("3d")] * 2
    assert labels_of(["a fox, flat icon"], None) == [STYLES.index("flat")]
    assert labels_of(["a fox"], "any") == [0]
    many = labels_of(["a fox"] * 600, None, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([many.count(STYLES.index(style)) for style in USUAL])
    assert counts.sum() == 600 and (counts - 100).abs().max() < 45
    two = labels_of(["a fox", "a cat"], None, generator=seeds(5, 6))
    assert two == [labels_of(["x"], None, generator=seeds(k))[0] for k in (5, 6)]
    assert with_style("a fox", "3d") == "a fox, 3d" and with_style("a 3D fox", "3d") == "a 3D fox"
    assert with_style("a fox", "any") == "a fox"
    with pytest.raises(UsageError, match="no style 'glosy'.*Did you mean glossy"):
        draw(pipe, "a fox", seeds(1), style="glosy")


def test_negative_prompts_and_guidance(pipe):
    plain = draw(pipe, "a fox", seeds(1))
    assert not torch.equal(plain, draw(pipe, "a fox", seeds(1), negative_prompt="a cat"))
    none = {"guidance_scale": 1.0, "map_guidance_scale": 1.0}
    one = draw(pipe, "a fox", seeds(1), **none)
    assert torch.equal(one, draw(pipe, "a fox", seeds(1), negative_prompt="x", **none))


def test_the_unet_reads_the_text(pipe):
    """With a map that is given, another prompt draws another image; where the map is left out,
    what is left is the text and the style."""
    given = {"maps": noise(1, 6, 4, 4), "latents": noise(1, 8, 16, 16), "style": "flat"}
    fox = draw(pipe, "a fox", seeds(1), **given)
    assert not torch.allclose(fox, draw(pipe, "a cat", seeds(1), **given))
    assert not torch.allclose(fox, draw(pipe, "a fox", seeds(1), **given, negative_prompt="a cat"))


def test_conditions_keep_map_and_text_apart():
    """Map and tokens share no channel; the time embedding gets style and last token; what is padded
    is masked, and changes nothing else."""
    map_BK, hidden, mask = noise(2, 3, 2, 2), noise(2, 4, 5), torch.tensor([[1] * 4, [1, 1, 0, 0]])
    found = conditions(map_BK, hidden, mask, torch.tensor([1, 0]), 6)
    tokens = found["encoder_hidden_states"]
    assert tokens.shape == (2, 8, 8)
    assert_close(tokens[:, :4, :3], map_BK.flatten(2).mT)
    assert_close(tokens[:, 4:, 3:], hidden)
    assert not tokens[:, :4, 3:].any() and not tokens[:, 4:, :3].any()
    assert found["encoder_attention_mask"].tolist() == [[1] * 8, [1] * 6 + [0, 0]]
    assert found["class_labels"].shape == (2, 11)
    assert found["class_labels"][:, :6].tolist() == [[0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert_close(found["class_labels"][:, 6:], torch.stack([hidden[0, 3], hidden[1, 1]]))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"height": 33}, "multiples of 2"),
        ({"latents": torch.zeros(1, 8, 4, 4)}, r"shape \(1, 8, 16, 16\), not \(1, 8, 4, 4\)"),
        ({"negative_prompt": ["a", "b"]}, "one negative prompt, or one for each"),
        ({"generator": seeds(1, 2)}, "2 generators for 1 images"),
        ({"prior_eta": 1.5}, "prior_eta must be between 0 and 1, not 1.5"),
        ({"eta": -0.5}, "eta must be between 0 and 1, not -0.5"),
        ({"map_candidates": 0}, "map_candidates must be 1 or more"),
    ],
)
def test_what_does_not_fit(pipe, wrong, message):
    with pytest.raises(UsageError, match=message):
        draw(pipe, "a fox", **{"generator": None, **wrong})


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 15])
def test_new_noise_at_each_step_of_the_latents(pipe, steps):
    """Nothing of the old noise is left at the first step, from zero terminal SNR."""
    shipped = mini.path("generator") / "scheduler"
    pipe.register_modules(scheduler=DDIMScheduler.from_pretrained(shipped))
    few = {"num_inference_steps": steps, "prior_num_inference_steps": 3, "output_type": "pt"}
    images = [pipe("a fox", generator=seeds(1), eta=eta, **few).images for eta in (0.0, 1.0)]
    assert all(image.isfinite().all() for image in images)
    assert steps == 1 or not torch.equal(*images)


def test_callback_and_interrupt(pipe):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, sorted(tensors)))
        pipe._interrupt = step == 0
        return tensors

    draw(
        pipe,
        "a fox",
        seeds(1),
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "maps"],
    )
    assert seen == [(0, ["latents", "maps"])]


def test_saved_and_loaded(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = MiniPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(pipe, "a fox", seeds(1)), draw(again, "a fox", seeds(1)))
    half = MiniPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    apart = draw(half, "a fox", seeds(1), latents=noise(1, 8, 16, 16)).float()
    apart = apart - draw(pipe, "a fox", seeds(1), latents=noise(1, 8, 16, 16))
    assert apart.abs().mean() < 0.05


def test_steered(pipe):
    """The steps that are steered are the U-Net's, and none of the prior's."""
    with steer(pipe, red_loss(), strength=0.2) as s:
        red = draw(pipe, "a fox", seeds(1))
    plain = draw(pipe, "a fox", seeds(1))
    assert 1 <= s.report.steered <= len(s.report.trace) == 2
    assert (red[:, 0] - red[:, 1:].mean(1)).mean() > (plain[:, 0] - plain[:, 1:].mean(1)).mean()


def red_loss():
    from clipguide.objectives import Objective

    class Red(Objective):
        def __call__(self, image_B3HW, generators=None):
            red = image_B3HW.new_tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
            return (image_B3HW - red).square().flatten(1).mean(1)

    return Red()
