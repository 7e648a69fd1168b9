"""The embedded generator's pipeline on tiny parts: text to map to image.

Shapes: B images, K channels of a map, C channels of latents.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtTransformer2DModel,
)
from tiny_pipelines import mini as tiny_mini_pipeline
from tiny_pipelines import noise
from torch.testing import assert_close

from clipguide import mini, steer
from clipguide.errors import UsageError
from clipguide.guidance import Particles
from clipguide.mini import styles
from clipguide.mini.conditions import conditions
from clipguide.mini.memory import MapMemory
from clipguide.mini.names import COLOURS, written
from clipguide.mini.pipeline import MiniPipeline
from clipguide.mini.scenes import GROUNDS, together
from clipguide.mini.styles import STYLES, USUAL, labels_of, style_in, with_style
from clipguide.objectives import TotalVariation


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
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def remembering(pipe) -> MiniPipeline:
    """The same with a memory: a fox that is flat and red, one that is 3d and blue, and a whale."""
    memory = MapMemory(
        channels=6,
        components=2,
        hidden=8,
        things=[written(["fox"], ["zorro"], []), written(["whale"], [], ["sea"])],
        firsts=[0, 2],
        size=3,
        colours={"azul": "blue"},
    )
    memory.remember(noise(3, 6, 4, 4))
    memory.style.copy_(torch.tensor([STYLES.index(s) for s in ("flat", "3d", "retro")]))
    memory.colour.copy_(torch.tensor([COLOURS.index(c) for c in ("red", "blue", "grey")]))
    pipe.register_modules(memory=memory.eval())
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


def maps_of(pipe, prompts: list[str], generator, **more) -> torch.Tensor:
    few = {"steps": 3, "guidance_scale": 2.0, "recall": True}
    return pipe.draw_maps(prompts, [""] * len(prompts), generator=generator, **few | more)


def test_what_is_remembered_is_recalled(remembering):
    """By name, in the colour and the style that are asked for; the rest is sampled, and what is
    beside a prompt in its batch changes nothing."""
    memory = remembering.memory
    flat, solid, whale = memory.recall([0, 1, 2], [None] * 3)
    assert torch.equal(maps_of(remembering, ["a red fox"], seeds(3))[0], flat)
    assert torch.equal(maps_of(remembering, ["zorro azul"], seeds(3))[0], solid)
    for style, one in (("flat", flat), ("3d", solid)):
        of = [maps_of(remembering, [f"a fox, {style}"], seeds(k))[0] for k in range(6)]
        assert all(torch.equal(drawn, one) for drawn in of)
    assert torch.equal(maps_of(remembering, ["a whale in the sea"], seeds(3))[0], whale)
    green = maps_of(remembering, ["a green whale"], seeds(3))[0]
    with torch.no_grad():
        painted = memory(whale[None], torch.tensor([COLOURS.index("green")]))[0]
    assert_close(green, painted, atol=1e-5, rtol=1e-5)
    assert not torch.equal(green, whale)
    unknown = maps_of(remembering, ["a boat"], seeds(3))
    assert torch.equal(unknown, maps_of(remembering, ["a boat"], seeds(3), recall=False))
    both = maps_of(remembering, ["a whale", "a boat", "a fox"], seeds(5, 3, 6))
    assert torch.equal(both[0], whale)
    assert_close(both[1], unknown[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(both[2], maps_of(remembering, ["a fox"], seeds(6))[0])
    of = [maps_of(remembering, ["a fox"], seeds(k))[0] for k in range(20)]
    assert {torch.equal(one, flat) for one in of} == {True, False}
    assert all(torch.equal(one, flat) or torch.equal(one, solid) for one in of)


def test_a_map_is_varied_from_a_noise_level_on(remembering):
    """Against the steps written out, from (1 - level)·map + level·noise. The memory is not used."""
    like, level = noise(1, 6, 4, 4), 0.5
    few = {"steps": 2, "guidance_scale": 1.0, "like_noise": level}
    found = maps_of(remembering, ["a red fox"], seeds(5), like=like, **few)
    x = torch.randn(1, 6, 4, 4, generator=torch.Generator().manual_seed(5))
    x = (1 - level) * like + level * x
    hidden, mask = remembering.encode_prompt(["a red fox"])
    with torch.no_grad():
        for t, after in ((level, level / 2), (level / 2, 0.0)):
            x0 = remembering.prior(
                x,
                encoder_hidden_states=hidden,
                timestep=torch.full((1,), 1000 * t),
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                encoder_attention_mask=mask,
            ).sample
            x = (1 - after / t) * x0 + after / t * x
    assert_close(found, x, atol=1e-5, rtol=1e-5)


def test_a_map_to_vary_stays_as_it_is_without_a_prompt(remembering):
    """And at level 0. At level 1, nothing of it is left."""
    like = noise(1, 6, 4, 4)
    found = maps_of(remembering, ["", "a fox", ""], seeds(1, 2, 3), like=like)
    assert torch.equal(found[0], like[0]) and torch.equal(found[2], like[0])
    assert not torch.equal(found[1], like[0])
    kept = maps_of(remembering, ["a fox"], seeds(2), like=like, like_noise=0.0)
    assert torch.equal(kept, like)
    anew = maps_of(remembering, ["a fox"], seeds(2), like=like, like_noise=1.0)
    assert torch.equal(anew, maps_of(remembering, ["a fox"], seeds(2), recall=False))
    images = draw(remembering, ["", ""], seeds(1, 2), like=like)
    as_they_are = draw(remembering, ["", ""], seeds(1, 2), maps=like.repeat(2, 1, 1, 1))
    assert torch.equal(images, as_they_are) and not torch.equal(*images)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"like": noise(1, 6, 4, 4), "maps": noise(1, 6, 4, 4)}, "give one of them"),
        ({"like": noise(3, 6, 4, 4)}, "3 maps in like for 1 images"),
        ({"like": noise(1, 6, 4, 4), "like_noise": 1.5}, "like_noise must be between 0 and 1"),
    ],
)
def test_maps_to_vary_that_are_not_possible(pipe, more, message):
    with pytest.raises(UsageError, match=message):
        draw(pipe, "a fox", seeds(1), **more)


def test_a_scene_is_put_together(remembering):
    """Each object as it is drawn alone, at half its size, left and right; with any sampler. What is
    beside it in the batch is as it is alone."""
    scene = "a red fox and a whale"
    both = draw(remembering, [scene, "a whale"], seeds(4, 5))
    assert_close(draw(remembering, "a whale", seeds(5))[0], both[1], atol=1e-5, rtol=1e-5)
    drawn = remembering._scenes([scene], [0], noise(1, 8, 16, 16), 3.0, seeds(4))
    assert list(drawn) == [0] and remembering._scenes(["a fox"], [0], None, 3.0, None) == {}
    x0, page = drawn[0]
    assert_close(remembering.encode(page[None])[0], x0, atol=1e-5, rtol=1e-5)
    few = {"latents": noise(1, 8, 16, 16), "style": "any"}
    draw_scene = remembering._draw_scene
    remembering._draw_scene = lambda *_: drawn[0]
    for scheduler in (DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler):
        remembering.scheduler = scheduler.from_config(remembering.scheduler.config)
        found = remembering(scene, num_inference_steps=4, output_type="pt", **few).images
        assert_close(found[0], page / 2 + 0.5, atol=2e-3, rtol=2e-3)
    remembering._draw_scene = draw_scene
    apart = draw(remembering, scene, seeds(4), scenes=False)
    assert not torch.allclose(apart[0], both[0], atol=1e-2)


def test_a_scene_goes_on_from_a_tape(remembering, tmp_path):
    """Its objects are drawn while the tape is replayed, though the steps are not."""

    def run(tape, stop: int = 9) -> torch.Tensor:
        def on_step(step) -> None:
            if step.index == stop:
                raise KeyboardInterrupt

        with steer(remembering, TotalVariation(), tape=tape, on_step=on_step) as s:
            few = {"num_inference_steps": 4, "prior_num_inference_steps": 3, "output_type": "pt"}
            return s(prompt=["a red fox and a whale"], generator=seeds(4), **few).images

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "tape", stop=2)
    assert (tmp_path / "tape").exists()
    assert torch.equal(run(tmp_path / "tape"), run(None))


def test_samples_change_places_with_what_they_are_drawn_from(remembering):
    """Swapped after the first step, with their maps, texts, styles and scenes, they are the same
    images in another order; the latents alone are not."""
    prompts = ["a whale on a red background", "a blue fox", "a whale"]
    order = torch.tensor([2, 0, 1])
    whole = draw(remembering, prompts, seeds(1, 2, 3))
    step = remembering.scheduler.step

    def swapped(wholly: bool) -> torch.Tensor:
        calls = []

        def stepped(output, t, sample, **more):
            calls.append(t)
            if len(calls) == 1:
                output, sample = output[order], sample[order]
                if wholly:
                    remembering.take(order)
            return step(output, t, sample, **more)

        remembering.scheduler.step = stepped
        try:
            return draw(remembering, prompts, seeds(1, 2, 3))
        finally:
            remembering.scheduler.step = step

    assert_close(swapped(True), whole[order], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(swapped(False), whole[order], atol=1e-2)
    assert torch.equal(draw(remembering, prompts, seeds(1, 2, 3)), whole)


def test_particles_take_their_maps_with_them(remembering):
    """Where all come from one, the U-Net sees the map of that one for all."""
    seen = []
    handle = remembering.map_input.register_forward_hook(lambda *a: seen.append(a[2].clone()))

    def third(image_B3HW: torch.Tensor, generators=None) -> torch.Tensor:
        return torch.tensor([1.0, 1.0, 0.0, 1.0])  # a loss

    method = Particles(number=4, sharpness=1e6, every=1, window=(0, 1))
    with steer(remembering, third, method=method, strength=None) as s:
        draw(s, ["a fox"] * 4, seeds(1, 2, 3, 7))
    handle.remove()
    first, second = seen
    assert not all(torch.equal(first[2], one) for one in first)
    assert all(torch.equal(first[2], one) for one in second)


def test_what_moves_a_scene_shows(remembering):
    """The page is not what the VAE makes of it, and what moves the latents moves the image."""
    scene, moved = "a red fox and a whale", {}
    x0, page = remembering._scenes([scene], [0], noise(1, 8, 16, 16), 3.0, seeds(4))[0]
    decoded = remembering.decode(x0[None])[0]
    assert (decoded - page).abs().mean() > 0.01
    remembering._draw_scene = lambda *_: (x0, page)

    def move(pipe, step, timestep, tensors) -> dict:
        if step == 3:
            moved["latents"] = x0[None] + 0.2
        return dict(moved)

    found = remembering(
        scene, num_inference_steps=4, output_type="pt", callback_on_step_end=move
    ).images[0]
    expected = page + remembering.decode(x0[None] + 0.2)[0] - decoded
    assert_close(found, (expected / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=1e-4)
    assert (found - (page / 2 + 0.5)).abs().max() > 0.01


@pytest.mark.parametrize("number", [2, 3, 4])
def test_where_the_objects_of_a_scene_are(remembering, monkeypatch, number):
    """White objects are lost on the white page; black ones fill their halves of its sides."""
    pages = []
    size = remembering.vae_scale_factor * 16
    black = -torch.ones(number, 3, size, size)
    monkeypatch.setattr(remembering, "decode", lambda latents: black)
    monkeypatch.setattr(remembering, "encode", lambda page: pages.append(page) or page)
    word = {2: "two", 3: "three", 4: "four"}[number]
    remembering._scenes([f"{word} foxes"], [0], noise(1, 8, 16, 16), 1.0, seeds(1))
    (page,) = pages
    assert page.shape == (1, 3, size, size)
    dark = (page[0, 0] < 0).float()
    assert dark.mean() == number / 4
    upper, lower = dark[: size // 2].mean(), dark[size // 2 :].mean()
    assert (upper, lower) == {2: (0.5, 0.5), 3: (1.0, 0.5), 4: (1.0, 1.0)}[number]
    assert dark[:, : size // 2].mean() == dark[:, size // 2 :].mean()


def test_one_stands_on_the_other():
    """What is white below the first and above the second is gone; nothing else moves."""
    image = torch.ones(2, 3, 64, 64)
    image[0, :, 10:40, 20:30] = -1
    image[1, :, 20:30, 4:60] = 0
    page = together(image, above=True)
    column = page[0, 0, :, 28]
    assert (column == -1).nonzero()[:, 0].tolist() == [*range(17, 32)]
    assert (column == 0).nonzero()[:, 0].tolist() == [*range(32, 37)]
    assert (page == -1).sum() == 3 * 15 * 5 and (page == 0).sum() == 3 * 5 * 28
    white = torch.ones(2, 3, 64, 64)
    assert (together(white, above=True) == 1).all()


def test_a_ground_has_its_colour():
    """Behind and between the objects as far as the border, but not inside them."""
    image = torch.ones(1, 3, 32, 32)
    image[..., 8:24, 8:24] = -1  # a black frame
    image[..., 12:20, 12:20] = 1
    page = together(image, "yellow")
    yellow = torch.tensor(GROUNDS["yellow"]).view(1, 3, 1) / 127.5 - 1
    assert_close(page[..., 2, :], yellow.expand(1, 3, 32))
    assert (page[..., 12:20, 12:20] == 1).all() and (page[..., 9:11, 9:23] == -1).all()
    assert torch.equal(together(image, "white"), image) and together(image) is image
    two = together(image.repeat(2, 1, 1, 1), "night")
    assert (two[0, 2, :6] < 0).all() and (two[0, :, 15, 7] == 1).all()


def test_a_soft_edge_mixes_with_the_ground():
    """An edge of 60 % red and 40 % white has 40 % of the ground's colour, and is no fringe."""
    red = torch.tensor([0.8, -0.9, -0.9]).view(1, 3, 1, 1)
    image = torch.ones(1, 3, 32, 32)
    image[..., 7:25, 7:25] = 0.6 * red + 0.4
    image[..., 8:24, 8:24] = red
    blue = torch.tensor(GROUNDS["blue"]).view(1, 3, 1, 1) / 127.5 - 1
    page = together(image, "blue")
    assert_close(page[..., 7:8, 7:25], (0.6 * red + 0.4 * blue).expand(1, 3, 1, 18))
    assert_close(page[..., 8:24, 8:24], red.expand(1, 3, 16, 16))


