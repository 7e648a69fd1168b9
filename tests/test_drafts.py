"""Drafts: the conditioning is optimised through short runs, and the last run draws from it."""

from __future__ import annotations

import pytest
import torch
from test_guidance import draw, use
from test_methods import Brightness, loss, settings
from tiny_pipelines import tiny
from torch.testing import assert_close

from clipguide.errors import ClipguideError, UsageError
from clipguide.guidance import Drafts, Embedding, steer
from clipguide.guidance.calls import Calls
from clipguide.guidance.conditioning import Conditioning, Once
from clipguide.guidance.decoders import Decoder
from clipguide.guidance.run import Gradient

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


class Linear:
    """A sampler whose loss is that of a conditioning c: −w·c. Its images are the conditioning."""

    def __init__(self, w: torch.Tensor, size_B: torch.Tensor, *, spoilt: int = 99) -> None:
        self.w, self.size_B, self.spoilt = w, size_B, spoilt
        self.pipe, self.losses, self.steps, self.gradients = self, [], [], []
        self.shift = None

    def __call__(self, prompt=None, num_inference_steps=9):
        """Its signature is looked at."""

    def conditioning(self, of: str) -> Linear:
        assert of == "prompt"
        return self

    def __enter__(self) -> Linear:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def forget(self) -> None:
        self.shift = None

    def initial_noise(self, **_: object) -> None:
        self.shift = torch.zeros_like(self.w)

    def through(self, of, *, gradient: bool, num_inference_steps: int, **_: object) -> Gradient:
        self.steps.append(num_inference_steps)
        self.gradients.append(gradient)
        loss_B, value = -(of.shift * self.w).flatten(1).sum(1), -self.w.clone()
        after = len(self.steps) - 1 - self.spoilt
        if after == 0:
            loss_B, value = loss_B - 1e9, value * torch.nan
        elif after > 0:
            loss_B = loss_B + 1e9
        return Gradient(of.shift, loss_B, value if gradient else None)

    def candidate(self, score_B, better_B=None) -> None:
        self.losses.append(-score_B)

    def sample(self, *, num_inference_steps=None, **_: object) -> torch.Tensor:
        self.steps.append(num_inference_steps)
        return self.shift


W = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor(
    [1.0, 1e-4]
).view(2, 1, 1)


def test_the_updates_are_those_of_nesterov():
    """Of a unit gradient, times the rate and the rms of each conditioning, whatever its length."""
    size_B = torch.tensor([2.0, 3.0])
    sampler = Linear(W, size_B)
    method = Drafts(number=1, iterations=4, draft_steps=3, rate=0.1, momentum=0.8)
    found = method.call(sampler, prompt=["a", "b"], num_inference_steps=9)
    expected = torch.zeros_like(W, requires_grad=True)
    sgd = torch.optim.SGD([expected], lr=0.1, momentum=0.8, nesterov=True)
    for _ in range(4):
        unit = W / W.square().mean((1, 2), keepdim=True).sqrt()
        expected.grad = -unit * size_B.view(2, 1, 1)
        sgd.step()
    assert_close(found, expected.detach())
    assert sampler.steps == [3] * 5 + [9] and len(sampler.losses) == 5
    assert sampler.gradients == [True] * 4 + [False]  # that of the last draft would move nothing


def test_a_draft_that_is_not_a_number_is_not_kept():
    found = Drafts(number=1, iterations=3, momentum=0.0).call(Linear(W, torch.ones(2), spoilt=2))
    unit = W / W.square().mean((1, 2), keepdim=True).sqrt()
    assert_close(found, 0.04 * unit)


def test_the_gradient_is_that_of_finite_differences(pipe):
    """By the embedding of the prompt, through two whole steps."""
    use(pipe, "DDIM")
    given = settings((3,), steps=2)
    generator = given.pop("generator")
    del given["output_type"]
    with steer(pipe, Brightness(), method=Drafts(number=1)) as s:
        calls = Calls(s._session)
        with calls.conditioning("prompt") as moved:
            calls.initial_noise(generator=generator, **given)
            base = moved.shift.detach()

            def through(shift):
                moved.shift = shift.detach().requires_grad_()
                again = torch.Generator().manual_seed(3)
                return calls.through(moved, generator=[again], **given)

            seen = through(base)
            direction = torch.randn(base.shape, generator=torch.Generator().manual_seed(0))
            ends = [through(base + sign * 0.05 * direction).loss_B for sign in (1, -1)]
    expected = (seen.value * direction).flatten(1).sum(1)
    assert_close((ends[0] - ends[1]) / 0.1, expected, rtol=5e-2, atol=2e-5)


