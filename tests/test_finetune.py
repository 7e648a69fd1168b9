"""The losses against references, the attack inside its ball, the loop learns and resumes."""

import pytest
import torch
import torch.nn.functional as F

from clipguide.finetune import Ema, Fit, FitConfig, bank_loss, caption_loss, l2_attack


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_bank_loss_is_cross_entropy():
    image, bank, truth = unit(4, 8), unit(6, 8, seed=1), torch.tensor([0, 5, 2, 2])
    ours = bank_loss(image, bank, F.one_hot(truth, 6).float(), torch.tensor(20.0))
    theirs = F.cross_entropy(20 * image @ bank.T, truth, reduction="none")
    torch.testing.assert_close(ours, theirs)


def test_caption_loss_is_open_clips():
    from open_clip.loss import ClipLoss

    image, text = unit(5, 8), unit(5, 8, seed=1)
    theirs = ClipLoss()(image, text, logit_scale=torch.tensor(20.0))
    torch.testing.assert_close(caption_loss(image, text, torch.tensor(20.0)).mean(), theirs)


def test_equal_captions_are_not_each_others_negatives():
    """Two images of one caption share its probability, whichever fits it better."""
    loss_B = caption_loss(unit(2, 8), unit(1, 8, seed=1).repeat(2, 1), torch.tensor(20.0))
    torch.testing.assert_close(loss_B[0], loss_B[1])


@pytest.mark.parametrize("steps", [1, 3])
def test_the_attack_raises_the_loss_inside_its_ball(steps):
    generator = torch.Generator().manual_seed(0)
    image = 0.3 + 0.4 * torch.rand(3, 3, 8, 8, generator=generator)
    radius = torch.tensor([0.0, 0.5, 1.0])
    target = torch.rand(3, 8, 8, generator=generator)

    def loss(x):
        return (x - target).square().flatten(1).sum(1)

    moved = l2_attack(loss, image, radius_B=radius, steps=steps, generator=generator)
    assert ((moved - image).flatten(1).norm(dim=1) <= radius + 1e-5).all()
    assert moved.min() >= 0 and moved.max() <= 1
    assert torch.equal(moved[0], image[0])
    assert (loss(moved) > loss(image))[1:].all()


def fit():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)

    def loss(model, batch):
        value = (model(batch["x"]).squeeze(1) - batch["x"].sum(1)).square().mean()
        return value, {"value": value.item()}

    return Fit(model, loss, FitConfig(minutes=60.0, lr=0.05, warmup=1))


def batches(n):
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(16, 4, generator=generator)} for _ in range(n)]


def test_the_loop_learns_and_resumes_where_it_stopped():
    first = fit()
    losses = [step.loss for step in first.run(batches(80))]
    assert losses[-1] < 0.05 * losses[0]
    second = fit()
    second.load_state_dict(first.state_dict())
    (step,) = second.run(batches(1))
    assert step.index == 81 and step.loss < 0.05 * losses[0]


def test_the_loop_ends_when_its_minutes_are_used_up():
    spent = fit()
    spent.minutes = 60.0
    assert list(spent.run(batches(3))) == []


@pytest.mark.parametrize("decay", [0.9, 0.0])
def test_an_average_by_hand(decay):
    """Its formula over parameters and buffers; what is counted in whole numbers is the model's."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    average, expected = Ema(model, decay), None
    generator = torch.Generator().manual_seed(0)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for step in range(1, 30):
        with torch.no_grad():
            for value in model.state_dict().values():
                if value.is_floating_point():
                    value.add_(torch.randn(value.shape, generator=generator))
                else:
                    value.add_(1)
        average.update(model)
        keep = min(decay, step / (step + 10)) if decay else 0.0
        for name, value in model.state_dict().items():
            mixed = keep * state[name] + (1 - keep) * value
            state[name] = mixed if value.is_floating_point() else value.clone()
        expected = state
    for name, value in average.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5)
    assert average.steps == (29 if decay else 0)
    assert decay == 0 or not any(p.requires_grad for p in average.model.parameters())


def test_an_average_of_a_causal_mask_is_the_mask():
    """A buffer of -inf, which no state_dict has: from -inf to -inf is no way but NaN."""
    model = torch.nn.Linear(2, 2)
    mask_LL = torch.full((3, 3), -torch.inf).triu(1)
    model.register_buffer("mask", mask_LL.clone(), persistent=False)
    average = Ema(model, 0.9)
    for _ in range(3):
        average.update(model)
    assert torch.equal(average.model.mask, mask_LL)


def test_an_average_of_tied_weights_is_taken_once():
    """As CLIPs of transformers tie their embeddings: one tensor under two names."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].weight = model[0].weight
    before = model[0].weight.detach().clone()
    average = Ema(model, 0.5)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    average.update(model)
    expected = before.lerp(model[0].weight.detach(), 1 - 1 / 11)
    torch.testing.assert_close(average.model[0].weight, expected)
    assert average.model[1].weight is average.model[0].weight and average.steps == 1