def test_the_ground_does_not_leak_into_white_objects():
    """A white square with a pale edge that is broken in one place keeps its colour; the ground goes
    where it is wide enough, and is even."""
    image = torch.ones(1, 3, 64, 64)
    image[..., 2, :] = 0.97  # all but white
    image[..., 20:44, 20:44] = 0.8
    image[..., 22:42, 22:42] = 1
    image[..., 20:22, 30:33] = 1  # the gap
    page = together(image, "blue")
    blue = torch.tensor(GROUNDS["blue"]).view(1, 3, 1, 1) / 127.5 - 1
    assert (page[..., 24:40, 24:40] == 1).all()
    assert_close(page[..., :17, :], blue.expand(1, 3, 17, 64), atol=0.04, rtol=0)


def test_one_object_on_a_ground(remembering, monkeypatch):
    """It is drawn as it is alone, in its full size."""
    pages, image = [], torch.ones(1, 3, 32, 32)
    image[..., 8:24, 8:24] = -1
    monkeypatch.setattr(remembering, "decode", lambda latents: image)
    monkeypatch.setattr(remembering, "encode", lambda page: pages.append(page) or page)
    for prompt in ("a whale on a red background", "a whale on a white background"):
        remembering._scenes([prompt], [2], noise(1, 8, 16, 16), 1.0, seeds(1))
    assert torch.equal(pages[0], together(image, "red")) and torch.equal(pages[1], image)
    assert remembering._scenes(["a whale"], [2], noise(1, 8, 16, 16), 1.0, seeds(1)) == {}


