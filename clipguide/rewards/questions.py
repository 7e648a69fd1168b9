"""Questions to a vision-language model: the reward vqascore, and vlm for your own question.

VQAScore (Lin et al. 2024, eq. 1) is P("Yes" | image, question), by the softmax over all words for
the first word of the answer. `vlm` compares only the two answers: P(yes) / (P(yes) + P(no)), each
summed over its spellings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from ..errors import ClipguideError, UsageError
from ..hub import without_bars
from .pictures import OfPictures, plain
from .registry import Scorer, Settings
from .verifier import Verifier

MODEL = "Qwen/Qwen2-VL-2B-Instruct"
VQA = 'Does this figure show "{}"? Please answer yes or no.'  # section 3 of the paper
VLM = 'Does this image show "{}", all of it, and nothing that is wrong? Answer yes or no.'
YES, NO = ("Yes", "yes", "YES"), ("No", "no", "NO")


class Question(OfPictures):
    """Minus the probability of the answer yes.

    Args:
        model: an image-text-to-text model of transformers.
        processor: its processor. If it has a chat template, the question is a message of the user.
        texts: the questions: one for all images, or a list, as for `Similarity`.
        relative: whether yes is compared with no only, and not with all other words.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        processor: object,
        texts: Sequence[str],
        *,
        relative: bool,
    ) -> None:
        super().__init__(texts)
        self.model, self.processor = model.eval().requires_grad_(False), processor
        tokenizer = processor.tokenizer
        spelled = [[*words, *(f" {word}" for word in words)] for words in (YES, NO)]
        self.yes, self.no = (_single(tokenizer, words) for words in spelled)
        if not self.yes or not self.no or self.yes & self.no:
            raise ClipguideError(
                "The model's tokenizer has no words for yes and no: take another model."
            )
        self.relative, self._answer = relative, _single(tokenizer, YES[:1])

    def score_one(self, picture: Image.Image, text: str) -> float:
        """Return the probability of yes."""
        given = self.processor(images=[picture], text=[self._asked(text)], return_tensors="pt")
        with torch.no_grad():
            logits_V = self.model(**given.to(self.model.device)).logits[0, -1].float()
        probability_V = logits_V.softmax(-1)
        if not self.relative:
            return probability_V[list(self._answer)].sum().item()
        yes, no = (probability_V[sorted(ids)].sum().item() for ids in (self.yes, self.no))
        return yes / (yes + no) if yes + no else float("nan")

    def _asked(self, text: str) -> str:
        """Return the question with the place of the image, by the chat template of the model."""
        if not getattr(self.processor, "chat_template", None):
            image = getattr(self.processor, "image_token", None) or "<image>"
            return f"{image}\n{text}"
        content = [{"type": "image"}, {"type": "text", "text": text}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )


def _single(tokenizer: object, words: Sequence[str]) -> set[int]:
    """Return the tokens of the words that are one token."""
    found, unknown = set(), getattr(tokenizer, "unk_token_id", None)
    for word in words:
        ids = tokenizer.encode(word, add_special_tokens=False)
        if len(ids) == 1 and ids[0] != unknown:
            found.add(ids[0])
    return found


def vqascore(settings: Settings) -> Scorer:
    """Load `vqascore[=MODEL]`."""
    return _local(settings, settings.question or VQA, relative=False)


def vlm(settings: Settings) -> Scorer:
    """Load `vlm[=MODEL]`, or `vlm=http://ADDRESS/v1#MODEL`."""
    question = settings.question or VLM
    if not settings.where.startswith(("http://", "https://")):
        return _local(settings, question, relative=True)
    return lambda prompts: Verifier(_asked(question, prompts), settings)


def _local(settings: Settings, question: str, *, relative: bool) -> Scorer:
    import transformers

    with without_bars():
        model = transformers.AutoModelForImageTextToText.from_pretrained(
            settings.where, dtype=getattr(torch, settings.dtype)
        ).to(settings.device)
    processor = transformers.AutoProcessor.from_pretrained(settings.where)
    return lambda prompts: Question(
        model, processor, _asked(question, prompts), relative=relative
    )


def _asked(question: str, prompts: Sequence) -> list[str]:
    """Return the question of each prompt. Raise UsageError for braces other than {}."""
    if "{}" not in question:
        return [question] * len(prompts)
    if question.replace("{}", "").count("{") + question.replace("{}", "").count("}"):
        raise UsageError("In a question {} is the prompt's place; other braces have no meaning.")
    return [question.replace("{}", text) for text in plain(prompts, "A question")]
