"""Measure a CLIP on images with labels or captions, before and after the training.

Shapes: B images, N classes, T different captions, D the width of the embedding.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..clip import Clip, Parts, folding
from ..zero_shot import class_vectors, figures
from .data import Dataset
from .fit import NotFinite
from .methods import is_scale, is_text

BINS = 15
CHUNK = 32  # number of images


@dataclass(frozen=True)
class Result:
    """The figures, and the predicted class of each image with its probability.

    For classes: top-1, top-5, mean recall, calibration error, cross-entropy; `found_B` is the
    predicted class. For captions: recall@1, @5 and @10 from image to text and back, cross-entropy;
    `found_B` is the caption. All are in [0, 1] except the cross-entropy, which is in nats.
    """

    figures: dict[str, float]
    found_B: Tensor
    probability_B: Tensor

    @property
    def main(self) -> float:
        """Return the figure that selects: top-1, or the mean of both recalls@1."""
        return self.figures["top-1" if "top-1" in self.figures else "recall@1"]

    @property
    def worth(self) -> tuple[float, float]:
        """Return the key that compares two results: the main figure, then the cross-entropy."""
        return self.main, -self.figures["cross-entropy"]


class Exam:
    """Images that are prepared once and measured repeatedly.

    `labels` are the texts to choose from, by default the classes of the data. The vector of a class
    is the mean over `templates`. At most `most` images, evenly drawn, are kept in memory. With
    `once`, none are kept, and each is prepared when its vector is computed.
    """

    def __init__(
        self,
        parts: Parts,
        data: Dataset,
        *,
        templates: Sequence[str] = ("{}",),
        labels: Sequence[str] | None = None,
        most: int = 5000,
        workers: int = 2,
        once: bool = False,
    ) -> None:
        stride = -(-len(data.examples) // most)
        self._known: dict[str, Tensor] = {}  # last vectors, by the digest of their encoder
        self.templates = tuple(templates)
        self.examples = data.examples[::stride]
        self.labels = list(labels or data.classes)
        self.workers = workers
        self.prepared = None if once else [p for some in self._chunks(parts.live()) for p in some]
        if self.labels:
            place = {label: n for n, label in enumerate(self.labels)}
            self.target_B = torch.tensor([place[data.classes[e.label]] for e in self.examples])
        else:
            self.texts = list(dict.fromkeys(e.caption for e in self.examples))
            place = {text: t for t, text in enumerate(self.texts)}
            self.target_B = torch.tensor([place[e.caption] for e in self.examples])

    def __len__(self) -> int:
        return len(self.examples)

    @torch.no_grad()
    def __call__(self, parts: Parts) -> Result:
        """Return the figures of a model with the same preprocessing, as it is now."""
        image_BD, text_ND = self._vectors(parts)
        if not (image_BD.isfinite().all() and text_ND.isfinite().all()):
            raise NotFinite("The vectors are not numbers any more.")
        scale = float(parts.model.logit_scale.detach().exp())
        if not self.labels:
            return self._captions(scale, image_BD, text_ND)
        score_BN = image_BD @ text_ND.T
        probability_BN = (scale * score_BN).softmax(1)
        found = figures(score_BN, self.target_B)
        found["calibration error"] = calibration_error(probability_BN, self.target_B)
        found["cross-entropy"] = self._entropy(probability_BN)
        best = probability_BN.max(1)
        return Result(found, best.indices, best.values)

    @torch.no_grad()
    def vectors(self, clip: Clip) -> Tensor:
        """Return the unit vectors_BD of the images."""
        if self.prepared is None:
            chunks = self._chunks(clip)
        else:
            chunks = (self.prepared[k : k + CHUNK] for k in range(0, len(self), CHUNK))
        return torch.cat([clip.encode_prepared(chunk).cpu() for chunk in chunks])

    @torch.no_grad()
    def text_vectors(self, clip: Clip) -> Tensor:
        """Return the unit vectors_ND of the labels, or of the different captions."""
        if not self.labels:
            return clip.encode_text(self.texts).cpu()
        return class_vectors(clip, [[label] for label in self.labels], self.templates).cpu()

    def _chunks(self, clip: Clip) -> Iterator[list[Tensor]]:
        """Yield the images as the encoder sees them, prepared one chunk ahead."""
        with ThreadPoolExecutor(self.workers) as pool:
            ahead: deque[list[Future]] = deque()
            for k in range(0, len(self), CHUNK):
                some = self.examples[k : k + CHUNK]
                ahead.append([pool.submit(lambda e=e: clip.prepare(e.picture())) for e in some])
                if len(ahead) > 1:
                    yield [one.result() for one in ahead.popleft()]
            while ahead:
                yield [one.result() for one in ahead.popleft()]

    def _vectors(self, parts: Parts) -> tuple[Tensor, Tensor]:
        """Return the vectors of images and texts. If the weights of an encoder have not changed,
        its vectors are reused."""
        keys = _towers(parts.model)
        if self._known.keys() != set(keys):
            folds = any(folding.pairs(parts.model.visual))  # a third faster, at the cost of a copy
            device = str(next(parts.model.parameters()).device)
            clip = parts.clip(device=device) if folds else parts.live()
            make = (self.vectors, self.text_vectors)
            self._known = {
                key: self._known[key] if key in self._known else make[k](clip)
                for k, key in enumerate(keys)
            }
        return self._known[keys[0]], self._known[keys[1]]

    def _captions(self, scale: float, image_BD: Tensor, text_TD: Tensor) -> Result:
        score_BT = image_BD @ text_TD.T
        right_BT = self.target_B[:, None] == torch.arange(len(self.texts))
        found = {}
        for name, scores, right in (
            ("image to text", score_BT, right_BT),
            ("text to image", score_BT.T, right_BT.T),
        ):
            for k in (1, 5, 10):
                found[f"{name}, recall@{k}"] = recall(scores, right, k)
        both = [found[f"{name}, recall@1"] for name in ("image to text", "text to image")]
        probability_BT = (scale * score_BT).softmax(1)
        found["cross-entropy"] = self._entropy(probability_BT)
        best = probability_BT.max(1)
        return Result({"recall@1": sum(both) / 2, **found}, best.indices, best.values)

    def _entropy(self, probability_BN: Tensor) -> float:
        right_B = probability_BN.gather(1, self.target_B[:, None]).double()
        return -right_B.clamp_min(1e-30).log().mean().item()


def _towers(model: nn.Module) -> tuple[str, str]:
    """Return the digests of the weights of the image encoder and of the text encoder."""
    digests = hashlib.sha256(b"image"), hashlib.sha256(b"text")
    for name, value in model.state_dict().items():
        if not is_scale(name):
            content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digests[is_text(name)].update(content.numpy())
    return digests[0].hexdigest(), digests[1].hexdigest()


def recall(score_QC: Tensor, right_QC: Tensor, k: int) -> float:
    """Return the share of queries Q with a right candidate C among the `k` best."""
    best_QK = score_QC.topk(min(k, score_QC.shape[1]), dim=1).indices
    return right_QC.gather(1, best_QK).any(1).double().mean().item()


def calibration_error(probability_BN: Tensor, target_B: Tensor, bins: int = BINS) -> float:
    """Return the expected calibration error (Guo et al. 2017, eq. 3): the mean gap between the
    confidence in the best class and its accuracy, over `bins` equal intervals of confidence."""
    sure_B, found_B = probability_BN.double().max(1)
    right_B = (found_B == target_B).double()
    bin_B = (sure_B * bins).ceil().clamp(1, bins).long() - 1
    gap = torch.zeros(bins).double().index_add_(0, bin_B, right_B - sure_B)
    return (gap.abs().sum() / len(target_B)).item()