def test_latents_of_an_image(pipe):
    """`encode` gives the latents that `decode` turns back into those of the VAE."""
    image = noise(1, 3, 32, 32).clamp(-1, 1)
    given, seen = pipe.vae.encode(image).latent_dist.mode(), []
    pipe.vae.decode = lambda latents, **_: (seen.append(latents), (image,))[1]
    pipe.decode(pipe.encode(image))
    assert_close(seen[0], given, atol=1e-5, rtol=1e-5)


def test_hooks_of_a_run_see_the_run_alone(remembering):
    """The U-Net's calls for the objects of a scene are not those of the steps."""
    calls = []
    handle = remembering.unet.register_forward_pre_hook(lambda *_: calls.append(0))
    draw(remembering, "a red fox and a whale", seeds(4))
    handle.remove()
    assert len(calls) == 2


def test_an_image_has_the_style_of_its_map(remembering, monkeypatch):
    labels = []
    inner = remembering._denoise
    monkeypatch.setattr(
        remembering, "_denoise", lambda *a: labels.append(a[5].tolist()) or inner(*a)
    )
    draw(remembering, ["a whale"] * 6 + ["a blue fox"] * 2, seeds(*range(8)))
    assert labels[0] == [STYLES.index("retro")] * 6 + [STYLES.index("3d")] * 2
    labels.clear()
    draw(remembering, ["a whale"] * 6, seeds(*range(6)), recall=False)
    assert len(set(labels[0])) > 1


