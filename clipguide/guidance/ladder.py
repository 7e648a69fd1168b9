"""Compute the gradient of a decoder within a limit of memory: plans, the fastest first.

Each level needs less memory than the one before. It takes more time, or is less exact:

1. the whole batch at once;
2. one image (or frame) at a time, which is decoded again for its own gradient;
3. layers of the decoder are recomputed instead of kept (Chen et al. 2016), one ResNet block at a
   time;
4. in bfloat16;
5. in 2 x 2, 4 x 4 or 8 x 8 tiles, which overlap and are blended.

The first three return the same gradient, except for rounding. The memory of a plan is known before
it runs: the decoder runs forward and backward once on "meta", where tensors have sizes but no
values. The storage that exists at one time is counted, with the temporary buffers of convolutions.

Shapes: N images, C channels and h x w of latents, 3 channels of H x W pixels.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from .clean import Made
from .precision import without_autocast

Decode = Callable[[nn.Module, torch.Tensor], torch.Tensor]  # (VAE, latents) -> image_N3HW

OVERLAP = 4  # a tile reaches a quarter of its side into its neighbours
RIM = 4  # a quarter of that, at its edge, has the weight 0
SMALLEST = 8  # latents to a side of a tile, before it overlaps
recomputed = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


@dataclass(frozen=True)
class Plan:
    """One level of memory. `single`: one image at a time. `layers`: layers are recomputed. `half`:
    in bfloat16. `tiles`: the number of tiles per side."""

    single: bool = False
    layers: bool = False
    half: bool = False
    tiles: int = 1

    @property
    def rung(self) -> str:
        """Return its name in RUNGS."""
        return next(name for name, plan in RUNGS.items() if plan == self)

    @property
    def exact(self) -> bool:
        """Return whether the gradient is the whole decoder's, but for rounding in float32."""
        return not self.half and self.tiles == 1

    def passes(self, number: int) -> int:
        """Return the cost of a gradient in decodings; going back counts as one."""
        again = (self.single and number > 1) or self.tiles > 1
        return 2 + self.layers + again

    def __str__(self) -> str:
        words = [
            "one image at a time" * self.single,
            "layers recomputed" * self.layers,
            "in bfloat16" * self.half,
            f"in {self.tiles} x {self.tiles} tiles" * (self.tiles > 1),
        ]
        return ", ".join(filter(None, words)) or "whole"


RUNGS = {
    "whole": Plan(),
    "single": Plan(single=True),
    "layers": Plan(single=True, layers=True),
    "half": Plan(single=True, layers=True, half=True),
    **{
        f"tiles{tiles}": Plan(single=True, layers=True, half=True, tiles=tiles)
        for tiles in (2, 4, 8)
    },
}
PLANS = tuple(RUNGS.values())


def planned(
    need: Callable[[Plan], int], limit: float, *, number: int, after: Plan | None = None
) -> Plan | None:
    """Return the first plan whose need in bytes is within the limit; those after `after` where one
    failed; the last one if none is; None if there is none left."""
    plans = PLANS if after is None else PLANS[PLANS.index(after) + 1 :]
    plans = [plan for plan in plans if number > 1 or plan != PLANS[1]]  # one image is single
    return next((plan for plan in plans if need(plan) <= limit), plans[-1] if plans else None)


class Decoding:
    """A VAE and its `decode`, run by a plan.

    Args:
        vae: a new module (see clean.py). Its dtype and the way its parts run are set here.
        decode: takes the VAE and latents, and returns image_N3HW. Images do not depend on each
            other.
        plan: the level of memory.
    """

    def __init__(self, vae: nn.Module, decode: Decode, plan: Plan) -> None:
        self.vae, self.plan, self._decode = vae, plan, decode
        self.dtype = torch.bfloat16 if plan.half else next(vae.parameters()).dtype
        if plan.half:
            nn.Module.to(vae, torch.bfloat16)  # diffusers' own decoding would warn
        for layer in layers(vae):
            layer.__dict__.pop("forward", None)
            if plan.layers:
                layer.forward = functools.partial(recomputed, layer.forward)

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Return image_N3HW in float32. Autocast of the caller is off."""
        with without_autocast(latents.device):
            latents = latents.to(self.dtype)
            if not self.plan.single:
                return self._decode(self.vae, latents).float()
            return torch.cat([self._one(one[None], len(latents)) for one in latents])

    def _one(self, latents: torch.Tensor, number: int) -> torch.Tensor:
        if self.plan.tiles > 1:
            return tiled(self._part, latents, self.plan.tiles)
        return self._part(latents) if number > 1 else self._decode(self.vae, latents).float()

    def _part(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode a part now, and again for its gradient. Nothing of it is kept in between."""
        if not (torch.is_grad_enabled() and latents.requires_grad):
            return self._decode(self.vae, latents).float()
        return recomputed(lambda latents: self._decode(self.vae, latents).float(), latents)


def layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts that are recomputed as one: the largest parts of a decoder that are not lists
    of such parts. A module is divided if it has a list of modules that have parts themselves, such
    as ResNet blocks. The class of the decoder does not matter."""
    for child in module.children():
        lists = (nn.ModuleList, nn.Sequential)
        listing = [child] if isinstance(child, lists) else child.children()
        listing = [each for each in listing if isinstance(each, lists)]
        if any(_has_parts(part) for each in listing for part in each):
            yield from layers(child)
        elif isinstance(child, nn.ModuleList) or not _has_parts(child):
            continue  # a convolution alone keeps little, and lists are not called
        else:
            yield child


def _has_parts(module: nn.Module | None) -> bool:
    return module is not None and next(module.children(), None) is not None


def tiled(decode: Callable, latents: torch.Tensor, tiles: int) -> torch.Tensor:
    """Decode in overlapping tiles, which are blended. Inside a decoder of convolutions only, the
    result equals `decode` of the whole, if the convolutions reach less far than the rim of a tile.
    """
    height, width = latents.shape[-2:]
    total = weight = 0.0
    for top, bottom in _spans(height, tiles):
        for left, right in _spans(width, tiles):
            image = decode(latents[..., top:bottom, left:right])
            scale = image.shape[-1] // (right - left)
            down = _ramp(top, bottom, height, tiles, scale).to(image)
            along = _ramp(left, right, width, tiles, scale).to(image)
            share = down[:, None] * along
            sides = [left, width - right, top, height - bottom]
            pad = [side * scale for side in sides]
            total = total + nn.functional.pad(image * share, pad)
            weight = weight + nn.functional.pad(share, pad)
    return total / weight


def _spans(side: int, tiles: int) -> list[tuple[int, int]]:
    """Return the start and the end of the tiles in latents, including the overlap."""
    step, reach = _step(side, tiles)
    starts = range(0, side, step)
    return [(max(start - reach, 0), min(start + step + reach, side)) for start in starts]


def _step(side: int, tiles: int) -> tuple[int, int]:
    """Return the distance between tiles in latents, and the length of the overlap."""
    step = max(-(-side // tiles), SMALLEST)
    return step, max(step // OVERLAP, 1)


def _ramp(start: int, stop: int, side: int, tiles: int, scale: int) -> torch.Tensor:
    """Return the weights of a tile's pixels along a side. They are 1 inside. At an edge that is not
    one of the image, they are 0 in the rim, and rise over the rest of the overlap."""
    _, reach = _step(side, tiles)
    rim = reach // RIM
    place = (torch.arange((stop - start) * scale) + 0.5) / scale
    ramp = torch.ones_like(place)
    rise = 2 * (reach - rim)  # centred on the seam
    if start > 0:
        ramp = ramp * ((place - rim) / rise).clamp(0, 1)
    if stop < side:
        ramp = ramp * ((stop - start - place - rim) / rise).clamp(0, 1)
    return ramp


# ------------------------------------------------------------------ what a plan needs
@functools.lru_cache(maxsize=256)
def need(made: Made, decode: Decode, shape: tuple[int, ...], plan: Plan) -> int:
    """Return the most bytes that a gradient by this plan takes at once, beside weights.

    Args:
        made: that of the VAE.
        decode: as for `Decoding`.
        shape: the shape of the latents that `decode` takes.
        plan: the rung. Passes that run one after the other count once, with their results: images,
            and for tiles also their sum, its weights and the tile that is added.
    """
    if not plan.single:
        return _run(made, decode, shape, plan)[0]
    height, width = shape[-2:]
    tall, wide = (max(b - a for a, b in _spans(side, plan.tiles)) for side in (height, width))
    one = (1, *shape[1:-2], tall, wide)
    most, image = _run(made, decode, one, replace(plan, single=False, tiles=1))
    whole = image * height * width // (tall * wide)
    return most + (2 * shape[0] * whole) * (shape[0] > 1) + 4 * whole * (plan.tiles > 1)


@functools.lru_cache(maxsize=256)
def operations(made: Made, decode: Decode, shape: tuple[int, ...]) -> int:
    """Return the floating point operations of decoding latents of this shape once."""
    with torch.inference_mode(False), torch.no_grad(), FlopCounterMode(display=False) as counter:
        decode(skeleton(made), torch.empty(shape, device="meta"))
    return counter.get_total_flops()


def forward(made: Made, decode: Decode, shape: tuple[int, ...]) -> int:
    """Return the largest number of bytes that decoding without a gradient needs at one time,
    besides the weights."""
    with torch.inference_mode(False), torch.no_grad(), Alive() as alive:
        decode(skeleton(made), torch.empty(shape, device="meta"))
    return alive.most


@functools.lru_cache(maxsize=4)
def skeleton(made: Made) -> nn.Module:
    """Return a bare VAE to count on."""
    return made.bare()


def _run(made: Made, decode: Decode, shape: tuple[int, ...], plan: Plan) -> tuple[int, int]:
    """Return the largest number of live bytes, forward and backward, and the bytes of the images.
    """
    with torch.inference_mode(False), torch.enable_grad():
        decoding = Decoding(made.bare(), decode, plan)
        latents = torch.empty(shape, device="meta", requires_grad=True)
        with Alive() as alive:
            image_N3HW = decoding(latents)
            torch.autograd.grad(image_N3HW.sum(), latents)
    return alive.most, image_N3HW.nbytes


class Alive(TorchDispatchMode):
    """Count the bytes of live storage that operations allocate. `most` is the largest number at
    once, including the temporary memory of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        if function is torch.ops.aten.convolution.default:
            self.most = max(self.most, self.now + _scratch(*args[:2], args[6], out))
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _scratch(x: torch.Tensor, weight: torch.Tensor, transposed: bool, out: torch.Tensor) -> int:
    """Return the bytes that a convolution needs in addition to its tensors. These are the buffers
    of oneDNN, as measured: it reorders its input by blocks of channels, and for a transposed
    convolution its output. In 16 bits it adds up in float32 if the kernel has a single place."""
    half, single = x.element_size() == 2, math.prod(weight.shape[2:]) == 1
    if not transposed:
        return x.nbytes * (2 if half and single else 1)
    if not half:
        return max(x.nbytes, out.nbytes)
    return x.nbytes + out.nbytes * (2 if single else 1)
