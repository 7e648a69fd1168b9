"""What makes a guide: the losses against references, the towers that stay, the figure."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hf_folder import write_hf_clip, write_hf_siglip
from PIL import Image

from clipguide.clip import load_clip, load_parts
from clipguide.errors import ClipguideError, UsageError
from clipguide.finetune.attacks import ATTACKS
from clipguide.finetune.figure import (
    Hand,
    choose,
    clean_top1,
    draw,
    guide_figure,
    guide_report,
    ranks,
)
from clipguide.finetune.guiding import (
    GuidingConfig,
    GuidingLoss,
    fare_loss,
    for_guiding,
    guiding_fit,
)

CLASSES = ["red", "green", "blue"]
PLAIN = GuidingConfig(steps=4, noised=0.0, blurred=0.0)


def flat(number, *, seed=0, side=32):
    """Pictures of one colour each, with grain, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    label_B = torch.arange(number) % 3
    image = 0.2 + 0.6 * F.one_hot(label_B, 3).float()[:, :, None, None].expand(-1, -1, side, side)
    grain = 0.1 * torch.randn(image.shape, generator=generator)
    return {"image": (image + grain).clamp(0, 1), "label": label_B}


def forever(number=12):
    seed = 0
    while True:
        yield flat(number, seed=seed)
        seed += 1


