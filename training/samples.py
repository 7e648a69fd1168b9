"""What the generator learns from: composed images, their maps and their captions, made once.

    python -m training.samples make --count 60000 --seed 0   # a file a seed; minutes of one core
    python -m training.samples axes                          # before: the map's axes

A file `samples-SEED.npz`-like folder holds image.npy (uint8, N x 128 x 128 x 3), map.npy (float16,
N x 28 x 4 x 4), captions.json (a list a sample), label.npy (the style) and concept.json.

The map says what is where, coarsely: 16 principal components of EfficientNet-Lite0's features at
stride 16, averaged to 4 x 4 cells, and the mean colour of each quarter of a cell (12 channels:
R, G, B by row and column). All channels have mean 0 and deviation 1 over the data.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from clipguide.mini.reader import SIDE, colours
from training import common
from training.data.compose import REPAINT, Mix, TrainingSet
from training.data.languages import languages, names_of
from training.data.sources import Sources
from training.styles import LABEL, styled

CACHE = common.CACHE / "samples"
COMPONENTS = 16
CHANNELS = COMPONENTS + 12  # of a map
KINDS = {"single": 0.66, "placed": 0.14, "pair": 0.11, "several": 0.09}
SETTINGS = (
    "at night|in the rain|in the forest|on a table|on a hill|in the snow|by the sea|with a ribbon"
).split("|")
ADJECTIVES = "old cute golden wooden beautiful happy fresh sweet modern classic nice wild".split()
app = typer.Typer(add_completion=False, help=__doc__)


# ------------------------------------------------------------------- the map
class Maps(torch.nn.Module):
    """Images in [0, 1]_B3HW (any size; seen at 128 px) -> maps_B(28)44."""

    def __init__(self, axes: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.net = eye()
        if axes is None:
            axes = torch.load(CACHE / "axes.pt", weights_only=True)
        self.axes = axes

    def features(self, image_B3HW: Tensor) -> Tensor:
        """Lite0's 112 channels at stride 16, averaged to cells_B(112)44."""
        x = F.interpolate(image_B3HW, (128, 128), mode="bilinear", antialias=True)
        x = self.net.bn1(
            self.net.conv_stem((x * 2 - 1).contiguous(memory_format=torch.channels_last))
        )
        for block in self.net.blocks[:5]:
            x = block(x)
        return F.adaptive_avg_pool2d(x, SIDE)

    @torch.no_grad()
    def forward(self, image_B3HW: Tensor) -> Tensor:
        return self.joined(self.features(image_B3HW), colours(image_B3HW))

    def joined(self, feature_BC44: Tensor, colour_BC44: Tensor) -> Tensor:
        a = self.axes
        seen = torch.einsum(
            "bchw,kc->bkhw", feature_BC44 - a["centre"].view(1, -1, 1, 1), a["axes"]
        )
        both = torch.cat([seen, colour_BC44], 1)
        return (both - a["mean"].view(1, -1, 1, 1)) / a["deviation"].view(1, -1, 1, 1)


def eye() -> torch.nn.Module:
    """Lite0 as far as its features are looked at, kept in eye.pt: what a pack takes along."""
    import timm

    path = CACHE / "eye.pt"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        state = common.backbone(0).state_dict()
        kept = ("conv_stem", "bn1", *(f"blocks.{k}." for k in range(5)))
        torch.save({k: v for k, v in state.items() if k.startswith(kept)}, path)
    net = timm.create_model("tf_efficientnet_lite0")
    net.load_state_dict(torch.load(path, weights_only=True), strict=False)
    return net.eval().to(memory_format=torch.channels_last).requires_grad_(False)


def foreign_names() -> dict[str, dict[str, list[str]]]:
    """Return names in other languages by emoji, kept in names.json."""
    path = CACHE / "names.json"
    if not path.exists():
        found = names_of(Sources(common.CACHE / "sources").annotations)
        path.write_text(json.dumps(found, ensure_ascii=False), "utf-8")
    return json.loads(path.read_text("utf-8"))


