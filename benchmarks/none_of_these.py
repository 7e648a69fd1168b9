"""Measure classification with clipguide.zero_shot: "none of these", the cards' figures, templates.

    python -m benchmarks.none_of_these none --photos FOLDER     # writes none_of_these.json
    python -m benchmarks.none_of_these none --ship              # and clipguide/zero_shot/none.json
    python -m benchmarks.none_of_these card                     # the cards' figures, by Classifier
    python -m benchmarks.none_of_these names                    # which templates suit mini

For "none", the concepts are divided into two random halves. On one half, a threshold is calibrated
so that 5 % of the images with a label are rejected, over many random sets of 5, 20 and 50 labels.
On the other half, the script counts how many images with a label it rejects ("false", target: at
most 5 %), and how many of all others ("caught", target: at least 80 %). Then the halves change
roles, and the figures are the means. "unlisted" is the share that would be caught of images whose
own name and similar names are not in the background. Drawings are held-out ones, OpenMoji and
EmojiOne v1. Photographs are one for each class of ImageNet, with its names as labels. All need the
data of `python -m training.data build`. Legend: B images, K labels, W words.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from clipguide import Clip, images, load_clip
from clipguide.zero_shot import Classifier, figures, none, templates
from training import common
from training.evaluate.drawings import Drawings, share_of_pairs

ROOT = Path(__file__).resolve().parent.parent
OUT = Path(__file__).with_suffix(".json")
SHIPPED = ROOT / "clipguide" / "zero_shot" / "none.json"
CLIPS = ("mini", "mini-judge", "mini+mini-judge")
SIZES = (5, 20, 50)
SETS = 200  # of labels, of each size
OTHERS = 200  # images of other objects for each set
SCORES: dict[str, Callable] = {
    "best label": lambda label_BK, word_BW: label_BK.max(1).values,
    "best - best word": lambda label_BK, word_BW: label_BK.max(1).values - word_BW.max(1).values,
    "best - mean of 10 words": lambda label_BK, word_BW: (
        label_BK.max(1).values - word_BW.topk(10).values.mean(1)
    ),
    **{
        f"log odds, sharpness {k:g}": (
            lambda label_BK, word_BW, k=k: none.evidence(label_BK, word_BW, sharpness=k)
        )
        for k in (0.5, 1.0, 2.0, 4.0)
    },
}
CHOSEN = f"log odds, sharpness {none.SHARPNESS:g}"


@dataclass
class Set:
    """The embeddings_BD of images, the place of the name of each, and the names."""

    kind: str
    image_BD: torch.Tensor
    target_B: torch.Tensor
    names: list[str]


class Kin:
    """The logits of images, and which words of the background mean the same as which names."""

    def __init__(self, clip: Clip, data: Set, words: list[str]) -> None:
        self.data, self.words = data, words
        self.text_ND, self.word_WD = clip.encode_text(data.names), clip.encode_text(words)
        self.label_BN = clip.logit_scale * data.image_BD @ self.text_ND.T
        self.word_BW = clip.logit_scale * data.image_BD @ self.word_WD.T
        self.rest_NW = none.unlike_each(self.word_WD, self.text_ND, words, data.names)

    def scores(
        self, row_B: torch.Tensor, label_K: torch.Tensor, *, unlisted: bool = False
    ) -> dict[str, torch.Tensor]:
        """Return each score of some images. `unlisted`: without words for what they show."""
        word_W = self.rest_NW[label_K].all(0)
        label_BK, word_BW = self.label_BN[row_B][:, label_K], self.word_BW[row_B][:, word_W]
        if unlisted:
            own_BW = ~self.rest_NW[self.data.target_B[row_B]][:, word_W]
            word_BW = word_BW.masked_fill(own_BW, -1e4)
        names = [CHOSEN] if unlisted else SCORES
        return {name: SCORES[name](label_BK, word_BW) for name in names}


def sets_of(clip: Clip, photos: Path | None) -> Iterator[Set]:
    """Return the drawings, and the photographs if there are any. Embeddings are cached by
    fingerprint."""
    drawings = Drawings()
    found = [drawing for part in drawings.tests().values() for drawing in part]
    image_BD = kept(clip, "drawings", lambda: drawings.encode(clip, found))
    yield Set("drawings", image_BD, drawings.targets(found), drawings.concepts)
    if photos:
        files, names = sorted(photos.glob("n*.JPEG")), common.imagenet_names()
        unique = list(dict.fromkeys(names))
        target_B = torch.tensor([unique.index(name) for name in names])

        def encode() -> torch.Tensor:
            chunks = [files[k : k + 64] for k in range(0, len(files), 64)]
            return torch.cat([clip.encode_pictures(list(map(images.load, c))) for c in chunks])

        yield Set("photographs", kept(clip, "photographs", encode), target_B, unique)


def kept(clip: Clip, kind: str, encode: Callable[[], torch.Tensor]) -> torch.Tensor:
    path = common.CACHE / "evaluate" / f"none-{kind}-{clip.fingerprint[:16]}.pt"
    if not path.exists():
        torch.save(encode(), path)
    return torch.load(path, weights_only=True)


def halves(target_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the names of the images in two random halves."""
    names = target_B.unique()
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))
    return names[order[: len(names) // 2]], names[order[len(names) // 2 :]]


def run(kin: Kin, half: torch.Tensor, size: int) -> tuple[dict, dict, dict]:
    """Return the scores of all images inside the sets of labels, of some outside, and of these
    unlisted. Labels and images belong to one half of the names."""
    generator = torch.Generator().manual_seed(size)
    target_B = kin.data.target_B
    mine_B = torch.isin(target_B, half)
    parts: tuple[list, list, list] = [], [], []
    for _ in range(SETS):
        label_K = half[torch.randperm(len(half), generator=generator)[:size]]
        inside_B = torch.isin(target_B, label_K)
        other_B = (mine_B & ~inside_B).nonzero()[:, 0]
        other_B = other_B[torch.randperm(len(other_B), generator=generator)[:OTHERS]]
        parts[0].append(kin.scores(inside_B.nonzero()[:, 0], label_K))
        parts[1].append(kin.scores(other_B, label_K))
        parts[2].append(kin.scores(other_B, label_K, unlisted=True))
    return tuple({k: torch.cat([p[k] for p in part]) for k in part[0]} for part in parts)


def measure(kin: Kin, given: dict[int, float] | None = None) -> list[dict]:
    """Return a row for each score and size: thresholds of one half, and their effect on the other,
    in both directions, as the mean of the two.

    `given` are thresholds of the chosen score, those for drawings, which are tested too.
    """
    rows = []
    for size in SIZES:
        both = [run(kin, half, size) for half in halves(kin.data.target_B)]
        for name in SCORES:
            ways = []
            for (inside, _, _), (shown, others, unlisted) in (both, both[::-1]):
                threshold = float(inside[name].quantile(none.FALSE))
                way = {"threshold": threshold, "false": share(shown[name], threshold)}
                way["caught"] = share(others[name], threshold)
                if name == CHOSEN:
                    way["caught, unlisted"] = share(unlisted[name], threshold)
                if name == CHOSEN and given:
                    way["false by the drawings' threshold"] = share(shown[name], given[size])
                    way["caught by the drawings' threshold"] = share(others[name], given[size])
                ways.append(way)
            mean = {key: round((ways[0][key] + ways[1][key]) / 2, 3) for key in ways[0]}
            rows.append({"score": name, "labels": size, **mean})
    return rows


def share(score_B: torch.Tensor, threshold: float) -> float:
    return (score_B < threshold).double().mean().item()


def measure_none(photos: Path | None, ship: bool) -> None:
    """Print and write the table. With `ship`, write the thresholds of the package too."""
    found, thresholds = {}, {}
    words = none.read_lines(none.HERE / "background.txt", what="words")
    for name in CLIPS:
        clip, given = load_clip(name), None
        found[name] = {"fingerprint": clip.fingerprint}
        for data in sets_of(clip, photos):
            kin = Kin(clip, data, words)
            rows = measure(kin, given)
            given = {r["labels"]: r["threshold"] for r in rows if r["score"] == CHOSEN}
            found[name][data.kind] = {"pictures": len(data.image_BD), "rows": rows}
            if data.kind == "drawings":
                thresholds[clip.fingerprint] = {
                    "clip": name, "template": "{}", "pictures": "drawings", "thresholds": given,
                }  # fmt: skip
            for row in rows:
                print(
                    name,
                    data.kind,
                    *(f"{key} {value}" for key, value in row.items()),
                    sep="  ",
                    flush=True,
                )
    OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if ship:
        SHIPPED.write_text(json.dumps(thresholds, indent=1) + "\n", encoding="utf-8")


def card() -> None:
    """Print top-1 and top-5 of the three sets of drawings by Classifier, as in the model cards, and
    those of both models together."""
    from clipguide import mini

    drawings = Drawings()
    for name, folder in {"mini": "guide", "mini-judge": "judge", "mini+mini-judge": None}.items():
        said, clip = mini.card(folder)["figures"] if folder else {}, load_clip(name)
        classifier = Classifier(clip, drawings.concepts, templates="plain")
        for what, found in drawings.tests().items():
            image_BD = kept(
                clip, what.replace(" ", "-"), lambda c=clip, f=found: drawings.encode(c, f)
            )
            score_BN, target_B = classifier.cosines(image_BD), drawings.targets(found)
            rank_B = (score_BN >= score_BN.gather(1, target_B[:, None])).sum(1) - 1
            for top in (1, 5):
                value = f"{100 * share_of_pairs(rank_B < top, found)[0]:.1f} %"
                known = said.get(f"{what}, top-{top}", "has none")
                print(f"{name}: {what}, top-{top}: {value}, card {known}", flush=True)


def names() -> None:
    """Print the share of right names for each list of templates. Each drawing has one vote."""
    paths = sorted((ROOT / "samples" / "pictures").glob("*.png"))
    sample = [path.stem.replace("-", " ") for path in paths]
    for name in CLIPS[:2]:
        clip = load_clip(name)
        shown_BD = clip.encode_pictures([images.load(path) for path in paths])
        data = next(sets_of(clip, None))
        for which in ("plain", "seven", "default"):
            many = Classifier(clip, data.names, templates=which).probabilities(data.image_BD)
            few = Classifier(clip, sample, templates=which).probabilities(shown_BD)
            right = figures(few, torch.arange(len(sample)))["top-1"]
            print(f"{name} {which} ({len(templates(which))}): "
                  f"drawings {figures(many, data.target_B)['top-1']:.3f}, samples {right:.3f}",
                  flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("none", "card", "names"))
    parser.add_argument("--photos", type=Path, help="a copy of imagenet-sample-images")
    parser.add_argument("--ship", action="store_true", help="write the package's thresholds")
    arguments = parser.parse_args()
    if arguments.what == "none":
        measure_none(arguments.photos, arguments.ship)
    else:
        {"card": card, "names": names}[arguments.what]()


if __name__ == "__main__":
    main()
