"""The mini generator, by the referee: unguided, coloured, from memory, and steered.

Legend: B pictures, P prompts, S seeds, K concepts, D width of an embedding.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch

from clipguide.images import contact_sheet
from training import common
from training.data.build import NEAR, nearest, thumbnails
from training.data.colours import TERMS
from training.evaluate import samples
from training.evaluate.clips import all_drawings, colour_hits
from training.evaluate.drawings import Drawings, ranks, share_of_pairs
from training.evaluate.ledger import Figure, Settings, figure

SAME = 0.02  # RMSE of 32x32, values in [0, 1]: the eye sees one picture


def measure(settings: Settings) -> Iterator[Figure]:
    """Unguided: things, things in a colour, and whether it only remembers."""
    drawings, draw = all_drawings(), samples.Samples(settings)
    referee, things = settings.clip("referee"), samples.things_drawn(drawings.concepts)
    weights = settings.weights("generator", "referee")
    text_KD = referee.encode_text(drawings.concepts)

    prompts, of = samples.concept_prompts(things)
    prompts, of = settings.cut(prompts), settings.cut(of)
    drawn = draw(prompts, seeds=samples.SEEDS, steered=False)
    contact_sheet(samples.pictures(drawn[:50, 0]), labels=prompts[:50], columns=10).save(
        settings.out / "generator.png")
    target_B = torch.tensor([drawings.place[t] for t in of]).repeat_interleave(samples.SEEDS)
    rank_B = ranks(referee.encode_pictures(samples.pictures(drawn)), text_KD, target_B)
    share = (rank_B < 5).float().mean().item()
    yield figure("generator: referee's top-5", share, n=len(rank_B), weights=weights,
                 note=f"{len(prompts)} prompts of {len(set(of))} things x {samples.SEEDS} seeds")
    real = [d for d in drawings.held_out if d.concept in set(of)]
    if not real:
        real = [d for d in drawings.style("openmoji") if d.concept in set(of)]
    rank_B = ranks(drawings.encode(referee, real), text_KD, drawings.targets(real))
    ceiling, pairs = share_of_pairs(rank_B < 5, real)
    yield figure("generator: referee's top-5 of real drawings", ceiling, n=pairs,
                 weights=settings.weights("referee"), note="held-out drawings of the same things")
    yield figure("generator: referee's top-5, times that of real drawings",
                 share / ceiling if ceiling else 0.0, n=len(prompts), weights=weights,
                 note=f"{share:.3f} / {ceiling:.3f}")

    coloured = yield from colour_figures(settings, draw, things, text_KD)
    alike = settings.cut([samples.phrase(t)
                          for t in things[::max(1, len(things) // samples.ALIKE)]][:samples.ALIKE])
    eight = draw(alike, seeds=8, steered=False)
    yield from memory_figures(drawings, [drawn, coloured, eight], weights)


def colour_figures(settings: Settings, draw: samples.Samples, things: list[str],
                   text_KD: torch.Tensor):
    """Yields figures of "a {colour} {thing}" by the referee; returns the pictures."""
    drawings, referee = all_drawings(), settings.clip("referee")
    never = [(pair["colour"], pair["concept"]) for pair in common.holdout()["colours"]]
    rows = settings.cut(samples.coloured_prompts(things, never, TERMS))
    prompts = [samples.phrase(thing, f"{colour} {thing}") for colour, thing, _ in rows]
    drawn = draw(prompts, seeds=1, steered=False)
    image_BD = referee.encode_pictures(samples.pictures(drawn))
    thing_B = torch.tensor([drawings.place[thing] for _, thing, _ in rows])
    colour_B = torch.tensor([TERMS.index(colour) for colour, _, _ in rows])
    colour_hit_B = colour_hits(referee, image_BD, [thing for _, thing, _ in rows], colour_B)
    hit_B = colour_hit_B & (ranks(image_BD, text_KD, thing_B) < 5)
    new_B = torch.tensor([new for _, _, new in rows])
    weights = settings.weights("generator", "referee")
    yield figure("generator: colour and thing right", hit_B.float().mean(), n=len(rows),
                 weights=weights, note=f"{int(new_B.sum())} of the pairs never trained on")
    yield figure("generator: colour right", colour_hit_B.float().mean(), n=len(rows),
                 weights=weights)
    if new_B.any():
        yield figure("generator: colour and thing right, pairs never trained on",
                     hit_B[new_B].float().mean(), n=int(new_B.sum()), weights=weights)
    labels = [f"{prompt}{' *' if new else ''}" for prompt, (_, _, new) in zip(prompts, rows)]
    contact_sheet(samples.pictures(drawn), labels=labels, columns=10).save(
        settings.out / "generator-colours.png")
    return drawn


def memory_figures(
    drawings: Drawings, drawn: list[np.ndarray], weights: dict[str, str]
) -> Iterator[Figure]:
    """Nearest training drawings on white, the samples mirrored too; and how seeds differ."""
    size = drawn[0].shape[-2]
    pixels = np.concatenate([part.reshape(-1, size, size, 3) for part in drawn])
    opaque = np.pad(pixels, [(0, 0)] * 3 + [(0, 1)], constant_values=255)
    train = thumbnails(drawings.rgba)[[d.index for d in drawings.trained]]
    distance_B = np.minimum(nearest(thumbnails(opaque), train),
                            nearest(thumbnails(opaque[:, :, ::-1]), train))
    yield figure("generator: nearly a training picture", float((distance_B < NEAR).mean()),
                 n=len(distance_B), weights=weights,
                 note=f"RMSE below {NEAR} at 32x32; median {np.median(distance_B):.3f}")
    eight = thumbnails(opaque[-drawn[-1].shape[0] * 8:]).reshape(len(drawn[-1]), 8, -1)
    apart = np.array([[np.sqrt(np.square(a - b).mean()) for a, b in itertools.combinations(row, 2)]
                      for row in eight])
    yield figure("generator: prompts whose 8 seeds differ", float((apart.min(1) >= SAME).mean()),
                 n=len(apart), weights=weights,
                 note=f"no two within RMSE {SAME}; median of pairs {np.median(apart):.3f}")


def steering(settings: Settings) -> Iterator[Figure]:
    """The default steering against none: the same prompts and seeds, paired."""
    drawings, draw = all_drawings(), samples.Samples(settings)
    referee = settings.clip("referee")
    prompts, of = samples.concept_prompts(samples.things_drawn(drawings.concepts))
    prompts, of = settings.cut(prompts), settings.cut(of)
    text_KD, prompt_PD = referee.encode_text(drawings.concepts), referee.encode_text(prompts)
    target_B = torch.tensor([drawings.place[t] for t in of]).repeat_interleave(samples.SEEDS)
    score, top5, shown = {}, {}, []
    for steered in (False, True):
        drawn = draw(prompts, seeds=samples.SEEDS, steered=steered)
        image_BD = referee.encode_pictures(samples.pictures(drawn))
        image_PSD = image_BD.unflatten(0, (len(prompts), samples.SEEDS))
        score[steered] = (image_PSD * prompt_PD[:, None]).sum(-1).mean(1)
        top5[steered] = (ranks(image_BD, text_KD, target_B) < 5).float().mean().item()
        shown.append(samples.pictures(drawn[:40, 0]))
    pairs = [picture for pair in zip(*shown) for picture in pair]
    labels = [text for prompt in prompts[:40] for text in (prompt, "steered")]
    contact_sheet(pairs, labels=labels, columns=8).save(settings.out / "steering.png")
    weights = settings.weights("generator", "guide", "referee")
    n, note = len(prompts), f"{samples.SEEDS} seeds each"
    yield figure("generator: prompts that steering improves",
                 (score[True] > score[False]).float().mean(), n=n, weights=weights, note=note)
    yield figure("generator: referee's top-5, gained by steering", top5[True] - top5[False], n=n,
                 weights=weights, note=f"{top5[False]:.3f} to {top5[True]:.3f}, {note}")
