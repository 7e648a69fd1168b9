"""Learn a word for a concept that a CLIP does not know, from three to five images.

Textual inversion (Gal et al. 2023, §3): the whole CLIP is frozen, and only the token embeddings of
one invented word are trained. The word keeps the tokens that the tokenizer makes of it. Where these
tokens follow each other in a text, a hook on the token embedding replaces their vectors by the
learned ones. Vocabulary and tokenizer do not change. The loss is that of CLIP instead of a
denoiser's: in many templates, the images must be nearer to the text of the word than to other
names, and their cosine similarity with it must rise.

    inversion = Inversion(load_parts("mini"), pictures, "blorvek")
    for step in inversion:
        print(step.index, step.cosine)
    inversion.concept().save("blorvek.safetensors")
    clip = with_concept(load_clip("mini"), "blorvek.safetensors")  # reads "a blue blorvek"

Legend: B texts, L tokens, T tokens of the word, W width of the text encoder, D embedding, P views
of images, N names of other things, 3 channels, H rows, W columns of images.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..clip.concepts import Concept, hook, places, shared_copy, token_embedding, word_tokens
from ..clip.parts import Parts
from ..errors import ClipguideWarning, UsageError
from ..prompts import one_word, shorten

TEMPLATES = ("{}", "a {}", "the {}", "a picture of a {}", "a drawing of a {}", "one {} outside")
OTHERS = (
    "animal, bird, fish, insect, cat, dog, monster, ball, flower, tree, fruit, vegetable, car, "
    "house, chair, book, cup, hat, shoe, star, moon, sun, cloud, mountain, person, face, hand, "
    "letter, number, flag, tool, toy, cake, mushroom, jellyfish, octopus, spider, beetle, snail, "
    "hedgehog, cactus, balloon, lamp, clock, plant, stone, robot, ghost"
).split(", ")
VIEWS = 8  # crops and mirror images of each image


@dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """How to learn a word.

    Args:
        steps: the number of steps of Adam.
        lr: its learning rate.
        like: a known word, such as "creature", whose tokens are the starting point; by default
            those of the invented word.
        templates: the texts in which the word is learned, with {} for the word.
        others: names that the images must be further from.
        cosine: the weight of 1 − cos, which is added to the cross-entropy.
    """

    steps: int = 150
    lr: float = 0.02
    like: str = ""
    templates: tuple[str, ...] = TEMPLATES
    others: tuple[str, ...] = tuple(OTHERS)
    cosine: float = 4.0
    batch: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "lr"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} must be above 0, not {getattr(self, name)}.")
        if not self.templates or any("{}" not in template for template in self.templates):
            raise UsageError("A template of a concept's texts has {} where the word goes.")
        if not self.others:
            raise UsageError("A concept is distinguished from other names: give at least one.")


@cache
def known_words() -> frozenset[str]:
    """Return the words that name what mini was trained on."""
    text = (Path(__file__).parent / "concepts.txt").read_text(encoding="utf-8")
    return frozenset(text.lower().split())


@dataclass(frozen=True)
class InversionStep:
    """One step of `total`: the loss, and the mean cosine similarity of the word's texts with the
    images."""

    index: int
    total: int
    loss: float
    cosine: float


class Inversion:
    """Learn a word for what images show (textual inversion). Iterate it, then call `concept`.

    Args:
        parts: the parts of the CLIP that will read the word. They do not change.
        pictures: RGB images of one object, with little else; three to five are enough.
        word: an invented word. If it had a meaning, the CLIP forgets it.
        config: the settings.

    Raises:
        UsageError: there are no images, the word is empty, or the tokenizer has no token for it.
    """

    def __init__(
        self,
        parts: Parts,
        pictures: Sequence[Image.Image],
        word: str,
        config: InversionConfig = InversionConfig(),
    ) -> None:
        if not pictures:
            raise UsageError("There are no images to learn the word from: three to five will do.")
        self.parts, self.config, self.word = parts, config, one_word(word)
        self.model = shared_copy(parts.model).eval()
        self.device = parts.model.logit_scale.device
        self.token_T = word_tokens(parts.tokenizer, self.word)
        if len(self.token_T) == 1 or self.word.lower() in known_words():
            warnings.warn(
                f"{self.word!r} is a word already: what it meant is lost to the CLIP that reads "
                "the concept. Take one that means nothing yet, such as blorvek, to keep it.",
                ClipguideWarning,
                stacklevel=2,
            )
        table_VW = token_embedding(self.model).weight
        self.longest = table_VW.norm(dim=1).max().item()
        begin_T = self.token_T
        if config.like:
            begin_T = word_tokens(parts.tokenizer, config.like)
            begin_T = begin_T[[min(i, len(begin_T) - 1) for i in range(len(self.token_T))]]
        self.vector_TW = table_VW[begin_T.to(self.device)].detach().clone().requires_grad_(True)
        token_embedding(self.model).register_forward_hook(hook(self.token_T, self.vector_TW))
        self.generator = torch.Generator().manual_seed(config.seed)
        self.text_ML = self._sentences()
        with torch.no_grad():
            others = torch.cat([self._tokens("a {}", name) for name in config.others])
            self.other_ND = self._texts(others)
            self.view_PD = F.normalize(self._views(pictures), dim=-1)

    def __iter__(self) -> Iterator[InversionStep]:
        config = self.config
        optimizer = torch.optim.Adam([self.vector_TW], lr=config.lr)
        scale = self.model.logit_scale.detach().exp().clamp(max=100)
        for index in range(config.steps):
            row = torch.randint(len(self.text_ML), (), generator=self.generator)
            views = torch.randint(len(self.view_PD), (config.batch,), generator=self.generator)
            view_BD = self.view_PD[views.to(self.device)]
            text_1D = self._texts(self.text_ML[row][None])
            cosine_B1 = view_BD @ text_1D.T
            logits_BN = scale * torch.cat([cosine_B1, view_BD @ self.other_ND.T], dim=1)
            contrast = F.cross_entropy(logits_BN, torch.zeros_like(views).to(self.device))
            loss = contrast + config.cosine * (1 - cosine_B1).mean()
            (self.vector_TW.grad,) = torch.autograd.grad(loss, self.vector_TW)
            optimizer.step()
            self._shorten()
            yield InversionStep(index, config.steps, loss.item(), cosine_B1.mean().item())

    @torch.no_grad()
    def cosine(self) -> float:
        """Return the mean cosine of the views of the images with the word in all templates."""
        text_MD = torch.cat([self._texts(text_1L[None]) for text_1L in self.text_ML])
        return (self.view_PD @ text_MD.T).mean().item()

    def concept(self) -> Concept:
        """Return the word as it is learned so far."""
        vector_TW = self.vector_TW.detach().cpu().clone()
        clip = self.parts.fingerprint
        return Concept(self.word, self.token_T, vector_TW, clip, self.parts.name)

    @torch.no_grad()
    def _shorten(self) -> None:
        """Shorten each vector to the length of the longest that the encoder was trained with."""
        length_T1 = self.vector_TW.norm(dim=1, keepdim=True)
        self.vector_TW.mul_((self.longest / length_T1).clamp_max(1))

    def _tokens(self, template: str, word: str) -> Tensor:
        return self.parts.tokenizer([template.replace("{}", word)]).to(self.device)

    def _texts(self, token_BL: Tensor) -> Tensor:
        return F.normalize(self.model.encode_text(token_BL).float(), dim=-1)

    def _sentences(self) -> Tensor:
        """Return text_ML of the templates in which the tokenizer reads the word as it reads it
        alone.

        Raises:
            UsageError: there are none.
        """
        text_ML = torch.cat([self._tokens(t, self.word) for t in self.config.templates])
        row_M = places(text_ML.cpu(), self.token_T)[:, 0].unique()
        if not len(row_M):
            raise UsageError(
                f"The tokenizer of {self.parts.name} reads {shorten(self.word)!r} otherwise in a "
                "sentence, or cuts it off: choose another word."
            )
        return text_ML[row_M.to(self.device)]

    def _views(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return embeddings_PD of crops of the images: the whole first, half of them mirrored."""
        prepared = []
        for picture in pictures:
            for view in range(VIEWS):
                share, left, top = torch.rand(3, generator=self.generator).tolist()
                side = 1.0 if view == 0 else 0.75 + 0.25 * share
                width, height = (max(1, round(side * s)) for s in picture.size)
                x = round(left * (picture.width - width))
                y = round(top * (picture.height - height))
                crop = picture.crop((x, y, x + width, y + height))
                if view % 2:
                    crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                prepared.append(self.parts.transform(crop))
        image_P3HW = torch.stack(prepared).to(self.device)
        return torch.cat([self.model.encode_image(x).float() for x in image_P3HW.split(16)])
