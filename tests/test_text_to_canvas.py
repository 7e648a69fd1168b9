"""Text to canvas: every canvas draws, repeats, goes on after a stop, does as its settings say."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from clipguide.pipelines.canvas_kinds import CANVASES
from clipguide.pipelines.canvas_run import Run
from clipguide.pipelines.drawing import VIEWS, Drawing
from clipguide.pipelines.frames import fitted, move
from clipguide.pipelines.text_to_canvas import TextToCanvas
from PIL import Image
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from clipguide.errors import ClipguideWarning, UsageError
from clipguide.images import to_pil, to_tensor
from clipguide.objectives import Similarity
from clipguide.rewards.sds import Distilled

FAST = Drawing(steps=4, size=(32, 32), lr=0.1, cutouts=2, score_every=2, sds=0.0)

BOUND = {
    "init": "a.png",
    "pictures": ("a.png",),
    "tile": True,
    "zoom": 1.1,
    "prompts_at": ((2, "an owl"),),
}


def fast(**settings):
    return dataclasses.replace(FAST, **settings)


@pytest.fixture
def vqgan(tiny_mini):
    return TextToCanvas("vqgan")


def bits(picture):
    return picture.image.tobytes()


@pytest.fixture
def red(tmp_path):
    Image.new("RGB", (32, 32), (200, 30, 30)).save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


@pytest.mark.parametrize("canvas", CANVASES)
def test_every_canvas_draws_and_repeats(tiny_mini, canvas):
    owner = TextToCanvas(canvas)
    first, second = owner("a fox", FAST, count=2, seed=3)
    assert first.image.size == (32, 32) and bits(first) != bits(second)
    assert bits(owner("a fox", FAST, seed=4)[0]) == bits(second)
    assert bits(owner.replay(first.recipe)) == bits(first)
    assert first.recipe.command == "optimize" and first.recipe.method == canvas
    assert math.isfinite(first.guide_score) and math.isfinite(first.judge_score)


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.3},
        {"ema": 0.0},
        {"cutouts": 40},
        {"start": "own"},
        {"views": "plain"},
        {"views": "vqgan-clip"},
        {"views": "disco"},
        {"smooth": 0.5},
        {"temperature": 2.0},
        {"tile": True},
        {"symmetry": "vertical"},
        {"palette": ("#ff0000", "#ffffff")},
        {"palette": ("#ff0000", "#ffffff"), "palette_weight": 9.0},
        {"zoom": 1.2, "every": 2},
        {"rotate": 10.0, "shift": (1.0, 2.0), "every": 2},
        {"prompts_at": ((2, "an owl"),)},
        {"grow": 2, "size": (64, 64)},
    ],
    ids=str,
)
def test_every_setting_acts_and_is_kept(tiny_mini, settings):
    owner = TextToCanvas("vqgan" if "temperature" in settings else "pixels", judge="")
    drawing = fast(**settings)
    (picture,) = owner("a fox", drawing, seed=1)
    plain = owner("a fox", fast(size=drawing.size), seed=1)[0]
    assert bits(picture) != bits(plain)
    assert bits(owner.replay(picture.recipe)) == bits(picture)


@pytest.mark.parametrize("stop", [0, 2, 3, 5])
@pytest.mark.parametrize(
    "settings",
    [
        {"grow": 2, "size": (64, 64), "prompts_at": ((3, "an owl"),)},
        {"zoom": 1.1, "every": 2},
        {"tile": True, "patience": 2, "score_every": 1, "lr": 1.0},
    ],
    ids=str,
)
def test_a_state_goes_on_with_the_same_bits(vqgan, settings, stop):
    drawing = fast(**{"steps": 6, **settings})
    whole = vqgan("a fox", drawing, seed=2)[0]
    first = vqgan.start("a fox", drawing, seed=2)
    for _ in range(stop):
        if not first.done:
            first.step()
    again, state = vqgan.start("a fox", drawing, seed=99), first.state_dict()
    if not first.done:
        first.step()  # the state is a copy
    again.load_state_dict(state)
    again.seed = 2
    assert bits(again.finish()) == bits(whole)


def test_steps_count_up_over_the_sizes(vqgan):
    run = vqgan.start("a fox", fast(steps=5, grow=2, size=(64, 64)))
    seen = [(step.index, step.total, step.image().shape[-1]) for step in run]
    assert seen == [(0, 5, 32), (1, 5, 32), (2, 5, 64), (3, 5, 64), (4, 5, 64)]


def test_sizes_too_small_to_draw_are_left_out():
    assert fast(steps=8, grow=8, size=(128, 64)).stages(4) == [(32, 64, 0, 4), (64, 128, 4, 8)]
    assert fast(steps=9, grow=2, size=(100, 100)).stages(4) == [(48, 48, 0, 4), (100, 100, 4, 9)]


def test_a_mask_keeps_what_is_outside(tiny_mini, red, tmp_path):
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 16, 32))
    mask.save(tmp_path / "mask.png")
    owner = TextToCanvas("pixels")
    (picture,) = owner("a fox", fast(init=red, mask=str(tmp_path / "mask.png"), lr=0.2))
    then, now = to_tensor([Image.open(red)])[0], to_tensor([picture.image])[0]
    assert torch.equal(then[..., 16:], now[..., 16:])
    assert (then - now)[..., :16].abs().max() > 0.05


def test_init_weight_keeps_it_near(tiny_mini, red):
    owner = TextToCanvas("pixels", judge="")
    then = to_tensor([Image.open(red)])
    far, near = (
        (to_tensor([owner("a fox", fast(init=red, init_weight=w, lr=0.2))[0].image]) - then)
        .square()
        .mean()
        for w in (0.0, 1e4)
    )
    assert near < 0.5 * far


@pytest.mark.parametrize(("axis", "dimension"), [("horizontal", -1), ("vertical", -2)])
def test_symmetry(tiny_mini, axis, dimension):
    (picture,) = TextToCanvas("fourier")("a fox", fast(symmetry=axis))
    image = to_tensor([picture.image])
    assert_close(image, image.flip(dimension), atol=1 / 255 + 1e-6, rtol=0)


@pytest.mark.parametrize("canvas", CANVASES)
def test_tiles_have_no_seam(tiny_mini, canvas):
    """Opposite edges differ as neighbours inside do at the same places of codes and coarse levels,
    to the spread of all: a smoke test; tests/test_canvases.py proves it of the decoders,
    benchmarks/canvases.py measures it."""
    owner = TextToCanvas(canvas, judge="")
    found = [
        to_tensor([owner("a fox", fast(steps=3, size=(64, 64), tile=True), seed=s)[0].image])
        for s in range(12)
    ]
    image = torch.cat(found)
    across = (image - image.roll(1, -1)).abs().mean((0, 1, 2))
    seam, inside = across[0], across[8::8]
    spread = across[1:].std() / across[1:].mean()
    assert seam <= inside.mean() * (1.05 + 2 * spread)


def test_the_size_of_a_canvas(vqgan):
    """The VQGAN begins with half of its own size; not where a size is given, of one step, nor of
    an image that moves. A recipe says what was taken, and an older one without it has one size."""
    for settings, size, stages in (
        ({}, (256, 256), 2),
        ({"steps": 1}, (256, 256), 1),
        ({"zoom": 1.1}, (256, 256), 1),
        ({"grow": 1}, (256, 256), 1),
        ({"size": (64, 64)}, (64, 64), 1),
    ):
        run = vqgan.start("a fox", fast(**{"size": None, "steps": 2, **settings}))
        assert (run.drawing.size, len(run.stages)) == (size, stages), settings
        recipe = run.recipe()
        assert recipe.width == size[0] and ("grow" in recipe.options) == (
            stages == 2 or "grow" in settings
        )
        assert vqgan.start("a fox", Drawing.of(recipe)).stages == run.stages
    settled = Drawing(size=(256, 256), sds=0.0, fade=0.0)
    assert Drawing().settled("pixels") == settled
    assert Drawing().settled("vqgan", encodes=False) == settled


def test_score_distillation_by_default(tiny_mini):
    """It is a reward of weight 2 with the guide mini, unless the image is bound otherwise."""
    owner = TextToCanvas(judge="")
    for settings, rewards in (
        ({}, ("sds:2",)),
        ({"sds": 1.0}, ("sds",)),
        ({"sds": 0.5, "rewards": ("clip",)}, ("sds:0.5", "clip")),
        ({"sds": None, "rewards": ("sds=mini:3", "clip")}, ("sds=mini:3", "clip")),
        ({"sds": 0.0}, ()),
        *(({bound: value}, ()) for bound, value in BOUND.items()),
        *(({bound: value, "sds": 1.0}, ("sds",)) for bound, value in BOUND.items()),
    ):
        settled = owner.settled(fast(**{"sds": None, **settings}))
        assert settled.rewards == rewards and owner.settled(settled) == settled, settings
    (picture,) = owner("a fox", fast(sds=None), seed=1)
    assert bits(picture) != bits(owner("a fox", FAST, seed=1)[0])
    assert list(picture.recipe.rewards) == ["sds:2"]
    assert bits(owner.replay(picture.recipe)) == bits(picture)
    for settings, message in (
        ({"sds": -1.0}, "sds must be from 0 to 10"),
        ({"sds": 11.0}, "sds must be from 0 to 10"),
        ({"sds": math.nan}, "sds must be from 0 to 10"),
        ({"sds": 1.0, "rewards": ("sds=mini:3",)}, "leave one of them out"),
    ):
        with pytest.raises(UsageError, match=message):
            owner.start("a fox", fast(**settings))
    other = TextToCanvas(clip="mini-judge", judge="")
    assert other.settled(fast(sds=None)).rewards == ()


def test_the_guide_fades(tiny_mini):
    """With score distillation: its pull falls from 1 to 0 over 0.9 of the run. A recipe from before
    there was `fade` has none."""
    owner = TextToCanvas(judge="")
    run = owner.start("a fox", fast(sds=1.0))
    for progress, expected in ((0.0, [1.0, 1.0]), (0.45, [0.5, 1.0]), (0.95, [1.0])):
        weights = [weight for weight, _ in run._objective.at(progress).terms()]
        assert weights == pytest.approx(expected), progress
    recipe = run.recipe()
    assert recipe.options["fade"] == "0.9" and Drawing.of(recipe) == run.drawing
    options = {name: value for name, value in recipe.options.items() if name != "fade"}
    before = Drawing.of(dataclasses.replace(recipe, options=options))
    assert before == dataclasses.replace(run.drawing, fade=0.0)
    assert bits(owner("a fox", before)[0]) != bits(owner("a fox", run.drawing)[0])
    assert "fade" not in owner.start("a fox", FAST).recipe().options
    assert owner.settled(fast(sds=1.0, fade=0.5)).fade == 0.5
    firsts = [fast(steps=11, fade=share).judge_from for share in (None, 0.0, 0.5, 1.0)]
    assert firsts == [0, 0, 5, 10]
    for steps, fade, scores in ((200, 0.9, 2), (40, 0.9, 1), (200, 0.0, 20), (25, 0.0, 3)):
        assert fast(steps=steps, fade=fade, score_every=10).scores == scores
    with pytest.warns(ClipguideWarning, match="patience stops nothing"):
        TextToCanvas().start("a fox", fast(sds=1.0, patience=3, score_every=10))
    for bound in ({"zoom": 1.1}, {"prompts_at": ((2, "an owl"),)}):
        assert owner.settled(fast(sds=1.0, **bound)).fade == 0.0
    for settings, message in (
        ({"fade": 1.5}, "fade must be from 0 to 1"),
        ({"fade": 0.5, "sds": 0.0}, "nothing else would pull"),
        ({"fade": 0.5, "sds": 1.0, "prompts_at": ((2, "an owl"),)}, "which a later prompt"),
    ):
        with pytest.raises(UsageError, match=message):
            owner.start("a fox", fast(**settings))
    assert owner.start("a fox", fast(fade=0.5, sds=0.0, rewards=("clip",))).drawing.fade == 0.5


def test_a_palette_keeps_its_weight_when_the_guide_has_faded(tiny_mini):
    """The sum of guide and distillation is as large just after the fade as just before."""
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for settings in ({"palette": ("#ff0000",), "palette_weight": 1e-9}, {"smooth": 1e-9}):
        run, sizes = TextToCanvas(judge="").start("a fox", fast(sds=1.0, **settings)), []
        for progress in (0.899, 0.901):
            given = image.clone().requires_grad_()
            loss_B = run._objective.at(progress)(given, [torch.Generator().manual_seed(1)])
            (gradient,) = torch.autograd.grad(loss_B.sum(), given)
            sizes.append(gradient.square().mean().sqrt().item())
        assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


def test_a_draft_is_chosen_at_the_first_step(tiny_mini, monkeypatch):
    """Once, by the sum of guide and judge for the prompt, and not before: a finished image needs
    none."""
    owner, asked = TextToCanvas(), []
    monkeypatch.setattr(Distilled, "choose", lambda self, *given: asked.append(given))
    run = owner.start("a fox", fast(sds=1.0, size=(32, 64)), seed=5)
    assert not asked
    run.step()
    run.step()
    ((seed, score, size),) = asked
    assert (seed, size) == (5, (64, 32))  # height and width
    image = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    clips = (owner.clip, owner.judge)
    scores = [Similarity(clip, "a fox", views=None).score(image) for clip in clips]
    assert_close(score(image), scores[0] + scores[1])
    list(owner.start("a fox", FAST, seed=5))
    assert len(asked) == 1  # without score distillation, nothing is chosen


def test_prompts_in_turn(vqgan):
    """The judge and the guide score by the last prompt, and what is kept is drawn by it."""
    run = vqgan.start("a fox", fast(steps=6, prompts_at=((3, "an owl"),), score_every=1))
    assert [p.text for p in run.guide.prompts] == ["an owl"]
    steps = list(run)
    assert [step.judge_score_B is None for step in steps] == [True] * 3 + [False] * 3
    other = vqgan.start("an owl", fast(steps=6, prompts_at=((0, "a fox"), (3, "an owl"))))
    assert torch.equal(other.step().loss_B, vqgan.start("a fox", fast(steps=6)).step().loss_B)


def test_move():
    """A quarter turn against the clock, a shift, a zoom about the middle."""
    image = torch.rand(1, 3, 16, 16)
    assert_close(move(image, Drawing(rotate=90)), image.rot90(1, (-2, -1)), atol=1e-4, rtol=0)
    shifted = move(image, Drawing(shift=(2.0, 1.0)))
    assert_close(shifted[..., 1:, 2:], image[..., :-1, :-2], atol=1e-4, rtol=0)
    ramp = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    slope = move(ramp, Drawing(zoom=2.0)).diff()[..., 4:12]
    assert_close(slope, torch.full_like(slope, 1 / 30), atol=1e-4, rtol=0)


def test_move_turns_circles_to_circles_in_wide_pictures():
    image = torch.zeros(1, 3, 16, 32)
    image[..., 4:12, 12:20] = 1
    turned = move(image, Drawing(rotate=90))
    assert_close(turned[..., 8:24], image[..., 8:24], atol=1e-3, rtol=0)


def test_a_picture_of_another_shape_is_told_of(tmp_path):
    Image.new("RGB", (64, 32)).save(tmp_path / "wide.png")
    with pytest.warns(ClipguideWarning, match="64x32: it is cut"):
        assert fitted(str(tmp_path / "wide.png"), 32, 32).shape == (3, 32, 32)


@pytest.mark.parametrize("mode", ["P", "L", "LA", "RGBA", "CMYK", "I;16", "1"])
def test_any_mode_begins(tiny_mini, tmp_path, mode):
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png")
    Image.new("RGB" if mode == "I;16" else "RGBA", (32, 32), "red").convert(
        "L" if mode == "I;16" else mode
    ).convert(mode).save(path)
    (picture,) = TextToCanvas("pixels")("a fox", fast(steps=1, lr=1e-6, init=str(path)))
    assert_close(to_tensor([picture.image]), fitted(str(path), 32, 32)[None], atol=2 / 255, rtol=0)


def test_a_changed_file_is_not_replayed(tiny_mini, red):
    owner = TextToCanvas("pixels")
    (picture,) = owner("a fox", fast(init=red))
    assert picture.recipe.files == (red,)
    Image.new("RGB", (32, 32), "blue").save(red)
    with pytest.raises(UsageError, match="is not the image that the recipe began with"):
        owner.replay(picture.recipe)


@pytest.mark.parametrize(
    "options",
    [
        {"what": "1"},
        {"lr": "x"},
        {"lr": '"x"'},
        {"ema": "true"},
        {"patience": '"x"'},
        {"grow": "1.5"},
        {"prompts_at": "[[1]]"},
        {"prompts_at": '[["1", "a"]]'},
        {"pictures": "[5]"},
        {"init": "5"},
        {"shift": "[1, 2, 3]"},
        {"zoom": "1" + "0" * 400},
        {"digests": '[["a.png", "00"]]'},
        {"digests": "[" * 100_000},
    ],
    ids=lambda options: str(options)[:40],
)
def test_recipes_that_are_wrong(vqgan, options):
    (picture,) = vqgan("a fox", FAST)
    wrong = dataclasses.replace(picture.recipe, options=options)
    with pytest.raises(UsageError, match="options of vqgan are wrong"):
        Drawing.of(wrong)


@pytest.mark.parametrize(
    "options",
    [
        {"init": '"/etc/passwd"'},
        {"mask": '"/etc/passwd"'},
        {"pictures": '["/etc/passwd"]'},
        {"digests": '[["/etc/passwd", "00"]]'},
        {"digests": "[" * 100_000},
    ],
    ids=lambda options: str(options)[:40],
)
def test_what_a_recipe_names_is_a_file(vqgan, options):
    """Whatever its spelling: `replay` asks for trust before it opens anything."""
    (picture,) = vqgan("a fox", FAST)
    assert dataclasses.replace(picture.recipe, options=options).files


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "steps must be from 1"),
        ({"cutouts": 0}, "cutouts must be from 1"),
        ({"grow": 9}, "grow must be from 1 to 8"),
        ({"grow": 0}, "grow must be from 1 to 8"),
        ({"steps": 1, "grow": 2}, "2 sizes need as many steps"),
        ({"smooth": -1.0}, "smooth must be from 0"),
        ({"zoom": 0.0}, "zoom must be from 0.1"),
        ({"rotate": math.inf}, "rotate must be from -360"),
        ({"symmetry": "round"}, "horizontal or vertical"),
        ({"mask": "m.png"}, "give an init image"),
        ({"init_weight": 1.0}, "give an init image"),
        ({"palette_weight": 2.0}, "keeps to a palette"),
        ({"prompts_at": ((3, "a"), (2, "b"))}, "must go up"),
        ({"prompts_at": ((9, "a"),)}, "from 0 to 3"),
        ({"prompts_at": ((1, ""),)}, "empty"),
        ({"zoom": 2.0, "grow": 2}, "leave these out"),
        ({"size": (30, 32)}, "multiple of 4"),
        ({"size": (4, 4)}, "pixels, not 4"),
        ({"lr": -1.0}, "lr must be from 0"),
        ({"ema": 1.0}, "ema must be from 0"),
        ({"patience": 0}, "patience must be from 1"),
        ({"init": "nothing.png"}, "There is no image"),
        ({"pictures": ("nothing.png",)}, "There is no image"),
        ({"palette": ("red",)}, "no colour"),
    ],
    ids=str,
)
def test_bad_settings(vqgan, settings, words):
    with pytest.raises(UsageError, match=words):
        vqgan("a fox", fast(**settings))


@pytest.mark.parametrize(("colour", "words"), [(0, "black all over"), (255, "white all over")])
def test_masks_that_say_nothing(tiny_mini, red, tmp_path, colour, words):
    Image.new("L", (32, 32), colour).save(tmp_path / "m.png")
    with pytest.raises(UsageError, match=words):
        TextToCanvas("pixels")("a fox", fast(init=red, mask=str(tmp_path / "m.png")))


def test_models_that_are_none(tiny_mini, generator_folder, vqgan_folder, tmp_path):
    for canvas, model, words in (
        ("oil", None, "no canvas 'oil'"),
        ("pixels", "mini", "has no model"),
        ("vqgan", str(tmp_path / "no"), "no folder"),
        ("vqgan", str(tmp_path), "not a diffusers folder"),
        ("latent", str(vqgan_folder), "holds a VQModel"),
        ("vqgan", str(generator_folder), "holds a AutoencoderKL"),
    ):
        with pytest.raises(UsageError, match=words):
            TextToCanvas(canvas, model=model)


def test_a_tiny_autoencoder_and_a_pipeline_are_canvases(
    tiny_mini, tiny_decoder_folder, generator_folder
):
    for folder in (tiny_decoder_folder, generator_folder):
        owner = TextToCanvas("latent", model=str(folder))
        (picture,) = owner("a fox", FAST)
        assert picture.recipe.model == str(folder)
        assert json.loads(picture.recipe.to_json())["model_fingerprint"] == owner.fingerprint


def test_seconds_needed(vqgan):
    assert all(0 < seconds < 30 for seconds in vqgan.seconds_needed("a fox", FAST))


def test_seconds_needed_are_the_mean_over_the_sizes(vqgan, monkeypatch):
    clock, step = [0.0], Run.step

    def slow(run):
        clock[0] += run.stages[run._stage][0] / 32  # a second at 32 pixels, two at 64
        return step(run)

    monkeypatch.setattr(Run, "step", slow)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    drawing = fast(size=(64, 64), grow=2)
    assert vqgan.seconds_needed("a fox", drawing)[1] == pytest.approx(1.5)


@pytest.mark.parametrize("canvas", ["vqgan", "latent"])
def test_large_pictures_keep_fewer_activations_and_the_same_bits(tiny_mini, canvas, monkeypatch):
    owner, calls = TextToCanvas(canvas), []
    (kept,) = owner("a fox", FAST)
    monkeypatch.setattr(
        "clipguide.canvases.latent.checkpoint",
        lambda block, *a, **k: calls.append(block) or checkpoint(block, *a, **k),
    )
    assert bits(owner("a fox", FAST)[0]) == bits(kept) and not calls
    monkeypatch.setattr("clipguide.pipelines.canvas_run.LARGE", 32 * 32)
    assert bits(owner("a fox", FAST)[0]) == bits(kept) and calls


def test_the_best_is_the_judges(vqgan):
    run = vqgan.start("a fox", fast(steps=12, lr=1.0, score_every=1))
    seen = [(step.judge_score_B.item(), step.image()) for step in run]
    best = max(seen, key=lambda pair: pair[0])[1]
    assert run.picture().image.tobytes() == to_pil(best)[0].tobytes()


def test_the_edge_of_a_canvas_has_no_more_gradient_than_its_middle():
    """Views that continue the last pixels have 2 to 5 times as much there, which drew speckle all
    along the edges. Any smooth functional of the views, as a CLIP's are."""
    views, generator = VIEWS["warped"](8), torch.Generator().manual_seed(0)
    square_HW = torch.zeros(64, 64)
    for _ in range(30):
        image_13HW = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
        seen = views(image_13HW, [generator], size=64).reshape(-1, 3, 64, 64)
        coarse = torch.randn(len(seen), 3, 16, 16, generator=generator)
        weight = torch.nn.functional.interpolate(coarse, 64, mode="bilinear")
        (gradient,) = torch.autograd.grad((seen * weight).sum(), image_13HW)
        square_HW += gradient[0].square().mean(0)
    edge = torch.cat([square_HW[0], square_HW[-1], square_HW[:, 0], square_HW[:, -1]])
    assert edge.mean().sqrt() < 1.5 * square_HW[16:48, 16:48].mean().sqrt()
