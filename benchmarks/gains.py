"""The statistics of `benchmarks/steering.py`: rows, best settings for a budget, table of "auto".

The prompts that select settings never measure them. For each budget, the even half of the prompts
selects the settings of a method with the highest gain. The odd half gives their figures.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from clipguide.pipelines.generation import STEPS

from benchmarks import ways
from benchmarks.ways import PLAIN

BUDGETS = (1.25, 1.5, 2.0, 4.0, 8.0)  # × plain sampling
LEAST = 8  # prompts of a row
PEER = "community"  # the first word of the ways of another program
CHOSEN = ("shortcut", "drafts")  # the methods that `auto` chooses


@dataclass
class Drawn:
    """One image.

    `prompt` is the number of its prompt. `seconds` is processor time. `score`, `guide` and `judge`
    are the cosine similarities of the referee, of the guide and of mini's judge. `top5` says
    whether its object is in the referee's top five. `spread` is the referee's distance from the
    images of the other seeds of these settings (1 − mean cosine); it is 0 for a single image.
    `models` is the digest of the models that drew and scored it.
    """

    prompt: int
    way: str
    seed: int
    seconds: float
    score: float
    top5: bool
    guide: float
    judge: float
    spread: float = 0.0
    models: str = ""


@dataclass
class Row:
    """One setting, with `best_of` samples.

    `cost` is relative to plain sampling, which is 1. `score` and `guide` are the mean scores of the
    referee and of the guide. `gain` is the referee's gain over plain sampling of the same seeds.
    `error` is its standard error over prompts. `top5` is the referee's. `better` is the share of
    prompts that gain. `worse` is the share that lose more than two standard errors of their seeds.
    `spread` is that of the seeds of a prompt.
    """

    way: str
    best_of: int
    prompts: int
    cost: float
    score: float
    gain: float
    error: float
    top5: float
    better: float
    worse: float
    spread: float
    guide: float
    method: str = "shortcut"
    options: dict = field(default_factory=lambda: {"strength": 0.0})  # plain sampling
    decoder: str = "vae"
    cutouts: int = 0
    steps: int = STEPS

    @property
    def name(self) -> str:
        """Return the way, with the number of candidates if there are several."""
        many = self.best_of > 1 and "best of" not in self.way
        return self.way + (f", best of {self.best_of}" if many else "")

    @property
    def kind(self) -> str:
        """Return the method, or "plain" or "best-of" if nothing steers."""
        if self.method == "shortcut" and not self.options["strength"]:
            return "best-of" if self.best_of > 1 else "plain"
        return self.method

    def fits(self, budget: float) -> bool:
        """Return whether the cost is within a budget."""
        return round(self.cost, 2) <= budget


@dataclass
class Versus:
    """A way of another program, and the best of ours that does not cost more: their gains over
    plain sampling on the same prompts, each with its standard error."""

    peer: str
    ours: list[str]
    prompts: int
    peer_cost: float
    cost: float
    peer_gain: float
    peer_error: float
    gain: float
    error: float


def enough(drawn: list[Drawn]) -> list[Drawn]:
    """Return the images of the ways that have at least half of the prompts of plain sampling."""
    prompts = _prompts(drawn)
    least = len(prompts.get(PLAIN.name, ())) / 2
    return [one for one in drawn if len(prompts[one.way]) >= least]


def of_fewer(drawn: list[Drawn]) -> list[Drawn]:
    """Return the images of the prompts that another way has, the one that has most of them, of all
    ways that have them all. A way of fewer than LEAST prompts does not count."""
    prompts, kept = _prompts(drawn), {one.way for one in enough(drawn)}
    others = [found for way, found in prompts.items() if way not in kept and len(found) >= LEAST]
    common = max(others, key=len, default=set())
    return [d for d in drawn if d.prompt in common and prompts[d.way] >= common]


def _prompts(drawn: list[Drawn]) -> dict[str, set[int]]:
    """Return the prompts that each way has."""
    found: dict[str, set[int]] = {}
    for one in drawn:
        found.setdefault(one.way, set()).add(one.prompt)
    return found


def mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def error(values: Sequence[float]) -> float:
    """Return the standard error of the mean. It is infinite for a single value."""
    if len(values) < 2:
        return float("inf")
    return statistics.stdev(values) / len(values) ** 0.5


def best(images: list[Drawn], number: int) -> list[Drawn]:
    """Return the best image of each complete group of `number` images, by guide and judge."""
    groups = [images[k : k + number] for k in range(0, len(images), number)]
    whole = [group for group in groups if len(group) == number]
    return [max(group, key=lambda one: one.guide + one.judge) for group in whole]


def rows(drawn: list[Drawn]) -> list[Row]:
    """Return one row for each setting and number of candidates."""
    table: dict[str, dict[int, list[Drawn]]] = {}
    for one in drawn:
        table.setdefault(one.way, {}).setdefault(one.prompt, []).append(one)
    plain = {(d.prompt, d.seed): d.score for d in drawn if d.way == PLAIN.name}
    second = {p: mean(d.seconds for d in found) for p, found in table[PLAIN.name].items()}
    found = []
    for way in ways.WAYS:
        for number in way.best_of if way.name in table else ():
            of_prompt = {p: images for p, images in table[way.name].items() if p in second}
            kept = {p: best(images, number) for p, images in of_prompt.items()}
            kept = {p: images for p, images in kept.items() if images}
            if kept:
                found.append(_row(way, number, kept, of_prompt, plain, second))
    return found


def _row(
    way: ways.Way,
    number: int,
    kept: dict[int, list[Drawn]],
    every: dict[int, list[Drawn]],
    plain: dict[tuple[int, int], float],
    second: dict[int, float],
) -> Row:
    """Return the row of the images that were kept for each prompt."""
    gains, clear = [], []
    for p, images in kept.items():
        # Compare a kept image with the mean of plain sampling over its group's seeds.
        groups = [every[p][k : k + number] for k in range(0, len(images) * number, number)]
        of_seeds = [
            image.score - mean(plain[p, d.seed] for d in group)
            for image, group in zip(images, groups, strict=True)
        ]
        gains.append(mean(of_seeds))
        clear.append(gains[-1] < -2 * error(of_seeds))
    costs = [mean(d.seconds for d in every[p]) / second[p] for p in kept]
    flat = [image for images in kept.values() for image in images]
    return Row(
        way=way.name,
        best_of=number * way.candidates,
        prompts=len(kept),
        cost=number * statistics.median(costs),
        score=mean(mean(d.score for d in images) for images in kept.values()),
        gain=mean(gains),
        error=error(gains) if len(gains) > 1 else 0.0,
        top5=mean(d.top5 for d in flat),
        better=mean(gain > 0 for gain in gains),
        worse=mean(clear),
        spread=mean(d.spread for d in flat),
        guide=mean(d.guide for d in flat),
        **ways.settings(way),
    )


def halves(drawn: list[Drawn]) -> tuple[list[Drawn], list[Drawn]]:
    """Return the images of the even prompts and of the odd ones, in the order of the prompts."""
    even = set(list(dict.fromkeys(d.prompt for d in drawn))[::2])
    return [d for d in drawn if d.prompt in even], [d for d in drawn if d.prompt not in even]


def at_budgets(drawn: list[Drawn]) -> dict[float, list[Row]]:
    """Return each method's best settings for each budget.

    The even prompts, in the order in which they were drawn, select the settings. The odd prompts
    measure them. The settings with the highest gain on the even prompts come first.
    """
    even, odd = halves(drawn)
    chosen, shown = rows(even), {(r.way, r.best_of): r for r in rows(odd)}
    found = {}
    for budget in BUDGETS:
        kinds: dict[str, Row] = {}
        for row in chosen:
            fits = row.fits(budget) and (row.way, row.best_of) in shown
            if fits and (row.kind not in kinds or row.gain > kinds[row.kind].gain):
                kinds[row.kind] = row
        ranked = sorted(kinds.values(), key=lambda row: -row.gain)
        found[budget] = [shown[row.way, row.best_of] for row in ranked]
    return found


def versus(drawn: list[Drawn]) -> list[Versus]:
    """Return each way of another program beside the best of ours that does not cost more. Each half
    of the prompts selects what the other half measures. So all prompts of a way count."""
    both, found = halves(drawn), []
    for way in (way.name for way in ways.WAYS if way.name.startswith(PEER)):
        gains, costs, names = [], [], []
        for half, other in (both, both[::-1]):
            theirs = [row for row in rows(half) if row.way == way]
            own = [row for row in rows(enough(half)) if not row.way.startswith(PEER)]
            own = [row for row in own if theirs and row.cost <= theirs[0].cost]
            prompts = dict.fromkeys(d.prompt for d in other if d.way == way)
            if not own or not prompts:
                continue
            ours = max(own, key=lambda row: row.gain)
            names.append(ours.name)
            for prompt in prompts:
                table = rows([d for d in other if d.prompt == prompt])
                seen = {(row.way, row.best_of): row for row in table}
                if pair := seen.get((ours.way, ours.best_of)):
                    gains.append((seen[way, 1].gain, pair.gain))
                    costs.append((seen[way, 1].cost, pair.cost))
        if len(gains) >= LEAST:
            (their_gain, gain), (their_cost, cost) = zip(*gains), zip(*costs)
            found.append(
                Versus(
                    peer=way,
                    ours=list(dict.fromkeys(names)),
                    prompts=len(gains),
                    peer_cost=statistics.median(their_cost),
                    cost=statistics.median(cost),
                    peer_gain=mean(their_gain),
                    peer_error=error(their_gain),
                    gain=mean(gain),
                    error=error(gain),
                )
            )
    return found


def of_classes(
    drawn: list[Drawn], row: Row, classes: dict[int, str]
) -> dict[str, dict[str, float | None]]:
    """Return the gain of a setting for each class of prompts: "prompts", "gain" and "error" (the
    standard error; None for one prompt). `classes` has the class of each prompt."""
    found = {}
    for name in sorted({classes[d.prompt] for d in drawn if d.way == row.way}):
        some = [d for d in drawn if classes[d.prompt] == name and d.way in (PLAIN.name, row.way)]
        (mine,) = [r for r in rows(some) if (r.way, r.best_of) == (row.way, row.best_of)]
        spread = mine.error if mine.prompts > 1 else None
        found[name] = {"prompts": mine.prompts, "gain": mine.gain, "error": spread}
    return found


def frontier(found: list[Row], *, own: bool) -> list[Row]:
    """Return the Pareto frontier of the rows that `auto` can choose.

    No other of these rows has the same or a higher gain at the same or a lower cost. A cost below 1
    counts as 1, because a budget is at least that.

    Args:
        found: the rows.
        own: whether `auto` chooses for the embedded generator in `generate`, where it also sets the
            number of steps and can take drafts.
    """
    kept: list[Row] = []
    for row in sorted(found, key=lambda row: (max(row.cost, 1.0), -row.gain)):
        travels = row.best_of > 1 and "travel" in row.options
        anywhere = row.method == "shortcut" and row.steps == STEPS
        if row.method in CHOSEN and not travels and (own or anywhere):
            if not kept or row.gain > kept[-1].gain:
                kept.append(row)
    return kept


def of_auto(drawn: list[Drawn]) -> dict[float, tuple[str, float]]:
    """Return for each budget the settings that `auto` chooses for the embedded generator, and their
    gain divided by that of the best settings of all methods. The even prompts select both, the odd
    prompts measure them. A budget is left out if the best settings gain nothing."""
    even, odd = halves(drawn)
    table, shown = frontier(rows(even), own=True), {(r.way, r.best_of): r for r in rows(odd)}
    found = {}
    for budget, ranked in at_budgets(drawn).items():
        fits = [r for r in table if r.fits(budget) and (r.way, r.best_of) in shown]
        if fits and ranked and ranked[0].gain > 0:
            mine = shown[fits[-1].way, fits[-1].best_of]
            found[budget] = mine.name, mine.gain / ranked[0].gain
    return found


@dataclass
class Caught:
    """How well the judge sees that steering fooled the guide.

    `fooled` and `sound` count steered images that the guide scores higher than the plain image of
    their seed: those whose score by the referee fell, and the others. `caught` and `false` are the
    shares of them whose score by the judge fell by more than `threshold`.
    """

    fooled: int
    sound: int
    caught: float
    false: float
    threshold: float


def falls(drawn: list[Drawn]) -> tuple[list[float], list[float]]:
    """Return how far the judge's score fell in each fooled and in each sound image."""
    plain = {(d.prompt, d.seed): d for d in drawn if d.way == PLAIN.name}
    fooled, sound = [], []
    for one in drawn:
        before = plain.get((one.prompt, one.seed))
        if one.way != PLAIN.name and before and one.guide > before.guide:
            kind = fooled if one.score < before.score else sound
            kind.append(before.judge - one.judge)
    return fooled, sound


