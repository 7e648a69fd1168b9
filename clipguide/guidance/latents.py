"""The table of families of pipelines: how latents become images.

Each entry converts the latents that a scheduler sees into those that the VAE of the pipeline
decodes, as the pipeline's own `__call__` does at its end (diffusers 0.42). tests/test_families.py
compares every family with the images of its pipeline. `register` adds your own pipeline class.

Shapes: B images, F frames, C channels and h x w of latents, packed into L = (h/2)·(w/2) rows of
4·C; 3 channels of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import ClipguideError, UsageError
from ..registry import Registry, of_class


def _of_images(vae: nn.Module, latents_NChw: torch.Tensor) -> torch.Tensor:
    return vae.decode(latents_NChw, return_dict=False)[0] / 2 + 0.5


def _of_single_frames(vae: nn.Module, latents_NChw: torch.Tensor) -> torch.Tensor:
    """Decode the first frame with a VAE of videos. Its cache of earlier frames is not used, because
    a recomputed layer would find it changed. The result is not clipped, because clipped values have
    no gradient."""
    return vae.decoder(vae.post_quant_conv(latents_NChw[:, :, None]))[:, :, 0] / 2 + 0.5


def _of_first_chunks(vae: nn.Module, latents_NChw: torch.Tensor) -> torch.Tensor:
    """Decode like Wan: as for single frames, and unpack pixels that some versions pack into
    channels."""
    latents_NChw = vae.post_quant_conv(latents_NChw[:, :, None])
    image_N3HW = vae.decoder(latents_NChw, first_chunk=True)[:, :, 0]
    if patch := vae.config.get("patch_size"):  # a patch's entries are (channel, column, row)
        packed = image_N3HW.unflatten(1, (-1, patch, patch)).transpose(2, 3)
        image_N3HW = torch.pixel_shuffle(packed.flatten(1, 3), patch)
    return image_N3HW / 2 + 0.5


def _of_paella(vqgan: nn.Module, latents_NChw: torch.Tensor) -> torch.Tensor:
    """Decode like Stable Cascade, whose images are in [0, 1] already."""
    return vqgan.decode(latents_NChw, return_dict=False)[0]


@dataclass(frozen=True)
class Family:
    """A family of pipelines: how their latents become images.

    Args:
        to_vae: a function (latents, VAE, pipeline) that converts the map of latents that `unpack`
            returns, or without `unpack` the latents, to the input of the decoder.
        unpack: a function (latents, (rows, columns) of patches) that makes a map of latents from
            those that the scheduler sees; None if they are such a map already.
        decoder: the name of the pipeline's component that decodes. None: the latents are pixels in
            [-1, 1].
        sized: whether the latents do not show height and width, so that only the pipeline's
            arguments do.
        decode: a function (decoder, its input) that returns image_N3HW, in [0, 1] unless the
            pipeline clips.
        video: whether the pipeline makes the frames of a video.
    """

    to_vae: Callable[[torch.Tensor, nn.Module, object], torch.Tensor]
    unpack: Callable[[torch.Tensor, tuple[int, int] | None], torch.Tensor] | None = None
    decoder: str | None = "vae"
    sized: bool = False
    decode: Callable[[nn.Module, torch.Tensor], torch.Tensor] = _of_images
    video: bool = False


def _scaled(latents: torch.Tensor, vae: nn.Module, pipe: object) -> torch.Tensor:
    return latents / vae.config.scaling_factor


def _shifted(latents: torch.Tensor, vae: nn.Module, pipe: object) -> torch.Tensor:
    return latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)


def _scaled_moments(latents: torch.Tensor, vae: nn.Module, pipe: object) -> torch.Tensor:
    """Unscale like SDXL, with the mean and deviation of each channel if its VAE has them
    (Playground 2.5)."""
    mean, deviation = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is None or deviation is None:
        return _scaled(latents, vae, pipe)
    scale = _each_channel(deviation, latents) / vae.config.scaling_factor
    return latents * scale + _each_channel(mean, latents)


def _moments(latents: torch.Tensor, vae: nn.Module, pipe: object) -> torch.Tensor:
    deviation = _each_channel(vae.config.latents_std, latents)
    return latents * deviation + _each_channel(vae.config.latents_mean, latents)


def _batch_norm(latents: torch.Tensor, vae: nn.Module, pipe: object) -> torch.Tensor:
    """Unscale like FLUX.2: the moments of 4·C channels of patches, then C channels of twice the
    size."""
    variance = vae.bn.running_var + vae.config.batch_norm_eps
    latents = latents * _each_channel(variance.sqrt(), latents)
    latents = latents + _each_channel(vae.bn.running_mean, latents)
    return torch.pixel_shuffle(latents, 2)


def _of_scm(latents: torch.Tensor, vae: nn.Module, pipe: object) -> torch.Tensor:
    return _scaled(latents / pipe.scheduler.config.sigma_data, vae, pipe)


def _by_vqgan(latents: torch.Tensor, vqgan: nn.Module, pipe: object) -> torch.Tensor:
    return latents * vqgan.config.scale_factor


def _as_is(latents: torch.Tensor, vae: nn.Module | None, pipe: object) -> torch.Tensor:
    return latents


def _each_channel(value: object, latents: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(value).to(latents).view(1, -1, 1, 1)


def _rows(latents_BLC: torch.Tensor, grid: tuple[int, int] | None) -> torch.Tensor:
    """Return a map from patches that come row by row."""
    return latents_BLC.mT.unflatten(2, grid)


def _patches(latents_BLC: torch.Tensor, grid: tuple[int, int] | None) -> torch.Tensor:
    """Return a map from patches of 2 x 2. The entries of a patch are (channel, row, column)."""
    return torch.pixel_shuffle(_rows(latents_BLC, grid), 2)


def _frames(latents_BCFhw: torch.Tensor, grid: tuple[int, int] | None) -> torch.Tensor:
    """Return frames as images. Those of a video stand next to each other."""
    return latents_BCFhw.transpose(1, 2).flatten(0, 1)


def _channels_last(latents_B1hwC: torch.Tensor, grid: tuple[int, int] | None) -> torch.Tensor:
    """Return the latents of Kandinsky 5, whose channels come last."""
    return latents_B1hwC[:, 0].movedim(-1, 1)


def _one_frame(latents_BCFhw: torch.Tensor, grid: tuple[int, int] | None) -> torch.Tensor:
    """Return the only frame of a video. Raise ClipguideError if there are more."""
    if latents_BCFhw.shape[2] != 1:
        raise ClipguideError(
            "Videos of this pipeline cannot be steered, for its VAE decodes frames together: draw "
            "one frame (num_frames=1)."
        )
    return latents_BCFhw[:, :, 0]


PLAIN = Family(_scaled)
SDXL = Family(_scaled_moments)
SHIFTED = Family(_shifted)
FLUX = Family(_shifted, _patches, sized=True)
FLUX_2 = Family(_batch_norm, _rows, sized=True)
QWEN = Family(_moments, _patches, sized=True, decode=_of_single_frames)
WAN = Family(_moments, _one_frame, decode=_of_first_chunks)
KANDINSKY = Family(_scaled, _channels_last)
CASCADE = Family(_by_vqgan, decoder="vqgan", decode=_of_paella)
SPRINT = Family(_of_scm)
FRAMES = Family(_scaled, _frames, video=True)
PIXELS = Family(_as_is, decoder=None)

_KINDS = ("", "Img2Img", "Inpaint")
_XL = "StableDiffusionXL"
NAMES = {
    PLAIN: [
        *(f"StableDiffusion{kind}" for kind in _KINDS),
        *(f"StableDiffusionControlNet{kind}" for kind in _KINDS),
        *(f"StableDiffusionPAG{kind}" for kind in _KINDS),
        *(f"StableDiffusionControlNetPAG{kind}" for kind in ("", "Inpaint")),
        *(f"StableDiffusion{kind}" for kind in ("InstructPix2Pix", "Depth2Img", "Adapter")),
        *("LatentConsistencyModel", "LatentConsistencyModelImg2Img"),
        *("PixArtAlpha", "PixArtSigma", "PixArtSigmaPAG", "Sana", "SanaControlNet", "SanaPAG"),
        *("HunyuanDiT", "HunyuanDiTPAG", "HunyuanDiTControlNet"),
        *("AuraFlow", "Kolors", "KolorsImg2Img", "KolorsPAG", "StableDiffusionUpscale"),
        *("CogView3Plus", "CogView4", "CogView4Control"),
        # Unlike their text-to-image pipelines, these use no moments and no shift.
        *(f"{_XL}{kind}" for kind in ("ControlNetInpaint", "ControlNetUnionInpaint", "Adapter")),
        "StableDiffusion3Inpaint",
    ],
    SDXL: [
        *(f"{_XL}{kind}" for kind in (*_KINDS, "InstructPix2Pix")),
        *(f"{_XL}PAG{kind}" for kind in _KINDS),
        *(f"{_XL}ControlNet{kind}" for kind in ("", "Img2Img", "Union", "UnionImg2Img")),
        *(f"{_XL}ControlNetPAG{kind}" for kind in ("", "Img2Img")),
        f"{_XL}Modular",
        "Mini",  # the embedded generator's: clipguide.mini.pipeline
    ],
    SHIFTED: [
        *(f"StableDiffusion3{kind}" for kind in ("", "Img2Img", "PAG", "PAGImg2Img")),
        *(f"StableDiffusion3ControlNet{kind}" for kind in ("", "Inpainting")),
        *(f"ZImage{kind}" for kind in (*_KINDS, "ControlNet", "ControlNetInpaint")),
        *("Lumina2", "StableDiffusion3Modular", "ZImageModular", "HiDreamImage"),
    ],
    FLUX: [
        *(f"Flux{kind}" for kind in (*_KINDS, "Fill", "Kontext", "KontextInpaint")),
        *(f"FluxControl{kind}" for kind in _KINDS),
        *(f"FluxControlNet{kind}" for kind in _KINDS),
        *(f"Chroma{kind}" for kind in _KINDS),
        "FluxModular",
    ],
    FLUX_2: ["Flux2", "Flux2Klein", "Flux2KleinInpaint", "Flux2KleinKV", "Flux2Modular"],
    QWEN: [
        *(f"QwenImage{kind}" for kind in _KINDS),
        *(f"QwenImage{kind}" for kind in ("ControlNet", "ControlNetInpaint")),
        *(f"QwenImageEdit{kind}" for kind in ("", "Inpaint", "Plus")),
        *(f"QwenImage{kind}Modular" for kind in ("", "Edit", "EditPlus")),
    ],
    WAN: ["Wan"],
    KANDINSKY: ["Kandinsky5T2I"],
    CASCADE: ["StableCascadeDecoder"],
    SPRINT: ["SanaSprint", "SanaSprintImg2Img"],
    FRAMES: [
        *(f"AnimateDiff{kind}" for kind in ("", "SDXL", "ControlNet", "SparseControlNet", "PAG")),
        *(f"AnimateDiffVideoToVideo{kind}" for kind in ("", "ControlNet")),
    ],
    PIXELS: ["DDPM", "DDIM"],
}
FAMILIES: Registry[Family] = Registry(
    "family of pipelines",
    {f"{name}Pipeline": entry for entry, names in NAMES.items() for name in names},
)

STAGES = {  # of models in several, those that draw no image, or call what does
    "StableCascadePriorPipeline": "its latents are features, of which no VAE makes an image. Steer "
    "the stage after it, StableCascadeDecoderPipeline",
    "StableCascadeCombinedPipeline": "it calls two pipelines. Call its prior_pipe, then steer its "
    "decoder_pipe, which takes the image_embeddings of that",
}


def register(name: str, *, like: str | Family, replace: bool = False) -> Family:
    """Register a pipeline class under its name.

    Args:
        name: the name of the class: "MyPipeline".
        like: the name of a known class with the same latents, such as "StableDiffusionPipeline"; or
            for latents of another kind a `Family`.
        replace: whether this entry may replace one of the same name.

    Raises:
        UsageError: the name is taken, or `like` is not the name of a known class.
    """
    entry = like if isinstance(like, Family) else FAMILIES.find(like)
    return FAMILIES.register(name, entry, replace=replace)


def family(pipe: object, like: str | None = None) -> Family:
    """Return the family of a pipeline, or that of the class `like`, whose latents it shares.

    Raises:
        UsageError: there is no class `like` in the table.
        ClipguideError: the pipeline's class is not in the table.
    """
    found = of_class(FAMILIES, pipe) if like is None else FAMILIES.find(like)
    if found is not None:
        return found
    name = type(pipe).__name__
    if name in STAGES:
        raise ClipguideError(f"{name} cannot be steered: {STAGES[name]}.")
    if not any(hasattr(pipe, part) for part in ("scheduler", "components", "video_processor")):
        raise UsageError(
            f"A pipeline of diffusers' is steered, not a {name}: load one, as by "
            "DiffusionPipeline.from_pretrained(…), or clipguide.load_pipeline(…)."
        )
    if hasattr(pipe, "video_processor"):
        raise ClipguideError(
            f"{name} makes videos, and of these only AnimateDiff's, whose frames decode one at a "
            "time, and single frames of Wan are steered."
        )
    raise ClipguideError(
        f"{name} cannot be steered: how its latents become an image is known for Stable Diffusion "
        "(1, 2, XL, 3, x4 upscaling), FLUX, FLUX.2, Chroma, Qwen-Image, Z-Image, Sana, PixArt, "
        "Kolors, Hunyuan-DiT, AuraFlow, Lumina 2, CogView4, HiDream, Kandinsky 5, Stable Cascade's "
        "decoder, single frames of Wan, AnimateDiff and plain DDPM and DDIM pipelines. If its "
        "latents are those of one of them, say so: like='StableDiffusionPipeline', or "
        f'clipguide.register_family("{name}", like="StableDiffusionPipeline").'
    )


def check(pipe: object, like: str | None = None) -> Family:
    """Return the family of a pipeline, as `family` does. Raise ClipguideError if the pipeline
    cannot be steered in its present state."""
    found = decodable(pipe, like)
    if getattr(pipe, "scheduler", None) is None:
        raise ClipguideError(
            f"{type(pipe).__name__} has no scheduler, so nothing to steer by."
        )
    return found


def decodable(pipe: object, like: str | None = None) -> Family:
    """Return the family of a pipeline whose latents can be decoded. Raise ClipguideError if its VAE
    is missing."""
    found, name = family(pipe, like), type(pipe).__name__
    if found.decoder is not None and getattr(pipe, found.decoder, None) is None:
        raise ClipguideError(
            f"Steering looks at images, and this {name} has no {found.decoder.upper()}: load one."
        )
    return found
