"""Scores against the papers' formulas, written once more in float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from clipguide import scores
from clipguide.errors import UsageError


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.manual_seed(seed)), dim=-1)


def test_cosine_and_clip_score():
    image_BD, text_ND = unit(50, 6), unit(20, 6, seed=1)
    expected_BN = np.asarray(image_BD, np.float64) @ np.asarray(text_ND, np.float64).T
    assert expected_BN.min() < -0.5 and expected_BN.max() > 0.5
    cosine_BN = scores.cosine(image_BD, text_ND)
    assert_close(cosine_BN.double(), torch.tensor(expected_BN), atol=1e-6, rtol=0)
    score_BN = scores.clip_score(cosine_BN)
    assert_close(score_BN.double(), torch.tensor(2.5 * expected_BN.clip(0)), atol=1e-6, rtol=0)
    assert (score_BN[cosine_BN <= 0] == 0).all()


def test_scores_stay_in_range_where_vectors_are_the_same():
    """float32 gives cosines a little above 1."""
    image_BD = unit(500, 37)
    assert (image_BD @ image_BD.T).max() > 1
    cosine_BN = scores.cosine(image_BD, torch.cat([image_BD, -image_BD]))
    assert cosine_BN.max() == 1 and cosine_BN.min() == -1
    assert scores.clip_score(cosine_BN).max() == 2.5
    best = scores.ref_clip_score(torch.tensor(2.5), image_BD[0], image_BD)
    assert_close(best, torch.tensor(10 / 7))


def test_ref_clip_score():
    caption_BD, references_BRD = unit(30, 4, seed=2), unit(30, 3, 4, seed=3)
    score_B = scores.clip_score(scores.cosine(caption_BD, unit(1, 4, seed=4))[:, 0])
    ours_B = scores.ref_clip_score(score_B, caption_BD, references_BRD)
    for i in range(30):
        caption, references = (np.asarray(v[i], np.float64) for v in (caption_BD, references_BRD))
        nearest = max(0.0, max(float(caption @ reference) for reference in references))
        one = float(score_B[i])
        expected = 2 / (1 / one + 1 / nearest) if one and nearest else 0.0  # a harmonic mean
        assert ours_B[i].item() == pytest.approx(expected, abs=1e-6)
        alone = scores.ref_clip_score(score_B[i], caption_BD[i], references_BRD[i])
        assert_close(alone, ours_B[i])
    assert (ours_B == 0).any() and (ours_B > 0).any()
    assert ours_B.min() >= 0 and ours_B.max() <= 10 / 7


def test_ref_clip_score_is_no_nan_at_zero():
    caption_D, away_RD = torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    assert scores.ref_clip_score(torch.tensor(0.0), caption_D, away_RD) == 0
    with pytest.raises(UsageError, match="reference"):
        scores.ref_clip_score(torch.tensor(1.0), caption_D, away_RD[:0])


def test_probability_is_a_softmax_or_sigmoids():
    cosine_BN = scores.cosine(unit(9, 5), unit(4, 5, seed=1))
    logits_BN = 100 * np.asarray(cosine_BN, np.float64)
    power_BN = np.exp(logits_BN - logits_BN.max(1, keepdims=True))
    expected_BN = torch.tensor(power_BN / power_BN.sum(1, keepdims=True))
    soft_BN = scores.probability(cosine_BN, logit_scale=100.0)
    assert_close(soft_BN.double(), expected_BN, atol=1e-4, rtol=0)
    assert_close(soft_BN.sum(1), torch.ones(9))
    each_BN = scores.probability(cosine_BN, logit_scale=10.0, logit_bias=-9.0)
    expected_BN = 1 / (1 + np.exp(-(10 * np.asarray(cosine_BN, np.float64) - 9)))
    assert_close(each_BN.double(), torch.tensor(expected_BN), atol=1e-6, rtol=0)
    alone = scores.probability(cosine_BN[:, :1], logit_scale=10.0, logit_bias=-9.0)
    assert_close(alone, each_BN[:, :1], msg="a sigmoid does not depend on the other texts")


def test_vectors_of_two_clips_are_refused():
    with pytest.raises(UsageError, match="of 5 and of 4 numbers"):
        scores.cosine(unit(2, 5), unit(2, 4))
