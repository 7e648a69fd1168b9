"""Measure how often the word next to a score is right: "very sure", "sure", "unsure", "no match".

    python -m benchmarks.sureness              # on samples/pictures, by the embedded CLIPs
    python -m benchmarks.sureness FOLDER CLIP  # on images that are named after what they show

Each image is scored with its own name and with the names of all others. The table shows the share
of the right and of the wrong pairs that get at least each word.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from clipguide import images, load_clip
from clipguide.unrelated import WORDS, Unrelated

ROOT = Path(__file__).resolve().parent.parent


def shares(folder: Path, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the shares of the right pairs and of the wrong pairs."""
    clip = load_clip(name)
    files = sorted(folder.glob("*.png"))
    names = [file.stem.replace("-", " ") for file in files]
    image_BD = clip.encode_pictures([images.load(file) for file in files])
    unrelated = Unrelated(clip)
    score_BN = image_BD @ clip.encode_text(names).T
    share_BN = torch.tensor(
        [unrelated.shares(image_BD, one, score_BN[:, n]) for n, one in enumerate(names)]
    ).T
    right = torch.eye(len(files), dtype=torch.bool)
    return share_BN[right], share_BN[~right]


def main() -> None:
    folder = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "samples" / "pictures"
    for name in sys.argv[2:] or ("mini", "mini-judge"):
        right, wrong = shares(folder, name)
        print(f"{name}: {len(right)} right pairs, {len(wrong)} wrong pairs")
        for least, word in WORDS:
            kept = [float((part >= least).double().mean()) for part in (right, wrong)]
            print(f"  {word:9}  at least {least:4.0%}: right {kept[0]:.1%}, wrong {kept[1]:.1%}")


if __name__ == "__main__":
    main()
