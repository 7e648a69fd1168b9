"""Fine-tuning: it learns, goes on with the same bits, keeps what it should, ends in a folder."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from coloured import COLOURS, draw, write
from hf_folder import write_hf_clip
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from clipguide import load_clip
from clipguide.clip import Clip, load_parts
from clipguide.errors import ClipguideError, ClipguideWarning, UsageError
from clipguide.finetune import methods
from clipguide.finetune.checkpoint import Checkpoints
from clipguide.finetune.config import FinetuneConfig
from clipguide.finetune.data import halves, read, split
from clipguide.finetune.exam import Exam, calibration_error, recall
from clipguide.finetune.head import fit_head
from clipguide.finetune.job import prepare
from clipguide.finetune.outcome import changed, select
from clipguide.finetune.run import Finetune, copy_state
from clipguide.finetune.wise_ft import Place, choose, curve, interpolate

QUICK = dict(batch=8, chunk=8, steps=6, ema=0.5, lr=3e-3, warmup=1, patience=99)
QUICK["templates"] = "plain"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write(tmp_path_factory.mktemp("pictures"), 10)


@pytest.fixture(scope="module")
def captions(tmp_path_factory, pictures):
    folder = tmp_path_factory.mktemp("captions")
    files = sorted(pictures.glob("*/*.png"))
    lines = [json.dumps({"image": str(f), "caption": f"{f.parent.name} {f.stem}"}) for f in files]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder / "captions.jsonl"


def fit_of(clip_folder, data, folder=None, **settings):
    parts = load_parts(clip_folder)
    train, aside = split(read(data), share=0.3)
    return Finetune(parts, train, aside, FinetuneConfig(**{**QUICK, **settings}), folder=folder)


def same_state(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


# what is trained


@pytest.mark.parametrize("method", methods.METHODS)
def test_it_learns_classes(clip_folder, pictures, method):
    fit = fit_of(clip_folder, pictures, method=method, steps=60)
    seen = Exam(fit.parts, fit.train, templates=fit.templates)
    before = seen(fit.parts)
    assert [step.steps for step in fit.run()][-1] == (1 if method == "head" else 60)
    after = seen(fit.parts)
    assert after.figures["cross-entropy"] < 0.8 * before.figures["cross-entropy"]
    assert not any(p.requires_grad for p in fit.parts.model.parameters())


@pytest.mark.parametrize("method", ["full", "lora", "head"])
def test_it_learns_captions(clip_folder, captions, method):
    fit = fit_of(clip_folder, captions, method=method, steps=60)
    seen = Exam(fit.parts, fit.train)
    before = seen(fit.parts)
    list(fit.run())
    assert seen(fit.parts).figures["cross-entropy"] < before.figures["cross-entropy"]


@pytest.mark.parametrize("method", methods.METHODS)
def test_a_clip_of_transformers(tmp_path, pictures, method):
    """It learns, is saved as its own folder, and loads as it was."""
    folder = write_hf_clip(tmp_path / "clip")
    fit = fit_of(folder, pictures, method=method, steps=40)
    seen = Exam(fit.parts, fit.train, templates=fit.templates)
    before = seen(fit.parts)
    list(fit.run())
    after = seen(fit.parts)
    assert after.figures["cross-entropy"] < before.figures["cross-entropy"]
    fit.parts.save(tmp_path / "mine")
    loaded = load_parts(tmp_path / "mine")
    assert seen(loaded).figures == after.figures
    text = {n for n in fit.before if methods.is_text(n)}
    moved = {n for n, v in copy_state(loaded.model).items() if not torch.equal(v, fit.before[n])}
    assert bool(moved & text) == (method != "head")
    assert bool(moved - text - {"model.logit_scale"}) == (method != "lit")


@pytest.mark.parametrize(("begins", "most"), [(117.0, 117.0), (99.0, 100.0)])
def test_the_scale_stays_below_where_it_began(clip_folder, pictures, begins, most):
    """CLIP's own training has it at most 100; the SigLIPs that are published begin above."""
    fit = fit_of(clip_folder, pictures, steps=6, lr=0.5, warmup=0, augment=False)
    with torch.no_grad():
        fit.parts.model.logit_scale.fill_(math.log(begins))
    scales = [step.scale for step in fit.run()]
    assert scales[0] == pytest.approx(begins)
    assert max(scales) <= most + 1e-3


