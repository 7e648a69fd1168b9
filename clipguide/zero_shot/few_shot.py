"""Few-shot classification on frozen vectors: a linear probe, and Tip-Adapter.

Shapes: B images, S shots (images with a known class), N classes, D the width of the embedding.
Vectors have length 1. Both methods compute in float64 on the CPU.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..errors import ClipguideWarning, UsageError

SCALE = 10.0  # factor of the probe's features, so that weights are of the order of 1
PENALTIES = tuple(10.0**e for e in range(-4, 2))
ALPHAS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
BETAS = (1.0, 3.0, 5.5, 10.0, 20.0, 50.0)


@dataclass(frozen=True)
class LinearProbe:
    """The classifier logit_BN = SCALE · image_BD · weight_DN + bias_N, made by `fit_probe`."""

    weight_DN: torch.Tensor
    bias_N: torch.Tensor
    penalty: float

    def logits(self, image_BD: torch.Tensor) -> torch.Tensor:
        """Return logit_BN of the vectors of images."""
        return SCALE * _wide(image_BD) @ self.weight_DN + self.bias_N

    def probabilities(self, image_BD: torch.Tensor) -> torch.Tensor:
        """Return probability_BN. Rows sum to 1."""
        return self.logits(image_BD).softmax(1)


@dataclass(frozen=True)
class TipAdapter:
    """Tip-Adapter (Zhang et al. 2022), which needs no training, made by `fit_tip`.

    logit_BN = scale · f W^T + alpha · A(f F^T) L, A(x) = exp(-beta (1 - x)), with the text vectors
    W of the labels, the vectors F of the shots and their one-hot classes L (eqs. 3 to 5).
    """

    text_ND: torch.Tensor
    shot_SD: torch.Tensor
    target_S: torch.Tensor
    logit_scale: float
    alpha: float
    beta: float

    def logits(self, image_BD: torch.Tensor) -> torch.Tensor:
        """Return logit_BN of the vectors of images."""
        image_BD = _wide(image_BD)
        cache_BN = _cache(image_BD @ self.shot_SD.T, self.target_S, len(self.text_ND), self.beta)
        return self.logit_scale * image_BD @ self.text_ND.T + self.alpha * cache_BN

    def probabilities(self, image_BD: torch.Tensor) -> torch.Tensor:
        """Return probability_BN. Rows sum to 1."""
        return self.logits(image_BD).softmax(1)


def fit_probe(
    shot_SD: torch.Tensor,
    target_S: torch.Tensor,
    *,
    text_ND: torch.Tensor | None = None,
    penalties: Sequence[float] = PENALTIES,
    folds: int = 5,
    seed: int = 0,
) -> LinearProbe:
    """Fit a multinomial logistic regression: mean cross-entropy + penalty/2 · |weight - start|².

    The start is 0, or the text embeddings `text_ND` of the labels times their best factor. The
    latter is the zero-shot classifier, which the probe equals without shots. The bias has no
    penalty. Of `penalties`, the one with the lowest cross-entropy in `folds`-fold cross-validation
    is used. Each fold has the same number of shots of each class. If a class has only one shot,
    nothing can be left out: the middle penalty is used, with a warning.

    Raises:
        UsageError: a class has no shot.
    """
    shot_SD, target_S, classes = _check(shot_SD, target_S, text_ND)
    start_DN = torch.zeros(shot_SD.shape[1], classes).double()
    if text_ND is not None:
        start_DN = _factor(shot_SD @ _wide(text_ND).T, target_S) * _wide(text_ND).T / SCALE
    folds = min(folds, int(target_S.bincount().min()))
    penalty = sorted(penalties)[len(penalties) // 2]
    if len(penalties) > 1 and folds > 1:
        fold_S = _folds(target_S, folds, seed)
        penalty = min(penalties, key=lambda p: _left_out(shot_SD, target_S, start_DN, p, fold_S))
    elif len(penalties) > 1:
        warnings.warn(
            "A class has a single image, so that nothing can be left out to choose the penalty "
            f"of the probe by: it is {penalty:g}. Give at least two of each.",
            ClipguideWarning,
            stacklevel=2,
        )
    return LinearProbe(*minimise(shot_SD, target_S, start_DN, penalty), penalty)


def minimise(
    shot_SD: torch.Tensor,
    target_S: torch.Tensor,
    start_DN: torch.Tensor,
    penalty: float,
    *,
    tolerance: float = 1e-8,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weight_DN and bias_N with the lowest loss, which is convex, by L-BFGS with line
    search. It stops when no part of the gradient is larger than `tolerance`."""
    moved_DN = torch.zeros(start_DN.shape).double().requires_grad_()  # contiguous, for LBFGS
    bias_N = torch.zeros(start_DN.shape[1]).double().requires_grad_()
    x_SD = SCALE * shot_SD
    optimizer = torch.optim.LBFGS(
        [moved_DN, bias_N],
        max_iter=1000,
        tolerance_grad=tolerance,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logit_SN = x_SD @ (start_DN + moved_DN) + bias_N
        value = F.cross_entropy(logit_SN, target_S) + penalty / 2 * moved_DN.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return (start_DN + moved_DN).detach(), bias_N.detach()


def fit_tip(
    shot_SD: torch.Tensor,
    target_S: torch.Tensor,
    text_ND: torch.Tensor,
    *,
    logit_scale: float = 100.0,
    alphas: Sequence[float] = ALPHAS,
    betas: Sequence[float] = BETAS,
) -> TipAdapter:
    """Return the alpha and beta that name most shots correctly, if each is left out of the cache.
    Among equals, take the lowest cross-entropy. Raise UsageError if a class has no shot."""
    shot_SD, target_S, classes = _check(shot_SD, target_S, text_ND)
    text_ND = _wide(text_ND)
    zero_SN = logit_scale * shot_SD @ text_ND.T
    cosine_SS = (shot_SD @ shot_SD.T).fill_diagonal_(-math.inf)  # exp makes it 0: left out
    cache = {beta: _cache(cosine_SS, target_S, classes, beta) for beta in betas}

    def worth(pair: tuple[float, float]) -> tuple[float, float]:
        logit_SN = zero_SN + pair[0] * cache[pair[1]]
        right = (logit_SN.argmax(1) == target_S).double().mean().item()
        return right, -F.cross_entropy(logit_SN, target_S).item()

    alpha, beta = max(itertools.product(alphas, betas), key=worth)
    return TipAdapter(text_ND, shot_SD, target_S, logit_scale, alpha, beta)


def _cache(
    cosine_BS: torch.Tensor, target_S: torch.Tensor, classes: int, beta: float
) -> torch.Tensor:
    return (beta * (cosine_BS - 1)).exp() @ F.one_hot(target_S, classes).to(cosine_BS)


def _left_out(
    shot_SD: torch.Tensor,
    target_S: torch.Tensor,
    start_DN: torch.Tensor,
    penalty: float,
    fold_S: torch.Tensor,
) -> float:
    """Return the mean cross-entropy of shots by probes that were fitted without their fold."""
    losses = []
    for fold in fold_S.unique():
        inside_S, outside_S = fold_S != fold, fold_S == fold
        weight_DN, bias_N = minimise(
            shot_SD[inside_S], target_S[inside_S], start_DN, penalty, tolerance=1e-4
        )
        logit_BN = SCALE * shot_SD[outside_S] @ weight_DN + bias_N
        losses.append(F.cross_entropy(logit_BN, target_S[outside_S], reduction="none"))
    return torch.cat(losses).mean().item()


def _folds(target_S: torch.Tensor, folds: int, seed: int) -> torch.Tensor:
    """Return fold_S: the shots of each class are distributed in a random order."""
    generator = torch.Generator().manual_seed(seed)
    fold_S = torch.empty_like(target_S)
    for target in target_S.unique():
        (place_S,) = (target_S == target).nonzero(as_tuple=True)
        order_S = torch.randperm(len(place_S), generator=generator)
        fold_S[place_S[order_S]] = torch.arange(len(place_S)) % folds
    return fold_S


def _factor(cosine_SN: torch.Tensor, target_S: torch.Tensor) -> float:
    """Return the factor, out of 1, 2, 5 … 200, with which cosines are the best logits of the shots.
    """
    factors = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
    return min(factors, key=lambda f: F.cross_entropy(f * cosine_SN, target_S).item())


def _check(
    shot_SD: torch.Tensor, target_S: torch.Tensor, text_ND: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, int]:
    target_S = torch.as_tensor(target_S).long().cpu()
    if shot_SD.ndim != 2 or len(shot_SD) != len(target_S) or not len(target_S):
        raise UsageError("Few-shot learning takes a vector and the number of its class for each.")
    if int(target_S.min()) < 0:
        raise UsageError("Classes are numbered from 0 on.")
    classes = int(target_S.max()) + 1 if text_ND is None else len(text_ND)
    count_N = target_S.bincount(minlength=classes)
    if len(count_N) > classes or not count_N.all() or classes < 2:
        raise UsageError(
            "Few-shot learning takes two classes or more, and at least one image of each."
        )
    return _wide(shot_SD), target_S, classes


def _wide(vector: torch.Tensor) -> torch.Tensor:
    return vector.detach().cpu().double()
