"""Measure the mini generator, by the referee: objects, colours and pairs as `clipguide generate`
draws them, variety and near-copies of plain samples, and steering.

Legend: A and B images, P prompts, S seeds, K concepts, D width of an embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator

import numpy as np
import torch
from PIL import Image

from clipguide import Clip, images
from clipguide.images import contact_sheet
from clipguide.mini.scenes import together
from training import common
from training.data.colours import TERMS
from training.data.near import NEAR, nearest, thumbnails
from training.data.recolour import recoloured
from training.evaluate import doubts, samples
from training.evaluate.clips import all_drawings, colour_hits
from training.evaluate.drawings import Drawings, ranks, share_of_pairs
from training.evaluate.ledger import Figure, Settings, figure

DRAWINGS = {  # of a thing in the training data: least and most
    "1 drawing": (1, 1),
    "2 or 3 drawings": (2, 3),
    "4 drawings or more": (4, 10**9),
}


def measure(settings: Settings) -> Iterator[Figure]:
    """Measure objects, objects in a colour, two objects, variety, and near-copies of the training
    data."""
    drawings, draw = all_drawings(), samples.Samples(settings)
    referee, things = settings.clip("referee"), samples.things_drawn(drawings.concepts)
    weights = settings.weights("generator", "guide", "judge", "referee")
    plain_weights = settings.weights("generator", "referee")
    text_KD = referee.encode_text(drawings.concepts)

    prompts, of = samples.concept_prompts(things)
    prompts, of = settings.cut(prompts), settings.cut(of)
    plain = draw(prompts, seeds=1, way="plain")
    drawn = draw(prompts, seeds=1, way="default")
    contact_sheet(samples.pictures(drawn[:100, 0]), labels=prompts[:100], columns=10).save(
        settings.out / "generator.png")
    target_B = torch.tensor([drawings.place[t] for t in of])
    rank_B = ranks(referee.encode_pictures(samples.pictures(plain)), text_KD, target_B)
    yield figure("generator: referee's top-5, one plain sample", (rank_B < 5).float().mean(),
                 n=len(rank_B), weights=plain_weights, note="no candidates, no steering")
    rank_B = ranks(referee.encode_pictures(samples.pictures(drawn)), text_KD, target_B)
    named_B = rank_B < 5
    share = named_B.float().mean().item()
    yield figure("generator: referee's top-5", share, n=len(rank_B), weights=weights,
                 note=f"{len(prompts)} things by chance, seed 0")
    real = [d for d in drawings.held_out if d.concept in set(things)]
    rank_B = ranks(drawings.encode(referee, real), text_KD, drawings.targets(real))
    ceiling, pairs = share_of_pairs(rank_B < 5, real)
    yield figure("generator: referee's top-5 of real drawings", ceiling, n=pairs,
                 weights=settings.weights("referee"), note="held-out drawings of such things")
    yield figure("generator: referee's top-5, times that of real drawings",
                 share / ceiling if ceiling else 0.0, n=len(prompts), weights=weights,
                 note=f"{share:.3f} / {ceiling:.3f}")

    coloured, of_coloured, painted_right = yield from colour_figures(
        settings, draw, things, text_KD
    )
    pairs_right = yield from pair_figures(settings, draw, things, text_KD)
    single = doubts.Drawn(prompts, samples.pictures(drawn), named_B)
    yield from doubts.by_referee(settings, single, [painted_right, pairs_right], weights)
    varied, of_varied = samples.concept_prompts(things, samples.VARIED, seed=1)
    varied, of_varied = settings.cut(varied), settings.cut(of_varied)
    many = draw(varied, seeds=samples.OF_EACH, way="plain")
    yield variety(settings, drawings, many, of_varied)
    number = Counter(drawing.concept for drawing in drawings.trained)
    alone = [concept for concept in drawings.concepts if number[concept] == 1]
    told, of_rare = samples.concept_prompts(alone, samples.RARE, seed=2)
    told, of_rare = settings.cut(told), settings.cut(of_rare)
    rare = draw(told, seeds=1, way="plain"), of_rare
    parts = [(plain, of), (drawn, of), (coloured, of_coloured), (many, of_varied)]
    yield from memory_figures(drawings, parts, rare, weights)


def pair_figures(
    settings: Settings, draw: samples.Samples, things: list[str], text_KD: torch.Tensor
) -> Generator[Figure, None, doubts.Drawn]:
    """Measure two objects with colours: each is among the first ten of its own half, and not on the
    wrong sides. Also of real drawings in those colours, put side by side in the same way. Return
    the images."""
    drawings, referee, rng = all_drawings(), settings.clip("referee"), np.random.default_rng(0)
    rows = settings.cut(samples.pair_prompts(things, TERMS))
    prompts = [row[0] for row in rows]
    pictures = samples.pictures(draw(prompts, seeds=1, way="default"))
    contact_sheet(pictures, labels=prompts, columns=10).save(settings.out / "generator-pairs.png")
    both_B, sides_B = sides_right(referee, pictures, rows, drawings, text_KD)
    what = "generator: two things, both right, sides right"
    yield figure(what, (both_B & sides_B).float().mean(), n=len(rows),
                 weights=settings.weights("generator", "guide", "judge", "referee"),
                 note=f"both {both_B.float().mean():.2f}, sides {sides_B.float().mean():.2f}")
    drawn, real, kept = doubts.Drawn(prompts, pictures, both_B & sides_B), [], []
    for row in rows:
        two = [painted(drawings, colour, thing, rng) for thing, colour in zip(row[1:3], row[3:])]
        if None not in two:
            image_B3HW = images.to_tensor([picture.resize((256, 256)) for picture in two])
            page_13HW = together(image_B3HW * 2 - 1) / 2 + 0.5
            real += images.to_pil(page_13HW)
            kept.append(row)
    both_B, sides_B = sides_right(referee, real, kept, drawings, text_KD)
    yield figure(f"{what}, of real drawings", (both_B & sides_B).float().mean(), n=len(kept),
                 weights=settings.weights("referee"), note="in those colours, side by side")
    return drawn


def painted(
    drawings: Drawings, colour: str, thing: str, rng: np.random.Generator
) -> Image.Image | None:
    """Return a real drawing of a thing in a colour, on white, or None if none can have it. The
    CLIPs were trained on most of these drawings, in their own colours and in others."""
    found = [d for d in drawings.trained + drawings.held_out if d.concept == thing]
    for k in rng.permutation(len(found)):
        rgba = recoloured(np.asarray(drawings.rgba[found[k].index]), colour, rng)
        if rgba is not None:
            return images.load(Image.fromarray(rgba))
    return None


def sides_right(
    referee: Clip,
    pictures: list[Image.Image],
    rows: list[tuple],
    drawings: Drawings,
    text_KD: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both_B: each object of a row is among the first ten of its half; and sides_B: they are
    not on the wrong sides."""
    width, height = pictures[0].size
    side = width * 9 // 16
    top = (height - side) // 2
    boxes = ((0, top, side, top + side), (width - side, top, width, top + side))
    left_BD, right_BD = (referee.encode_pictures([p.crop(box) for p in pictures]) for box in boxes)
    first_B, second_B = (
        torch.tensor([drawings.place[row[k]] for row in rows]) for k in (1, 2)
    )
    both_B = (ranks(left_BD, text_KD, first_B) < 10) & (ranks(right_BD, text_KD, second_B) < 10)
    apart_BD = text_KD[first_B] - text_KD[second_B]
    return both_B, ((left_BD - right_BD) * apart_BD).sum(1) > 0


