"""Notice when steering fools the guide: the objective improves while the judge's score falls.

Source: Gao et al. 2023, "Scaling laws for reward model overoptimization": the score that is
optimised still rises when the quality that is meant has begun to fall. Nothing optimises the judge,
so its score shows this.

Shapes: B samples.
"""

from __future__ import annotations

import torch

MARGIN = 0.01  # cosine that the judge must have lost; and share of itself the objective gained
PATIENCE = 2  # scorings in a row


class Trust:
    """Trust in the guide of each image: `factor_B` of its strength is 1, then ½, then 0."""

    def __init__(self, batch: int) -> None:
        self.factor_B = torch.ones(batch)
        self._rank_B = self._judge_B = None
        self._bad_B = torch.zeros(batch, dtype=torch.long)

    def see(self, rank_B: torch.Tensor, judge_B: torch.Tensor) -> torch.Tensor:
        """Take the negative objective and the judge's score of one step. Return a tensor of B that
        is True where the factor fell."""
        if self._judge_B is None:
            self._rank_B, self._judge_B = rank_B.clone(), judge_B.clone()
            self._gain_B = MARGIN * rank_B.abs()
            return torch.zeros_like(self._bad_B, dtype=torch.bool)
        climbs_B = rank_B > self._rank_B + self._gain_B
        fooled_B = climbs_B & (judge_B < self._judge_B - MARGIN)
        better_B = judge_B >= self._judge_B  # the judge's best, and the objective there
        self._rank_B = torch.where(better_B, rank_B, self._rank_B)
        self._judge_B = torch.where(better_B, judge_B, self._judge_B)
        self._bad_B = torch.where(fooled_B, self._bad_B + 1, 0)
        fell_B = (self._bad_B >= PATIENCE) & (self.factor_B > 0)
        self.factor_B = torch.where(fell_B, (self.factor_B - 0.5).clamp_min(0), self.factor_B)
        self._bad_B = torch.where(fell_B, 0, self._bad_B)
        return fell_B
