"""The baseline: the VQGAN+CLIP loop as it was published, written out.

Sources: Crowson et al. 2022, "VQGAN-CLIP", and the earlier notebook "VQGAN+CLIP (z+quantize
method)". The latents z of a VQGAN are rounded to the nearest codes of its codebook, and decoded. A
CLIP encodes cutouts of the image. Adam, with a constant learning rate, minimises the spherical
distance to the prompts. The gradient passes the rounding unchanged. z is clamped to the range of
the codebook in each channel.

Versions differ in the cutouts and in the rate. This is the one with pooling: `updatedpooling` of
generate.py in nerdyrodent/VQGAN-CLIP, with its rate of 0.1 and its 32 cutouts. There a cutout is
the whole image, pooled and then warped. The version of the paper crops instead (a side of
rand^cut_pow between that of the CLIP and that of the image), with a Lanczos filter, 64 times, with
a rate of 0.05 and without warps. The augmentations are those of kornia 0.5, which that repository
used:

- a rotation of ±15° about the centre and a shift of ±0.1 of the side, only up or down (kornia reads
  `translate=0.1` as no shift along x), with the edge repeated outside; with probability 0.7;
- the corners moved inwards by up to 0.35 of the side, on black; with probability 0.7;
- a hue turned by ±0.1 of a turn, and an HSV saturation scaled by 1 ± 0.1; with probability 0.7;
- a black rectangle of 0.1 to 0.4 of the area, the same in all cutouts; with probability 0.7;
- normal noise, whose deviation is uniform in [0, 0.1) for each cutout.

All random numbers come from torch's global generator, except the first codes if they have a
generator. The input of the CLIP is normalised and not clamped.

Shapes: N cutouts, 3 channels, H rows, W columns, s the side of a cutout, D channels of h x w
latents or of an embedding, K codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from clipguide.clip import Clip, clamp_with_gradient

DEGREES, SHIFT, DISTORTION, SATURATION, HUE, NOISE = 15.0, 0.1, 0.7, 0.1, 0.1, 0.1
ERASED = (0.1, 0.4)  # of the area
P = 0.7  # of each augmentation
CORNERS_42 = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


class Classic:
    """The loop: call `step()` as often as you like, then `image()`.

    Args:
        model: a frozen VQModel of diffusers.
        clip: the CLIP that encodes the cutouts, in float32 like the model.
        prompts: texts with weight 1, or (text, weight, stop) as for `prompt_loss`.
        height, width: the size of the image in pixels, multiples of the model's factor.
        cutouts: the number of cutouts in a step.
        lr: the learning rate of Adam.
        generator: for the first codes, on the CPU; the global one if None.
        z: the initial latents_1Dhw, instead of random codes.
    """

    def __init__(
        self,
        model: nn.Module,
        clip: Clip,
        prompts: Sequence[str | tuple[str, float, float]],
        *,
        height: int,
        width: int,
        cutouts: int = 32,
        lr: float = 0.1,
        generator: torch.Generator | None = None,
        z: torch.Tensor | None = None,
    ) -> None:
        self.model, self.clip, self.number = model, clip, cutouts
        parts = [(part, 1.0, -math.inf) if isinstance(part, str) else part for part in prompts]
        self.prompts = [(clip.encode_text([text])[0], *rest) for text, *rest in parts]
        self.codes_KD = model.quantize.embedding.weight.detach()
        self.low_D11, self.high_D11 = (x[:, None, None] for x in self.codes_KD.aminmax(dim=0))
        if z is None:
            factor = 2 ** (len(model.config.block_out_channels) - 1)
            sides = (1, height // factor, width // factor)
            index_1hw = torch.randint(len(self.codes_KD), sides, generator=generator)
            z = self.codes_KD[index_1hw.to(self.codes_KD.device)].movedim(3, 1)
        self.z_1Dhw = z.detach().clone().contiguous().requires_grad_()
        self.adam = torch.optim.Adam([self.z_1Dhw], lr=lr)

    def decode(self) -> torch.Tensor:
        """Return image_13HW in [0, 1]. The gradient of a value outside leads back into the range.
        """
        code_1Dhw = vector_quantize(self.z_1Dhw.movedim(1, 3), self.codes_KD).movedim(3, 1)
        decoded = self.model.decode(code_1Dhw, force_not_quantize=True).sample
        return clamp_with_gradient((decoded + 1) / 2)

    def loss(self, view_N3ss: torch.Tensor) -> torch.Tensor:
        """Return the loss of cutouts, summed over the prompts."""
        features_ND = encode(self.clip, view_N3ss)
        return sum(prompt_loss(features_ND, *prompt) for prompt in self.prompts)

    def step(self) -> torch.Tensor:
        """Take one step. Return the loss before it."""
        self.adam.zero_grad()
        loss = self.loss(cutouts(self.decode(), self.clip.image_size, self.number))
        loss.backward()
        self.adam.step()
        with torch.no_grad():
            self.z_1Dhw.copy_(self.z_1Dhw.maximum(self.low_D11).minimum(self.high_D11))
        return loss.detach()

    @torch.no_grad()
    def image(self) -> torch.Tensor:
        """Return the image_13HW of the present latents, in [0, 1]."""
        return self.decode()


def vector_quantize(latents_1hwD: torch.Tensor, codes_KD: torch.Tensor) -> torch.Tensor:
    """Return the nearest codes, as (1, h, w, D). The gradient passes to the latents unchanged (van
    den Oord et al. 2017, straight through)."""
    square_1hwK = latents_1hwD.square().sum(-1, keepdim=True) + codes_KD.square().sum(1)
    index_1hw = (square_1hwK - 2 * latents_1hwD @ codes_KD.T).argmin(-1)
    return _replaced(codes_KD[index_1hw], latents_1hwD)


def prompt_loss(
    features_ND: torch.Tensor, text_D: torch.Tensor, weight: float = 1.0, stop: float = -math.inf
) -> torch.Tensor:
    """Return |w| · mean over cutouts of sign(w) · 2·asin²(‖u − t‖/2), with unit vectors u and t.

    A value below `stop` counts, but has no gradient.
    """
    chord_N = (F.normalize(features_ND, dim=1) - F.normalize(text_D, dim=0)).norm(dim=1)
    distance_N = math.copysign(1, weight) * 2 * (chord_N / 2).asin().square()
    return abs(weight) * _replaced(distance_N, distance_N.clamp_min(stop)).mean()


def encode(clip: Clip, view_N3ss: torch.Tensor) -> torch.Tensor:
    """Return the features_ND of squares of the CLIP's size. `Clip.encode_image` would clamp them
    first."""
    mean_311, std_311 = (x[:, None, None] for x in (clip._mean_3, clip._std_3))
    return clip._model.encode_image((view_N3ss - mean_311) / std_311)


def cutouts(image_13HW: torch.Tensor, size: int, number: int) -> torch.Tensor:
    """Return view_N3ss: the image pooled to a square, the mean of average and maximum pooling, and
    then augmented, each in its own way."""
    average_13ss = F.adaptive_avg_pool2d(image_13HW, size)
    pooled_13ss = (average_13ss + F.adaptive_max_pool2d(image_13HW, size)) / 2
    view_N3ss = pooled_13ss.expand(number, -1, -1, -1)
    view_N3ss = _warp(view_N3ss, _turned(number), "border")
    view_N3ss = _warp(view_N3ss, _seen_from_aside(number), "zeros")
    view_N3ss = _erase(_jitter(view_N3ss))
    factor_N = NOISE * torch.rand(number).to(view_N3ss)
    return view_N3ss + factor_N[:, None, None, None] * torch.randn_like(view_N3ss)


def _jitter(view_N3ss: torch.Tensor) -> torch.Tensor:
    number = len(view_N3ss)
    some_N = torch.rand(number) < P
    hue_N, gain_N = HUE * _about(number), 1 + SATURATION * _about(number)
    colours = (x_N[some_N].to(view_N3ss) for x_N in (hue_N, gain_N))
    jittered_N3ss = view_N3ss.clone()
    jittered_N3ss[some_N] = recolour(view_N3ss[some_N], *colours)
    return jittered_N3ss


def recolour(
    view_N3ss: torch.Tensor, hue_N: torch.Tensor, saturation_N: torch.Tensor
) -> torch.Tensor:
    """Return views in [0, 1] with their hues turned by shares of a turn, and their saturations
    scaled and at most 1, both of the HSV hexcone (Smith 1978). It does both at once, because
    neither changes the other."""
    most_Nss, brightest_Nss = view_N3ss.max(1)
    chroma_Nss = most_Nss - view_N3ss.amin(1)
    red, green, blue = view_N3ss.unbind(1)
    apart = torch.stack([green - blue, blue - red, red - green], 1)
    apart_Nss = apart.gather(1, brightest_Nss[:, None])[:, 0]
    sixth_Nss = 2 * brightest_Nss + apart_Nss / chroma_Nss.clamp_min(1e-8)
    sixth_Nss = sixth_Nss + 6 * hue_N[:, None, None]
    chroma_Nss = (chroma_Nss * saturation_N[:, None, None]).minimum(most_Nss)
    channels = []
    for start in (5, 3, 1):  # of red, green and blue
        k_Nss = (start + sixth_Nss) % 6
        channels.append(most_Nss - chroma_Nss * k_Nss.minimum(4 - k_Nss).clamp(0, 1))
    return torch.stack(channels, 1)


def _erase(view_N3ss: torch.Tensor) -> torch.Tensor:
    """Return one black rectangle with a height / width of 0.3 to 1, or as often of 1 to 1/0.3, or
    none."""
    if torch.rand([]) >= P:
        return view_N3ss
    size, (least, most) = view_N3ss.shape[-1], ERASED
    area = size**2 * (least + (most - least) * torch.rand([]).item())
    other = 0.3 if torch.rand([]) < 0.5 else 1 / 0.3
    shape = 1 + (other - 1) * torch.rand([]).item()
    height, width = (min(size, round(math.sqrt(x))) for x in (area * shape, area / shape))
    top, left = (int(torch.rand([]) * (size - side + 1)) for side in (height, width))
    black_ss = torch.zeros(size, size, dtype=torch.bool, device=view_N3ss.device)
    black_ss[top : top + height, left : left + width] = True
    return view_N3ss.masked_fill(black_ss, 0)


def _turned(number: int) -> torch.Tensor:
    """Return matrix_N33 from the place where a pixel is shown to the place where it is read, from
    −1 to 1 along the sides."""
    some_N = torch.rand(number) < P
    angle_N = some_N * torch.deg2rad(_about(number) * DEGREES)
    down_N = some_N * _about(number) * 2 * SHIFT
    cos_N, sin_N, zero_N = angle_N.cos(), angle_N.sin(), torch.zeros(number)
    x_N3 = torch.stack([cos_N, -sin_N, sin_N * down_N], 1)
    y_N3 = torch.stack([sin_N, cos_N, -cos_N * down_N], 1)
    return torch.stack([x_N3, y_N3, torch.stack([zero_N, zero_N, zero_N + 1], 1)], 1)


def _seen_from_aside(number: int) -> torch.Tensor:
    """Return the same, for corners that are moved inwards."""
    inward_N42 = DISTORTION * torch.rand(number, 4, 2)
    inward_N42 = inward_N42 * (torch.rand(number) < P)[:, None, None]
    return homography(CORNERS_42 * (1 - inward_N42), CORNERS_42.expand(number, 4, 2))


def homography(from_N42: torch.Tensor, to_N42: torch.Tensor) -> torch.Tensor:
    """Return matrix_N33 that maps four places (x, y) to four others, with a last entry of 1: two
    linear equations for each place (Hartley & Zisserman 2004, section 4.1)."""
    place_N43 = F.pad(from_N42, (0, 1), value=1)
    zero_N43 = torch.zeros_like(place_N43)
    rows = []
    for axis, before in enumerate(([place_N43, zero_N43], [zero_N43, place_N43])):
        rows.append(torch.cat([*before, -to_N42[..., axis, None] * from_N42], 2))
    matrix_N88, right_N8 = torch.cat(rows, 1), to_N42.transpose(1, 2).flatten(1)
    found_N8 = torch.linalg.solve(matrix_N88.double(), right_N8.double()).float()
    return F.pad(found_N8, (0, 1), value=1).unflatten(1, (3, 3))


def _warp(view_N3ss: torch.Tensor, matrix_N33: torch.Tensor, padding: str) -> torch.Tensor:
    """Return each pixel, read bilinearly from where its matrix says."""
    size = view_N3ss.shape[-1]
    place_s = (2 * torch.arange(size, device=view_N3ss.device) + 1) / size - 1
    y_ss, x_ss = torch.meshgrid(place_s, place_s, indexing="ij")
    shown_ss3 = torch.stack([x_ss, y_ss, torch.ones_like(x_ss)], 2).to(view_N3ss)
    read_Nss3 = (shown_ss3.flatten(0, 1) @ matrix_N33.mT.to(view_N3ss)).unflatten(1, (size, size))
    grid_Nss2 = read_Nss3[..., :2] / read_Nss3[..., 2:]
    return F.grid_sample(view_N3ss, grid_Nss2, padding_mode=padding, align_corners=False)


def _about(number: int) -> torch.Tensor:
    """Return uniform numbers in [−1, 1)."""
    return 2 * torch.rand(number) - 1


def _replaced(value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the value, bit for bit, with the gradient of x."""
    return value.detach() + (x - x.detach())
