"""Runs that were stopped go on from their last step: the same bits, and nothing is drawn twice."""

from __future__ import annotations

import pytest
import torch
from test_families import draw as draw_tiny
from test_guidance import PAIRS, STEPS, draw, use
from tiny_pipelines import TINY, tiny

from clipguide.errors import ClipguideError, UsageError
from clipguide.guidance import Particles, Shortcut, memory, steer
from clipguide.guidance.digest import digest
from clipguide.guidance.pipe_parts import denoiser
from clipguide.objectives import Similarity, TotalVariation
from clipguide.rewards import Reward

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


class Stop(Exception):
    """Somebody pulled the plug."""


def run(pipe, objective, tape, *, stop=None, seeds=(3, 4), call=None, **settings):
    """image_B3HW, its report, and how often the denoiser was asked; stopped after step `stop`."""
    asked = []
    hook = denoiser(pipe).register_forward_pre_hook(lambda *_: asked.append(1))

    def on_step(step):
        if step.index == stop:
            raise Stop

    try:
        with steer(pipe, objective, tape=tape, on_step=on_step, **settings) as s:
            return draw(s, seeds, **(call or {})), s.report, len(asked)
    finally:
        hook.remove()


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_every_scheduler(pipe, clip, judge, name, kind, tmp_path):
    use(pipe, name, kind)
    settings = {"clip": clip, "judge": judge, "trace": True}
    whole, report, asked = run(pipe, "a fox", None, **settings)
    for stop in range(1, len(report.trace)):
        tape = tmp_path / str(stop)
        with pytest.raises(Stop):
            run(pipe, "a fox", tape, stop=stop, **settings)
        again, resumed, _ = run(pipe, "a fox", tape, **settings)
        assert torch.equal(again, whole)
        assert [resumed.rows(i) for i in (0, 1)] == [report.rows(i) for i in (0, 1)]
        assert (resumed.steered, resumed.warnings) == (report.steered, report.warnings)
        assert "forward" not in vars(denoiser(pipe))


def test_what_was_done_is_not_done_again(pipe, clip, tmp_path):
    """The CLIP sees no step that is on the tape; stopped again and again, it ends the same."""
    use(pipe, "DDIM")
    seen = []
    whole, report, _ = run(pipe, Similarity(clip, "a fox"), None)

    class Watched(Similarity):
        def __call__(self, image_B3HW, generators=None):
            seen.append(len(image_B3HW))
            return super().__call__(image_B3HW, generators)

    watched = Watched(clip, "a fox")
    for stop in range(STEPS - 1):
        with pytest.raises(Stop):
            run(pipe, watched, tmp_path, stop=stop)
        assert len(seen) == min(stop + 1, report.steered)
    assert torch.equal(run(pipe, watched, tmp_path)[0], whole)
    assert len(seen) == report.steered >= 3


@pytest.mark.parametrize(
    "method",
    [
        Shortcut(travel=2),
        Shortcut(inner=2, every=2),
        Shortcut(every=3),
        Shortcut(momentum=0.5),
        Shortcut(strength=0.0),
    ],
    ids=["travel", "inner", "every", "momentum", "plain"],
)
def test_ways_of_the_shortcut(pipe, clip, method, tmp_path):
    use(pipe, "DDIM")
    whole, *_ = run(pipe, Similarity(clip, "a fox"), None, method=method)
    for stop in (1, 2):
        with pytest.raises(Stop):
            run(pipe, Similarity(clip, "a fox"), tmp_path, stop=stop, method=method)
    assert torch.equal(run(pipe, Similarity(clip, "a fox"), tmp_path, method=method)[0], whole)


def test_a_method_with_more_than_tensors_to_keep_begins_anew(pipe, clip, tmp_path):
    use(pipe, "DDIM")
    method = Particles(number=2)
    whole, *_ = run(pipe, Similarity(clip, "a fox"), None, method=method)
    with pytest.raises(Stop):
        run(pipe, Similarity(clip, "a fox"), tmp_path / "t", stop=2, method=method)
    assert not (tmp_path / "t").exists()
    assert torch.equal(
        run(pipe, Similarity(clip, "a fox"), tmp_path / "t", method=method)[0], whole
    )


@pytest.mark.parametrize("name", TINY)
def test_every_family(name, tmp_path):
    pipe, settings = tiny(name)

    def images(tape, stop=None):
        def on_step(step):
            if step.index == stop:
                raise Stop

        with steer(pipe, TotalVariation(), tape=tape, on_step=on_step, strength=0.3) as s:
            return draw_tiny(s, settings)

    whole = images(None)
    with pytest.raises(Stop):
        images(tmp_path, stop=1)
    assert torch.equal(images(tmp_path), whole)


@pytest.mark.parametrize("harm", ["cut", "empty", "foreign", "gone"])
def test_a_harmed_tape_ends_there(pipe, clip, tmp_path, harm):
    use(pipe, "DDIM")
    whole, *_ = run(pipe, "a fox", None, clip=clip)
    with pytest.raises(Stop):
        run(pipe, "a fox", tmp_path, stop=3, clip=clip)
    step = sorted(tmp_path.iterdir())[1]
    if harm == "gone":
        step.unlink()
    else:
        step.write_bytes({"cut": step.read_bytes()[:200], "empty": b"", "foreign": b"x" * 99}[harm])
    assert torch.equal(run(pipe, "a fox", tmp_path, clip=clip)[0], whole)