def test_a_rate_of_zero_changes_no_bit(pipe):
    plain = draw(pipe, steps=3)
    with steer(pipe, Brightness(), method=Drafts(rate=0.0)) as s:
        assert torch.equal(s(**settings(steps=3)).images, plain)
        assert not s.report.candidates


def test_without_a_generator_all_runs_have_one_noise(pipe):
    """A draft with as many steps as the last run is the image that is drawn."""
    use(pipe, "DDIM")
    given = settings((3,), steps=3, output_type="latent")
    given.pop("generator")
    with steer(
        pipe, Brightness(), method=Drafts(number=1, iterations=2, draft_steps=3, rate=0.3)
    ) as s:
        latents = s(**given).images
        losses = -torch.stack(s.report.candidates)
    assert_close(loss(Decoder(pipe)(latents)), losses.min(0).values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("single", [False, True])
def test_the_best_draft_of_several_is_optimised(pipe, single):
    """With updates of next to nothing, the image is that of the candidate of best-of whose draft
    is brightest; a single generator has one candidate for all images."""
    use(pipe, "DDIM")

    def given(k: int) -> dict:
        seeds = [3 + k * 1_000_000, 4 + k * 1_000_000]
        found = settings(seeds, steps=5)
        if single:
            found["generator"] = torch.Generator().manual_seed(seeds[0])
        return found

    draft_KB = torch.stack(
        [loss(pipe(**{**given(k), "num_inference_steps": 2}).images) for k in range(3)]
    )
    best_B = draft_KB.argmin(0) if not single else draft_KB.mean(1).argmin().expand(2)
    assert draft_KB.flatten().unique().numel() == 6
    expected = [pipe(**given(k)).images[i] for i, k in enumerate(best_B.tolist())]
    method = Drafts(number=3, candidate_steps=2, draft_steps=3, iterations=1, rate=1e-9)
    with steer(pipe, Brightness(), method=method) as s:
        assert_close(s(**given(0)).images, torch.stack(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("changed", "more"), [("candidate_steps", 3), ("draft_steps", 2)])
def test_each_kind_of_draft_has_its_own_number_of_steps(pipe, changed, more):
    """One more step of each of three candidates, or of each of two drafts of an update."""
    use(pipe, "DDIM")
    given, calls = {"candidate_steps": 2, "draft_steps": 2}, []
    hook = pipe.unet.register_forward_pre_hook(lambda *_: calls.append(0))
    found = []
    for steps in (2, 3):
        calls.clear()
        method = Drafts(number=3, iterations=1, **{**given, changed: steps})
        with steer(pipe, Brightness(), method=method) as s:
            s(**settings((3,), steps=4))
        found.append(len(calls))
    hook.remove()
    assert found[1] - found[0] == more


def test_candidates_draw_their_own_latents(pipe):
    latents = torch.zeros(2, 4, 8, 8)
    with (
        pytest.raises(UsageError, match="leave `latents` out, or number=1"),
        steer(pipe, Brightness(), method=Drafts()) as s,
    ):
        s(**settings(), latents=latents)


# ------------------------------------------------------------ the maps of the embedded generator
@pytest.fixture(scope="module")
def mini():
    from clipguide.pipelines.loading import load_pipeline

    return load_pipeline("mini", device="cpu", dtype="float32")


def drawn(call, prompts=("a red apple", "a boat"), steps=2) -> torch.Tensor:
    generator = [torch.Generator().manual_seed(5 + k) for k in range(len(prompts))]
    given = {"prompt": list(prompts), "num_inference_steps": steps, "generator": generator}
    return call(**given, output_type="pt", recall=False).images


@pytest.mark.parametrize(
    "method", [Drafts(number=1, iterations=2, draft_steps=2), Embedding(of="maps")]
)
def test_maps_are_moved(mini, method):
    one = ["a boat"]
    plain = drawn(mini, one)
    with steer(mini, Brightness(), method=method) as s:
        image = drawn(s, one)
        assert torch.equal(drawn(s, one), image)
    assert (loss(image) < loss(plain)).all()
    assert torch.equal(drawn(mini, one), plain)
    assert not mini.map_input._forward_hooks and "draw_maps" not in vars(mini)


def test_the_size_is_that_of_the_candidate_that_was_chosen(mini):
    """The best of two candidates is drawn as if its seed had been given, with no other."""
    stride, same, given = 1_000_000, [], {"candidate_steps": 1, "draft_steps": 1, "iterations": 1}

    def image(seed: int, number: int) -> torch.Tensor:
        generator = [torch.Generator().manual_seed(seed)]
        method = Drafts(number=number, rate=0.5, **given)
        with steer(mini, Brightness(), method=method) as s:
            return s(
                prompt=["a boat"], num_inference_steps=1, generator=generator, output_type="pt",
                recall=False,
            ).images  # fmt: skip

    for seed in range(2):  # of the first the first candidate is the best, of the other the second
        alone = [image(seed + k * stride, 1) for k in range(2)]
        both = image(seed, 2)
        same.append([torch.equal(both, one) for one in alone])
    assert all(sum(found) == 1 for found in same) and any(found[1] for found in same)


def test_the_prior_draws_once(mini):
    calls = []
    mini.prior.register_forward_pre_hook(lambda *_: calls.append(0))
    drawn(mini)
    once = len(calls)
    with steer(mini, Brightness(), method=Drafts(number=1, iterations=3, draft_steps=1)) as s:
        drawn(s)
    assert len(calls) == 2 * once


def test_the_prompt_alone_sees_the_move(mini):
    """Its map is moved where it lies under the latents, and where it is read; that of no prompt
    stays zero."""
    told = []
    mini.unet.register_forward_pre_hook(
        lambda module, args, kwargs: told.append((args[0], kwargs["encoder_hidden_states"])),
        with_kwargs=True,
    )
    with Conditioning(mini, "maps") as moved:
        drawn(mini, steps=1)
        moved.shift = torch.full_like(moved.shift, 0.5)
        drawn(mini, steps=1)
    (x, tokens), (x_moved, tokens_moved) = told
    channels = moved.shift.shape[1]
    cells = moved.shift[0, 0].numel()
    assert_close(x_moved[:2, -channels:], x[:2, -channels:] + 0.5)
    assert_close(tokens_moved[:2, :cells, :channels], tokens[:2, :cells, :channels] + 0.5)
    assert torch.equal(x_moved[:2, :-channels], x[:2, :-channels])
    assert torch.equal(x_moved[2:], x[2:]) and not x[2:, -channels:].any()
    assert torch.equal(tokens_moved[2:], tokens[2:])
    assert_close(moved.size_B, x[:2, -channels:].flatten(1).square().mean(1).sqrt())


def test_what_is_drawn_once_is_drawn_anew_for_other_arguments():
    calls = []

    def function(scale, *, generator):
        calls.append(scale)
        return scale * torch.randn(3, generator=generator)

    once, plain = Once(function), function
    for scale, seed in ((1, 0), (1, 0), (2, 0), (2, 1), (1, 0)):
        first, second = (torch.Generator().manual_seed(seed) for _ in range(2))
        assert torch.equal(once(scale, generator=first), plain(scale, generator=second))
        assert torch.equal(first.get_state(), second.get_state())
    assert len(calls) == 5 + 3  # the second and the last of the five were remembered
    assert not torch.equal(once(1, generator=None), once(1, generator=None))


# ------------------------------------------------------------ what does not go
def test_other_pipelines_have_no_maps(pipe):
    with (
        pytest.raises(ClipguideError, match="has no maps: use of='prompt'"),
        steer(pipe, Brightness(), method=Drafts(of="maps", number=1)) as s,
    ):
        s(**settings())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"iterations": 0}, "`iterations` must be a whole number from 1"),
        ({"draft_steps": 1.5}, "`draft_steps` must be a whole number"),
        ({"candidate_steps": 0}, "`candidate_steps` must be"),
        ({"momentum": 1}, "less than 1"),
        ({"rate": -1}, "`rate` must be a number from 0"),
        ({"of": "map"}, "There is no embedding 'map'. Did you mean maps"),
        ({"every": 2}, "takes no window and no every"),
    ],
)
def test_bad_options(options, said):
    with pytest.raises(UsageError, match=said):
        Drafts(**options)


@pytest.mark.parametrize("family", ["SD3", "FLUX"])
def test_other_families(family):
    pipe, given = tiny(family)
    given = {**given, "num_inference_steps": 3, "output_type": "pt"}
    plain = pipe(**given, generator=torch.Generator().manual_seed(1)).images
    with steer(
        pipe, Brightness(), method=Drafts(number=1, iterations=2, draft_steps=2, rate=0.3)
    ) as s:
        image = s(**given, generator=torch.Generator().manual_seed(1)).images
    assert loss(image).mean() < loss(plain).mean()