def test_the_head_keeps_vectors_and_no_pictures(clip_folder, pictures, monkeypatch):
    """Of the images to train on, no more are in memory than two chunks."""
    monkeypatch.setattr("clipguide.finetune.exam.CHUNK", 4)
    fit = fit_of(clip_folder, pictures, method="head")
    alive, most, prepare_ = set(), [0], Clip.prepare

    def watched(self, picture):
        found = prepare_(self, picture)
        alive.add(id(found))
        most[0] = max(most[0], len(alive))
        weakref.finalize(found, alive.discard, id(found))
        return found

    monkeypatch.setattr(Clip, "prepare", watched)
    list(fit.run())
    assert len(fit.train) > 16 and 4 <= most[0] <= 12


def test_batch_norms_keep_their_statistics(clip_folder, pictures):
    fit = fit_of(clip_folder, pictures)
    list(fit.run())
    after = copy_state(fit.parts.model)
    known = [name for name in after if "running_" in name]
    assert known and all(torch.equal(after[name], fit.before[name]) for name in known)


@pytest.mark.parametrize(("method", "moved"), [("lit", "text"), ("full", "both")])
def test_which_tower_moves(clip_folder, pictures, method, moved):
    fit = fit_of(clip_folder, pictures, method=method)
    list(fit.run())
    after = copy_state(fit.parts.model)
    other = {n.split(".")[0] for n in after if not torch.equal(after[n], fit.before[n])}
    assert other == ({"text", "logit_scale"} | ({"visual"} if moved == "both" else set()))