def test_a_tape_keeps_its_decoder(pipe, clip, tmp_path, monkeypatch):
    """What "auto" chose by the memory of that day holds, though there is none today."""
    use(pipe, "DDIM")
    whole, *_ = run(pipe, "a fox", None, clip=clip)
    with pytest.raises(Stop):
        run(pipe, "a fox", tmp_path, stop=2, clip=clip)
    monkeypatch.setattr(memory, "limit", lambda device: 0.0)
    assert not torch.equal(run(pipe, "a fox", None, clip=clip)[0], whole)  # by the linear map
    assert torch.equal(run(pipe, "a fox", tmp_path, clip=clip)[0], whole)


OTHERS = {
    "seeds": {"seeds": (5, 6)},
    "strength": {"strength": 0.3},
    "prompt": {"call": {"prompt": "a zebra"}},
    "guidance": {"call": {"guidance_scale": 3.0}},
    "views": {"generators": [torch.Generator().manual_seed(k) for k in (1, 2)]},
    "decoder": {"decoder": "linear"},
    "rung": {"decoder": "vae:half"},
    "memory": {"memory": 1e-5},
    "budget": {"budget": 2.0},
    "scoring": {"score_every": 2},
}


OTHERS["function"] = {"decoder": lambda x0: x0[:, :3].sigmoid()}
OTHERS["another function"] = {"decoder": lambda x0: x0[:, :3].sigmoid() / 2}


@pytest.mark.parametrize("other", [*OTHERS, "objective", "judge", "weights", "scheduler"])
def test_the_tape_of_another_run(pipe, clip, judge, tmp_path, other):
    """Whatever bears on the image makes it another run."""
    use(pipe, "DDIM")
    first = OTHERS["function"] if other == "another function" else {}
    with pytest.raises(Stop):
        run(pipe, Similarity(clip, "a fox"), tmp_path, stop=2, **first)
    settings, objective = OTHERS.get(other, {}), Similarity(clip, "a fox")
    if other == "objective":
        objective = Similarity(clip, "a wolf")
    if other == "judge":
        settings = {"judge": judge}
    if other == "weights":
        with torch.no_grad():
            next(pipe.unet.parameters()).mul_(1.001)
    if other == "scheduler":
        use(pipe, "DDIM", "epsilon")
    with pytest.raises(ClipguideError, match="another run's steps: delete it"):
        run(pipe, objective, tmp_path, **settings)
    assert "forward" not in vars(denoiser(pipe))


def test_a_tape_needs_a_call(pipe, clip, tmp_path):
    """Only s(…) knows all arguments; and what has no digest is refused."""
    use(pipe, "DDIM")
    with steer(pipe, Similarity(clip, "a fox"), tape=tmp_path / "a") as s:
        with pytest.raises(ClipguideError, match="call s"):
            draw(pipe)
        with open(__file__) as stream:
            with pytest.raises(UsageError, match="TextIOWrapper cannot be compared"):
                seed = torch.Generator().manual_seed(0)
                s("a fox", callback_on_step_end=lambda p, i, t, k, s=stream: k, generator=seed)


def test_weights_are_hashed_once(monkeypatch):
    """And again where one was changed, however it was: by an operation, behind PyTorch's back
    through `.data`, by loading, by another in its place; changed back, it is the old one."""
    from clipguide.guidance import digest as module

    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3)).bfloat16()
    first, saved = digest(net), {k: v.clone() for k, v in net.state_dict().items()}

    def changed(how) -> None:
        how()
        assert digest(net) not in seen
        seen.add(digest(net))
        net.load_state_dict(saved)
        assert digest(net) == first

    seen = {first}
    with torch.no_grad():
        changed(lambda: net[0].weight.add_(1))
        changed(lambda: net[0].weight.data.add_(2))
        changed(lambda: net[1].running_mean.fill_(3))
        changed(lambda: net[1].num_batches_tracked.add_(1))
        changed(lambda: setattr(net[0], "bias", torch.nn.Parameter(torch.ones(3).bfloat16())))
        changed(lambda: net.load_state_dict({k: 4 * v + 1 for k, v in saved.items()}))
        with torch.inference_mode():
            changed(lambda: net[0].weight.mul_(0.5))
    assert digest(net.float()) != first
    other = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    other.load_state_dict(net.state_dict())
    assert digest(other) == digest(net)
    digest(net)
    monkeypatch.setattr(module, "_feed_tensor", lambda *_: pytest.fail("hashed again"))
    assert digest(net) == digest(other)


def test_digests():
    """Alike is alike, and anything that differs differs."""
    things = [
        1, 1.0, "1", b"1", None, True, (1, 2), [1, 2], {"a": 1}, {"a": 2}, torch.zeros(2),
        torch.zeros(3), torch.zeros(2).half(), torch.nn.Linear(1, 1), Shortcut(),
        Shortcut(strength=0.3), Shortcut(strength="0.1@0..0.5"), lambda x: x, lambda x: x + 1,
        torch.Generator().manual_seed(1), torch.Generator().manual_seed(2), TotalVariation(),
        Reward("vlm=http://h", "a"), Reward("vlm=http://h", "b"), Reward("vlm=http://g", "a"),
        Reward("vlm=http://h", "a", question="is it {}?"),
    ]
    digests = [digest(thing) for thing in things]
    assert len(set(digests)) == len(things)
    assert digests == [digest(thing) for thing in things]
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    own: list = [1]
    own.append(own)
    assert digest(own) == digest(own)
