"""x0 to image, differentiable: by the pipeline's own VAE, a linear map, or a tiny decoder.

Shapes: B samples, N decoded images (N = B·F for videos of F frames), C channels and h x w of
latents, 3 channels of H x W pixels.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from pathlib import Path

import torch
from torch import nn

from ..errors import ClipguideError, UsageError, close_matches, reason
from ..objectives import Generators, Objective
from . import linear
from .latents import family

KINDS = ("vae", "linear", "tiny", "auto")
WORTH = 0.7  # of what the VAE's own gradient does


class Decoder:
    """x0 to image_N3HW, about in [0, 1], in float32.

    `freeze` and `thaw` bracket its use; between them pipelines of packed latents tell it their
    height and width, where `hear` has not.

    Args:
        pipe: a pipeline of the table of families.
        kind: "vae", the pipeline's own, or a float32 copy of it where that is in half precision or
            comes and goes between devices; "linear", a map fitted to it at the first call (see
            linear.py); "tiny", of `tiny`; "auto", the VAE until `choose` picks.
        tiny: an AutoencoderTiny for this family's latents, or a local folder of one.
    """

    def __init__(
        self, pipe: object, *, kind: str = "vae", tiny: nn.Module | str | Path | None = None
    ) -> None:
        if kind not in KINDS:
            raise UsageError(f"There is no decoder {kind!r}.{close_matches(kind, KINDS)}")
        if kind == "tiny" and tiny is None:
            raise UsageError(
                "The tiny decoder needs `tiny` (--tiny): an AutoencoderTiny, or a folder of one."
            )
        self.family, self.kind = family(pipe), kind
        if self.family.decoder is None and kind in ("linear", "tiny"):
            raise UsageError(
                f"{type(pipe).__name__} draws pixels: there is nothing for decoder={kind!r} to do."
            )
        self._pipe = pipe
        self._tiny = load_tiny(tiny) if isinstance(tiny, (str, Path)) else tiny
        self._source, self._vae, self._map = None, None, None
        self._size: tuple[int, int] | None = None
        self._undo = None

    def freeze(self) -> None:
        """Listen for height and width, where they are needed.

        The VAE's weights stay as trainable as they are: PyTorch's kernels for linear layers differ
        in the last bit between weights that are and are not, so that the pipeline's own decoding
        would change. A gradient with respect to x0 alone costs no gradients of weights anyway.
        """
        if self.family.sized and self._size is None:
            self._undo = _listen(self._pipe, self.hear)

    def thaw(self) -> None:
        """Undo `freeze`."""
        if self._undo is not None:
            self._undo()
        self._undo, self._size = None, None

    def hear(self, height: int, width: int) -> None:
        """The size in pixels of what packed latents decode to, until `thaw`."""
        self._size = int(height), int(width)

    def __call__(self, x0: torch.Tensor) -> torch.Tensor:
        """image_N3HW of latents as the scheduler sees them."""
        return self._decode(x0, self.kind)

    def exact(self, x0: torch.Tensor) -> torch.Tensor:
        """The same by the VAE, whatever the kind."""
        return self._decode(x0, "vae")

    def choose(
        self, x0: torch.Tensor, objective: Objective, generators: Generators, step_size: float
    ) -> str:
        """Become the cheapest kind whose gradient is worth a step; a sentence that says why.

        Each kind's gradient moves x0 by step_size · rms(x0), and the real VAE says what that does
        to the objective: a kind must lower it, in the mean over the batch, by at least 70 % of what
        the VAE's own gradient does. The generators are left as they were.
        """
        if self.family.decoder is None:
            self.kind = "vae"
            return "decoder: none, these latents are pixels."
        kinds = ["linear"] + ["tiny"] * (self._tiny is not None)
        trial = functools.partial(self._gain, x0, objective, generators, step_size)
        own = trial("vae")
        seen = []
        for self.kind in kinds:
            share = trial(self.kind) / own if own > 0 else 0.0
            seen.append(f"{self.kind} {share:.0%}")
            if share >= WORTH:
                break
        else:
            self.kind = "vae"
        return f"decoder: {self.kind}; of the gain of the VAE's gradient: {', '.join(seen)}."

    def _gain(
        self,
        x0: torch.Tensor,
        objective: Objective,
        generators: Generators,
        step_size: float,
        kind: str,
    ) -> float:
        """How much lower the objective is, by the VAE, after a step along this kind's gradient."""
        states = [generator.get_state() for generator in generators]

        def loss(x0: torch.Tensor, kind: str) -> torch.Tensor:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            image_N3HW = self._decode(x0, kind)
            frames = len(image_N3HW) // len(x0)
            return objective(image_N3HW, [g for g in generators for _ in range(frames)]).sum()

        try:
            with torch.inference_mode(False), torch.enable_grad():
                leaf = x0.detach().clone().float().requires_grad_()
                (gradient,) = torch.autograd.grad(loss(leaf, kind), leaf)
            with torch.no_grad():
                factor_B = step_size * _rms(x0) / _rms(gradient).clamp_min(1e-30)
                moved = x0 - factor_B.view(-1, *[1] * (x0.ndim - 1)) * gradient
                return float(loss(x0, "vae") - loss(moved, "vae"))
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)

    def _decode(self, x0: torch.Tensor, kind: str) -> torch.Tensor:
        unpack = self.family.unpack
        latents = x0.to(torch.promote_types(x0.dtype, torch.float32))
        if unpack:
            latents = unpack(latents, self._grid(x0))
        if kind == "tiny":
            return self._by_tiny(latents)
        if kind == "linear":
            if self._map is None:
                self._map = linear.fit(self._by_vae, latents.shape[1:], latents.device)
            return self._map(latents)
        return self._by_vae(latents)

    def _by_vae(self, latents_NChw: torch.Tensor) -> torch.Tensor:
        vae = self._own_vae()
        if vae is None:
            return latents_NChw / 2 + 0.5
        if vae is not getattr(self._pipe, self.family.decoder):
            vae.to(latents_NChw.device)
        latents_NChw = latents_NChw.to(vae.dtype)  # float64 stays
        latents_NChw = self.family.to_vae(latents_NChw, vae, self._pipe)
        if self.family.still:
            image_N3HW = vae.decode(latents_NChw[:, :, None], return_dict=False)[0][:, :, 0]
        else:
            image_N3HW = vae.decode(latents_NChw, return_dict=False)[0]
        return (image_N3HW / 2 + 0.5).float()

    def _by_tiny(self, latents_NChw: torch.Tensor) -> torch.Tensor:
        tiny = self._tiny.to(latents_NChw.device)
        if tiny.config.latent_channels != latents_NChw.shape[1]:
            raise ClipguideError(
                f"The tiny decoder takes latents of {tiny.config.latent_channels} channels, and "
                f"{type(self._pipe).__name__} has {latents_NChw.shape[1]}: it is another family's."
            )
        latents_NChw = latents_NChw.to(tiny.dtype) / tiny.config.get("scaling_factor", 1.0)
        latents_NChw = latents_NChw + (tiny.config.get("shift_factor") or 0.0)
        return tiny.decode(latents_NChw, return_dict=False)[0].float() / 2 + 0.5

    def _own_vae(self) -> nn.Module | None:
        """The pipeline's VAE, or a float32 copy, made once, that stays where the latents are."""
        if self.family.decoder is None:
            return None
        vae = getattr(self._pipe, self.family.decoder)
        if self._source is not vae:
            self._source, self._map = vae, None
            if vae.dtype.itemsize >= 4 and not hasattr(vae, "_hf_hook"):
                self._vae = vae
            else:
                self._vae = _without_hooks(copy.deepcopy(vae)).float().requires_grad_(False)
        return self._vae

    def _grid(self, x0: torch.Tensor) -> tuple[int, int] | None:
        """Rows and columns of patches in packed latents; a square if the pipeline did not say."""
        if not self.family.sized:
            return None
        length = x0.shape[1]
        if self._size is None:
            rows = columns = math.isqrt(length)
        else:
            rows, columns = (side // (2 * self._pipe.vae_scale_factor) for side in self._size)
        if rows * columns != length:
            raise ClipguideError(
                f"{type(self._pipe).__name__} did not say the height and width of its {length} "
                "patches: steer it through its own __call__."
            )
        return rows, columns


def _listen(pipe: object, hear) -> object:
    """Tell `hear` the height and width that the pipeline prepares its latents for; how to undo."""
    if not hasattr(pipe, "prepare_latents"):
        raise ClipguideError(
            f"{type(pipe).__name__} does not say the height and width of its packed latents: put "
            "its blocks through clipguide.pipelines.modular.steered."
        )
    original, own = pipe.prepare_latents, pipe.__dict__.get("prepare_latents")
    signature = inspect.signature(original)

    @functools.wraps(original)
    def prepare_latents(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        hear(given["height"], given["width"])
        return original(*args, **kwargs)

    def undo() -> None:
        del pipe.prepare_latents
        if own is not None:
            pipe.prepare_latents = own

    pipe.prepare_latents = prepare_latents
    return undo


def _without_hooks(vae: nn.Module) -> nn.Module:
    """A copy of an offloaded VAE, whole again."""
    if hasattr(vae, "_hf_hook") or any(hasattr(module, "_hf_hook") for module in vae.modules()):
        from accelerate.hooks import remove_hook_from_module

        remove_hook_from_module(vae, recurse=True)
    return vae


def load_tiny(folder: str | Path) -> nn.Module:
    """An AutoencoderTiny. UsageError if `folder` holds none, ClipguideError if it is damaged."""
    from diffusers import AutoencoderTiny

    if not (Path(folder) / "config.json").is_file():
        raise UsageError(f"{folder} is no folder of a tiny decoder: it has no config.json.")
    try:
        return AutoencoderTiny.from_pretrained(folder, use_safetensors=True).eval()
    except Exception as error:  # diffusers, safetensors and json each raise their own
        why = reason(error)
        raise ClipguideError(f"The tiny decoder {folder} cannot be loaded: {why}.") from error


def _rms(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).square().mean(1).sqrt()
