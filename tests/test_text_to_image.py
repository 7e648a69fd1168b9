"""Text to image on tiny models: repeatability, seeds, candidates, recipes and replay."""

from __future__ import annotations

import dataclasses
import itertools
import warnings

import diffusers
import numpy as np
import pytest
import torch
from clipguide.pipelines.batch import Batch
from clipguide.pipelines.text_to_image import TextToImage

from clipguide import mini
from clipguide.clip import load_clip
from clipguide.errors import ClipguideError, ClipguideWarning, UsageError
from clipguide.guidance import METHODS, Drafts, Shortcut, memory
from clipguide.guidance.generators import STRIDE
from clipguide.images import to_pil, to_tensor
from clipguide.mini import known
from clipguide.objectives import Objective, Similarity
from clipguide.views import Cutouts

STEPS = 3


@pytest.fixture
def draw(tiny_mini):
    return TextToImage()


def pixels(picture) -> np.ndarray:
    return np.asarray(picture.image).astype(int)


def same(one, other) -> bool:
    return np.array_equal(pixels(one), pixels(other))


def test_one_prompt(draw):
    (picture,) = draw("a red fox", steps=STEPS, seed=5)
    assert picture.image.size == (32, 32) and picture.image.mode == "RGB"
    assert picture.seed == picture.recipe.seed == 5
    clip = load_clip("mini")
    assert picture.guide_score == pytest.approx(
        float(clip.encode_pictures([picture.image])[0] @ clip.encode_text(["a red fox"])[0]),
        abs=1e-6,
    )
    assert picture.judge_score != picture.guide_score
    assert picture.recipe.model == picture.recipe.clip == "mini"
    assert picture.recipe.judge == "mini-judge"
    assert picture.recipe.clip_fingerprint == clip.fingerprint
    assert picture.recipe.batch_seeds == (5,)


def test_a_run_repeats_whatever_ran_before(draw, tiny_mini):
    first = draw(["a red fox", "a zebra"], count=2, steps=STEPS, seed=1)
    draw("an owl", steps=2)
    torch.rand(10)
    again = draw(["a red fox", "a zebra"], count=2, steps=STEPS, seed=1)
    fresh = TextToImage()(["a red fox", "a zebra"], count=2, steps=STEPS, seed=1)
    for pictures in (again, fresh):
        assert all(same(a, b) for a, b in zip(first, pictures, strict=True))
        assert [p.guide_score for p in first] == [p.guide_score for p in pictures]
    assert not any(same(a, b) for a, b in itertools.combinations(first, 2))


def test_batch_equals_single(draw):
    """Within two 8-bit values; bit for bit if exact, and by default on a CPU."""
    prompts = ["a red fox", "a zebra | stripes:2", "owl"]
    batch = draw(prompts, steps=STEPS, seed=3, batch_size=3)
    default = draw(prompts, steps=STEPS, seed=3)
    exact = draw(prompts, steps=STEPS, seed=3, exact=True)
    assert [p.recipe.batch_position for p in batch] == [0, 1, 2]
    assert [p.recipe.batch_seeds for p in exact] == [(3,)] * 3
    for i, prompt in enumerate(prompts):
        (alone,) = draw(prompt, steps=STEPS, seed=3)
        assert same(alone, exact[i]) and same(alone, default[i])
        difference = abs(pixels(alone) - pixels(batch[i]))
        assert difference.max() <= 2
        assert (difference == 0).mean() >= 0.999


def test_seeds_and_order(draw):
    pictures = draw(["a red fox", "a zebra"], count=3, steps=1, seed=10, batch_size=4)
    assert [p.seed for p in pictures] == [10, 11, 12] * 2
    assert [p.recipe.prompt for p in pictures] == ["a red fox"] * 3 + ["a zebra"] * 3
    assert [len(p.recipe.batch_seeds) for p in pictures] == [4, 4, 4, 4, 2, 2]


