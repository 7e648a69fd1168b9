"""The embedded models: their folders, their digests and their cards.

Each folder holds one model, in a format that open_clip or diffusers loads, or `reader`, and a
README.md with a YAML head (name, licence, task, data, figures). SHA256SUMS next to this file lists
the digest of every weights file, as `sha256sum` writes it, with paths relative to this folder.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..errors import ClipguideError, UsageError, close_matches

FOLDER = Path(__file__).parent
MODELS = ("guide", "judge", "generator", "vqgan", "reader")
CANDIDATES = 4  # of each image by default, of which guide and judge select one
BATCH = 4  # images that are drawn together on a CPU
STEPS = 8  # of the image: to the eye, 15 gain nothing (`training.eyes pairs FOLDER 8:2 15:2`)


def path(name: str) -> Path:
    """Return the folder of the embedded model `name`, one of MODELS."""
    if name not in MODELS:
        raise UsageError(f"There is no embedded model {name!r}.{close_matches(name, MODELS)}")
    folder = FOLDER / name
    if not folder.is_dir():
        raise ClipguideError(
            f"The embedded model {name!r} is not in {FOLDER}: reinstall clipguide."
        )
    return folder


def weights(name: str) -> dict[Path, str]:
    """Return the weights files of an embedded model, each with the sha256 that it should have."""
    try:
        lines = (FOLDER / "SHA256SUMS").read_text().splitlines()
    except FileNotFoundError:
        lines = []
    listed = (line.split(maxsplit=1) for line in lines)
    return {FOLDER / file: digest for digest, file in listed if file.startswith(f"{name}/")}


def check(name: str) -> None:
    """Raise ClipguideError if a weights file of an embedded model is missing or has other bytes."""
    folder = path(name)
    listed = weights(name)
    if not listed:
        raise ClipguideError(
            f"SHA256SUMS in {FOLDER} lists nothing in {name}: reinstall clipguide."
        )
    for file, expected in listed.items():
        if not file.is_file() or sha256(file) != expected:
            raise ClipguideError(
                f"{file.relative_to(folder)} of the embedded {name} is missing, cut short or not "
                "the file that clipguide ships: reinstall clipguide."
            )


def sha256(file: Path) -> str:
    """Return the sha256 of a file, in hex digits."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def card(name: str) -> dict:
    """Return the YAML head of the card of an embedded model."""
    import yaml

    text = (path(name) / "README.md").read_text(encoding="utf-8")
    _, head, _ = text.split("---\n", 2)
    return yaml.safe_load(head)
