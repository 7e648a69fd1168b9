"""Figures, their targets and the file that keeps them: `training/figures.json`.

The key of a figure is "model: what". Shares are in [0, 1]. A figure stays in the file until it is
measured again, so a group of figures can be measured alone.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from clipguide import mini
from clipguide.errors import ClipguideError
from training.common import CACHE

HERE = Path(__file__).resolve().parents[1]
FIGURES = HERE / "figures.json"
CLIPS = ("guide", "judge", "referee")
EXPORTS = {  # model -> the command that makes its folder
    "guide": "python -m training.clip export guide",
    "judge": "python -m training.clip export judge",
    "referee": "python -m training.clip export referee",
    "guide-plain": "python -m training.clip export guide --stage guide "
    "--folder training/cache/clip/guide-plain",
    "generator": "python -m training.generator export",
    "vqgan": "python -m training.vqgan export",
    "reader": "python -m training.reader",
}


@dataclass(frozen=True)
class Bar:
    """The target of a figure. `sign` is >=, <= or >; `unit` is %, dB, s, GB, or none."""

    value: float
    unit: str = "%"
    sign: str = ">="

    def met(self, value: float) -> bool:
        return {">=": value >= self.value, "<=": value <= self.value, ">": value > self.value}[
            self.sign
        ]


def _clip_bars(what: str, bars: dict[str, tuple[float, float]]) -> dict[str, Bar]:
    """Return the targets for top-1 and top-5 of a test set."""
    return {
        f"{clip}: {what}, {top}": Bar(bar)
        for clip, pair in bars.items()
        for top, bar in zip(("top-1", "top-5"), pair)
    }


BARS: dict[str, Bar] = {
    **_clip_bars(
        "held-out drawings",
        {"guide": (0.58, 0.82), "judge": (0.65, 0.88), "referee": (0.65, 0.88)},
    ),
    **_clip_bars(
        "OpenMoji", {"guide": (0.45, 0.70), "judge": (0.52, 0.76), "referee": (0.52, 0.76)}
    ),
    "judge: held-out drawings, with the guide, top-1": Bar(0.68),
    "judge: held-out drawings, with the guide, top-5": Bar(0.90),
    "judge: photographs, top-5": Bar(0.60),
    **{f"{clip}: synonyms, top-5": Bar(0.55) for clip in CLIPS},
    **{f"{clip}: other languages, top-5": Bar(0.80) for clip in ("guide", "judge")},
    "guide: drawn by its gradient, referee's top-5": Bar(0.35),
    "generator: autoencoder's PSNR": Bar(29, "dB"),
    "generator: autoencoder's feature distance, times the one before": Bar(0.5, "", "<="),
    "vqgan: PSNR": Bar(25, "dB"),
    "vqgan: codes used": Bar(0.80),
    "generator: referee's top-5, times that of real drawings": Bar(0.85, ""),
    "generator: colour and thing right": Bar(0.7),
    "generator: two things, both right, sides right": Bar(0.4),
    "generator: nearly a training picture": Bar(0.25, "%", "<="),
    "generator: variety, times that of real drawings": Bar(0.6, ""),
    "generator: prompts that are better, default": Bar(0.70),
    "generator: referee's top-5, gained, default": Bar(0, "%", ">"),
    "generator: looked at, good": Bar(0.70),
    "generator: looked at, bad": Bar(0.10, "%", "<="),
    "generator: doubted, of good images": Bar(0.05, "%", "<="),
    "generator: doubted, of images named by the referee": Bar(0.05, "%", "<="),
    "generator: doubted, of prompts that it cannot draw": Bar(0.80),
    "clipguide: cold start": Bar(10, "s", "<="),
    "clipguide: cold start, peak memory": Bar(2, "GB", "<="),
    "clipguide: same seed, same bits": Bar(1),
    "clipguide: batch against single, equal values": Bar(0.999),
    "clipguide: batch against single, largest difference": Bar(2, "", "<="),
    "clipguide: exact, same bits": Bar(1),
}
NAMES = {  # of figures, as the page writes them
    "autoencoder's feature distance, times the one before": "autoencoder's feature distance, "
    "divided by that of the previous version",
    "referee's top-5, times that of real drawings": "referee's top-5, divided by that of real "
    "drawings",
    "referee's top-5, one plain sample": "referee's top-5, one sample that nothing steered or "
    "selected",
    "colour and thing right": "colour and object both right",
    "colour and thing right, pairs never trained on": "colour and object both right, pairs that "
    "are not in the training data",
    "colour and thing right, of real drawings": "colour and object both right, of real drawings "
    "that are painted in those colours",
    "colour right, of real drawings": "colour right, of the same real drawings",
    "two things, both right, sides right": "two objects, both right and on the right sides",
    "two things, both right, sides right, of real drawings": "two objects, both right and on the "
    "right sides, of real drawings side by side, painted in those colours",
    "nearly a training picture": "near-copies of a training image",
    **{
        f"nearly a training picture, {number}": f"near-copies of a training image, of objects with "
        f"{number} in the training data"
        for number in ("1 drawing", "2 or 3 drawings", "4 drawings or more")
    },
    "variety, times that of real drawings": "variety, divided by that of real drawings",
    **{f"looked at, {said}": f"called {said} by reviewers" for said in ("good", "so-so", "bad")},
    **{
        f"doubted, of {said} images": f"images with a warning, of those that both reviewers called "
        f"{said}"
        for said in ("good", "so-so", "bad")
    },
    **{
        f"doubted, of images {said} by the referee": "finished images with a warning, of those "
        f"that are {said} by the referee"
        for said in ("named", "not named")
    },
    **{
        f"doubted, of right images, {length}": "finished images with a warning by their scores, of "
        f"those that are right by the referee, prompts of {length}"
        for length in ("up to 6 words", "7 words or more")
    },
    "doubted, of prompts that it cannot draw": "images with a warning, of prompts that it cannot "
    "draw",
    **{
        f"{what}, with the guide, {top}": f"{what}, by the sum of guide and judge, {top}"
        for what in ("held-out drawings", "OpenMoji", "EmojiOne v1")
        for top in ("top-1", "top-5")
    },
    "photographs of packages, top-1": "30 sample photographs that Python packages contain, top-1",
    "photographs of packages, top-5": "30 sample photographs that Python packages contain, top-5",
}


@dataclass(frozen=True)
class Figure:
    """A measured value of n cases. `weights` maps each model to the fingerprint that it had."""

    key: str
    value: float
    n: int
    weights: dict[str, str]
    unit: str = "%"
    note: str = ""
    bar: str = ""
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())

    def shown(self) -> str:
        return show(self.value, self.unit)

    def met(self) -> bool | None:
        """Return whether the target is met, or None without a target."""
        return BARS[self.key].met(self.value) if self.key in BARS else None


def show(value: float, unit: str) -> str:
    """Return a value as text: a share in percent, any other with its unit."""
    if unit == "%":
        digits = 1 if abs(value) < 0.9985 or value == 1 else 3
        return f"{100 * value:.{digits}f} %"
    return f"{value:.2f} {unit}".rstrip()


def figure(key: str, value: float, *, n: int, weights: dict[str, str], unit: str = "%",
           note: str = "") -> Figure:
    """Return a figure with its target. The unit is that of the target."""
    unit = BARS[key].unit if key in BARS else unit
    return Figure(key, round(float(value), 5), n, weights, unit, note, bar_of(key))


def bar_of(key: str) -> str:
    """Return the target of a figure as text, such as ">= 58.0 %", or "" without one."""
    bar = BARS.get(key)
    return f"{bar.sign} {show(bar.value, bar.unit)}" if bar else ""


class Ledger:
    """The figures of a file, or without a file those of this run."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.new: list[str] = []
        self.figures = self._read()

    def _read(self) -> dict[str, Figure]:
        there = self.path is not None and self.path.exists()
        rows = json.loads(self.path.read_text())["figures"] if there else []
        return {row["key"]: Figure(**{**row, "bar": bar_of(row["key"])}) for row in rows}

    def record(self, found: Figure) -> None:
        """Keep a figure, and write the file, so that a run that is stopped loses nothing."""
        self.figures |= self._read() | {found.key: found}  # another group may run beside this one
        self.new.append(found.key)
        if self.path:
            order = {key: i for i, key in enumerate(BARS)}
            keys = sorted(self.figures, key=lambda key: (order.get(key, len(order)), key))
            rows = [asdict(self.figures[key]) for key in keys]
            text = json.dumps({"figures": rows}, ensure_ascii=False, indent=1)
            self.path.write_text(text + "\n", encoding="utf-8")

    def table(self, keys: Sequence[str] | None = None) -> str:
        """Return a table of these keys, or of all targets and all other figures, as text."""
        keys = list(dict.fromkeys([*BARS, *self.figures] if keys is None else keys))
        width = max(map(len, keys), default=0)
        lines = [f"{'':{width}}  {'measured':>10}  {'bar':>11}  met       n", "-" * (width + 44)]
        for key in keys:
            found, want = self.figures.get(key), bar_of(key)
            value, n = (found.shown(), found.n) if found else ("-", "-")
            met = {True: "yes", False: "NO", None: ""}[found.met() if found else None]
            note = f"  {found.note}" if found and found.note else ""
            lines.append(f"{key:{width}}  {value:>10}  {want:>11}  {met:3}  {n!s:>6}{note}")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of the command line. `models` replaces the folders of the models."""

    limit: int | None = None
    models: Path | None = None
    photos: Path | None = None
    before: Path | None = None
    steps: int = 200

    @property
    def out(self) -> Path:
        """Return the folder for contact sheets and samples."""
        folder = CACHE / "evaluate"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def folder(self, name: str) -> Path:
        """Return the folder of a model. Raise ClipguideError, with the command that makes it, if
        there is none."""
        if self.models:
            folder = self.models / name
        else:
            folder = (mini.FOLDER if name in mini.MODELS else CACHE / "clip") / name
        if not any(folder.glob("**/*.safetensors")):
            raise ClipguideError(f"There is no model in {folder}: {EXPORTS[name]}")
        return folder

    def clip(self, name: str):
        """Return the CLIP of this name."""
        from clipguide import load_clip

        return load_clip(str(self.folder(name)))

    def weights(self, *names: str) -> dict[str, str]:
        """Return the fingerprints of the weights of these models."""
        return {name: fingerprint(self.folder(name)) for name in names}

    def cut(self, items: Sequence) -> Sequence:
        """Return the first `limit` items."""
        return items[: self.limit]


def fingerprint(folder: Path) -> str:
    """Return 12 hex digits of the sha256 of the weights files of a folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("**/*.safetensors")):
        digest.update(f"{file.relative_to(folder)} {mini.sha256(file)}\n".encode())
    return digest.hexdigest()[:12]