# --------------------------------------------------------------- the samples
class Maker:
    """Draws composed images with captions; all randomness from the generator passed in."""

    def __init__(self, size: int = 128) -> None:
        mix = Mix(recolour=0.4, ground=0.35, full=0.6)
        self.data = TrainingSet(common.DATA, size=size, mix=mix)
        self.names = foreign_names()
        weights = np.array([self.weight(r) for r in self.data.rows])
        self.chance = weights / weights.sum()

    def weight(self, row: dict) -> float:
        """Return how often a drawing turns up: every concept alike, whatever the number of its
        drawings; symbols less, people less, what only clip art shows less."""
        share = 1 / len(self.data.by_concept[row["concept"]]) ** 0.7
        if row["symbol"]:
            share *= 0.2
        elif row["category"] in ("people & body", "smileys & emotion", "flags"):
            share *= 0.5
        if not row["emoji"]:
            share *= 0.4
        return share

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, list[str], int, str]:
        """(rgb, captions, style label, concept)."""
        row = self.data.rows[int(rng.choice(len(self.chance), p=self.chance))]
        kind = rng.choice(list(KINDS), p=list(KINDS.values()))
        sample = None
        if kind == "placed":
            sample = self.data.placed(row, rng)
        elif kind == "pair":
            other = self.data.rows[int(rng.choice(len(self.chance), p=self.chance))]
            sample = self.data.pair(row, other, rng)
        elif kind == "several":
            sample = self.data.several(row, rng)
        if sample is not None and self.data.allowed(sample):
            return sample.rgb, [sample.caption], LABEL[row["set"]], row["concept"]
        recolour = rng.random() < 0.45
        sample = self.data.single(row["index"], rng, recolour=recolour)
        painted = recolour and sample.colour is not None
        captions = [
            sample.caption,
            *(self.data.caption(row["index"], rng, sample.colour, painted) for _ in range(2)),
        ]
        captions += self.elsewhere(
            row, sample.colour if painted or rng.random() < 0.4 else None, rng
        )
        captions.append(self.loosely(captions[0], rng))
        return sample.rgb, captions, LABEL[row["set"]], row["concept"]

    def elsewhere(self, row: dict, colour: str | None, rng: np.random.Generator) -> list[str]:
        """One caption in another language, or with the emoji itself."""
        if not row["emoji"] or colour in self.data.forbidden.get(row["concept"], ()):
            return []
        if rng.random() < 0.12:
            symbol = "".join(chr(int(c, 16)) for c in row["emoji"].split("-"))
            return [f"{colour} {symbol}" if colour else symbol]
        known = self.names.get(row["emoji"])
        if not known:
            return []
        code = sorted(known)[int(rng.integers(len(known)))]
        name = known[code][int(rng.integers(len(known[code])))]
        return [languages()[code].phrase(name, colour, rng)]

    def loosely(self, caption: str, rng: np.random.Generator) -> str:
        """Return the caption with a word or a setting that the image does not show, as prompts
        have."""
        if rng.random() < 0.5:
            return f"{caption} {SETTINGS[int(rng.integers(len(SETTINGS)))]}"
        words = caption.split()
        at = 1 if words[0] in ("a", "an") else 0
        return " ".join([*words[:at], ADJECTIVES[int(rng.integers(len(ADJECTIVES)))], *words[at:]])