def test_the_memory_keeps_maps_in_four_bits():
    """All components keep what the maps have in common, within the step between two codes."""
    maps = noise(40, 3, 2, 2) * torch.arange(1.0, 13).view(3, 2, 2)
    memory = MapMemory(channels=3, side=2, components=12, hidden=4, size=40)
    memory.remember(maps)
    assert memory.codes.shape == (40, 6) and memory.codes.dtype == torch.uint8
    again = memory.recall(range(40), [None] * 40)
    error = (again - maps).square().mean() / maps.var()
    assert 1e-6 < error < 0.02
    half = MapMemory(channels=3, side=2, components=6, hidden=4, size=40)
    half.remember(maps)
    assert (half.recall(range(40), [None] * 40) - maps).square().mean() / maps.var() > error


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


def test_a_gpus_generator_draws_there(monkeypatch):
    """diffusers refuses to draw a CPU's numbers from a generator of a GPU."""
    asked = []

    def draws(shape, *, generator, device):
        asked.append(device.type)
        return torch.zeros(shape)

    monkeypatch.setattr(styles, "randn_tensor", draws)
    far = SimpleNamespace(device=torch.device("cuda"))
    for generator, count in ((far, 1), ([far, far], 2), (None, 1), (seeds(1), 1)):
        assert styles.chosen([3] * count, generator) == [1] * count
    assert asked == ["cuda", "cuda", "cpu", "cpu"]


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


def test_saved_and_loaded(remembering, tmp_path):
    pipe = remembering
    pipe.save_pretrained(tmp_path)
    again = MiniPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(pipe, "a fox", seeds(1)), draw(again, "a fox", seeds(1)))
    half = MiniPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    apart = draw(half, "a fox", seeds(1), latents=noise(1, 8, 16, 16)).float()
    apart = apart - draw(pipe, "a fox", seeds(1), latents=noise(1, 8, 16, 16))
    assert apart.abs().mean() < 0.05


def test_a_memory_is_saved_with_its_names(remembering, tmp_path):
    remembering.save_pretrained(tmp_path)
    memory = MiniPipeline.from_pretrained(tmp_path, dtype=torch.float16).memory
    assert torch.equal(memory.codes, remembering.memory.codes)
    named = memory.names.find("un zorro azul")
    assert named.colour == "blue" and memory.rows(named) == [1]
    assert_close(memory.recall([0], ["green"]), remembering.memory.recall([0], ["green"]),
                 atol=2e-2, rtol=2e-2)  # fmt: skip


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