class Bright(Objective):
    """A dark image is a loss."""

    def __call__(self, image_B3HW, generators=None):
        return -image_B3HW.flatten(1).mean(1)


@pytest.mark.parametrize(
    "made",
    [lambda s: s, lambda s: -1.0 * s, lambda s: s + 100.0 * Bright()],
    ids=["similarity", "negative", "sum"],
)
@pytest.mark.parametrize("method", ["shortcut", "particles", "none"])
def test_candidates_are_picked_by_what_is_minimised(tiny_mini, monkeypatch, made, method):
    """Not by the guide's cosine: the lowest loss of the finished images, in the views that best-of
    looks at."""

    class Own(TextToImage):
        def objective(self, guides, views):
            return made(super().objective(guides, views))

    seen, own = [], Batch.draw

    def watched(batch, *args):
        seen.extend(found := own(batch, *args))
        return found

    monkeypatch.setattr(Batch, "draw", watched)
    draw = Own()
    asked = {
        "shortcut": {"best_of": 5},
        "particles": {"method": "particles"},
        "none": {"best_of": 5, "strength": 0.0},  # nor by the judge
    }[method]
    (best,) = draw("a red fox", steps=STEPS, seed=4, **asked)
    loss = made(Similarity(draw.clip, "a red fox", views=Cutouts(number=4)))
    images = [to_tensor([p.image]) for p in seen]
    losses = [float(loss(image, [torch.Generator().manual_seed(0)])) for image in images]
    assert len(seen) == (4 if method == "particles" else 5)
    assert best is seen[int(np.argmin(losses))]
    assert best.guide_score == pytest.approx(
        float(Similarity(draw.clip, "a red fox").score_pictures([best.image])), abs=1e-5
    )


def test_best_of(draw):
    """The candidates are images of the strided seeds, that are steered. The objective and the judge
    select together."""
    settings = {"steps": STEPS, "exact": True}
    objective = Similarity(draw.clip, "a red fox", views=Cutouts(number=4))

    def pull(picture):
        return -float(objective(to_tensor([picture.image]), [torch.Generator().manual_seed(0)]))

    best, alone = draw("a red fox", count=4, best_of=3, seed=4, **settings), 0
    for i, picture in enumerate(best):
        seeds = [4 + i + k * STRIDE for k in range(3)]
        candidates = [draw("a red fox", seed=seed, **settings)[0] for seed in seeds]
        winner = max(candidates, key=lambda one: pull(one) + one.judge_score)
        alone += winner is max(candidates, key=pull)
        assert same(picture, winner)
        assert picture.seed == winner.seed
        assert picture.recipe.best_of == 3 and picture.recipe.strength > 0
    assert alone < 4  # the judge had a say


