"""The loop: its steps by hand, its memory, its judge, and going on after a stop."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from clipguide.canvases import Fourier, Pixels
from clipguide.errors import ClipguideError, ClipguideWarning, UsageError
from clipguide.objectives import Objective, Similarity
from clipguide.optimize import Loop
from clipguide.views import Cutouts


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


class Red(Objective):
    """How far an image is from red."""

    def __call__(self, image_B3HW, generators=None):
        red = image_B3HW.new_tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
        return (image_B3HW - red).square().flatten(1).mean(1)


class Judge:
    """Likes an image the better the nearer its mean is to a number."""

    def __init__(self, wanted):
        self.wanted = wanted

    def score(self, image_B3HW):
        return -(image_B3HW.flatten(1).mean(1) - self.wanted).abs()


@pytest.mark.parametrize(("canvas", "lr"), [(Fourier, 1.0), (Pixels, 0.3)])
def test_a_picture_becomes_what_is_asked(canvas, lr):
    steps = list(Loop(canvas(16, 16, generators(0, 1)), Red(), steps=100, lr=lr))
    assert [step.index for step in steps] == list(range(100))
    assert (steps[-1].loss_B < 0.15 * steps[0].loss_B).all()
    mean_B3 = steps[-1].image().mean((2, 3))
    assert (mean_B3[:, 0] > 0.75).all() and (mean_B3[:, 1:] < 0.25).all()


def test_step_by_hand():
    """Adam's first step is lr times the gradient's sign; the rate falls along a cosine."""
    canvas = Pixels(8, 8, generators(0))
    before = canvas.levels[0].detach().clone()
    loop = Loop(canvas, Red(), steps=5, lr=0.01, ema=0.0, decay=0.2)
    (gradient,) = torch.autograd.grad(Red()(canvas.decode()).sum(), canvas.levels[0])
    loop.step()
    assert_close(canvas.levels[0].detach(), before - 0.01 * gradient.sign(), atol=1e-6, rtol=0)
    rates = [loop._adam.param_groups[0]["lr"]]
    for _ in loop:
        rates.append(loop._adam.param_groups[0]["lr"])
    share = [0.2 + 0.8 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(5)]
    assert rates == pytest.approx([0.01 * s for s in share])
    assert loop.done and rates[-1] == pytest.approx(0.002)


def test_accumulated_views_are_one_large_batch(clip):
    """Four calls with one view: the gradient of the mean over their views."""
    objective = Similarity(clip, "a fox", views=Cutouts(number=1, whole=False))
    canvas = Fourier(32, 32, generators(0, 1))
    loop = Loop(canvas, objective, accumulate=4, generators=generators(5, 6))
    image = canvas.decode().detach()
    loss_B, gradient = loop._gradient(image.clone(), objective)
    leaf, same = image.clone().requires_grad_(), generators(5, 6)
    expected_B = torch.stack([objective(leaf, same) for _ in range(4)]).mean(0)
    (expected,) = torch.autograd.grad(expected_B.sum(), leaf)
    assert_close(loss_B, expected_B.detach(), atol=1e-6, rtol=0)
    rms_B = expected.flatten(1).square().mean(1).sqrt()
    assert_close(gradient, expected / rms_B.view(-1, 1, 1, 1), atol=1e-4, rtol=1e-4)


def test_batch_equals_single(clip):
    objective = [Similarity(clip, "a fox"), Similarity(clip, ["a fox"])]

    def drawn(seeds, objective):
        canvas = Fourier(32, 32, generators(*seeds))
        (*_, last) = Loop(canvas, objective, steps=4, generators=generators(*seeds))
        return last.image()

    both = drawn((1, 2), objective[0])
    alone = torch.cat([drawn((seed,), objective[1]) for seed in (1, 2)])
    assert_close(both, alone, atol=1e-3, rtol=0)


def test_average():
    """Of what the parameters were, by its decay; what is shown is the average's."""
    canvas = Pixels(8, 8, generators(0))
    loop = Loop(canvas, Red(), steps=6, ema=0.5)
    mean = canvas.levels[0].detach().clone()
    for step in loop:
        keep = min(0.5, (1 + step.index) / (10 + step.index))
        mean = keep * mean + (1 - keep) * canvas.levels[0].detach()
        assert_close(loop._mean[0], mean, atol=1e-6, rtol=0)
        own = canvas.levels[0].detach().clone()
        shown = step.image()
        assert torch.equal(canvas.levels[0], own)
        assert not torch.equal(shown, canvas.decode().clamp(0, 1))


