"""Move the conditioning of a denoiser with a hook.

Shapes: B samples, L tokens, D the width of the embedding.
"""

from __future__ import annotations

import torch
from torch import nn

from ..errors import ClipguideError
from .pipe_parts import denoiser
from .precision import rms, widen

NAME = "encoder_hidden_states"  # names in the denoisers of diffusers


class Conditioning:
    """A context that adds `shift_BLD` to the embedding of the prompt, or of the empty prompt.

    Args:
        pipe: the pipeline. It passes the embeddings to its denoiser by name. With classifier-free
            guidance, those of the empty prompt come first.
        of: "prompt" or "null".
    """

    def __init__(self, pipe: object, of: str) -> None:
        self._pipe, self.of = pipe, of
        self.shift_BLD: torch.Tensor | None = None
        self.size_B: torch.Tensor | None = None  # rms of the embedding

    def __enter__(self) -> Conditioning:
        model = denoiser(self._pipe)
        if not isinstance(model, nn.Module):
            raise ClipguideError(f"{type(self._pipe).__name__} has no denoiser to condition.")
        self._hook = model.register_forward_pre_hook(self._move, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _move(self, _: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        embedding = kwargs.get(NAME)
        guided = bool(getattr(self._pipe, "do_classifier_free_guidance", False))
        if not isinstance(embedding, torch.Tensor) or (self.of == "null" and not guided):
            raise ClipguideError(
                f"{type(self._pipe).__name__} is not called with an embedding that can be moved: "
                "use shortcut, or of='prompt' where there is no classifier-free guidance."
            )
        parts = list(embedding.chunk(2)) if guided and len(embedding) % 2 == 0 else [embedding]
        place = 0 if self.of == "null" else len(parts) - 1
        if self.shift_BLD is None:
            self.shift_BLD = torch.zeros_like(widen(parts[place]), requires_grad=True)
            self.size_B = rms(parts[place].detach())
        parts[place] = (parts[place] + self.shift_BLD).to(embedding.dtype)
        return args, {**kwargs, NAME: torch.cat(parts)}