def caught(drawn: list[Drawn], false: float = 0.05) -> Caught | None:
    """Return what the judge catches. The even prompts select the threshold, at which it is wrong
    about at most a share `false` of the sound images. The odd prompts measure it. None if a half
    has no images of one of the two kinds."""
    (even_fooled, even_sound), (fooled, sound) = map(falls, halves(drawn))
    if not (even_fooled and even_sound and fooled and sound):
        return None
    threshold = sorted(even_sound, reverse=True)[int(false * len(even_sound))]
    return Caught(
        fooled=len(fooled),
        sound=len(sound),
        caught=mean(fall > threshold for fall in fooled),
        false=mean(fall > threshold for fall in sound),
        threshold=threshold,
    )


def markdown(found: list[Row]) -> str:
    """Return the rows as a table, the most expensive last."""
    heads = ["way", "cost", "gain, 10⁻³", "top-5", "better", "worse by 2 s.e.", "diversity"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in sorted(found, key=lambda row: row.cost):
        gain = f"{1000 * row.gain:+.1f} ± {1000 * row.error:.1f}" if row.gain else "–"
        shares = f"{row.top5:.1%} | {row.better:.0%} | {row.worse:.1%} | {row.spread:.3f}"
        lines.append(f"| {row.name} | {row.cost:.2f} | {gain} | {shares} |")
    return "\n".join(lines)