def test_lora_is_merged_without_a_trace(clip_folder):
    parts = load_parts(clip_folder)
    names = set(parts.model.state_dict())
    model = methods.prepare(parts, "lora", rank=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    image, tokens = torch.rand(2, 3, 32, 32), parts.tokenizer(["a fox"])
    before = model.encode_image(image), model.encode_text(tokens)
    methods.merge_lora(model)
    assert set(model.state_dict()) == names
    assert_close(model.encode_image(image), before[0], atol=1e-5, rtol=1e-4)
    assert_close(model.encode_text(tokens), before[1], atol=1e-5, rtol=1e-4)
    fresh = load_parts(clip_folder).model.encode_image(image)
    assert (fresh - before[0]).abs().max() > 1e-3


def test_the_adapter_is_the_change(clip_folder, pictures, tmp_path):
    """The old model with a share of it is the new one at that place of WiSE-FT's way."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    fit = fit_of(clip_folder, pictures, method="lora", rank=2)
    list(fit.run())
    after = copy_state(fit.parts.model)
    fit.adapter.save(tmp_path / "adapter", share=0.5)
    interpolate(fit.parts.model, fit.before, after, 0.5)
    image, model = torch.rand(2, 3, 32, 32), load_parts(clip_folder).model
    inject_adapter_in_model(LoraConfig.from_pretrained(tmp_path / "adapter"), model)
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    set_peft_model_state_dict(model, state)
    assert_close(model.encode_image(image), fit.parts.model.encode_image(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tower", ["ViT", "ResNet", "timm"])
def test_a_map_becomes_the_last_layer(clip_folder, tower):
    if tower == "timm":
        parts = load_parts(clip_folder)
    else:
        vision = {"ViT": {"layers": 1, "patch_size": 16}, "ResNet": {"layers": (1, 1, 1, 1)}}
        model = open_clip.CLIP(
            24, {"image_size": 32, "width": 64, **vision[tower]}, {"layers": 1, "width": 64}
        )
        parts = replace(load_parts(clip_folder), model=model.eval())
    map_DD = torch.randn(24, 24, generator=torch.Generator().manual_seed(0))
    image = torch.rand(2, 3, 32, 32)
    expected = parts.model.encode_image(image) @ map_DD
    methods.merge_head(parts, map_DD)
    assert_close(parts.model.encode_image(image), expected, atol=1e-4, rtol=1e-4)


def test_a_tower_without_a_last_layer(clip_folder):
    parts = load_parts(clip_folder)
    parts.model.visual.head = torch.nn.Identity()
    with pytest.raises(UsageError, match="does not end in a linear layer.*take lora"):
        methods.last_layer(parts)


def test_a_head_of_no_evidence_is_the_zero_shot_classifier():
    """Under a great penalty the map stays the identity, under none the images are told apart."""
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(n, 8, generator=generator), dim=-1) for n in (12, 3))
    target = torch.arange(12) % 3
    head = fit_head(image, text, target, scale=5.0, penalty=1e6)
    assert_close(head.map_DD, torch.eye(8), atol=1e-4, rtol=0)
    head = fit_head(image, text, target, scale=5.0, penalty=1e-6)
    unit = F.normalize(image @ head.map_DD, dim=-1)
    assert ((unit @ text.T).argmax(1) == target).all()


def test_the_gradient_does_not_depend_on_the_chunk(clip_folder, pictures):
    """Weights after three steps in chunks of 2 and at once; the crops are the same as well."""
    states = []
    for chunk in (8, 2):
        fit = fit_of(clip_folder, pictures, chunk=chunk, steps=3, lr=1e-4)
        list(fit.run())
        states.append(copy_state(fit.parts.model))
    for name in states[0]:
        assert_close(states[0][name], states[1][name], atol=2e-5, rtol=1e-3)


def test_a_step_is_open_clips(clip_folder, captions):
    """The first losses on the same batches, by open_clip's own loss, optimiser and schedule."""
    from open_clip.loss import ClipLoss
    from open_clip_train.scheduler import cosine_lr

    settings = dict(steps=8, warmup=2, lr=1e-3, augment=False, weight_decay=0.2, ema=0.0)
    fit = fit_of(clip_folder, captions, **settings)
    batches = []
    big = fit._big
    fit._big = lambda *a: (batches.append(b) or b for b in big(*a))
    ours = [step.loss for step in fit.run()]
    parts = load_parts(clip_folder)
    model, loss = parts.model, ClipLoss()
    named = [(n, p) for n, p in model.named_parameters()]
    groups = [
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": 0.2},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-8)
    schedule, theirs = cosine_lr(optimizer, 1e-3, 2, 8), []
    for step, batch in enumerate(batches[:8]):
        schedule(step)
        optimizer.zero_grad()
        image = parts.normalise(batch["chunks"][0]["image"])
        out = model(image, parts.tokenizer(batch["captions"]))
        value = loss(*out[:3])
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        theirs.append(value.item())
    assert_close(torch.tensor(ours), torch.tensor(theirs), atol=1e-3, rtol=0)


# that it goes on


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(
    clip_folder, pictures, tmp_path, method, monkeypatch
):
    monkeypatch.setattr("clipguide.finetune.run.SECONDS", 0.0)  # a checkpoint a step
    whole = fit_of(clip_folder, pictures, method=method, steps=9)
    losses = [step.loss for step in whole.run()]
    broken = fit_of(clip_folder, pictures, tmp_path / "run", method=method, steps=9)
    run = broken.run()
    first = [next(run).loss for _ in range(4)]
    run.close()
    again = fit_of(clip_folder, pictures, tmp_path / "run", method=method, steps=9)
    rest = list(again.run())
    assert rest[0].step == 5 and first + [step.loss for step in rest] == losses
    same_state(copy_state(again.parts.model), copy_state(whole.parts.model))
    assert again.best.history == whole.best.history


def test_another_runs_checkpoint_is_refused(clip_folder, judge_folder, pictures, tmp_path):
    list(fit_of(clip_folder, pictures, tmp_path / "run", steps=2).run())
    other = fit_of(judge_folder, pictures, tmp_path / "run", steps=2)
    with pytest.raises(UsageError, match="is another run .model was .*, not .*repeat the command"):
        list(other.run())
    other = fit_of(clip_folder, pictures, tmp_path / "run", steps=3)
    with pytest.raises(UsageError, match="steps was 2, not 3"):
        list(other.run())


def test_in_the_place_of_a_cut_checkpoint_is_the_one_before(tmp_path):
    """Only where both are cut, there is nothing to go on with."""
    checkpoints = Checkpoints(tmp_path / "run", {"model": "a"})
    assert checkpoints.load() is None
    for number in (1.0, 2.0):
        checkpoints.save({"x": torch.full((2,), number)})
    whole = checkpoints.path.read_bytes()
    checkpoints.path.write_bytes(whole[: len(whole) // 2])
    with pytest.warns(ClipguideWarning, match="cannot be read: .*goes on from the one before"):
        kept = checkpoints.load()
    assert torch.equal(kept["x"], torch.ones(2))
    checkpoints.before.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ClipguideError, match="cannot be read: delete"):
        checkpoints.load()


def test_a_cut_checkpoint_is_not_moved_over_the_good_one(tmp_path):
    """What is read from the one before stays there until a whole one is beside it."""
    checkpoints = Checkpoints(tmp_path / "run", {"model": "a"})
    for number in (1.0, 2.0):
        checkpoints.save({"x": torch.full((2,), number)})
    checkpoints.path.write_bytes(b"cut")
    with pytest.warns(ClipguideWarning, match="the one before"):
        checkpoints.load()
    checkpoints.save({"x": torch.full((2,), 3.0)})
    assert torch.equal(checkpoints.load(before=True)["x"], torch.ones(2))
    assert torch.equal(checkpoints.load()["x"], torch.full((2,), 3.0))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "run", {"model": "a"})
    assert checkpoints.save({"x": torch.ones(2)})
    part = checkpoints.path.with_suffix(".part")
    part.symlink_to("/dev/full")
    with pytest.warns(ClipguideWarning, match="The disk is full: .* stays as it was"):
        assert not checkpoints.save({"x": torch.zeros(1 << 18)})
    assert torch.equal(checkpoints.load()["x"], torch.ones(2))


def test_a_loss_that_is_no_number(clip_folder, pictures, tmp_path):
    """Once: back, and on at half the rate; twice: the end, and the last good state is kept."""
    fit = fit_of(clip_folder, pictures, tmp_path / "run", lr=1e30, steps=9)
    with pytest.warns(ClipguideWarning, match="goes back to the last good checkpoint, and on at"):
        with pytest.raises(ClipguideError, match=r"less than --lr 5e\+29.*last good state is in"):
            list(fit.run())
    state = fit.checkpoints.load(before=True)
    assert all(v.isfinite().all() for v in state["fit"]["model"].values())


@pytest.mark.parametrize("told_by", ["the exam", "the next loss"])
def test_a_spoiled_checkpoint_is_not_gone_back_to(clip_folder, pictures, tmp_path, told_by):
    """Weights are spoiled in the last step of an epoch; where the next loss tells, they are in the
    last checkpoint, and the one before is whole."""
    fit = fit_of(clip_folder, pictures, tmp_path / "run", steps=9)
    fit.epoch, exam, spoiled = 3, fit.exam, []

    def spoil(model):
        if not spoiled:
            spoiled.append(model)
            for parameter in model.parameters():
                parameter.data.mul_(float("nan"))

    def looked(parts):
        if told_by == "the exam":
            spoil(parts.model)
        result = exam(parts)
        spoil(fit.parts.model)
        return result

    fit.exam = looked
    with pytest.warns(ClipguideWarning, match="goes back to the last good checkpoint"):
        steps = [step.step for step in fit.run()]
    assert steps[-1] == 9 and len(spoiled) == 1
    assert all(v.isfinite().all() for v in copy_state(fit.parts.model).values())


def test_it_stops_when_nothing_is_gained(clip_folder, pictures):
    fit = fit_of(clip_folder, pictures, steps=90, lr=1e-12, ema=0.0, patience=2)
    steps = list(fit.run())
    assert len(fit.best.history) < 20 and steps[-1].step < 90


# several processes


def test_two_processes_see_the_loss_of_one(clip_folder, captions, tmp_path):
    """By gloo; and one of them alone evaluates, selects and saves what the command is to save.
    The command runs in the same two processes, because each takes seconds to import torch."""
    script = tmp_path / "two.py"
    script.write_text(
        "import json, sys\n"
        "import torch\n"
        "torch.set_num_threads(1)\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from test_finetune_run import losses_of\n"
        "from clipguide.cli.app import app\n"
        "fit, losses = losses_of(sys.argv[2], sys.argv[3])\n"
        "if fit.state.is_main_process:\n"
        "    print('LOSSES', json.dumps([fit.state.num_processes, *losses]), flush=True)\n"
        "app(sys.argv[4:])\n"
    )
    root, out = Path(__file__).parent.parent, tmp_path / "mine"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    env["ACCELERATE_USE_CPU"] = "true"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["--standalone", str(script), str(root / "tests"), str(clip_folder), str(captions)]
    command += ["finetune", str(captions), "-o", str(out), "--clip", str(clip_folder)]
    command += ["--steps", "2", "--batch", "8", "--retain", "none"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    first, *told = done.stdout.splitlines()
    count, *losses = json.loads(first.removeprefix("LOSSES "))
    alone, expected = losses_of(clip_folder, captions)
    assert alone.state is None and count == 2
    assert_close(torch.tensor(losses), torch.tensor(expected), atol=1e-5, rtol=1e-4)
    assert told[-1] == str(out) and done.stdout.count(str(out)) == 1
    assert load_clip(out).fingerprint != load_clip(clip_folder).fingerprint


def losses_of(clip_folder, captions):
    """A fit, and of each of its steps the loss and two gradients: Adam hides a factor of these."""
    fit = fit_of(clip_folder, captions, steps=4, augment=False)
    losses, model = [], fit.parts.model
    for step in fit.run():
        grads = [model.logit_scale.grad, model.visual.head.proj.weight.grad.norm()]
        losses += [step.loss, *map(float, grads)]
    return fit, losses


def test_no_process_writes_what_another_still_reads(clip_folder, pictures, tmp_path):
    """Going back, all read the checkpoint before the first of them replaces it."""
    fit = fit_of(clip_folder, pictures, tmp_path / "run", steps=9, lr=1e30)
    done, kept = [], fit.checkpoints

    class Several:
        num_processes, process_index, is_main_process = 1, 0, True

        def wait_for_everyone(self):
            done.append("wait")

    class Watched:
        path, before = kept.path, kept.before

        def load(self, **which):
            done.append("load")
            return kept.load(**which)

        def save(self, state):
            done.append("save")
            return kept.save(state)

    fit.state, fit.checkpoints = Several(), Watched()
    with pytest.warns(ClipguideWarning, match="goes back"), pytest.raises(ClipguideError):
        list(fit.run())
    assert done.count("load") == 2
    for k, what in enumerate(done):
        if what == "load":
            assert done[k + 1 : k + 3] == ["wait", "save"]


# what it keeps


def test_interpolation_ends_in_the_very_weights(clip_folder):
    parts = load_parts(clip_folder)
    before = copy_state(parts.model)
    after = {k: v + 1 if v.is_floating_point() else v for k, v in before.items()}
    for alpha, expected in ((0.0, before), (1.0, after)):
        interpolate(parts.model, before, after, alpha)
        same_state(copy_state(parts.model), expected)
    interpolate(parts.model, before, after, 0.25)
    for name, value in copy_state(parts.model).items():
        if value.is_floating_point():
            assert_close(value, before[name] + 0.25)


def test_the_choice_on_the_curve():
    places = [Place(0.0, 0.5, 0.8), Place(0.5, 0.7, 0.795), Place(0.8, 0.7, 0.79)]
    places.append(Place(1.0, 0.9, 0.7))
    assert choose(places, allowed=0.01).alpha == 0.5
    assert choose(places, allowed=0.0).alpha == 0.0
    assert choose(places, allowed=0.2).alpha == 1.0
    with pytest.raises(UsageError, match="alpha 0"):
        choose(places[1:], allowed=0.1)


def test_the_curve_measures_each_place(clip_folder):
    parts = load_parts(clip_folder)
    before = copy_state(parts.model)
    after = {k: v + 1 if v.is_floating_point() else v for k, v in before.items()}

    def measure():
        return parts.model.logit_scale.item(), 0.0

    start = before["logit_scale"].item()
    places = curve(parts.model, before, after, measure, (0.0, 0.5, 1.0))
    assert_close([p.target for p in places], [start, start + 0.5, start + 1.0])


# the exam


def test_calibration_error_by_hand():
    """Two bins: of three at 0.95 two are right, of one at 0.55 none."""
    sure = torch.tensor([0.95, 0.95, 0.95, 0.55])
    probability = torch.stack([sure, 1 - sure], 1)
    target = torch.tensor([0, 0, 1, 1])
    expected = (3 * abs(2 / 3 - 0.95) + abs(0 - 0.55)) / 4
    assert calibration_error(probability, target) == pytest.approx(expected)


def test_recall_by_hand():
    score = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1]])
    right = torch.tensor([[True, False, False], [False, False, True]])
    assert recall(score, right, 1) == 0.5 and recall(score, right, 3) == 1.0