def test_the_judge_keeps_the_best_of_each():
    """Pictures go from grey to red, so past the mean that the judge likes: that one is kept."""
    canvas = Pixels(8, 8, generators(0, 1))
    loop = Loop(canvas, Red(), steps=40, lr=0.05, judge=Judge(0.42), score_every=2, ema=0.0)
    seen = [(step.judge_score_B, step.image()) for step in loop]
    scored = [(score_B, image) for score_B, image in seen if score_B is not None]
    assert len(scored) == 20
    best_B = torch.stack([score_B for score_B, _ in scored]).max(0)
    for i, k in enumerate(best_B.indices.tolist()):
        assert 0 < k < 19  # neither the first nor the last
        assert torch.equal(loop.best()[i], scored[k][1][i])


def test_a_score_that_recovers_is_not_the_best():
    """Scores fall from the best and rise again below it: the first is kept."""

    class Scripted:
        scores = [0.5, 0.2, 0.4]

        def score(self, image_B3HW):
            return torch.tensor([self.scores.pop(0)])

    loop = Loop(Pixels(8, 8, generators(0)), Red(), steps=3, judge=Scripted(), score_every=1)
    first = loop.step().image()
    list(loop)
    assert torch.equal(loop.best(), first) and loop._best_B.item() == 0.5


def test_patience():
    loop = Loop(
        Pixels(8, 8, generators(0)), Red(), steps=500, judge=Judge(0.45), score_every=1, patience=3
    )
    scores = [step.judge_score_B.item() for step in loop]
    assert len(scores) < 100 and scores.index(max(scores)) == len(scores) - 4


@pytest.mark.parametrize("stop", [1, 5, 9])
def test_it_goes_on_after_a_stop(clip, judge, stop):
    def made(canvas):
        objective, other = Similarity(clip, "a fox"), Similarity(judge, "a fox", views=None)
        found = generators(3, 4)
        return Loop(canvas, objective, steps=10, judge=other, score_every=3, generators=found)

    whole = made(Fourier(16, 16, generators(1, 2)))
    rest = [step.loss_B for step in whole][stop:]
    first = made(Fourier(16, 16, generators(1, 2)))
    for _ in range(stop):
        first.step()
    state = first.state_dict()
    first.step()
    again = made(Fourier(16, 16, generators(7, 8)))
    again.load_state_dict(state)
    assert torch.equal(torch.stack([s.loss_B for s in again]), torch.stack(rest))
    assert torch.equal(again.image(), whole.image()) and torch.equal(again.best(), whole.best())


def test_a_gradient_that_is_not_a_number():
    """The others go on; after the third time the loop ends with one sentence."""

    class Broken(Red):
        def __call__(self, image_B3HW, generators=None):
            return super().__call__(image_B3HW) * torch.tensor([math.nan, 1.0])

    canvas = Pixels(8, 8, generators(0, 1))
    before = canvas.levels[0].detach().clone()
    loop = Loop(canvas, Broken(), steps=10)
    with pytest.warns(ClipguideWarning, match="image 0 is not a number at step 0"):
        loop.step()
    assert torch.equal(canvas.levels[0][0], before[0])
    assert not torch.equal(canvas.levels[0][1], before[1])
    with pytest.warns(ClipguideWarning), pytest.raises(ClipguideError, match="lower the rate"):
        list(loop)


def test_a_step_whose_picture_is_gone():
    loop = Loop(Pixels(8, 8, generators(0)), Red(), steps=3)
    first, _ = loop.step(), loop.step()
    with pytest.raises(ClipguideError, match="went on"):
        first.image()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"accumulate": 0}, "accumulate"),
        ({"score_every": 0}, "score_every"),
        ({"lr": 0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"decay": 2}, "decay"),
        ({"ema": 1}, "ema"),
        ({"ema": -1}, "ema"),
        ({"patience": 3}, "judge"),
        ({"generators": generators(1, 2)}, "generators"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(UsageError, match=message):
        Loop(Pixels(8, 8, generators(0)), Red(), **settings)
