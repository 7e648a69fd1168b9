"""The rewards of runs: loaded once, made objectives of each batch's guides."""

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

OPPOSED = -0.5  # mean cosine of two pulls, which by chance is about 0


class Settings(Protocol):
    """What a run says of its rewards."""

    rewards: tuple[str, ...]
    question: str
    trust_pickle: bool


@dataclass
class Rewards:
    """The rewards that were asked for, each loaded once.

    Args:
        device: where they run.
        key: what an address knows its users by.
    """

    device: str
    key: str = ""
    _told: bool = False
    _loaded: dict[tuple, Reward] = field(default_factory=dict)

    def pulling(
        self, objective: Objective, guides: Sequence[Prompt], settings: Settings
    ) -> Objective:
        """The guide's objective and the rewards: balanced where all have a gradient, else added."""
        if not settings.rewards:
            return objective
        terms = [objective, *self._terms(settings.rewards, guides, settings)]
        if all(term.differentiable for one in terms for _, term in one.terms()):
            return Balanced(terms)
        return sum(terms[1:], terms[0])

    def tell(self, cosines: Sequence[float]) -> None:
        """Warn where the guide and the rewards pulled against each other in a run, once; their
        cosines are those of `cosines_of_pulls`."""
        if cosines and sum(cosines) / len(cosines) < OPPOSED and not self._told:
            self._told = True
            warnings.warn(
                "The guide and the rewards pull against each other, and little comes of it: lower "
                "a weight, or leave one of them out.",
                ClipguideWarning,
                stacklevel=2,
            )

    def selecting(self, guides: Sequence[Prompt], settings: jobs.Settings) -> Objective | None:
        """What picks among candidates; None for what is minimised."""
        terms = list(self._terms(settings.select, guides, settings))
        return sum(terms[1:], terms[0]) if terms else None

    def fingerprints(self, texts: Iterable[str], settings: Settings) -> dict[str, str]:
        """Each reward as it was asked for, with the digest of its weights."""
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
