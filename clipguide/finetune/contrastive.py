"""The contrastive loss of a large batch, in chunks and over several processes.

Shapes: B images of all processes, b a chunk, D the width of the embedding.
"""

from __future__ import annotations

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clip import Parts
from .config import FinetuneConfig
from .gradcache import Tower, cached_backward
from .losses import caption_loss, sigmoid_loss
from .methods import is_scale, is_text

# largest scale of the logits, as in CLIP's training, or that of the checkpoint if it is larger
MOST_SCALE = 100.0


class Contrastive:
    """The loss of a batch of `chunks`, each with an image_b3HW, and their `captions`, for `Fit`.

    It computes the gradients of the parameters itself. An encoder without trained parameters is
    encoded once. With `state` of accelerate, each process brings its part of the batch, and
    `add_up` makes the gradients those of the whole batch.
    """

    def __init__(self, parts: Parts, config: FinetuneConfig, *, chunk: int, state: object) -> None:
        self.parts, self.config, self.chunk, self.state = parts, config, chunk, state
        opened = [n for n, p in parts.model.named_parameters() if p.requires_grad]
        opened = [n for n in opened if not is_scale(n)]
        self.locked_text = not any(is_text(n) for n in opened)
        self.locked_image = all(is_text(n) for n in opened)
        self.device = next(parts.model.parameters()).device
        self.most = max(math.log(MOST_SCALE), parts.model.logit_scale.item())

    def __call__(self, model: nn.Module, batch: dict) -> tuple[Tensor, dict[str, float]]:
        with torch.no_grad():  # open_clip's training does the same after each step
            model.logit_scale.clamp_(0, self.most)
        captions = batch["captions"]
        texts = [captions[k : k + self.chunk] for k in range(0, len(captions), self.chunk)]
        same_BB = self._same(captions)
        scale = model.logit_scale.exp()
        bias = getattr(model, "logit_bias", None)

        def loss(image_BD: Tensor, text_BD: Tensor) -> Tensor:
            if self.config.loss == "sigmoid":
                shift = 0.0 if bias is None else bias
                return sigmoid_loss(image_BD, text_BD, scale, shift, same_BB).mean()
            return caption_loss(image_BD, text_BD, scale, same_BB).mean()

        towers = [
            Tower(self._image, batch["chunks"], locked=self.locked_image),
            Tower(self._text, texts, locked=self.locked_text),
        ]
        value = cached_backward(towers, loss, gather=self._gather if self.state else None)
        return value, {"scale": scale.item()}

    def add_up(self, trained: list[nn.Parameter]) -> None:
        """Sum the gradients over the processes. For the scale and the bias, whose gradient each
        process has in full, take the mean."""
        from accelerate.utils import reduce

        model = self.parts.model
        whole = {id(p) for n, p in model.named_parameters() if is_scale(n)}
        for parameter in trained:
            if parameter.grad is not None:
                kind = "mean" if id(parameter) in whole else "sum"
                parameter.grad = reduce(parameter.grad, kind)

    def _image(self, chunk: dict) -> Tensor:
        image_b3HW = self.parts.normalise(chunk["image"].to(self.device))
        with self._autocast():
            return F.normalize(self.parts.model.encode_image(image_b3HW).float(), dim=-1)

    def _text(self, captions: list[str]) -> Tensor:
        tokens_BL = self.parts.tokenizer(captions).to(self.device)
        with self._autocast():
            return F.normalize(self.parts.model.encode_text(tokens_BL).float(), dim=-1)

    def _autocast(self) -> contextlib.AbstractContextManager:
        if not self.config.bf16:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _gather(self, mine_BD: Tensor) -> tuple[Tensor, int]:
        from accelerate.utils import gather

        return gather(mine_BD), self.state.process_index * len(mine_BD)

    def _same(self, captions: list[str]) -> Tensor:
        """Return which captions of all processes are equal, BB."""
        if self.state:
            from accelerate.utils import gather_object

            captions = gather_object(captions)
        number = {caption: k for k, caption in enumerate(dict.fromkeys(captions))}
        place_B = torch.tensor([number[caption] for caption in captions], device=self.device)
        return place_B[:, None] == place_B