def test_a_pipelines_own_way(draw, monkeypatch):
    """The best of its default number of candidates, by guide and judge, or of a number that is
    given; unless anything asks for steering, such as a weight."""
    asked = {"steps": STEPS, "seed": 4, "batch_size": 1}
    (steered,) = draw("a red fox", **asked)
    assert steered.recipe.best_of == 1 and steered.recipe.strength > 0
    monkeypatch.setattr(type(draw.pipe), "default_best_of", 2, raising=False)
    monkeypatch.setattr(type(draw.pipe), "default_batch", 3, raising=False)
    for prompt, strength, number in (
        ("a red fox", 0, 2), ("a red fox | blur:-1", Shortcut.strength, 1)
    ):  # fmt: skip
        (usual,) = draw(prompt, **asked)
        assert (usual.recipe.strength, usual.recipe.best_of) == (strength, number)
        by_hand = {"strength": strength, "best_of": number}
        assert same(draw(prompt, **asked, **by_hand)[0], usual)
        assert same(draw.replay(usual.recipe), usual)
        (kept,) = draw(prompt, best_of=3, **asked)
        assert (kept.recipe.method, kept.recipe.strength) == ("shortcut", strength)
    assert draw("a red fox", cutouts=2, **asked)[0].recipe.best_of == 1
    asked["best_of"] = 3
    (kept,) = draw("a red fox", **asked)
    assert (kept.recipe.best_of, kept.recipe.strength) == (3, 0) and draw.chosen.best_of == 3
    assert same(draw.replay(kept.recipe), kept)
    (together,) = draw("a red fox", steps=STEPS, seed=4, best_of=3)
    assert len(together.recipe.batch_seeds) == 3  # candidates share a batch, on a CPU too
    objective = Similarity(draw.clip, "a red fox", views=Cutouts(number=4))
    by_guide_alone = 0
    for seed in range(4, 8):
        (kept,) = draw("a red fox", **{**asked, "seed": seed})
        seeds = [seed + k * STRIDE for k in range(3)]
        plain = [draw("a red fox", steps=STEPS, seed=s, strength=0)[0] for s in seeds]
        assert [p.recipe.best_of for p in plain] == [1, 1, 1]
        loss = [
            float(objective(to_tensor([p.image]), [torch.Generator().manual_seed(0)]))
            for p in plain
        ]
        votes = [p.judge_score - x for p, x in zip(plain, loss, strict=True)]
        assert same(kept, plain[int(np.argmax(votes))])
        by_guide_alone += int(np.argmax(votes)) == int(np.argmin(loss))
    assert by_guide_alone < 4  # the judge had a say
    monkeypatch.setattr(type(draw.pipe), "default_steps", 2, raising=False)
    fewer = {"seed": 4, "batch_size": 1}
    cases = (
        ({}, 2), ({"best_of": 3}, 2), ({"strength": 0}, 2), ({"method": "drafts"}, 2),
        ({"steps": 3}, 3), ({"cutouts": 2}, 30),
        ({"method": Shortcut(strength=0.0)}, 2),  # as the command line gives it
    )  # fmt: skip
    for settings, taken in cases:
        assert draw("a red fox", **fewer, **settings)[0].recipe.steps == taken, settings
    del asked["best_of"]
    (alone,) = draw("a red fox", best_of=1, **asked)
    assert (alone.recipe.best_of, alone.recipe.strength) == (1, 0)
    assert draw("a red fox", rewards=[], **asked)[0].recipe.strength == 0
    for change in ({"strength": 0.1}, {"cutouts": 2}, {"method": "shortcut"}, {"guide": "blue"}):
        (other,) = draw("a red fox", **asked, **change)
        assert other.recipe.best_of == 1 and other.recipe.strength > 0, change


def test_pictures_come_batch_by_batch(draw):
    """What is finished before an interruption is there, and nothing is steered after it."""
    steps = []

    def stop(step):
        steps.append(step.index)
        if len(steps) > STEPS + 1:
            raise KeyboardInterrupt

    finished = []
    with pytest.raises(KeyboardInterrupt):
        for picture in draw.iterate("a fox", count=4, steps=STEPS, batch_size=2, on_step=stop):
            finished.append(picture)
    assert [p.seed for p in finished] == [0, 1]
    assert "step" not in draw.pipe.scheduler.__dict__


def test_strength_0_is_the_plain_pipeline(draw):
    (plain,) = draw("a red fox", strength=0, steps=STEPS, seed=6, cfg=3.0, negative="blur")
    image = draw.pipe(
        "a red fox",
        negative_prompt="blur",
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(6),
    ).images[0]
    assert np.array_equal(np.asarray(image), pixels(plain))


def test_steering_raises_the_score(draw):
    settings = {"count": 4, "steps": 8, "seed": 0}
    plain = draw("a red fox", strength=0, **settings)
    steered = draw("a red fox", strength=0.3, **settings)
    assert all(a.guide_score > b.guide_score for a, b in zip(steered, plain, strict=True))


