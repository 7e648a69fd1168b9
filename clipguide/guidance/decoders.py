"""Decode x0 to an image, differentiably: with the pipeline's VAE, a tiny decoder, or a linear map.

Shapes: B samples, N decoded images (N = B·F for videos of F frames), C channels and h x w of
latents, 3 channels of H x W pixels.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ..errors import ClipguideError, ClipguideWarning, UsageError
from . import cost, ladder, linear, memory, tinies
from .clean import Made, clean
from .decoder_names import LADDERED, joined, parsed
from .grid import Grid
from .ladder import Decoding, Plan
from .latents import decodable

BUDGET = 1.2  # × the cost of plain sampling
SMALL = 1e11  # operations of decoding one image that take about a second on any machine


class Decoder:
    """Decode x0 to image_N3HW, about in [0, 1], in float32.

    Use it between `open` and `close`. It makes one clean copy of the decoder at the first use (see
    clean.py). Pipelines with packed latents tell it their height and width, unless `set_size` was
    called.

    Args:
        pipe: a pipeline of a known family.
        kind: "vae" for the VAE of the pipeline, at a level of memory; "tiny" for the decoder of
            `tiny`; "linear" for a linear map that is fitted to the VAE once; "auto" for the VAE if
            its gradient fits the budget and the memory, otherwise a tiny decoder that is on this
            machine, otherwise the linear map; or a function that takes latents as the VAE does and
            returns image_N3HW in [0, 1]. "vae:half" or "tiny:half" sets the level of memory,
            whatever it needs.
        tiny: an AutoencoderTiny for the latents of this family, a folder of one, or "hub", which
            downloads that of the family. A tiny decoder in the cache of the hub is found without
            it.
        budget: the highest cost of sampling with the decoder, as a multiple of plain sampling, for
            "auto"; 1.2 by default.
        memory: the memory in GiB that decoding and its gradient may use besides the weights; by
            default 4, or 80 % of the free memory if that is less.
        like: a known class with the same latents, if the class of the pipeline is not known.

    Attributes:
        kind: the kind of decoder; "auto" until "auto" has chosen.
        name: the kind with its level of memory, as the argument `kind` takes it.
        tiny: the tiny decoder.

    Raises:
        UsageError: an argument is out of range.
        ClipguideError: the family of the pipeline is not known, or it has no VAE.
    """

    def __init__(
        self,
        pipe: object,
        *,
        kind: str | Callable[[torch.Tensor], torch.Tensor] = "auto",
        tiny: nn.Module | str | Path | None = None,
        budget: float | None = None,
        memory: float | None = None,
        like: str | None = None,
    ) -> None:
        self.family = decodable(pipe, like)
        self._function, self._asked, self._rung = None, "function", ""
        if callable(kind):
            self._function = kind
        else:
            self._asked, self._rung = parsed(kind)
        for name, value, least in (("budget", budget, 1), ("memory", memory, 0)):
            if value is not None and not (math.isfinite(value) and value >= least):
                raise UsageError(f"The {name} is a number from {least}, not {value}.")
        if self.family.decoder is None and self._asked in ("linear", "tiny"):
            raise UsageError(
                f"{type(pipe).__name__} draws pixels: there is nothing for decoder={kind!r} to do."
            )
        self._pipe, self._budget, self._memory = pipe, budget or BUDGET, memory
        self.tiny = self._given_tiny = tinies.found(pipe, tiny, needed=self._asked == "tiny")
        self._grid = Grid(pipe, told=self.family.sized)
        self._forget()

    def open(self) -> None:
        """Begin: record height and width if they are needed.

        The live VAE does not change. Its weights keep requires_grad, because PyTorch's kernels of
        linear layers differ in the last bit with it, and the pipeline's own decoding would change.
        """
        self._grid.watch()

    def close(self) -> None:
        """Undo `open`, and release the copies."""
        self._grid.forget()
        self._forget()

    def _forget(self) -> None:
        self._take(self._asked, self._rung)

    @property
    def asked(self) -> tuple[object, ...]:
        """Return everything that the choice depends on, except the free memory; also what is not
        part of the pipeline, the function and the tiny decoder."""
        given = self._function, self._given_tiny
        return self._asked, self._rung, self._budget, self._memory, *given

    def take(self, name: str) -> None:
        """Use an earlier choice until `close`, by its `name`."""
        if self._function is None:
            self._take(*parsed(name))

    def _take(self, kind: str, rung: str) -> None:
        self.kind, self._fixed, self._said = kind, rung, ""
        self.name = joined(kind, rung)
        self._plans: dict[tuple, Plan] = {}
        self._decodings: dict[str, tuple[nn.Module, Decoding]] = {}  # the original, its copy

    def set_size(self, height: int, width: int) -> None:
        """Set the size in pixels of the images of packed latents, until `close`."""
        self._grid.set_size(height, width)

    def __call__(self, x0: torch.Tensor) -> torch.Tensor:
        """Return the image_N3HW of latents as the scheduler sees them, by the chosen decoder."""
        self.choose(x0)
        return self._decode(x0, self.kind)

    def exact(self, x0: torch.Tensor) -> torch.Tensor:
        """Decode by the VAE, whatever the kind. If the kind is not "vae", decode one image at a
        time, without a gradient, and in bfloat16 if the VAE has 16 bits."""
        self.choose(x0)
        if self.kind == "vae" or self.family.decoder is None:
            return self(x0)
        with torch.no_grad():
            half = getattr(self._live, "dtype", None) in (torch.float16, torch.bfloat16)
            return self._by("vae", Plan(single=True, half=half), self._unpacked(x0))

    # --------------------------------------------------------------- the choice
    def choose(self, x0: torch.Tensor) -> str:
        """Choose the decoder, once for each context. Return one line with the choice and its
        reason.

        The choice depends only on sizes, so that it is the same in each run: the operations of the
        VAE's gradient are compared with those of a step of the denoiser, and its memory with the
        limit.
        """
        if not self._said:
            self.name, why = self._settled(x0)
            self._said = f"decoder: {why}"
        return self._said

    def _settled(self, x0: torch.Tensor) -> tuple[str, str]:
        """Return the name of the choice, and its explanation."""
        if self.family.decoder is None:
            self.kind = "vae"
            return self.kind, "none, these latents are pixels"
        if self.kind == "tiny" and self.tiny is None:  # the earlier choice
            self.tiny = tinies.from_hub(self._pipe, download=True)
        if self.kind == "auto":
            why = self._too_expensive(x0)
            if why is not None:
                if self.tiny is None:
                    self.tiny = tinies.from_hub(self._pipe, download=False)
                self.kind = "linear" if self.tiny is None else "tiny"
                return self._named(x0), f"{self.kind}, as the gradient through the vae {why}"
            self.kind = "vae"
        if self.kind not in LADDERED:
            return self.kind, self.kind
        plan = self._plan(x0, self.kind)
        if self._asked == "vae" and not self._fixed and not plan.exact:
            warnings.warn(
                f"The gradient through the VAE is taken {plan}, to need less than "
                f"{self._limit(x0):.1f} GiB. Allow more by memory=…, or take a tiny decoder.",
                ClipguideWarning,
                stacklevel=2,
            )
        return self._named(x0), f"{self.kind} ({plan})"

    def _named(self, x0: torch.Tensor) -> str:
        laddered = self.kind in LADDERED
        return joined(self.kind, self._plan(x0, self.kind).rung if laddered else "")

    def _too_expensive(self, x0: torch.Tensor) -> str | None:
        """Return the reason why the VAE's gradient exceeds the budget or the memory, or None if it
        does not."""
        made, decode = self._made("vae")
        shape = self._shape(x0, "vae")
        once = ladder.operations(made, decode, (1, *shape[1:]))
        step = cost.of_step(self._pipe, tuple(x0.shape))

        def slow(plan: Plan) -> str | None:
            passes = plan.passes(shape[0]) * shape[0]
            worth = cost.worth(self._pipe, passes * once, step, half=plan.half, on=x0.device)
            if once <= SMALL or worth <= self._budget:
                return None
            how = "" if plan == Plan() else f" ({plan}, for want of memory)"
            return f"takes {worth:.1f} x the time of plain sampling{how}"

        if why := slow(Plan()):  # the fastest plan: the others need not be counted
            return why
        plan = self._plan(x0, "vae")
        if why := slow(plan):
            return why
        if ladder.need(made, decode, shape, plan) > self._limit(x0) * memory.GIB:
            return f"needs more than {self._limit(x0):.1f} GiB"
        return None

    def _limit(self, x0: torch.Tensor) -> float:
        """Return the limit in GiB, without the weights."""
        return memory.limit(x0.device) if self._memory is None else self._memory

    def _plan(self, x0: torch.Tensor, kind: str) -> Plan:
        shape = self._shape(x0, kind)
        if (kind, shape) not in self._plans and kind == self.kind and self._fixed:
            self._plans[kind, shape] = ladder.RUNGS[self._fixed]
        if (kind, shape) not in self._plans:
            need = functools.partial(ladder.need, *self._made(kind), shape)
            limit = self._limit(x0) * memory.GIB
            self._plans[kind, shape] = ladder.planned(need, limit, number=shape[0])
        return self._plans[kind, shape]

    def sizes(self, x0: torch.Tensor) -> tuple[int, ...]:
        """Return the shape of the VAE's input for these latents of the scheduler."""
        return self._shape(x0, "vae")

    def spare(self, *, exact: bool) -> bool:
        """Use the next plan from here on, because memory ran out. Return whether there is one. With
        `exact`, take only plans with the same gradient."""
        keys = [key for key in self._plans if key[0] == self.kind]
        if not keys:
            return False
        number, before = keys[-1][1][0], self._plans[keys[-1]]
        plan = ladder.planned(lambda _: 0, math.inf, number=number, after=before)
        if plan is None or (exact and not plan.exact):
            return False
        self._plans.update(dict.fromkeys(keys, plan))
        self.name = joined(self.kind, plan.rung)
        self._said = f"decoder: {self.kind} ({plan}, as memory ran out)"
        return True

    # ------------------------------------------------------------- what decodes
    def _decode(self, x0: torch.Tensor, kind: str) -> torch.Tensor:
        latents = self._unpacked(x0)
        if self.family.decoder is None:
            return latents.float() / 2 + 0.5
        if kind == "function":
            image = self._function(self.family.to_vae(latents, self._live, self._pipe))
            if image.ndim != 4 or image.shape[:2] != (len(latents), 3):
                raise UsageError(
                    "A decoder of one's own returns images of shape (N, 3, height, width), not "
                    f"{tuple(image.shape)}."
                )
            return image.float()
        if kind == "linear":
            return self._map(latents)(latents)
        return self._by(kind, self._plan(x0, kind), latents)

    def _by(self, kind: str, plan: Plan, latents: torch.Tensor) -> torch.Tensor:
        """Decode with the clean copy, which is made at the first use."""
        live = self.tiny if kind == "tiny" else self._live
        original, known = self._decodings.get(kind, (None, None))
        if known is not None and (original is not live or (known.plan.half and not plan.half)):
            known = None  # it is of another VAE, or its weights have lost bits
            del self._decodings[kind]  # before the next is made
        if known is None or known.plan != plan:
            vae = known.vae if known else clean(live, latents.device)
            known = Decoding(vae, self._made(kind)[1], plan)
            self._decodings[kind] = live, known
        if kind == "vae":
            latents = self.family.to_vae(latents, known.vae, self._pipe)
        return known(latents)

    def _map(self, latents: torch.Tensor) -> linear.LinearMap:
        """Return the linear map of the VAE, fitted once for these weights."""

        def fitted() -> linear.LinearMap:
            try:
                return linear.fit(decode, latents.shape[1:], latents.device)
            finally:
                self._decodings.pop("vae", None)

        def decode(latents_NChw: torch.Tensor) -> torch.Tensor:
            return self._by("vae", Plan(single=True), latents_NChw)

        what = self.family, type(self._pipe).__name__
        return linear.kept(self._live, what, tuple(latents.shape[1:]), fitted)

    @property
    def _live(self) -> nn.Module:
        return getattr(self._pipe, self.family.decoder)

    def _made(self, kind: str) -> tuple[Made, ladder.Decode]:
        if kind == "tiny":
            return Made.of(self.tiny), tinies.decode
        return Made.of(self._live), self.family.decode

    # --------------------------------------------------------- sizes and shapes
    def _unpacked(self, x0: torch.Tensor) -> torch.Tensor:
        latents = x0.to(torch.promote_types(x0.dtype, torch.float32))
        unpack = self.family.unpack
        return unpack(latents, self._grid.of(x0)) if unpack else latents

    def _shape(self, x0: torch.Tensor, kind: str) -> tuple[int, ...]:
        """Return the shape of the input of a decoder."""
        latents = self._unpacked(torch.empty(x0.shape, device="meta"))
        if kind == "vae":
            bare = ladder.skeleton(self._made("vae")[0])
            return tuple(self.family.to_vae(latents, bare, self._pipe).shape)
        channels = self.tiny.config.latent_channels
        if channels != latents.shape[1]:
            raise ClipguideError(
                f"The tiny decoder takes latents of {channels} channels, and "
                f"{type(self._pipe).__name__} has {latents.shape[1]}: it is another family's."
            )
        return tuple(latents.shape)
