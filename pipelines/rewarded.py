"""The rewards of a run: load them once, and make objectives for each batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from ..errors import ClipguideWarning
from ..objectives import Balanced, Objective
from ..prompts import Prompt
from ..rewards import Reward, wanted
from . import jobs

OPPOSED = -0.5  # mean cosine of two gradients; unrelated ones have about 0


class Settings(Protocol):
    """The settings of the rewards of a run."""

    rewards: tuple[str, ...]
    question: str
    trust_pickle: bool


@dataclass
class Rewards:
    """The rewards of a run, each loaded once.

    Args:
        device: the device on which they run.
        key: the key for the server of a reward.
    """

    device: str
    key: str = ""
    _told: bool = False
    _loaded: dict[tuple, Reward] = field(default_factory=dict)

    def pulling(
        self, objective: Objective, guides: Sequence[Prompt], settings: Settings
    ) -> Objective:
        """Return the objective of the guide and the rewards: balanced if all have a gradient, else
        added."""
        if not settings.rewards:
            return objective
        terms = [objective, *self._terms(settings.rewards, guides, settings)]
        if all(term.differentiable for one in terms for _, term in one.terms()):
            return Balanced(terms)
        return sum(terms[1:], terms[0])

    def tell(self, cosines: Sequence[float]) -> None:
        """Warn once if the gradients of the guide and the rewards opposed each other in a run.
        Their cosines are those of `cosines_of_pulls`."""
        if cosines and sum(cosines) / len(cosines) < OPPOSED and not self._told:
            self._told = True
            warnings.warn(
                "The guide and the rewards pull against each other, and little comes of it: lower "
                "a weight, or leave one of them out.",
                ClipguideWarning,
                stacklevel=2,
            )

    def selecting(self, guides: Sequence[Prompt], settings: jobs.Settings) -> Objective | None:
        """Return the objective that selects among candidates, or None for the objective of the run.
        """
        terms = list(self._terms(settings.select, guides, settings))
        return sum(terms[1:], terms[0]) if terms else None

    def fingerprints(self, texts: Iterable[str], settings: Settings) -> dict[str, str]:
        """Return each reward as it was given, with the digest of its weights."""
        return {text: self._reward(text, settings).fingerprint for text in texts}

    def _terms(self, texts: Iterable[str], guides: Sequence[Prompt], settings: Settings):
        for text in texts:
            yield wanted(text).weight * self._reward(text, settings).towards(guides)

    def _reward(self, text: str, settings: Settings) -> Reward:
        name = str(replace(wanted(text), weight=1.0))
        given = {"question": settings.question, "trust_pickle": settings.trust_pickle}
        known = (name, *given.values())
        if known not in self._loaded:
            self._loaded[known] = Reward(name, device=self.device, key=self.key, **given).load()
        return self._loaded[known]
