"""Measure the mini generator, by the referee: objects, colours and pairs as `clipguide generate`
draws them, variety and near-copies of plain samples, and steering.

Legend: B images, P prompts, S seeds, K concepts, D width of an embedding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image

from clipguide import Clip, images, mini
from clipguide.images import contact_sheet
from clipguide.mini import known
from clipguide.mini.memory import MapMemory
from clipguide.mini.scenes import together
from training import common
from training.data.colours import TERMS
from training.data.near import NEAR, nearest, thumbnails
from training.data.recolour import recoloured
from training.evaluate import samples
from training.evaluate.clips import all_drawings, colour_hits
from training.evaluate.drawings import Drawings, ranks, share_of_pairs
from training.evaluate.ledger import Figure, Settings, figure
from training.eyes import EYES, VERDICTS


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

    yield from doubt_figures(settings, prompts, samples.pictures(drawn), named_B, weights)
    coloured = yield from colour_figures(settings, draw, things, text_KD)
    yield from pair_figures(settings, draw, things, text_KD)
    varied, of = samples.concept_prompts(things, samples.VARIED, seed=1)
    varied, of = settings.cut(varied), settings.cut(of)
    many = draw(varied, seeds=samples.OF_EACH, way="plain")
    yield variety(settings, drawings, many, of)
    yield from memory_figures(drawings, [plain, drawn, coloured, many], weights)


def doubt_figures(
    settings: Settings,
    prompts: list[str],
    drawn: list[Image.Image],
    named_B: torch.Tensor,
    weights: dict[str, str],
) -> Iterator[Figure]:
    """Measure how often `known.unlike` warns about an image, for images that the referee names
    correctly and for the others."""
    sum_B = torch.zeros(len(drawn))
    for clip in (settings.clip("guide"), settings.clip("judge")):
        sum_B += (clip.encode_pictures(drawn) * clip.encode_text(prompts)).sum(1)
    for what, of_B in (("named", named_B), ("not named", ~named_B)):
        if of_B.any():
            low = sum_B[of_B].quantile(0.05)
            yield figure(f"generator: doubted, of images {what} by the referee",
                         (sum_B[of_B] < known.LEAST).float().mean(), n=int(of_B.sum()),
                         weights=weights,
                         note=f"below {known.LEAST}; 95 % have more than {low:.3f}")


def eyes(settings: Settings) -> Iterator[Figure]:
    """Yield what reviewers said of images that they saw one by one (`python -m training.eyes`)."""
    found = json.loads(EYES.read_text())
    said = [verdict for row in found["prompts"].values() for verdict in row["said"]]
    note = f"{len(found['prompts'])} prompts, {found['reviewers']} reviewers"
    for what in VERDICTS:
        yield figure(f"generator: looked at, {what}", said.count(what) / len(said),
                     n=len(said), weights=found["weights"], note=note)
    doubted = {what: [] for what in VERDICTS}
    names = MapMemory.from_pretrained(mini.path("generator") / "memory").names
    for prompt, row in found["prompts"].items():
        if len(set(row["said"])) == 1:
            several = names.scene(prompt) is not None
            warned = known.doubt(prompt, several=several) or known.unlike(
                prompt, row["guide"], row["judge"], several=several
            )
            doubted[row["said"][0]].append(warned is not None)
    for what, warned_N in doubted.items():
        if warned_N:
            yield figure(f"generator: doubted, of {what} images", sum(warned_N) / len(warned_N),
                         n=len(warned_N), weights=found["weights"], note="all reviewers agree")


def pair_figures(
    settings: Settings, draw: samples.Samples, things: list[str], text_KD: torch.Tensor
) -> Iterator[Figure]:
    """Measure two objects with colours: each is among the first ten of its own half, and not on the
    wrong sides. Also of real drawings in those colours, put side by side in the same way."""
    drawings, referee, rng = all_drawings(), settings.clip("referee"), np.random.default_rng(0)
    rows = settings.cut(samples.pair_prompts(things, TERMS))
    pictures = samples.pictures(draw([row[0] for row in rows], seeds=1, way="default"))
    contact_sheet(pictures, labels=[row[0] for row in rows], columns=10).save(
        settings.out / "generator-pairs.png")
    both_B, sides_B = sides_right(referee, pictures, rows, drawings, text_KD)
    what = "generator: two things, both right, sides right"
    yield figure(what, (both_B & sides_B).float().mean(), n=len(rows),
                 weights=settings.weights("generator", "guide", "judge", "referee"),
                 note=f"both {both_B.float().mean():.2f}, sides {sides_B.float().mean():.2f}")
    real, kept = [], []
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


def colour_figures(settings: Settings, draw: samples.Samples, things: list[str],
                   text_KD: torch.Tensor):
    """Yield figures of "a {colour} {thing}" by the referee, also for real drawings that are painted
    in those colours. Return the images."""
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
    return drawn


def memory_figures(
    drawings: Drawings, drawn: list[np.ndarray], weights: dict[str, str]
) -> Iterator[Figure]:
    """Measure the distance to the nearest training drawings on white, also for the mirrored
    samples."""
    size = drawn[0].shape[-2]
    pixels = np.concatenate([part.reshape(-1, size, size, 3) for part in drawn])
    opaque = np.pad(pixels, [(0, 0)] * 3 + [(0, 1)], constant_values=255)
    train = thumbnails(drawings.rgba)[[d.index for d in drawings.trained]]
    distance_B = np.minimum(nearest(thumbnails(opaque), train),
                            nearest(thumbnails(opaque[:, :, ::-1]), train))
    yield figure("generator: nearly a training picture", float((distance_B < NEAR).mean()),
                 n=len(distance_B), weights=weights,
                 note=f"RMSE below {NEAR} at 32x32; median {np.median(distance_B):.3f}")


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