def test_fare_is_the_squared_distance_in_units_of_the_length():
    clean, moved = torch.tensor([[3.0, 4.0], [0.0, 5.0]]), torch.tensor([[3.0, 4.0], [5.0, 5.0]])
    torch.testing.assert_close(fare_loss(moved, clean), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(fare_loss(7 * moved, 7 * clean), fare_loss(moved, clean))


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_in_a_ball_of_no_radius_tecoa_is_cross_entropy(clip_folder, keep):
    """Against an own reference, from the frozen Clip; the original is no distance away."""
    parts, batch = load_parts(str(clip_folder)), flat(6)
    config = dataclasses.replace(PLAIN, epsilon=(0.0, 0.0), keep=keep)
    loss, told = GuidingLoss(parts, CLASSES, config)(parts.model, batch)
    clip = load_clip(str(clip_folder))
    logits = clip.encode_image(batch["image"]) @ clip.encode_text(CLASSES).T * clip.logit_scale
    torch.testing.assert_close(loss, F.cross_entropy(logits, batch["label"]), rtol=1e-4, atol=1e-4)
    assert told["away"] < 1e-6


@pytest.mark.parametrize("method", ["tecoa", "fare"])
@pytest.mark.parametrize("norm", sorted(ATTACKS))
def test_the_attack_makes_the_loss_larger(clip_folder, method, norm):
    parts, batch = load_parts(str(clip_folder)), flat(6)
    losses = []
    for high in (0.0, 2.0 if norm == "l2" else 0.1):
        config = dataclasses.replace(
            PLAIN, method=method, norm=norm, epsilon=(high, high), attack_steps=3
        )
        losses.append(GuidingLoss(parts, CLASSES, config)(parts.model, batch)[0].item())
    assert losses[1] > losses[0] + 1e-4


def test_a_target_of_probabilities_is_the_mean_of_its_labels(clip_folder):
    parts, config = load_parts(str(clip_folder)), dataclasses.replace(PLAIN, epsilon=(0.0, 0.0))
    image, losses = flat(2)["image"], {}
    for name, target in {"0": [1.0, 0, 0], "1": [0, 1.0, 0], "both": [0.5, 0.5, 0]}.items():
        batch = {"image": image, "target": torch.tensor([target, target])}
        losses[name] = GuidingLoss(parts, CLASSES, config)(parts.model, batch)[0]
    torch.testing.assert_close(losses["both"], (losses["0"] + losses["1"]) / 2)


def test_noise_and_blur_have_their_shares(clip_folder):
    parts = load_parts(str(clip_folder))
    image = flat(300, side=16)["image"]
    config = dataclasses.replace(PLAIN, noised=0.4, blurred=0.2, noise=0.3)
    soft = GuidingLoss(parts, CLASSES, config).soften(image)
    grain = [(x[:, :, 1:] - x[:, :, :-1]).flatten(1).std(1) for x in (image, soft)]
    assert 0.3 < (grain[1] > 1.02 * grain[0]).float().mean() < 0.5
    assert 0.13 < (grain[1] < 0.7 * grain[0]).float().mean() < 0.27
    assert torch.equal(GuidingLoss(parts, CLASSES, PLAIN).soften(image), image)


@pytest.mark.parametrize("kind", ["open_clip", "clip", "siglip"])
@pytest.mark.parametrize("method", ["tecoa", "fare"])
def test_the_image_tower_moves_and_the_text_tower_stays(kind, method, clip_folder, tmp_path):
    writers = {"clip": write_hf_clip, "siglip": write_hf_siglip}
    folder = clip_folder if kind == "open_clip" else writers[kind](tmp_path / kind)
    parts, before = load_parts(str(folder)), load_clip(str(folder))
    config = dataclasses.replace(PLAIN, method=method, lr=1e-3, warmup=0)
    steps = list(for_guiding(parts, forever(), classes=CLASSES, config=config))
    assert [step.index for step in steps] == [1, 2, 3, 4]
    after, batch = parts.clip(), flat(3)["image"]
    assert torch.equal(before.encode_text(CLASSES), after.encode_text(CLASSES))
    assert (before.encode_image(batch) - after.encode_image(batch)).abs().max() > 1e-4
    parts.save(tmp_path / "out")
    saved = load_clip(str(tmp_path / "out"))
    torch.testing.assert_close(saved.encode_image(batch), after.encode_image(batch))


def test_batch_norms_keep_their_statistics(clip_folder):
    parts = load_parts(str(clip_folder))
    before = {k: v.clone() for k, v in parts.model.state_dict().items() if "running" in k}
    list(for_guiding(parts, forever(), classes=CLASSES, config=PLAIN))
    assert before and all(torch.equal(parts.model.state_dict()[k], v) for k, v in before.items())


def test_training_makes_the_attacked_ones_right(clip_folder):
    parts = load_parts(str(clip_folder))
    config = GuidingConfig(steps=40, lr=3e-3, warmup=5, keep=0.1)
    steps = list(for_guiding(parts, forever(), classes=CLASSES, config=config))
    assert steps[-1].parts["classes"] < 0.5 * steps[0].parts["classes"]


def test_fare_keeps_an_attacked_picture_near(clip_folder):
    parts, config = (
        load_parts(str(clip_folder)),
        GuidingConfig(steps=60, method="fare", lr=1e-3, warmup=5, noised=0.0, blurred=0.0),
    )
    steps = list(for_guiding(parts, forever(), config=config))
    first, last = (sum(s.parts["away"] for s in part) for part in (steps[:5], steps[-5:]))
    assert last < 0.8 * first


def test_stopped_early_the_averaged_weights_are_there(clip_folder):
    parts, config = load_parts(str(clip_folder)), dataclasses.replace(PLAIN, lr=1e-2, warmup=0)
    start = {k: v.clone() for k, v in parts.model.visual.state_dict().items()}
    running = for_guiding(parts, forever(), classes=CLASSES, config=config)
    next(running), next(running)
    raw = {k: v.clone() for k, v in parts.model.visual.state_dict().items()}
    running.close()
    kept = parts.model.visual.state_dict()
    assert any(not torch.equal(kept[k], raw[k]) for k in raw)
    assert any(not torch.equal(kept[k], start[k]) for k in raw)


def test_a_run_goes_on_with_the_same_bits(clip_folder):
    def fit():
        return guiding_fit(load_parts(str(clip_folder)), classes=CLASSES, config=config)

    config = GuidingConfig(steps=4, lr=1e-3, warmup=0)
    batches = [flat(6, seed=k) for k in range(4)]
    whole, half, rest = fit(), fit(), fit()
    losses = [step.loss for step in whole.run(batches)]
    list(half.run(batches[:2]))
    rest.load_state_dict(half.state_dict())
    rest.loss.load_state_dict(half.loss.state_dict())
    assert [step.loss for step in rest.run(batches[2:])] == losses[2:]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "tacoe"}, "no method 'tacoe'. Did you mean tecoa"),
        ({"norm": "l1"}, "no norm 'l1'"),
        ({"epsilon": (2.0, 1.0)}, "least and the largest"),
        ({"attack_steps": 0}, "at least one step"),
        ({"noised": 0.7, "blurred": 0.6}, "shares"),
        ({"noise": -1.0}, "at least 0"),
        ({"lr": 0.0}, "between 0 and 1"),
        ({"templates": ("a photo",)}, "has {} where"),
    ],
)
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(UsageError, match=words.replace("{}", r"\{\}")):
        GuidingConfig(**settings)


