"""The reader of the embedded generator's maps: an image to the map that the U-Net draws from.

The maps of the training data have principal components of the features of ImageNet's
EfficientNet-Lite0, which is not in the package. The guide's trunk is a fine-tuned one, so a linear
map of its features returns nearly the same numbers. `training.reader` fits it.

Shapes: B images, 3 channels, H rows, W columns, F features, C components, K channels of a map, h
rows and w columns of cells.
"""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from . import FOLDER, check, path

SIZE = 128  # pixels that the trunk sees
SIDE = 4  # cells in a side of a map
STRIDE = 16  # of the features
WEIGHTS = "model.safetensors"


class MapReader(nn.Module):
    """Return the map of an image: C components of features, and the colours of each quarter of a
    cell.

    Args:
        trunk: a timm model that returns features_BFhw at stride 16, in a list.
        features: F.
        components: C.
    """

    def __init__(self, trunk: nn.Module, features: int = 112, components: int = 16) -> None:
        super().__init__()
        self.trunk = trunk
        self.linear = nn.Conv2d(features, components, 1)
        self.register_buffer("colour_mean", torch.zeros(12))
        self.register_buffer("colour_deviation", torch.ones(12))

    def features(self, image_B3HW: Tensor) -> Tensor:
        """Return the features_BF44 of the cells of images in [0, 1], of any size."""
        seen = F.interpolate(image_B3HW, (SIZE, SIZE), mode="bilinear", antialias=True)
        return F.adaptive_avg_pool2d(self.trunk(seen * 2 - 1)[0], SIDE)

    @torch.no_grad()
    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Return the maps_BK44 of images in [0, 1], of any size."""
        mean, deviation = (x.view(1, -1, 1, 1) for x in (self.colour_mean, self.colour_deviation))
        colour = (colours(image_B3HW) - mean) / deviation
        return torch.cat([self.linear(self.features(image_B3HW)), colour], 1)


def colours(image_B3HW: Tensor) -> Tensor:
    """Return the mean colour of each quarter of a cell of images in [0, 1], from -1 to 1:
    colours_B(12)44."""
    return F.pixel_unshuffle(F.adaptive_avg_pool2d(image_B3HW, 2 * SIDE) * 2 - 1, 2)


def guide_trunk() -> nn.Module:
    """Return the trunk of the embedded guide as far as its features at stride 16, in float32."""
    import timm

    check("guide")
    folder = path("guide")
    config = json.loads((folder / "open_clip_config.json").read_text("utf-8"))
    name = config["model_cfg"]["vision_cfg"]["timm_model_name"]
    trunk = timm.create_model(name, features_only=True)
    level = trunk.feature_info.reduction().index(STRIDE)
    trunk = timm.create_model(name, features_only=True, out_indices=(level,))
    prefix, given = "visual.trunk.", load_file(folder / "open_clip_model.safetensors")
    state = {k.removeprefix(prefix): v.float() for k, v in given.items() if k.startswith(prefix)}
    trunk.load_state_dict({k: state[k] for k in trunk.state_dict()})
    return trunk.eval().requires_grad_(False)


def load_reader() -> MapReader:
    """Return the reader that ships, on the CPU.

    Raises:
        ClipguideError: its weights or those of the guide are missing or damaged.
    """
    check("reader")
    state = load_file(FOLDER / "reader" / WEIGHTS)
    components, features = state["linear.weight"].shape[:2]
    reader = MapReader(guide_trunk(), features, components)
    reader.load_state_dict(state, strict=False)  # without those of the trunk, which it has
    return reader.eval().requires_grad_(False)