def variety(
    settings: Settings, drawings: Drawings, many: np.ndarray, of: list[str]
) -> Figure:
    """Measure the mean distance (1 - cosine) between the seeds of a prompt, by the referee, divided
    by that between real drawings of the object."""
    referee, ratios = settings.clip("referee"), []
    for eight, thing in zip(many, of):
        real = [d for d in drawings.trained + drawings.held_out if d.concept == thing]
        if len(real) >= 3:
            mine = apart(referee.encode_pictures(samples.pictures(eight)))
            ratios.append(mine / apart(drawings.encode(referee, real)))
    return figure("generator: variety, times that of real drawings", float(np.mean(ratios)),
                  n=len(ratios), weights=settings.weights("generator", "referee"),
                  note=f"{samples.OF_EACH} seeds each")


def apart(image_BD: torch.Tensor) -> float:
    """Return the mean 1 - cosine of all pairs."""
    n = len(image_BD)
    return float(1 - ((image_BD @ image_BD.T).sum() - n) / (n * (n - 1)))


def colour_figures(
    settings: Settings, draw: samples.Samples, things: list[str], text_KD: torch.Tensor
) -> Generator[Figure, None, tuple[np.ndarray, list[str], doubts.Drawn]]:
    """Yield figures of "a {colour} {thing}" by the referee, also for real drawings that are painted
    in those colours. Return the images, their things, and the images with what the referee
    says."""
    drawings, referee, rng = all_drawings(), settings.clip("referee"), np.random.default_rng(0)
    never = [(pair["colour"], pair["concept"]) for pair in common.holdout()["colours"]]
    rows = settings.cut(samples.coloured_prompts(things, never, TERMS))
    prompts = [samples.phrase(thing, f"{colour} {thing}") for colour, thing, _ in rows]
    drawn = draw(prompts, seeds=1, way="default")

    def right(pictures: list[Image.Image], rows: list[tuple]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return whether colour and thing are right, and whether the colour is."""
        image_BD = referee.encode_pictures(pictures)
        thing_B = torch.tensor([drawings.place[thing] for _, thing, _ in rows])
        colour_B = torch.tensor([TERMS.index(colour) for colour, _, _ in rows])
        colour_hit_B = colour_hits(referee, image_BD, [thing for _, thing, _ in rows], colour_B)
        return colour_hit_B & (ranks(image_BD, text_KD, thing_B) < 5), colour_hit_B

    hit_B, colour_hit_B = right(samples.pictures(drawn), rows)
    told = doubts.Drawn(prompts, samples.pictures(drawn), hit_B)
    new_B = torch.tensor([new for _, _, new in rows])
    weights = settings.weights("generator", "guide", "judge", "referee")
    yield figure("generator: colour and thing right", hit_B.float().mean(), n=len(rows),
                 weights=weights, note=f"{int(new_B.sum())} of the pairs never trained on")
    yield figure("generator: colour right", colour_hit_B.float().mean(), n=len(rows),
                 weights=weights)
    if new_B.any():
        yield figure("generator: colour and thing right, pairs never trained on",
                     hit_B[new_B].float().mean(), n=int(new_B.sum()), weights=weights)
    real = {row: painted(drawings, *row[:2], rng) for row in rows}
    real = {row: picture for row, picture in real.items() if picture is not None}
    hit_B, colour_hit_B = right(list(real.values()), list(real))
    for what, of_B in (("colour and thing", hit_B), ("colour", colour_hit_B)):
        yield figure(f"generator: {what} right, of real drawings", of_B.float().mean(), n=len(real),
                     weights=settings.weights("referee"), note="painted in those colours")
    labels = [f"{prompt}{' *' if new else ''}" for prompt, (_, _, new) in zip(prompts, rows)]
    contact_sheet(samples.pictures(drawn), labels=labels, columns=10).save(
        settings.out / "generator-colours.png")
    return drawn, [thing for _, thing, _ in rows], told


def memory_figures(
    drawings: Drawings,
    drawn: list[tuple[np.ndarray, list[str]]],
    rare: tuple[np.ndarray, list[str]],
    weights: dict[str, str],
) -> Iterator[Figure]:
    """Measure the distance to the nearest training drawings on white, also for the mirrored
    samples. All are samples (P, S, H, W, 3) with the thing of each prompt. Those of `rare` count
    only in the figures by the number of training drawings of a thing."""
    size, every = rare[0].shape[-2], [*drawn, rare]
    pixels = np.concatenate([part.reshape(-1, size, size, 3) for part, _ in every])
    opaque = np.pad(pixels, [(0, 0)] * 3 + [(0, 1)], constant_values=255)
    train = thumbnails(drawings.rgba)[[d.index for d in drawings.trained]]
    distance_B = np.minimum(nearest(thumbnails(opaque), train),
                            nearest(thumbnails(opaque[:, :, ::-1]), train))
    what = "generator: nearly a training picture"
    usual_A = distance_B[: sum(part[..., 0, 0, 0].size for part, _ in drawn)]
    yield figure(what, float((usual_A < NEAR).mean()), n=len(usual_A), weights=weights,
                 note=f"RMSE below {NEAR} at 32x32; median {np.median(usual_A):.3f}")
    number = Counter(d.concept for d in drawings.trained)
    number_B = np.concatenate(
        [np.repeat([number[thing] for thing in of], part.shape[1]) for part, of in every]
    )
    for name, (least, most) in DRAWINGS.items():
        near_B = distance_B[(least <= number_B) & (number_B <= most)] < NEAR
        if len(near_B):
            yield figure(f"{what}, {name}", float(near_B.mean()), n=len(near_B), weights=weights,
                         note="training drawings of the thing")


def steering(settings: Settings) -> Iterator[Figure]:
    """Measure what the default and the method shortcut gain over plain samples, for the same
    prompts and seeds."""
    drawings, draw = all_drawings(), samples.Samples(settings)
    referee = settings.clip("referee")
    things = samples.things_drawn(drawings.concepts)
    prompts, of = samples.concept_prompts(things, samples.STEERED)
    prompts, of = settings.cut(prompts), settings.cut(of)
    text_KD, prompt_PD = referee.encode_text(drawings.concepts), referee.encode_text(prompts)
    target_B = torch.tensor([drawings.place[t] for t in of]).repeat_interleave(samples.SEEDS)
    weights = settings.weights("generator", "guide", "judge", "referee")
    score, top5, shown = {}, {}, []
    for way in samples.WAYS:
        drawn = draw(prompts, seeds=samples.SEEDS, way=way)
        image_BD = referee.encode_pictures(samples.pictures(drawn))
        image_PSD = image_BD.unflatten(0, (len(prompts), samples.SEEDS))
        score[way] = (image_PSD * prompt_PD[:, None]).sum(-1).mean(1)
        top5[way] = (ranks(image_BD, text_KD, target_B) < 5).float().mean().item()
        shown.append(samples.pictures(drawn[:40, 0]))
        if way == "plain":
            continue
        n, note = len(prompts), f"{samples.SEEDS} seeds each"
        yield figure(f"generator: prompts that are better, {way}",
                     (score[way] > score["plain"]).float().mean(), n=n, weights=weights, note=note)
        yield figure(f"generator: referee's top-5, gained, {way}", top5[way] - top5["plain"], n=n,
                     weights=weights, note=f"{top5['plain']:.3f} to {top5[way]:.3f}, {note}")
    images = [image for row in zip(*shown, strict=True) for image in row]
    labels = [text for prompt in prompts[:40] for text in (prompt, *list(samples.WAYS)[1:])]
    contact_sheet(images, labels=labels, columns=9).save(settings.out / "steering.png")
