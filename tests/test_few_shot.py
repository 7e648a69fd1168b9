"""Few-shot: the probe against its own optimality and scipy's minimiser, Tip-Adapter against its
formula in numpy, both against what they must do at the ends of their ranges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch.testing import assert_close

from clipguide.errors import ClipguideWarning, UsageError
from clipguide.zero_shot import TipAdapter, fit_probe, fit_tip
from clipguide.zero_shot.few_shot import SCALE, _folds

CLASSES, WIDTH = 4, 12


def shots(each: int, *, noise: float = 0.5, seed: int = 0):
    """Texts_ND that point roughly at their classes' clusters, shots_SD of these, targets_S."""
    random = torch.Generator().manual_seed(seed)
    centre_ND = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(1)).double()
    target_S = torch.arange(CLASSES).repeat_interleave(each)
    grain_SD = torch.randn(len(target_S), WIDTH, generator=random).double()
    text_ND = centre_ND + torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(2))
    shot_SD = centre_ND[target_S] + noise * 3 * grain_SD
    return F.normalize(text_ND, dim=1), F.normalize(shot_SD, dim=1), target_S


def loss_of(shot_SD, target_S, penalty, start_DN):
    """The probe's loss of flat numbers, in numpy."""
    x, t, start = SCALE * shot_SD.numpy(), target_S.numpy(), start_DN.numpy()

    def loss(flat: np.ndarray) -> float:
        weight, bias = flat[:-CLASSES].reshape(WIDTH, CLASSES), flat[-CLASSES:]
        logits = x @ weight + bias
        entropy = (logsumexp(logits, axis=1) - logits[np.arange(len(t)), t]).mean()
        return entropy + penalty / 2 * ((weight - start) ** 2).sum()

    return loss


@pytest.mark.parametrize("penalty", [0.01, 0.1])
def test_the_probe_is_the_minimum_that_scipy_finds(penalty):
    _, shot_SD, target_S = shots(6)
    probe = fit_probe(shot_SD, target_S, penalties=[penalty])
    loss = loss_of(shot_SD, target_S, penalty, torch.zeros(WIDTH, CLASSES))
    found = minimize(loss, np.zeros((WIDTH + 1) * CLASSES), method="BFGS", tol=1e-6)
    ours = np.concatenate([probe.weight_DN.numpy().ravel(), probe.bias_N.numpy()])
    assert loss(ours) <= found.fun + 1e-9
    assert_close(probe.weight_DN.numpy().ravel(), found.x[:-CLASSES], atol=1e-3, rtol=0)