def test_an_exam_is_the_classifier(clip_folder, pictures):
    from clipguide.images import load
    from clipguide.zero_shot import Classifier

    parts, data = load_parts(clip_folder), read(pictures)
    result = Exam(parts, data)(parts)
    classifier = Classifier(load_clip(clip_folder), data.classes, templates=["{}"])
    unit = classifier.clip.encode_pictures([load(e.path) for e in data.examples])
    assert_close(result.probability_B, classifier.probabilities(unit).max(1).values)
    right = (result.found_B == torch.tensor([e.label for e in data.examples])).double().mean()
    assert result.figures["top-1"] == pytest.approx(right.item())


def test_retention_is_told_by_others_than_chose(clip_folder, pictures):
    """No image, and no near copy, on both sides; nothing but the choice depends on the half."""
    job = prepare(
        pictures, clip=clip_folder, retain=pictures, config=FinetuneConfig(**QUICK), share=0.3
    )
    assert job.weighed is job.retention and "by which was chosen" in job.kept  # 30 are too few
    data = read(pictures)
    few, more = halves(data, seed=3)
    assert abs(len(few) - len(more)) <= 1 and len(few) + len(more) == len(data)
    assert not {e.group for e in few.examples} & {e.group for e in more.examples}
    assert {e.digest for e in few.examples} != {e.digest for e in halves(data)[0].examples}
    list(job.run())
    weighed, told = (Exam(job.fit.parts, side, templates=job.fit.templates) for side in (few, more))
    seen = []
    outcome = select(job.fit, job.test, lambda parts: seen.append(told(parts)) or seen[-1], weighed)
    assert len(outcome.places) == 11 and len(seen) == 2, "the other half is looked at twice only"
    assert [result for _, result in (outcome.before, outcome.after)] == seen


