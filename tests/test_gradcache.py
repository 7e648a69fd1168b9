"""The gradient in chunks is the gradient of the whole batch."""

import copy

import pytest
import torch
import torch.nn.functional as F

from clipguide.finetune import caption_loss
from clipguide.finetune.gradcache import Tower, cached_backward


class Towers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = torch.nn.Linear(12, 8), torch.nn.Linear(6, 8)
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def loss(self, image_BD, text_BD):
        return caption_loss(image_BD, text_BD, self.scale.exp()).mean()


def model_and_batch(count=24):
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Towers()
    return model, *(torch.randn(count, n, generator=generator) for n in (12, 6))


def towers(model, image, text, size, locked=False):
    return [
        Tower(lambda x: F.normalize(model.image(x).tanh(), dim=-1), image.split(size)),
        Tower(lambda x: F.normalize(model.text(x).tanh(), dim=-1), text.split(size), locked),
    ]


def whole(model, image, text):
    """The same by autograd at once: the loss and the gradients."""
    model = copy.deepcopy(model)
    image_BD = F.normalize(model.image(image).tanh(), dim=-1)
    text_BD = F.normalize(model.text(text).tanh(), dim=-1)
    loss = model.loss(image_BD, text_BD)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("size", [24, 7, 1])
def test_gradients_in_chunks(size):
    model, image, text = model_and_batch()
    loss, expected = whole(model, image, text)
    value = cached_backward(towers(model, image, text, size), model.loss)
    torch.testing.assert_close(value, loss)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-5)


def test_a_locked_tower_is_encoded_once_and_gets_no_gradient():
    model, image, text = model_and_batch()
    _, expected = whole(model, image, text)
    calls = []

    def encode(x):
        calls.append(len(x))
        return F.normalize(model.text(x).tanh(), dim=-1)

    parts = towers(model, image, text, 6)
    cached_backward([parts[0], Tower(encode, text.split(6), locked=True)], model.loss)
    assert calls == [6] * 4 and model.text.weight.grad is None
    torch.testing.assert_close(model.image.weight.grad, expected["image.weight"])


def test_two_processes_add_up():
    """Each with half of the batch, the other's vectors gathered: the sum is the whole gradient."""
    model, image, text = model_and_batch()
    _, expected = whole(model, image, text)
    halves = [towers(model, image[k : k + 12], text[k : k + 12], 5) for k in (0, 12)]
    with torch.no_grad():
        known = [[torch.cat([t.encode(c) for c in t.chunks]) for t in half] for half in halves]
    for rank, half in enumerate(halves):
        gathered = [torch.cat([known[0][tower], known[1][tower]]) for tower in range(2)]
        cached_backward(half, model.loss, gather=lambda _, r=rank, g=gathered: (g.pop(0), 12 * r))
    model.scale.grad /= 2
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-5)
