"""A node pack for ComfyUI: steer by a CLIP or a reward, score images, rank them, find a seed.

Install clipguide in ComfyUI's Python, and copy or link this folder into ComfyUI/custom_nodes.
"""

from __future__ import annotations

from .scoring import BestSeed, LoadReward, RankImages, ScoreImages
from .steering import SteerByClip, SteerByReward

NODE_CLASS_MAPPINGS = {
    "ClipguideSteer": SteerByClip,
    "ClipguideSteerByReward": SteerByReward,
    "ClipguideLoadReward": LoadReward,
    "ClipguideScoreImages": ScoreImages,
    "ClipguideRankImages": RankImages,
    "ClipguideBestSeed": BestSeed,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "ClipguideSteer": "Steer by CLIP",
    "ClipguideSteerByReward": "Steer by reward",
    "ClipguideLoadReward": "Load reward",
    "ClipguideScoreImages": "Score images",
    "ClipguideRankImages": "Rank images",
    "ClipguideBestSeed": "Best seed",
}


async def comfy_entrypoint():
    """Return the same nodes as an extension of ComfyUI's V3 interface.

    Only a ComfyUI that has this interface calls it, so `comfy_api` is imported here. A loader that
    finds the mappings above uses them instead.
    """
    from .v3 import Extension

    return Extension(NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS)