def test_of_another_clip_than_mini_one_is_asked_what_to_retain(clip_folder, pictures):
    with pytest.raises(UsageError, match="Say what .* should still know: --retain DATA"):
        prepare(pictures, clip=clip_folder)
    assert prepare(pictures, clip=clip_folder, retain=None).retention is None


# the whole


def test_from_data_to_a_folder(clip_folder, pictures, tmp_path):
    config = FinetuneConfig(**{**QUICK, "steps": 40})
    job = prepare(
        pictures, clip=clip_folder, config=config, retain=pictures, folder=tmp_path / "run"
    )
    assert job.report.pictures == 30
    assert (tmp_path / "run").exists() is False
    list(job.run())
    outcome = job.select(allowed=1.0)
    assert [place.alpha for place in outcome.places][::5] == [0.0, 0.5, 1.0]
    clip = job.save(outcome, tmp_path / "mine")
    assert not (tmp_path / "run").exists()
    assert clip.fingerprint == load_clip(tmp_path / "mine").fingerprint
    assert clip.fingerprint != load_clip(clip_folder).fingerprint
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'mine'}")
    state = load_file(tmp_path / "mine" / "open_clip_model.safetensors")
    same_state(dict(model.state_dict()), state)
    facts = json.loads((tmp_path / "mine" / "finetune.json").read_text())
    fresh = Exam(load_parts(clip_folder), _as_data(job.test))(load_parts(tmp_path / "mine"))
    assert facts["figures"]["target: top-1"][1] == pytest.approx(fresh.figures["top-1"])
    gained, lost = changed(outcome)
    before, after = (facts["figures"]["target: top-1"][k] for k in (0, 1))
    assert len(gained) - len(lost) == round((after - before) * len(job.test))
    card = (tmp_path / "mine" / "README.md").read_text()
    assert f"| target: top-1 | {100 * before:.1f} % | {100 * after:.1f} % |" in card
    for name in ("curve.png", "confusion-before.png", "confusion-after.png"):
        assert Image.open(tmp_path / "mine" / name).size > (50, 50)
    with pytest.raises(UsageError, match="is there already"):
        job.save(outcome, tmp_path / "mine")