def test_radii_grow_with_the_picture():
    assert GuidingConfig().radii(128) == (0.5, 4.5)
    assert GuidingConfig().radii(256) == (1.0, 9.0)
    assert GuidingConfig(norm="linf").radii(256) == (0.5 / 255, 5 / 255)
    assert GuidingConfig(epsilon=(1, 2)).radii(256) == (1, 2)


def test_tecoa_needs_names_and_labels(clip_folder):
    parts, bare = load_parts(str(clip_folder)), {"image": flat(2)["image"], "label": None}
    with pytest.raises(UsageError, match="at least two; FARE"):
        next(for_guiding(parts, forever(), classes=["red"], config=PLAIN))
    with pytest.raises(UsageError, match="a class for each image"):
        next(for_guiding(parts, iter([bare]), classes=CLASSES, config=PLAIN))
    next(for_guiding(parts, iter([bare]), config=GuidingConfig(steps=1, method="fare")))


# ------------------------------------------------------------------ the figure
HAND = Hand(steps=3, size=32)


def test_ranks_count_ties_against():
    text = torch.eye(4)
    image = torch.tensor([[0.9, 0.1, 0.5, 0.0], [0.2, 0.2, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert ranks(image, text, torch.tensor([2, 1, 0])).tolist() == [1, 1, 3]
    with pytest.raises(ClipguideError, match="not a number"):
        ranks(image * float("nan"), text, torch.tensor([2, 1, 0]))


def test_a_drawing_pleases_the_one_that_draws(clip):
    text = clip.encode_text(["red", "fox"])
    start, end = (
        (clip.encode_image(draw(clip, ["red", "fox"], Hand(steps=n, size=32))) * text).sum(1)
        for n in (1, 30)
    )
    assert (end > start).all()


def test_a_concept_is_drawn_alike_alone_and_among_others(clip):
    alone, beside = draw(clip, ["fox"], HAND), draw(clip, ["red", "fox"], HAND)
    torch.testing.assert_close(alone[0], beside[1], atol=1e-4, rtol=0)


def test_the_figure_is_the_judges_top_five(clip, judge):
    among = [f"word {k}" for k in range(20)]
    figure = guide_figure(clip, judge, ["red", "fox"], among=among, hand=HAND)
    assert figure.among == 22 and len(figure.pictures) == 2
    score_BK = judge.encode_pictures(figure.pictures) @ judge.encode_text([*among, "red", "fox"]).T
    places = [(row.argsort(descending=True) == 20 + b).nonzero() for b, row in enumerate(score_BK)]
    assert figure.rank_B.tolist() == [int(place) for place in places]
    assert figure.share == sum(int(p) < 5 for p in places) / 2
    sheet = figure.sheet()
    assert sheet.width > 2 * 32 and sheet.height > 32
    with pytest.raises(UsageError, match="is always right"):
        guide_figure(clip, judge, ["red"], among=["a", "b"], hand=HAND)


def test_the_hand_that_the_judge_likes_best(clip, judge):
    seen = {}
    note = lambda hand, score: seen.update({hand: score})  # noqa: E731
    best = choose(clip, judge, ["red"], HAND, on_score=note)
    assert best == max(seen, key=seen.get) and best.steps == 3
    assert len(seen) == 3 + 1 + 1, "each setting once"


def test_clean_accuracy(clip):
    pictures = [Image.new("RGB", (32, 32), name) for name in CLASSES]
    best = (clip.encode_pictures(pictures) @ clip.encode_text(CLASSES).T).argmax(1).tolist()
    assert clean_top1(clip, pictures, best, CLASSES) == 1.0
    wrong = [(k + 1) % 3 for k in best]
    assert clean_top1(clip, pictures, [wrong[0], *best[1:]], CLASSES) == pytest.approx(2 / 3)


def test_the_report_before_and_after(clip, judge, clip_folder, tmp_path):
    parts = load_parts(str(clip_folder))
    list(for_guiding(parts, forever(), classes=CLASSES, config=PLAIN))
    report = guide_report(
        clip,
        parts.clip(),
        judge,
        ["red", "fox"],
        among=[f"word {k}" for k in range(9)],
        hands=(HAND, HAND),
        pictures=[Image.new("RGB", (32, 32), name) for name in CLASSES],
        labels=[0, 1, 2],
        classes=CLASSES,
    )
    assert [what for what, *_ in report.rows()][1] == "clean top-1"
    assert report.markdown().count("\n| ") == 2
    assert sorted(p.name for p in report.save(tmp_path)) == ["guide-after.png", "guide-before.png"]
    with pytest.raises(UsageError, match="the CLIP that is judged"):
        guide_report(clip, parts.clip(), clip, ["red"])