def test_the_probe_is_that_of_scikit_learn():
    """C = 1 / (penalty · images): it adds the cross-entropies up."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    _, shot_SD, target_S = shots(8)
    probe = fit_probe(shot_SD, target_S, penalties=[0.01])
    model = linear_model.LogisticRegression(C=1 / (0.01 * len(shot_SD)), tol=1e-10, max_iter=10000)
    model.fit(SCALE * shot_SD.numpy(), target_S.numpy())
    test_BD = shots(5, seed=3)[1]
    expected = model.predict_proba(SCALE * test_BD.numpy())
    assert_close(probe.probabilities(test_BD).numpy(), expected, atol=1e-5, rtol=0)


def test_the_loss_of_the_probe_is_flat_there():
    """Finite differences about the solution, drawn towards the texts."""
    text_ND, shot_SD, target_S = shots(4)
    probe = fit_probe(shot_SD, target_S, text_ND=text_ND, penalties=[0.05])
    strong = fit_probe(shot_SD, target_S, text_ND=text_ND, penalties=[1e9])
    loss = loss_of(shot_SD, target_S, 0.05, strong.weight_DN)  # which is where it starts from
    flat = np.concatenate([probe.weight_DN.numpy().ravel(), probe.bias_N.numpy()])
    for step in np.eye(len(flat))[:: len(flat) // 12] * 1e-4:
        assert abs(loss(flat + step) - loss(flat - step)) / 2e-4 < 1e-5


def test_a_probe_that_may_not_move_is_the_zero_shot_classifier():
    text_ND, shot_SD, target_S = shots(4)
    probe = fit_probe(shot_SD, target_S, text_ND=text_ND, penalties=[1e9])
    test_BD = shots(20, seed=3)[1]
    ratio_DN = probe.weight_DN / text_ND.T
    assert_close(ratio_DN, torch.full_like(ratio_DN, float(ratio_DN[0, 0])), atol=1e-4, rtol=1e-4)
    logit_BN = probe.logits(test_BD) - probe.bias_N
    assert torch.equal(logit_BN.argmax(1), (test_BD @ text_ND.T).argmax(1))


def test_the_penalty_is_that_of_cross_validation():
    """Against a loop of its own over the same folds. Noisy shots want a larger one than clean."""
    _, shot_SD, target_S = shots(6, noise=1.0)
    penalties, fold_S = (1e-4, 1e-2, 1.0), _folds(target_S, 3, 0)
    total = {}
    for penalty in penalties:
        losses = []
        for fold in range(3):
            kept = fold_S != fold
            probe = fit_probe(shot_SD[kept], target_S[kept], penalties=[penalty])
            share = probe.probabilities(shot_SD[~kept])
            losses += (-share[torch.arange(len(share)), target_S[~kept]].log()).tolist()
        total[penalty] = np.mean(losses)
    found = fit_probe(shot_SD, target_S, penalties=penalties, folds=3).penalty
    assert found == min(total, key=total.get)
    clean = shots(6, noise=0.05)
    assert fit_probe(clean[1], clean[2], penalties=penalties, folds=3).penalty < found


def test_folds_have_as_many_of_each_class():
    target_S = torch.arange(3).repeat_interleave(7)
    fold_S = _folds(target_S, 5, 0)
    for fold in range(5):
        count = target_S[fold_S == fold].bincount(minlength=3)
        assert set(count.tolist()) <= {1, 2}
    assert torch.equal(fold_S, _folds(target_S, 5, 0))
    assert not torch.equal(fold_S, _folds(target_S, 5, 1))


def test_one_shot_of_a_class_is_warned_of():
    _, shot_SD, target_S = shots(1)
    with pytest.warns(ClipguideWarning, match="single image"):
        probe = fit_probe(shot_SD, target_S)
    assert (probe.logits(shot_SD).argmax(1) == target_S).all()


def test_tip_adapter_is_its_formula():
    text_ND, shot_SD, target_S = shots(3)
    test_BD = shots(2, seed=3)[1]
    tip = TipAdapter(text_ND, shot_SD, target_S, 100.0, 1.7, 5.5)
    f, F_train, W = test_BD.numpy(), shot_SD.numpy(), text_ND.numpy()
    L = np.eye(CLASSES)[target_S.numpy()]
    expected = 100 * f @ W.T + 1.7 * np.exp(-5.5 * (1 - f @ F_train.T)) @ L
    assert_close(tip.logits(test_BD).numpy(), expected)
    assert_close(tip.probabilities(test_BD).sum(1), torch.ones(len(f)).double())


def test_alpha_and_beta_are_those_of_leaving_one_out():
    """Against fitting a TipAdapter without each shot, for every pair."""
    text_ND, shot_SD, target_S = shots(4, noise=0.6)
    alphas, betas = (0.0, 1.0, 30.0), (1.0, 10.0)
    worth = {}
    for alpha in alphas:
        for beta in betas:
            rows = []
            for s in range(len(shot_SD)):
                rest = torch.arange(len(shot_SD)) != s
                tip = TipAdapter(text_ND, shot_SD[rest], target_S[rest], 20.0, alpha, beta)
                rows.append(tip.logits(shot_SD[s : s + 1]))
            logit_SN = torch.cat(rows)
            right = (logit_SN.argmax(1) == target_S).double().mean().item()
            worth[alpha, beta] = right, -F.cross_entropy(logit_SN, target_S).item()
    tip = fit_tip(shot_SD, target_S, text_ND, logit_scale=20.0, alphas=alphas, betas=betas)
    assert worth[tip.alpha, tip.beta] == pytest.approx(max(worth.values()))


def test_without_a_cache_it_is_zero_shot():
    text_ND, shot_SD, target_S = shots(3)
    tip = fit_tip(shot_SD, target_S, text_ND, logit_scale=20.0, alphas=[0.0])
    assert_close(tip.logits(shot_SD), 20 * shot_SD @ text_ND.T)


def test_both_beat_zero_shot_on_pictures_they_have_not_seen():
    text_ND, shot_SD, target_S = shots(16)
    _, test_BD, truth_B = shots(100, seed=3)
    right = lambda logit_BN: (logit_BN.argmax(1) == truth_B).double().mean()  # noqa: E731
    zero = right(test_BD @ text_ND.T)
    assert right(fit_probe(shot_SD, target_S, text_ND=text_ND).logits(test_BD)) > zero + 0.02
    assert right(fit_tip(shot_SD, target_S, text_ND).logits(test_BD)) > zero + 0.02


@pytest.mark.parametrize("fit", [fit_probe, fit_tip])
def test_shots_that_make_no_sense(fit):
    text_ND, shot_SD, target_S = shots(2)
    more = {"text_ND": text_ND}
    with pytest.raises(UsageError, match="at least one image of each"):
        fit(shot_SD[target_S != 1], target_S[target_S != 1], **more)
    with pytest.raises(UsageError, match="two classes or more"):
        fit(shot_SD[:2], target_S[:2], text_ND=text_ND[:1])
    with pytest.raises(UsageError, match="at least one image of each"):
        fit(shot_SD, target_S + 1, **more)
    with pytest.raises(UsageError, match="numbered from 0"):
        fit(shot_SD, target_S - 1, **more)
    for vectors, targets in ((shot_SD[:3], target_S), (shot_SD[0], target_S), ([], [])):
        with pytest.raises(UsageError, match="a vector and the number of its class"):
            fit(torch.as_tensor(vectors), targets, **more)


def test_it_repeats():
    text_ND, shot_SD, target_S = shots(5)
    first, second = (fit_probe(shot_SD, target_S, text_ND=text_ND) for _ in range(2))
    assert torch.equal(first.weight_DN, second.weight_DN)
    assert math.isfinite(first.penalty)
