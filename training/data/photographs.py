"""Crops of ten photographs, for one purpose: that a backbone's own sense of them is kept.

Nobody names what is on them. A teacher's softmax on crops of very few photographs, zoomed, turned
into each other and mixed, hands most of its knowledge on (Asano & Saeed 2021).

crops.npy    uint8 (COUNT, 128, 128, 3), from a hundred pixels' width up to all of a photograph
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE, COUNT = 128, 2400
SMALLEST = 100  # pixels of a photograph, the side of the narrowest crop
PHOTOGRAPHS = {  # file -> (licence, author), of the Debian package lomiri-wallpapers-16.04
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
    """`count` square crops, as many of each photograph, sides drawn evenly in their logarithm."""
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
