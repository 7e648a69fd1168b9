"""The image sets, and the ordinary package clients that fetch them.

Every package has a pinned version of npm, Debian or PyPI. The layout of a folder of sources is
`npm/node_modules/…`, `deb/<letter>/…` and `pip/x/…`. The code uses what is already there.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

NPM = {
    "@iconify/json": "2.2.535",
    "@lobehub/fluent-emoji-3d": "1.1.0",
    "emojibase-data": "17.0.0",
    "cldr-annotations-full": "48.2.0",
}
DEBIAN = {"openclipart-svg": "1:0.18+dfsg-19", "tango-icon-theme": "0.8.90-11",
          "wordnet-base": "1:3.0-37", "wamerican-large": "2020.12.07-2",
          "lomiri-wallpapers-16.04": "20.04.0-2"}
PYPI = {"arcade": "3.3.3"}


@dataclass(frozen=True)
class PictureSet:
    """One set of drawings by one publisher. `family` joins sets with nearly the same drawings."""

    name: str
    style: str
    package: str
    licence: str
    author: str
    kind: str = "emoji"  # emoji | icons | clipart
    family: str = ""
    split: str = "train"

    def __post_init__(self):
        if not self.family:
            object.__setattr__(self, "family", self.style)


FLUENT = "fluent-emoji"
CC_BY, CC_BY_SA, APACHE, PUBLIC = "CC-BY-4.0", "CC-BY-SA-4.0", "Apache-2.0", "public domain"
STREAMLINE = "Streamline"

# name, style, package, licence, author, kind, family, split
SETS = {
    s.name: s
    for s in (
        PictureSet("noto", "noto", "@iconify/json", APACHE, "Google Inc"),
        PictureSet("fluent-emoji", "fluent-color", "@iconify/json", "MIT",
                   "Microsoft Corporation", family=FLUENT),
        PictureSet("fluent-emoji-flat", "fluent-flat", "@iconify/json", "MIT",
                   "Microsoft Corporation", family=FLUENT),
        PictureSet("fluent-emoji-3d", "fluent-emoji-3d", "@lobehub/fluent-emoji-3d", "MIT",
                   "Microsoft Corporation, LobeHub", family=FLUENT),
        PictureSet("twemoji", "twemoji", "@iconify/json", CC_BY, "Twitter"),
        PictureSet("noto-v1", "noto-v1", "@iconify/json", APACHE, "Google Inc"),
        PictureSet("emojione", "emojione-v2", "@iconify/json", CC_BY, "Emoji One"),
        PictureSet("fxemoji", "fxemoji", "@iconify/json", APACHE, "Mozilla"),
        PictureSet("streamline-emojis", "streamline", "@iconify/json", CC_BY, STREAMLINE),
        PictureSet("openmoji", "openmoji", "@iconify/json", CC_BY_SA, "OpenMoji",
                   split="test_style"),
        PictureSet("emojione-v1", "emojione-v1", "@iconify/json", CC_BY_SA, "Emoji One",
                   split="test_style"),
        PictureSet("streamline-ultimate-color", "streamline-ultimate-color", "@iconify/json",
                   CC_BY, STREAMLINE, "icons"),
        PictureSet("streamline-kameleon-color", "streamline-kameleon-color", "@iconify/json",
                   CC_BY, STREAMLINE, "icons"),
        PictureSet("streamline-stickies-color", "streamline-stickies-color", "@iconify/json",
                   CC_BY, STREAMLINE, "icons"),
        PictureSet("flat-color-icons", "flat-color-icons", "@iconify/json", "MIT", "Icons8",
                   "icons"),
        PictureSet("fluent-color", "fluent-ui", "@iconify/json", "MIT", "Microsoft Corporation",
                   "icons"),
        PictureSet("flat-ui", "flat-ui", "@iconify/json", "MIT", "Designmodo, Inc.", "icons"),
        PictureSet("meteocons", "meteocons", "@iconify/json", "MIT", "Bas Milius", "icons"),
        PictureSet("tango", "tango", "tango-icon-theme", PUBLIC, "the Tango project", "clipart"),
        PictureSet("arcade-kenney", "arcade-kenney", "arcade", "CC0-1.0", "Kenney", "clipart"),
        PictureSet("openclipart", "openclipart", "openclipart-svg", PUBLIC,
                   "the Open Clip Art Library", "clipart"),
    )
}


def version(package: str) -> str:
    """Return the name of a package's registry and the pinned version, for example "PyPI 3.3.3".

    Raises:
        KeyError: the package is not pinned.
    """
    for registry, table in (("npm", NPM), ("Debian", DEBIAN), ("PyPI", PYPI)):
        if package in table:
            return f"{registry} {table[package]}"
    raise KeyError(package)


@dataclass(frozen=True)
class Sources:
    """The folders of the unpacked packages, under one root."""

    root: Path

    @property
    def iconify(self) -> Path:
        return self.root / "npm/node_modules/@iconify/json/json"

    @property
    def fluent_3d(self) -> Path:
        return self.root / "npm/node_modules/@lobehub/fluent-emoji-3d/assets"

    @property
    def emojibase(self) -> Path:
        return self.root / "npm/node_modules/emojibase-data/en"

    @property
    def annotations(self) -> Path:
        return self.root / "npm/node_modules/cldr-annotations-full/annotations"

    @property
    def openclipart(self) -> Path:
        return self.root / "deb/x/usr/share/openclipart/svg"

    @property
    def tango(self) -> Path:
        return self.root / "deb/t/usr/share/icons/Tango/scalable"

    @property
    def wordnet(self) -> Path:
        return self.root / "deb/w/usr/share/wordnet"

    @property
    def dictionary(self) -> Path:
        return self.root / "deb/w/usr/share/dict"

    @property
    def photographs(self) -> Path:
        return self.root / "deb/p/usr/share/backgrounds"

    @property
    def arcade(self) -> Path:
        return self.root / "pip/x/arcade/resources/assets/images"


def fetch(root: Path) -> Sources:
    """Fetch the packages that are missing under `root` with npm, apt-get and pip.

    Raises:
        SystemExit: a package client fails, or an npm package has another version than the pin.
    """
    sources = Sources(root)
    if not all(x.is_dir() for x in (sources.iconify, sources.fluent_3d, sources.emojibase,
                                sources.annotations)):
        folder = root / "npm"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "package.json").exists():
            (folder / "package.json").write_text('{"private": true}\n')
        wanted = [f"{name}@{number}" for name, number in NPM.items()]
        run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", *wanted], folder)
    for name, number in NPM.items():
        found = json.loads((root / "npm/node_modules" / name / "package.json").read_text("utf-8"))
        if found["version"] != number:
            raise SystemExit(f"{name} is {found['version']}, not {number}: remove {root / 'npm'}.")
    for (name, number), short, unpacked in zip(
        DEBIAN.items(),
        "xtwwp",
        (sources.openclipart, sources.tango, sources.wordnet, sources.dictionary,
         sources.photographs),
        strict=True,
    ):
        if not unpacked.is_dir():
            folder = root / "deb"
            folder.mkdir(parents=True, exist_ok=True)
            run(["apt-get", "download", f"{name}={number}"], folder)
            archive = next(folder.glob(f"{name}_*.deb"))
            run(["dpkg", "-x", archive.name, short], folder)
    if not sources.arcade.is_dir():
        folder = root / "pip"
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", "."]
        run([*pip, f"arcade=={PYPI['arcade']}"], folder)
        with zipfile.ZipFile(next(folder.glob("arcade-*.whl"))) as wheel:
            images = "arcade/resources/assets/images"
            wheel.extractall(folder / "x", [m for m in wheel.namelist() if m.startswith(images)])
    return sources


def run(command: list[str], folder: Path) -> None:
    """Run one package client in `folder`. The client prints its own errors.

    Raises:
        SystemExit: the command fails.
    """
    done = subprocess.run(command, cwd=folder)
    if done.returncode:
        raise SystemExit(f"'{' '.join(command)}' failed in {folder}: run it there to see why.")