def _as_data(exam):
    from clipguide.finetune.data import Dataset, Report

    return Dataset(exam.examples, exam.labels, Report("", len(exam.examples)))


def test_copies_of_what_is_tested_are_not_trained_on(clip_folder, pictures, tmp_path):
    for name in COLOURS:
        (tmp_path / name).mkdir()
        source = pictures / name / "3.png"
        (tmp_path / name / "other.png").write_bytes(source.read_bytes())
    with pytest.warns(
        ClipguideWarning, match="3 of the images to train on or to choose by are among"
    ):
        job = prepare(pictures, clip=clip_folder, test=tmp_path, retain=None, share=0.1)
    tested = {e.digest for e in job.test.examples}
    assert len(tested) == 3 and not tested & {e.digest for e in job.fit.train.examples}


def test_what_is_no_model_is_not_overwritten(clip_folder, pictures, tmp_path):
    job = prepare(pictures, clip=clip_folder, config=FinetuneConfig(**QUICK), retain=None)
    list(job.run())
    outcome = job.select()
    assert outcome.chosen.alpha == 1.0 and outcome.retention is None
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="is no folder that clipguide made so, and --force leaves"):
        job.save(outcome, tmp_path / "letters", overwrite=True)


def test_classes_that_were_not_trained_on(clip_folder, pictures, tmp_path):
    for name in ("a red thing", "an odd thing"):
        (tmp_path / name).mkdir()
        for k in range(2):
            draw("#808080" if name[1] == "n" else "#d02020", 20 + k).save(
                tmp_path / name / f"{k}.png"
            )
    with pytest.raises(UsageError, match="classes that are not trained on: an odd thing"):
        prepare(pictures, clip=clip_folder, test=tmp_path, retain=None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "ful"}, "no method 'ful'. Did you mean full"),
        ({"loss": "softmx"}, "no loss 'softmx'. Did you mean softmax"),
        ({"batch": 1}, "two images at least"),
        ({"lr": 0.0}, "lr is above 0"),
        ({"steps": 0}, "at least one step"),
        ({"ema": 1.0}, "ema lies in"),
        ({"chunk": 0}, "chunk must be at least 1"),
    ],
)
def test_settings_that_make_no_sense(settings, said):
    with pytest.raises(UsageError, match=said):
        FinetuneConfig(**settings)


def test_a_sigmoid_needs_a_bias(clip_folder, pictures):
    with pytest.raises(UsageError, match="has no bias of its logits.*take softmax"):
        fit_of(clip_folder, pictures, loss="sigmoid")


def test_an_exam_encodes_anew_only_what_has_moved(clip_folder, pictures):
    parts, data = load_parts(clip_folder), read(pictures)
    exam, calls = Exam(parts, data), []
    for name in ("vectors", "text_vectors"):
        made = getattr(exam, name)
        setattr(exam, name, lambda clip, name=name, made=made: calls.append(name) or made(clip))
    first = exam(parts)
    assert exam(parts).figures == first.figures and calls == ["vectors", "text_vectors"]
    with torch.no_grad():
        parts.model.text.token_embedding.weight.mul_(2)
    moved = exam(parts)
    assert calls[2:] == ["text_vectors"]
    assert moved.figures == Exam(parts, data)(parts).figures != first.figures
    with torch.no_grad():
        parts.model.visual.head.proj.weight.mul_(-1)
    assert exam(parts).figures == Exam(parts, data)(parts).figures != moved.figures
    assert calls[3:] == ["vectors"]