@app.command()
def axes(count: int = 3000) -> None:
    """Find the principal axes of the features, and every channel's mean and deviation."""
    CACHE.mkdir(parents=True, exist_ok=True)
    maker, rng = Maker(), np.random.default_rng(99)
    maps, feature, colour = Maps({}), [], []
    with torch.no_grad():
        for _ in range(count // 50):
            rgb = np.stack([maker.draw(rng)[0] for _ in range(50)])
            image = torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255
            feature.append(maps.features(image))
            colour.append(colours(image))
    feature, colour = torch.cat(feature), torch.cat(colour)
    rows = feature.movedim(1, -1).flatten(0, -2)
    centre = rows.mean(0)
    found = torch.linalg.svd(rows - centre, full_matrices=False).Vh[:COMPONENTS].contiguous()
    share = ((rows - centre) @ found.T).var(0).sum() / (rows - centre).var(0).sum()
    maps.axes = {
        "centre": centre,
        "axes": found,
        "mean": torch.zeros(CHANNELS),
        "deviation": torch.ones(CHANNELS),
    }
    both = maps.joined(feature, colour)
    maps.axes |= {"mean": both.mean((0, 2, 3)), "deviation": both.std((0, 2, 3))}
    torch.save(maps.axes, CACHE / "axes.pt")
    print(f"{COMPONENTS} components hold {share:.0%} of the variance")


@app.command()
def make(count: int = 60_000, seed: int = 0) -> None:
    """Compose so many images, with maps and captions."""
    folder = CACHE / str(seed)
    if (folder / "captions.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    maker, rng, maps = Maker(), np.random.default_rng([7, seed]), Maps()
    image = np.lib.format.open_memmap(folder / "image.npy", "w+", np.uint8, (count, 128, 128, 3))
    found = np.zeros((count, CHANNELS, SIDE, SIDE), np.float16)
    captions, labels, concepts = [], np.zeros(count, np.int64), []
    for k in range(count):
        image[k], texts, labels[k], concept = maker.draw(rng)
        captions.append([*texts, styled(texts[0], int(labels[k]), rng)])
        concepts.append(concept)
        if (k + 1) % 50 == 0:
            x = torch.from_numpy(image[k - 49 : k + 1]).permute(0, 3, 1, 2).float() / 255
            found[k - 49 : k + 1] = maps(x).numpy()
        if (k + 1) % 5000 == 0:
            print(k + 1, flush=True)
    np.save(folder / "map.npy", found)
    np.save(folder / "label.npy", labels)
    (folder / "concept.json").write_text(json.dumps(concepts))
    (folder / "captions.json").write_text(json.dumps(captions, ensure_ascii=False))


class Samples:
    """The files of one or more seeds, joined: `map_NC44`, `label_N`, `captions`, `concepts`."""

    def __init__(self, folder: Path = CACHE) -> None:
        made = sorted(p.parent for p in folder.glob("*/captions.json"))
        self.folders = made
        self.image = [np.load(p / "image.npy", mmap_mode="r") for p in made]
        self.map_NC44 = torch.from_numpy(np.concatenate([np.load(p / "map.npy") for p in made]))
        self.label_N = torch.from_numpy(np.concatenate([np.load(p / "label.npy") for p in made]))
        self.captions = [c for p in made for c in json.loads((p / "captions.json").read_text())]
        self.concepts = [c for p in made for c in json.loads((p / "concept.json").read_text())]

    def __len__(self) -> int:
        return len(self.captions)

    def chances(self, focus: float) -> np.ndarray:
        """Return how often each sample is to be drawn (sum 1): what people ask for first, single
        things that five families draw and that are no people, `focus` times as often as the rest.
        """
        families: dict[str, set[str]] = {}
        for row in map(json.loads, (common.DATA / "manifest.jsonl").open(encoding="utf-8")):
            if row["category"] in REPAINT and row["emoji"]:
                families.setdefault(row["concept"], set()).add(row["family"])
        common_ones = {concept for concept, found in families.items() if len(found) >= 5}
        weights = np.array(
            [
                focus if concept in common_ones and len(captions) > 2 else 1.0
                for concept, captions in zip(self.concepts, self.captions)
            ]
        )
        return weights / weights.sum()

    def caption(self, index: int, rng: np.random.Generator, named: float) -> str:
        """One of sample `index`'s captions; the last one names the style, and so do as many of the
        others as make up a share of `named`."""
        told = self.captions[index]
        k, label = int(rng.integers(len(told))), int(self.label_N[index])
        others = (named * len(told) - 1) / max(1, len(told) - 1)
        if label and k < len(told) - 1 and rng.random() < others:
            return styled(told[k], label, rng)
        return told[k]

    def rgb(self, index: int) -> np.ndarray:
        """Image `index`, uint8 (128, 128, 3)."""
        for part in self.image:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


if __name__ == "__main__":
    app()
