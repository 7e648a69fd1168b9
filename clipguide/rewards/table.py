"""The rewards that clipguide knows by name, and the table of them in the docs."""

from __future__ import annotations

from . import clips, dino, hpsv3, imagereward, questions, sds
from .registry import REWARDS, Kind

KINDS: dict[str, Kind] = {
    "clip": Kind(
        load=clips.clip,
        gradient=True,
        scores="cosine with the prompt, −1 to 1",
        default="mini",
        where="any name that `--clip` takes",
        size="mini: in the package",
        licence="mini: Apache-2.0",
        source="Radford et al. 2021",
        proof="not compared; tests run mini itself",
    ),
    "siglip2": Kind(
        load=clips.clip,
        gradient=True,
        scores="cosine with the prompt, −1 to 1",
        default="google/siglip2-base-patch16-224",
        where="a SigLIP or SigLIP 2: a folder, or a model id in the cache of the hub",
        size="about 1.5 GB",
        licence="Apache-2.0",
        source="Tschannen et al. 2025",
        proof="transformers",
    ),
    "pickscore": Kind(
        load=clips.pickscore,
        gradient=True,
        scores="human preference, about 20",
        default="yuvalkirstain/PickScore_v1",
        where="a folder, or a model id in the cache of the hub",
        size="3.9 GB",
        licence="weights: not stated; code: MIT",
        source="Kirstain et al. 2023",
        proof="transformers",
    ),
    "hpsv2": Kind(
        load=clips.hpsv2,
        gradient=True,
        scores="human preference, about 0.2 to 0.3",
        default="xswu/HPSv2",
        where="a file, or a model id; after `#`, the open_clip architecture; a pickle needs "
        "`--trust-pickle`",
        size="about 3.9 GB",
        licence="Apache-2.0",
        source="Wu et al. 2023",
        proof="open_clip",
    ),
    "hpsv3": Kind(
        load=hpsv3.hpsv3,
        gradient=False,
        scores="human preference, about 0 to 15",
        default="MizzenAI/HPSv3",
        where="its file in safetensors; after `#`, its Qwen2-VL",
        package="hpsv3",
        install="--no-deps hpsv3",
        size="about 16.6 GB",
        licence="Apache-2.0; Qwen2-VL: Apache-2.0",
        source="Ma et al. 2025",
        proof="transformers",
    ),
    "imagereward": Kind(
        load=imagereward.imagereward,
        gradient=True,
        scores="human preference, about −2 to 2",
        default="THUDM/ImageReward",
        where="a folder with ImageReward.pt and med_config.json, or a model id; after `#`, the "
        "tokenizer of BERT; a pickle needs `--trust-pickle`",
        size="1.8 GB",
        licence="Apache-2.0",
        source="Xu et al. 2023",
        proof="timm, and a BERT in plain PyTorch",
    ),
    "aesthetic": Kind(
        load=clips.aesthetic,
        gradient=True,
        reads=False,
        scores="how good the image looks, about 1 to 10",
        where="a head; after `#`, the CLIP that it was trained on (ViT-L-14/openai if you name "
        "none)",
        size="4 MB, and 1.7 GB for its CLIP",
        licence="LAION's heads: Apache-2.0 (improved), MIT (linear)",
        source="Schuhmann 2022",
        proof="its formula",
    ),
    "vqascore": Kind(
        load=questions.vqascore,
        gradient=False,
        scores="probability of the answer yes, 0 to 1",
        default=questions.MODEL,
        where="an image-text-to-text model of transformers: a folder or a model id",
        size="4.4 GB",
        licence="Apache-2.0",
        source="Lin et al. 2024, eq. 1",
        proof="transformers",
    ),
    "vlm": Kind(
        load=questions.vlm,
        gradient=False,
        scores="P(yes) ÷ (P(yes) + P(no)) for your question, 0 to 1",
        default=questions.MODEL,
        where="the same, or a server: http://ADDRESS/v1#MODEL",
        size="4.4 GB; none for a server",
        licence="Apache-2.0; see the terms of a server",
        source="",
        proof="transformers; a server on the same machine",
    ),
    "dino": Kind(
        load=dino.dino,
        gradient=True,
        reads=False,
        scores="cosine similarity with an image, −1 to 1",
        where="an image; after `#`, a DINOv2 (facebook/dinov2-base if you name none)",
        size="346 MB",
        licence="Apache-2.0",
        source="Oquab et al. 2024",
        proof="transformers",
    ),
    "sds": Kind(
        load=sds.sds,
        gradient=True,
        scores="minus the mean squared difference from what a generator sees in the image",
        default="mini",
        where="a generator with a U-Net: mini, a folder of diffusers, or a model id in the cache "
        "of the hub",
        size="mini: in the package",
        licence="mini: Apache-2.0",
        source="Poole et al. 2023; Zhu et al. 2024",
        proof="its formula",
    ),
}
_COLUMNS = ("name", "score", "gradient", "WHERE, after `=`", "default", "size", "licence", "source",
            "pip install", "compared with")  # fmt: skip


def table() -> str:
    """Return the table of the known rewards, in Markdown."""
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
