"""The rewards that clipguide knows by name, and the table of them in the docs."""

from __future__ import annotations

from . import clips, dino, hpsv3, imagereward, questions
from .registry import REWARDS, Kind

RANDOM = "random weights of its architecture, against {}"
NEVER = "; never run with its weights"

KINDS: dict[str, Kind] = {
    "clip": Kind(
        load=clips.clip,
        gradient=True,
        scores="cosine with the prompt, −1 to 1",
        default="mini",
        where="any CLIP, as `load_clip` names it",
        size="mini: in the package",
        licence="mini: Apache-2.0",
        source="Radford et al. 2021",
        proof="the embedded weights",
    ),
    "siglip2": Kind(
        load=clips.clip,
        gradient=True,
        scores="cosine with the prompt, −1 to 1",
        default="google/siglip2-base-patch16-224",
        where="a SigLIP or SigLIP 2: a folder, or the hub's name of one in its cache",
        size="1.5 GB (counted)",
        licence="Apache-2.0",
        source="Tschannen et al. 2025",
        proof=RANDOM.format("transformers") + NEVER,
    ),
    "pickscore": Kind(
        load=clips.pickscore,
        gradient=True,
        scores="people's choice, about 20",
        default="yuvalkirstain/PickScore_v1",
        where="its folder, or the hub's name where it is in its cache",
        size="3.9 GB",
        licence="its card names none; its code: MIT",
        source="Kirstain et al. 2023",
        proof=RANDOM.format("transformers") + NEVER,
    ),
    "hpsv2": Kind(
        load=clips.hpsv2,
        gradient=True,
        scores="people's choice, about 0.2 to 0.3",
        default="xswu/HPSv2",
        where="its state dict, and behind a # its open_clip architecture; a pickle needs trust",
        size="3.9 GB (of a copy)",
        licence="Apache-2.0",
        source="Wu et al. 2023",
        proof=RANDOM.format("open_clip") + NEVER,
    ),
    "hpsv3": Kind(
        load=hpsv3.hpsv3,
        gradient=False,
        scores="people's choice, about 0 to 15",
        default="MizzenAI/HPSv3",
        where="its safetensors, and behind a # its Qwen2-VL",
        package="hpsv3",
        install="--no-deps hpsv3",
        size="16.6 GB (not looked up)",
        licence="Apache-2.0; Qwen2-VL: Apache-2.0",
        source="Ma et al. 2025",
        proof="loaded as published" + NEVER + "; " + RANDOM.format("transformers"),
    ),
    "imagereward": Kind(
        load=imagereward.imagereward,
        gradient=True,
        scores="people's choice, about −2 to 2",
        default="THUDM/ImageReward",
        where="a folder of ImageReward.pt and med_config.json, and behind a # BERT's tokenizer; a "
        "pickle needs trust",
        size="1.8 GB",
        licence="Apache-2.0",
        source="Xu et al. 2023",
        proof=RANDOM.format("timm and a BERT of plain torch") + NEVER,
    ),
    "aesthetic": Kind(
        load=clips.aesthetic,
        gradient=True,
        reads=False,
        scores="how good it looks, about 1 to 10",
        where="a head, and behind a # the CLIP that it was trained on (ViT-L-14/openai)",
        size="4 MB, and 1.7 GB of its CLIP",
        licence="LAION's heads: Apache-2.0 (improved), MIT (linear)",
        source="Schuhmann 2022",
        proof=RANDOM.format("its formula") + NEVER,
    ),
    "vqascore": Kind(
        load=questions.vqascore,
        gradient=False,
        scores='P("Yes") to "Does this figure show …?", 0 to 1',
        default=questions.MODEL,
        where="an image-text-to-text model of transformers",
        size="4.4 GB",
        licence="Apache-2.0",
        source="Lin et al. 2024, eq. 1",
        proof=RANDOM.format("transformers") + NEVER,
    ),
    "vlm": Kind(
        load=questions.vlm,
        gradient=False,
        scores="P(yes) ÷ (P(yes) + P(no)) to a question of yours, 0 to 1",
        default=questions.MODEL,
        where="an image-text-to-text model of transformers, or http://ADDRESS/v1#MODEL",
        size="4.4 GB; an address: none",
        licence="Apache-2.0; an address: its own",
        source="",
        proof=RANDOM.format("transformers") + "; a server on this machine" + NEVER,
    ),
    "dino": Kind(
        load=dino.dino,
        gradient=True,
        reads=False,
        scores="likeness to an image, −1 to 1",
        where="an image, and behind a # a DINOv2 (facebook/dinov2-base)",
        size="346 MB",
        licence="Apache-2.0",
        source="Oquab et al. 2024",
        proof=RANDOM.format("transformers") + NEVER,
    ),
}
_COLUMNS = ("name", "score", "gradient", "behind the =", "default", "size", "licence", "source",
            "pip install", "tested with")  # fmt: skip


def table() -> str:
    """The known rewards as a table of Markdown."""
    rows = [_COLUMNS, ("---",) * len(_COLUMNS)]
    for name, kind in REWARDS.items():
        rows.append(
            (
                f"`{name}`",
                kind.scores,
                "yes" if kind.gradient else "no",
                kind.where,
                f"`{kind.default}`" if kind.default else "",
                kind.size,
                kind.licence,
                kind.source,
                f"`{kind.install}`" if kind.install else "",
                kind.proof,
            )
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