def test_guide_may_differ_from_the_prompt(draw):
    own, other = (draw("a fox", guide=text, steps=STEPS)[0] for text in (None, "zebra:3"))
    assert not same(own, other)
    assert (own.recipe.guide, other.recipe.guide) == ("a fox", "zebra:3")
    each = draw(["a fox", "a fox"], guide=["a fox", "zebra:3"], steps=STEPS, exact=True)
    assert same(each[0], own) and same(each[1], other)


def test_sizes(draw):
    (picture,) = draw("a fox", steps=1, size=(32, 48))
    assert picture.image.size == (32, 48)
    assert (picture.recipe.width, picture.recipe.height) == (32, 48)
    for size in (7, 0, -8, 4096, (32, 33)):
        with pytest.raises(UsageError, match="a multiple of 8 pixels from 16 to 64; 32 is best"):
            draw("a fox", size=size)


def test_progress(draw):
    seen = []
    draw(
        "a fox",
        count=3,
        steps=STEPS,
        batch_size=2,
        on_step=lambda step: seen.append(
            (step.index, len(step.guide_score_B), len(step.judge_score_B), step.preview().shape)
        ),
    )
    two, one = (2, 2, (2, 3, 32, 32)), (1, 1, (1, 3, 32, 32))
    assert seen == [(0, *two), (1, *two), (2, *two), (0, *one), (1, *one), (2, *one)]


def test_frames(draw):
    """What each step of the kept candidate decodes to; the finished image is the last."""
    seen = []
    settings = {"count": 2, "best_of": 2, "steps": STEPS, "seed": 8, "batch_size": 2}
    pictures = draw(
        "a fox", frames=True, on_step=lambda step: seen.append(step.preview()), **settings
    )
    plain = draw("a fox", **settings)
    for i, picture in enumerate(pictures):
        assert same(picture, plain[i]) and plain[i].frames == ()
        kept = picture.recipe.batch_position
        wanted = [to_pil(image_B3HW)[kept] for image_B3HW in seen[i * STEPS : (i + 1) * STEPS]]
        assert len(picture.frames) == STEPS and picture.frames[-1] is picture.image
        for frame, expected in zip(picture.frames[:-1], wanted):
            assert np.array_equal(np.asarray(frame), np.asarray(expected))


def test_frames_are_of_the_last_run(draw):
    (picture,) = draw("a fox", method=METHODS["noise"](iterations=1), steps=2, frames=True)
    assert len(picture.frames) == len(picture.trace) == 2


def test_a_trace_scores_every_step(draw):
    traced, plain = (draw("a fox", steps=4, seed=2, trace=trace)[0] for trace in (True, False))
    assert same(traced, plain) and traced.recipe == plain.recipe
    judged = [[row["step"] for row in p.trace if "judge" in row] for p in (traced, plain)]
    assert judged == [[0, 1, 2, 3], [0, 3]]
    assert all(row["sigma"] > 0 and row["guide"] for row in traced.trace)


@pytest.mark.parametrize("decoder", ["linear", "tiny", "auto"])
def test_decoders(draw, decoder, tiny_decoder_folder):
    """Each steers elsewhere, stands in the recipe, and is the replay's too."""
    tiny = tiny_decoder_folder if decoder == "tiny" else None
    settings = {"steps": STEPS, "seed": 4, "strength": 0.3}
    (picture,) = draw("a fox", decoder=decoder, tiny=tiny, **settings)
    recipe = picture.recipe
    chosen = {"tiny": "tiny:whole", "auto": "vae:whole"}.get(decoder, decoder)
    assert (recipe.decoder, recipe.tiny) == (chosen, str(tiny or ""))
    assert len(recipe.tiny_fingerprint) == (64 if tiny else 0)
    assert decoder == "auto" or not same(picture, draw("a fox", **settings)[0])
    remade = draw.replay(recipe)
    assert same(remade, picture) and remade.recipe == recipe


