"""The observers of a run: scores, the trace, trust, invalid gradients, the tape, on_step.

Each observer is called at the beginning of a run, after every evaluation of the method, and at the
end. An observer changes the image only through `run.factor_B`, the factor of each sample's
strength.

Shapes: B samples, N decoded images, 3 channels of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from ..objectives import Objective, Similarity, fresh_generators
from .contract import Method
from .guidance_direction import angle
from .plan import Plan
from .precision import without_autocast
from .report import Report, Step, Trace
from .run import At, Outcome, Run, per_sample, worst_of_none
from .tape import Tape, TapeStep
from .trust import Trust

DECIDED = 0.9  # share of a run after which the judge no longer changes the strength
MAX_SKIPPED = 3  # gradients of one image


@dataclass
class Seen:
    """One evaluation. `image()` decodes x0, once. `steered` says whether the method acted, and
    `replayed` whether the evaluation came from a tape. `Scores` writes the scores into `trace`."""

    run: Run
    at: At
    outcome: Outcome
    image: Callable[[], torch.Tensor]
    steered: bool
    replayed: bool
    trace: Trace

    @property
    def last(self) -> bool:
        """Return whether it is the last of its run."""
        return self.at.index == self.run.total - 1


class Observer(Protocol):
    """The interface of an observer."""

    def begin(self, run: Run, report: Report) -> None:
        """Begin: a run of the pipeline begins."""

    def step(self, seen: Seen) -> None:
        """Observe an evaluation, before the step of the scheduler."""

    def end(self) -> None:
        """End the observation. The run may have ended before its last step."""


def measured(at: At, outcome: Outcome, direction: torch.Tensor | None) -> Trace:
    """Return what an evaluation measured, on the CPU; what is of x0's device is brought in one go.
    """
    found = {}
    if outcome.gradient_B is not None:
        found["gradient_B"] = outcome.gradient_B
    if outcome.delta is not None and direction is not None:
        found["angle_B"] = angle(outcome.delta, direction)
    if found:
        found = dict(zip(found, torch.stack([*found.values()]).cpu()))
    if outcome.loss_B is not None:
        found["loss_B"] = outcome.loss_B.cpu()
    return Trace(index=at.index, noise=at.level.noise, sigma=at.level.sigma, **found)


class Base:
    """An observer that does nothing."""

    def begin(self, run: Run, report: Report) -> None:
        self.run, self.report = run, report

    def step(self, seen: Seen) -> None:
        pass

    def end(self) -> None:
        pass


class Scores(Base):
    """Score every `every`-th evaluation and the last one, by guide and judge; with `tracing`, all.
    If a run ends early, its last evaluation is scored then.

    With a judge, rank_B of the trace is −ranking of the same images.
    """

    def __init__(
        self,
        *,
        guide: Similarity | None,
        judge: Similarity | None,
        ranking: Objective,
        every: int,
        tracing: bool,
    ) -> None:
        self.guide, self.judge, self.ranking = guide, judge, ranking
        self.every, self.tracing = every, tracing

    def begin(self, run: Run, report: Report) -> None:
        super().begin(run, report)
        self._late: Seen | None = None
        self._sized = False

    def step(self, seen: Seen) -> None:
        self._late = None
        if seen.outcome.image_N3HW is not None:
            self._compare_sizes(seen.outcome.image_N3HW)
        if seen.replayed:
            return
        due = seen.at.index % self.every == 0 or seen.last
        if due or self.tracing:
            self._score(seen, ranked=due)
        else:
            self._late = seen

    def end(self) -> None:
        if self._late is not None:
            self._score(self._late, ranked=False)
            self.report.trace[-1] = self._late.trace
        self._late = None

    def _score(self, seen: Seen, *, ranked: bool) -> None:
        if self.guide is None and self.judge is None:
            return
        image_N3HW, batch = seen.image(), len(seen.at.sample)

        def score(similarity: Similarity | None) -> torch.Tensor | None:
            if similarity is None:
                return None
            return similarity.score(image_N3HW).unflatten(0, (batch, -1)).mean(1).cpu()

        with without_autocast(image_N3HW.device):
            seen.trace = replace(
                seen.trace, guide_score_B=score(self.guide), judge_score_B=score(self.judge)
            )
            if ranked and self.judge is not None:
                seen.trace = replace(seen.trace, rank_B=ranks(self.ranking, image_N3HW, batch))

    def _compare_sizes(self, image_N3HW: torch.Tensor) -> None:
        """Warn once per run if the input of a CLIP is larger than the image."""
        if self._sized or getattr(self.run.decode, "kind", "") == "linear":
            return
        self._sized, (height, width) = True, image_N3HW.shape[-2:]
        side = self.guide.clip.image_size if self.guide else 0
        if side > min(height, width):
            self.run.warn(
                f"The image is {width}x{height} and is enlarged for {self.guide.clip.name}, "
                f"which looks at {side}x{side}: draw larger, or take a CLIP of fewer pixels."
            )


def ranks(objective: Objective, image_N3HW: torch.Tensor, batch: int) -> torch.Tensor:
    """Return −objective of each of `batch` samples, higher is better, with views that are always
    the same; minus infinity for a loss that is not a number."""
    with torch.no_grad():
        loss_B = per_sample(objective, image_N3HW, fresh_generators(batch))
        return -worst_of_none(loss_B).cpu()


class Doubt(Base):
    """Reduce the strength of an image if trust in its guide falls, except in the last tenth of the
    run, where it would have no effect. `sign` is −1 if the objective leads away from the guide's
    prompts. The trace has the result as trust_B. It gives no warning."""

    def __init__(self, sign: float) -> None:
        self.sign = sign

    def begin(self, run: Run, report: Report) -> None:
        super().begin(run, report)
        self._trust = Trust(len(run.streams))

    def step(self, seen: Seen) -> None:
        before_B = self._trust.factor_B
        seen.trace = replace(seen.trace, trust_B=before_B)
        late = seen.at.index + 1 >= DECIDED * self.run.total  # the next step would be the first
        if seen.trace.rank_B is None or late:
            return
        fell_B = self._trust.see(seen.trace.rank_B, self.sign * seen.trace.judge_score_B)
        scale_B = torch.where(fell_B, self._trust.factor_B / before_B.clamp_min(0.5), 1.0)
        self.run.factor_B = self.run.factor_B * scale_B


class Numbers(Base):
    """Count steered evaluations and invalid gradients. After a few of these, an image is no longer
    steered."""

    def begin(self, run: Run, report: Report) -> None:
        super().begin(run, report)
        self._skipped_B = torch.zeros(len(run.streams), dtype=torch.long)

    def step(self, seen: Seen) -> None:
        if not seen.steered:
            return
        finite_B = seen.outcome.finite_B
        if finite_B is None:
            self.report.steered += 1
            return
        bad_B = ~finite_B.cpu() & (self._skipped_B < MAX_SKIPPED)
        self._skipped_B += bad_B
        for i in bad_B.nonzero().flatten().tolist():
            self.run.warn(
                f"The gradient of image {i} is not a number at step {seen.at.index}: it is not "
                "steered there."
            )
            if self._skipped_B[i] == MAX_SKIPPED:
                self.run.warn(
                    f"Steering of image {i} stops after {MAX_SKIPPED} gradients that are no "
                    "numbers."
                )
        self.run.factor_B = torch.where(self._skipped_B < MAX_SKIPPED, self.run.factor_B, 0.0)
        self.report.skipped += int(bad_B.sum())
        self.report.steered += bool(finite_B.any())


class TraceLog(Base):
    """Write the row of each evaluation into the report."""

    def step(self, seen: Seen) -> None:
        self.report.trace.append(seen.trace)


class TapeWriter(Base):
    """Write each evaluation that did not come from the tape."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape

    def step(self, seen: Seen) -> None:
        if seen.replayed:
            return
        outcome = seen.outcome
        self.tape.keep(
            TapeStep(
                model_output=outcome.model_output,
                sample=None if outcome.sample is seen.at.sample else outcome.sample,
                finite_B=outcome.finite_B,
                states=[generator.get_state() for generator in self.run.generators],
                trace=seen.trace,
                kept=dict(self.run.kept),
            )
        )


class Teller(Base):
    """Call `on_step`."""

    def __init__(self, on_step: Callable[[Step], None]) -> None:
        self.on_step = on_step

    def step(self, seen: Seen) -> None:
        self.on_step(
            Step(
                index=seen.at.index,
                total=self.run.total,
                samples=len(seen.at.sample),
                guide_score_B=self.report.guide_score_B,
                judge_score_B=self.report.judge_score_B,
                preview=seen.image,
            )
        )


def observers(plan: Plan, method: Method | None, tape: Tape | None) -> list[Observer]:
    """Return what looks at a run by a method or none, in the order in which it is told."""
    found: list[Observer] = [Numbers()]
    if method is not None and (plan.trace or not method.idle):
        found.append(
            Scores(
                guide=plan.guide,
                judge=plan.judge,
                ranking=plan.ranking,
                every=plan.score_every,
                tracing=plan.trace,
            )
        )
    if plan.judge is not None and method is not None and method.fades:
        found.append(Doubt(plan.sign))
    found.append(TraceLog())
    if tape is not None:
        found.append(TapeWriter(tape))
    if plan.on_step is not None:
        found.append(Teller(plan.on_step))
    return found
