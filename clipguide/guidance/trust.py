"""When the guide is being fooled: its score climbs while the judge's falls.

Gao et al. 2023, "Scaling laws for reward model overoptimization": what is optimised goes on rising
when what is meant has begun to fall. The judge, which nothing optimises, is the alarm.
"""

from __future__ import annotations

import torch

MARGIN = 0.01  # cosine that the judge must have lost, and the guide gained
PATIENCE = 2  # scorings in a row


class Trust:
    """A factor of the strength for each image: 1, then ½, then 0."""

    def __init__(self, batch: int) -> None:
        self.factor_B = torch.ones(batch)
        self._guide_B = self._judge_B = None
        self._bad_B = torch.zeros(batch, dtype=torch.long)

    def see(self, guide_B: torch.Tensor, judge_B: torch.Tensor) -> torch.Tensor:
        """Scores of one step; True_B where the factor fell."""
        if self._judge_B is None:
            self._guide_B, self._judge_B = guide_B.clone(), judge_B.clone()
            return torch.zeros_like(self._bad_B, dtype=torch.bool)
        fooled_B = (guide_B > self._guide_B + MARGIN) & (judge_B < self._judge_B - MARGIN)
        better_B = judge_B >= self._judge_B  # the judge's best, and the guide's score there
        self._guide_B = torch.where(better_B, guide_B, self._guide_B)
        self._judge_B = torch.where(better_B, judge_B, self._judge_B)
        self._bad_B = torch.where(fooled_B, self._bad_B + 1, 0)
        fell_B = (self._bad_B >= PATIENCE) & (self.factor_B > 0)
        self.factor_B = torch.where(fell_B, (self.factor_B - 0.5).clamp_min(0), self.factor_B)
        self._bad_B = torch.where(fell_B, 0, self._bad_B)
        return fell_B