def test_a_replay_decodes_by_what_auto_chose(draw, monkeypatch):
    """The rung that the memory of that day allowed, whatever is free today; by budget and memory of
    one's own too."""
    settings = {"steps": STEPS, "seed": 4, "strength": 0.5}
    whole = draw("a fox", **settings)[0]
    with pytest.warns(ClipguideWarning, match="taken one image at a time"):
        (small,) = draw("a fox", decoder="vae", memory=1e-5, **settings)
    assert small.recipe.decoder.startswith("vae:") and not same(small, whole)
    (linear,) = draw("a fox", memory=1e-5, **settings)
    assert linear.recipe.decoder == "linear"
    monkeypatch.setattr(memory, "limit", lambda device: 0.0)
    assert draw("a fox", **settings)[0].recipe.decoder == "linear"
    for picture in (whole, small, linear):
        again = draw.replay(picture.recipe)
        assert same(again, picture) and again.recipe == picture.recipe
    (plain,) = draw("a fox", steps=STEPS, strength=0.0)  # nothing was looked at
    assert plain.recipe.decoder == "auto"


def test_decoders_that_are_not(draw, tiny_decoder_folder, tmp_path):
    with pytest.warns(ClipguideWarning, match="tiny is ignored: the decoder is vae"):
        (picture,) = draw("a fox", steps=1, decoder="vae", tiny=tiny_decoder_folder)
    assert picture.recipe.tiny == ""
    (tmp_path / "config.json").write_text("{")
    for settings, message in [
        ({"decoder": "lineal"}, "Did you mean linear"),
        ({"decoder": "vae:hal"}, "rungs whole.*Did you mean vae:half"),
        ({"decoder": "linear:half"}, "vae and tiny have the rungs"),
        ({"memory": -1.0}, "The memory is a number from 0"),
        ({"decoder": "vae", "budget": 2.0}, "A budget is for"),
        ({"decoder": "tiny"}, "needs `tiny`"),
        ({"decoder": "tiny", "tiny": "no/such/folder"}, "no config.json"),
        ({"decoder": "tiny", "tiny": tmp_path}, "cannot be loaded"),
    ]:
        with pytest.raises(ClipguideError, match=message):
            draw.iterate("a fox", **settings)
    with pytest.raises(UsageError, match="There is no decoder"):
        draw.replay(dataclasses.replace(picture.recipe, decoder="magic"))


def test_replay(draw):
    """Bit for bit, out of a mixed batch, and a best candidate too."""
    pictures = draw(["a red fox", "zebra | owl:-0.5"], count=2, best_of=2, steps=STEPS, seed=8)
    for picture in pictures:
        remade = draw.replay(picture.recipe)
        assert same(remade, picture)
        assert remade.recipe == picture.recipe
    broken = dataclasses.replace(pictures[0].recipe, batch_position=99)
    with pytest.raises(UsageError, match="batch_position"):
        draw.replay(broken)
    for change in ({"steps": 0}, {"width": 7}, {"strength": -1.0}, {"prompt": ""}):
        with pytest.raises(UsageError):
            draw.replay(dataclasses.replace(pictures[0].recipe, **change))


