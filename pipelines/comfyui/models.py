"""Load the models of the nodes, on ComfyUI's device."""

from __future__ import annotations

import functools
import sys

import torch

from clipguide.clip import Clip, load_clip
from clipguide.guidance.guides import VIT_B_32
from clipguide.objectives import Objective, Similarity
from clipguide.rewards import Reward

REWARD = "CLIPGUIDE_REWARD"  # type of a socket
CLIP = ("STRING", {"default": VIT_B_32.name, "tooltip": "of open_clip, a folder, or mini"})


def device() -> str:
    """Return the device that ComfyUI computes on; "cpu" outside ComfyUI."""
    management = sys.modules.get("comfy.model_management")
    return str(management.get_torch_device()) if management else "cpu"


def by_clip(name: str, prompt: str, device: str) -> Similarity:
    """Return the similarity to a prompt, by a CLIP that is loaded once.

    Raises:
        UsageError: the prompt cannot be parsed, or there is no such CLIP.
    """
    # ComfyUI's tensors are inference tensors, which have no gradients
    with torch.inference_mode(False):
        return Similarity(_clip(name, device), prompt)


def by_reward(reward: Reward, prompt: str) -> Objective:
    """Return a loaded reward of another prompt.

    Raises:
        UsageError: the prompt cannot be parsed. A reward that reads no text takes an empty prompt.
    """
    reads = reward.asked.kind.reads
    with torch.inference_mode(False):
        return reward.towards(prompt if reads or prompt.strip() else "an image").load()


@functools.lru_cache(maxsize=2)
def _clip(name: str, device: str) -> Clip:
    """Load a CLIP. Two are cached, one to steer and one to score, so that another prompt loads
    nothing."""
    return load_clip(name, device=device)
