"""Move the conditioning of a denoiser with a hook.

Shapes: B samples, ... the rest of the conditioning's shape: L tokens of D channels, or maps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..errors import ClipguideError, UsageError, close_matches
from .digest import digest
from .generators import Given, catch_up, restarted
from .pipe_parts import denoiser
from .precision import rms, widen

NAME = "encoder_hidden_states"  # names in the denoisers of diffusers
MAPS, DRAW = "map_input", "draw_maps"  # names in the embedded generator's pipeline
OF = ("prompt", "null", "maps")


def checked(of: str) -> str:
    """Return the name of a conditioning. Raise UsageError if it is not in OF."""
    if of not in OF:
        raise UsageError(f"There is no embedding {of!r}.{close_matches(of, OF)}")
    return of


class Conditioning:
    """A context that adds `shift` to the embedding of the prompt or of the empty prompt, or to the
    maps of the embedded generator.

    Args:
        pipe: the pipeline. It passes the embeddings to its denoiser by name. With classifier-free
            guidance, those of the empty prompt come first, unless it has `prompt_first`.
        of: "prompt", "null" or "maps".
    """

    def __init__(self, pipe: object, of: str) -> None:
        self._pipe, self.of = pipe, checked(of)
        self.shift: torch.Tensor | None = None  # zeros from the first evaluation on
        self.size_B: torch.Tensor | None = None  # rms of the conditioning
        self._calls = 0  # of the denoiser, since the last step

    def __enter__(self) -> Conditioning:
        model = denoiser(self._pipe)
        if self.of == "maps":
            if not hasattr(self._pipe, MAPS):
                raise ClipguideError(
                    f"{type(self._pipe).__name__} has no maps: use of='prompt' (--of prompt)."
                )
            self._hook = getattr(self._pipe, MAPS).register_forward_hook(self._move_maps)
            setattr(self._pipe, DRAW, Once(getattr(self._pipe, DRAW)))
            return self
        if not isinstance(model, nn.Module):
            raise ClipguideError(f"{type(self._pipe).__name__} has no denoiser to condition.")
        self._hook = model.register_forward_pre_hook(self._move, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()
        if self.of == "maps":
            delattr(self._pipe, DRAW)

    def stepped(self, *, first: bool) -> None:
        """Look at how often the denoiser was called for this step of the scheduler.

        Before the first step of a run, the calls of an earlier gradient count too.

        Raises:
            ClipguideError: more than once: the prompts are evaluated one after the other, and both
                were moved.
        """
        calls, self._calls = self._calls, 0
        if calls > 1 and not first:
            raise ClipguideError(
                f"{type(self._pipe).__name__} evaluates the prompt and the negative prompt one "
                "after the other, so that the embedding of one alone cannot be moved: use "
                "shortcut, or leave out its guidance."
            )

    def forget(self) -> None:
        """Begin anew, as after `__enter__`."""
        self.shift = self.size_B = None

    def _shifted(self, given: torch.Tensor) -> torch.Tensor:
        if self.shift is None:
            self.shift = torch.zeros_like(widen(given), requires_grad=True)
            self.size_B = rms(given.detach())
        return (given + self.shift).to(given.dtype)

    def _move_maps(self, _: nn.Module, __: tuple, maps: torch.Tensor) -> torch.Tensor:
        return self._shifted(maps)

    def _move(self, _: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        embedding, self._calls = kwargs.get(NAME), self._calls + 1
        if getattr(self._pipe, "do_perturbed_attention_guidance", False):
            raise ClipguideError(
                f"The embedding of {type(self._pipe).__name__} has a part for perturbed attention "
                "and cannot be moved: use shortcut, or pag_scale=0."
            )
        guided = bool(getattr(self._pipe, "do_classifier_free_guidance", False))
        if not isinstance(embedding, torch.Tensor) or (self.of == "null" and not guided):
            raise ClipguideError(
                f"{type(self._pipe).__name__} is not called with an embedding that can be moved: "
                "use shortcut, or of='prompt' where there is no classifier-free guidance."
            )
        parts = list(embedding.chunk(2)) if guided and len(embedding) % 2 == 0 else [embedding]
        first = "prompt" if getattr(self._pipe, "prompt_first", False) else "null"
        place = 0 if len(parts) == 1 or self.of == first else 1
        parts[place] = self._shifted(parts[place])
        return args, {**kwargs, NAME: torch.cat(parts)}


class Once:
    """A function that draws from generators, and returns the same result again for the same
    arguments and states, as a run that is repeated asks for."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        self._function = function
        self._known: dict[str, tuple[torch.Tensor, Given]] = {}

    def __call__(
        self, *args: object, generator: Given = None, **settings: object
    ) -> torch.Tensor:
        if generator is None:
            return self._function(*args, generator=None, **settings)
        asked = digest(args, settings, generator)
        if asked not in self._known:
            found = self._function(*args, generator=generator, **settings)
            self._known[asked] = found, restarted(generator)
        found, after = self._known[asked]
        catch_up(generator, after)
        return found