@pytest.mark.parametrize("method", METHODS)
def test_replay_of_every_method(draw, method):
    config = METHODS[method](
        **{"best-of": {"number": 2}, "noise": {"iterations": 2}}.get(method, {})
    )
    pictures = draw(["a red fox", "zebra"], method=config, steps=STEPS, seed=3)
    assert [picture.recipe.prompt for picture in pictures] == ["a red fox", "zebra"]
    for picture in pictures:
        assert same(draw.replay(picture.recipe), picture)
    if method in ("best-of", "particles"):
        assert pictures[0].recipe.best_of == config.number
        assert pictures[0].seed in [3 + k * 1_000_000 for k in range(config.number)]
        with pytest.raises(UsageError, match="candidates of its own"):
            draw("a fox", method=method, best_of=2)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "magic"},
        {"options": {"every": "[]"}},
        {"options": {"every": "not JSON"}},
        {"options": {"bank": "1"}},
        {"method": "particles", "options": {"potential": '"least"'}},
    ],
)
def test_replay_of_a_method_that_is_not(draw, change):
    (picture,) = draw("a red fox", steps=2, seed=8)
    with pytest.raises(UsageError):
        draw.replay(dataclasses.replace(picture.recipe, **change))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "shortct"}, "Did you mean shortcut"),
        ({"method": "particles", "strength": 0.2}, "has no option strength"),
        ({"prompts": []}, "no prompt"),
        ({"prompts": " "}, "empty"),
        ({"prompts": "blur:-1"}, "add what to draw"),
        ({"guide": ["a", "b"]}, "1 prompts need one guide text"),
        ({"guide": ""}, "empty"),
        ({"count": 0}, "count must be"),
        ({"steps": -1}, "steps must be"),
        ({"best_of": 100000}, "best_of must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**63}, "seed must be"),
        ({"cfg": float("nan")}, "cannot be nan"),
        ({"strength": float("nan")}, "strength must be"),
    ],
)
def test_values_out_of_range(draw, settings, message):
    with pytest.raises(UsageError, match=message):
        draw(**{"prompts": "a fox", "steps": 1, **settings})


def test_negative_without_classifier_free_guidance(draw):
    with pytest.warns(ClipguideWarning, match="negative is ignored"):
        draw("a fox", negative="blur", cfg=1, steps=1)


def test_own_model(generator_folder, clip_folder, tiny_mini):
    """A folder that is not mini needs a CLIP of its own, and has no judge unless one is named."""
    with pytest.raises(UsageError, match="Which CLIP should guide"):
        TextToImage(model=str(generator_folder))
    draw = TextToImage(model=str(generator_folder), clip=str(clip_folder))
    (picture,) = draw("a fox", steps=1)
    assert picture.judge_score is None
    assert (picture.recipe.judge, picture.recipe.judge_score) == ("", 0)
    assert picture.recipe.model == str(generator_folder)
    assert same(picture, TextToImage()("a fox", steps=1)[0])


def test_other_schedulers(draw):
    """What a recipe records is what sampled."""
    draw.pipe.scheduler = diffusers.UniPCMultistepScheduler.from_config(draw.pipe.scheduler.config)
    (picture,) = draw("a fox", steps=2)
    assert picture.recipe.scheduler == "UniPCMultistepScheduler"


