"""The drawings that no model was trained on, and zero-shot classification among all concepts.

Legend: B images, K concepts, D the width of an embedding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clipguide import Clip, images
from clipguide.errors import ClipguideError
from clipguide.finetune.figure import ranks, ranks_of_scores
from training import common

__all__ = ["Drawing", "Drawings", "ranks", "ranks_of_scores", "share_of_pairs"]

NOT_THINGS = ("symbol", "people & body", "smileys & emotion", "flags")
CHUNK = 256


@dataclass(frozen=True)
class Drawing:
    """A line of the manifest."""

    index: int
    concept: str
    set: str
    family: str
    category: str


class Drawings:
    """The built data, for tests. `concepts` are those of the training, without symbols."""

    def __init__(self, folder: Path = common.DATA) -> None:
        if not (folder / "manifest.jsonl").exists():
            raise ClipguideError(
                f"There are no drawings in {folder}: python -m training.data build.")
        self.rgba = np.load(folder / "pictures.npy", mmap_mode="r")
        with (folder / "manifest.jsonl").open(encoding="utf-8") as file:
            self.rows = [json.loads(line) for line in file]
        held = {(pair["concept"], pair["family"]) for pair in common.holdout()["pairs"]}
        train = [row for row in self.rows if row["split"] == "train"]
        self.concepts = sorted({row["concept"] for row in train if not row["symbol"]})
        self.place = {concept: k for k, concept in enumerate(self.concepts)}
        self.held_out = [_of(r) for r in train if (r["concept"], r["family"]) in held
                         and r["concept"] in self.place]
        self.trained = [_of(r) for r in train if (r["concept"], r["family"]) not in held]

    def style(self, name: str) -> list[Drawing]:
        """Return the drawings of known concepts in a test set, without near-copies of training
        images."""
        return [_of(row) for row in self.rows
                if row["set"] == name and row["concept"] in self.place and not row["symbol"]
                and not row.get("near_train")]

    def tests(self) -> dict[str, list[Drawing]]:
        """Return the three sets that have targets."""
        return {"held-out drawings": self.held_out, "OpenMoji": self.style("openmoji"),
                "EmojiOne v1": self.style("emojione-v1")}

    def things(self, least: int = 3) -> list[str]:
        """Return the sorted concepts of objects, not people or faces, that so many families draw.
        """
        families: dict[str, set[str]] = {}
        for drawing in self.trained + self.held_out:
            if drawing.category not in NOT_THINGS and drawing.concept in self.place:
                families.setdefault(drawing.concept, set()).add(drawing.family)
        return sorted(c for c, found in families.items() if len(found) >= least)

    def picture(self, index: int) -> Image.Image:
        """Return drawing `index` on white, in RGB."""
        return images.load(Image.fromarray(np.asarray(self.rgba[index])))

    def encode(self, clip: Clip, drawings: Sequence[Drawing]) -> torch.Tensor:
        """Return the unit vectors_BD. Only a few images are in memory at a time."""
        parts = [clip.encode_pictures([self.picture(d.index) for d in drawings[k:k + CHUNK]])
                 for k in range(0, len(drawings), CHUNK)]
        return torch.cat(parts)

    def targets(self, drawings: Sequence[Drawing]) -> torch.Tensor:
        """Return the places_B of the concepts of the drawings."""
        return torch.tensor([self.place[d.concept] for d in drawings])


def _of(row: dict) -> Drawing:
    return Drawing(row["index"], row["concept"], row["set"], row["family"], row["category"])


def share_of_pairs(hit_B: torch.Tensor, drawings: Sequence[Drawing]) -> tuple[float, int]:
    """Return (mean, number) of pairs of a concept and a family. The drawings of a pair share one
    vote."""
    pairs: dict[tuple[str, str], list[float]] = {}
    for hit, drawing in zip(hit_B.tolist(), drawings):
        pairs.setdefault((drawing.concept, drawing.family), []).append(float(hit))
    return float(np.mean([np.mean(votes) for votes in pairs.values()])), len(pairs)
