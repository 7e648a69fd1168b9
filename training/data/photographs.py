"""Crops of ten photographs, for the distillation of a backbone's own outputs.

The crops have no labels and no captions. The softmax of a teacher on augmented crops of very few
photographs (zoomed, blended and mixed) transfers most of the teacher's knowledge (Asano & Saeed
2021).

crops.npy    uint8 (COUNT, 128, 128, 3); a crop is from 100 pixels wide to the whole photograph
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE, COUNT = 128, 2400
SMALLEST = 100  # the side of the smallest crop, in pixels of the photograph
PHOTOGRAPHS = {  # file -> (licence, author); from the Debian package lomiri-wallpapers-16.04
    "Picture_0B_by_freespace.jpg": ("CC-BY-4.0", 'Trevor "Freespace"'),
    "Picture_1A_by_freespace.jpg": ("CC-BY-4.0", 'Trevor "Freespace"'),
    "Wine_by_Jakkub_Mede.jpg": ("CC-BY-4.0", "Jakub Mede"),
    "aitzgorri_by_Aitzol_Berasategi.jpg": ("CC-BY-4.0", "Aitzol Berasategi"),
    "friends_by_Aitzol_Berasategi.jpg": ("CC-BY-4.0", "Aitzol Berasategi"),
    "life_by_Aitzol_Berasategi.jpg": ("CC-BY-4.0", "Aitzol Berasategi"),
    "picosdeeuropa_by_Aitzol_Berasategi.jpg": ("CC-BY-4.0", "Aitzol Berasategi"),
    "seeding_by_Clements_Engelhardt.jpg": ("CC0-1.0", "Clemens Engelhardt"),
    "sunset_by_Aitzol_Berasategi.jpg": ("CC-BY-4.0", "Aitzol Berasategi"),
    "umang_by_Abhishek_Mudgal.jpg": ("CC-BY-4.0", "Abhishek Mudgal"),
}


def crops(folder: Path, count: int = COUNT) -> np.ndarray:
    """Return `count` square crops as uint8 (count, SIZE, SIZE, 3), equally many of each photograph.

    The side of a crop is sampled log-uniformly, from SMALLEST to the photograph's shorter side.
    """
    rng, out = np.random.default_rng(0), []
    for name in PHOTOGRAPHS:
        picture = Image.open(folder / name).convert("RGB")
        low, high = np.log(SMALLEST), np.log(min(picture.size))
        for _ in range(count // len(PHOTOGRAPHS)):
            side = int(np.exp(rng.uniform(low, high)))
            x, y = (int(rng.integers(0, room - side + 1)) for room in picture.size)
            box = (x, y, x + side, y + side)
            out.append(np.asarray(picture.resize((SIZE, SIZE), Image.BICUBIC, box=box)))
    return np.stack(out)