def test_models_that_do_not_load(tmp_path, generator_folder, tiny_mini):
    with pytest.raises(UsageError, match="Did you mean mini"):
        TextToImage(model="mni")
    with pytest.raises(UsageError, match="no model_index.json"):
        TextToImage(model=str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    with pytest.raises(ClipguideError, match="cannot be loaded"):
        TextToImage(model=str(tmp_path))
    with pytest.raises(UsageError, match="There is no dtype"):
        TextToImage(dtype="float23")


def test_refined(tiny_mini):
    """An image of its own, which replays; alone as in a batch; never worse to the judge."""
    draw = TextToImage()
    plain = draw("a fox", steps=2, count=2, cutouts=1)
    refined = draw("a fox", steps=2, count=2, cutouts=1, refine=12)
    for before, after in zip(plain, refined, strict=True):
        assert after.recipe.refine == 12 and before.recipe.refine == 0
        assert after.judge_score >= before.judge_score - 1e-3  # to the rounding of 8 bits
        assert draw.replay(after.recipe).image.tobytes() == after.image.tobytes()
    assert any(a.image.tobytes() != b.image.tobytes() for a, b in zip(plain, refined, strict=True))
    together = draw("a fox", steps=2, count=2, cutouts=1, refine=12, batch_size=2)
    assert together[0].recipe.batch_seeds == (0, 1)
    with pytest.raises(UsageError, match="refine must be from 0"):
        draw("a fox", refine=-1)


def test_it_says_what_it_was_not_taught(draw, tmp_path, monkeypatch):
    """The embedded generator alone, by its list of words; the images are drawn all the same."""
    (tmp_path / "generator").mkdir()
    words = '{"things": ["fox"], "words": ["fox"]}'
    (tmp_path / "generator/known.json").write_text(words, "utf-8")
    monkeypatch.setattr(mini, "FOLDER", tmp_path)
    monkeypatch.setattr(known, "LEAST", -3.0)
    with pytest.warns(ClipguideWarning, match="does not seem to know 'justice'.*use --model"):
        assert len(draw(["a fox", "justice"], steps=2, strength=0.0)) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", ClipguideWarning)
        draw("a fox", steps=2, strength=0.0)


def test_it_says_what_it_did_not_draw(draw, monkeypatch):
    """By the scores of its own guide and judge, of the image that is kept; neither of a steered
    one, nor for other models, nor of the scores of another text."""
    monkeypatch.setattr(known, "LEAST", 3.0)
    with pytest.warns(ClipguideWarning, match="does not seem to show 'a fox'") as said:
        assert len(draw(["a fox"], steps=2, strength=0.0, count=2, best_of=2)) == 2
    assert len([w for w in said if "seem to show" in str(w.message)]) == 2
    other = TextToImage(judge=draw.clip)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ClipguideWarning)
        draw("a fox", steps=2, strength=0.1)
        draw("a fox", steps=2, method="drafts")
        draw("a fox", steps=2, strength=0.0, guide="a cat")
        other("a fox", steps=2, strength=0.0)
    monkeypatch.setattr(known, "LEAST", -3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ClipguideWarning)
        draw("a fox", steps=2, strength=0.0)


def test_guide_and_judge_choose_among_drafts(draw, monkeypatch):
    """Together, unless a reward selects or pulls, or there is no judge."""
    from clipguide.pipelines import batch

    seen, steer = [], batch.steer
    monkeypatch.setattr(known, "LEAST", -3.0)

    def spy(pipe, objective, *, select, **settings):
        seen.append((objective, select))
        return steer(pipe, objective, select=select, **settings)

    monkeypatch.setattr(batch, "steer", spy)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ClipguideWarning)
        (picture,) = draw("a fox", steps=2, method="drafts")
        draw("a fox", steps=2, method="drafts", select=["clip"])
    (objective, both), (_, reward) = seen
    image_13HW, generators = to_tensor([picture.image]), [torch.Generator().manual_seed(0)]
    cosine = picture.judge_score
    expected = objective(image_13HW, generators) + 1 - cosine
    generators[0].manual_seed(0)
    assert both(image_13HW, generators).item() == pytest.approx(expected.item(), abs=1e-5)
    assert type(reward) is not type(both)
    draw("a fox", steps=2, method="drafts", rewards=["clip"])
    draw("a fox", steps=2, strength=0.1)
    alone = TextToImage(judge=None)
    alone.judge = None
    alone("a fox", steps=2, method="drafts")
    assert [select for _, select in seen[2:]] == [None] * 3
    with pytest.warns(ClipguideWarning, match="select is ignored: there is one candidate"):
        draw("a fox", steps=2, method=Drafts(number=1), select=["clip"])


def test_a_recipe_names_all_models(draw):
    recipe = draw("a red fox", steps=1, seed=1)[0].recipe
    for said, clip in (("clip", draw.clip), ("judge", draw.judge)):
        assert getattr(recipe, said) == clip.name
        assert getattr(recipe, f"{said}_fingerprint") == clip.fingerprint
    assert (recipe.model, recipe.model_fingerprint) == (draw.model, draw.fingerprint)
    assert len({draw.fingerprint, draw.clip.fingerprint, draw.judge.fingerprint}) == 3
    assert set(recipe.libraries) > {"clipguide", "torch", "diffusers"}
