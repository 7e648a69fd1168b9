"""clipguide classify: find which label each image shows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from ..prompts import shorten
from . import console
from .embedding import Images, Options, open_pictures, with_options
from .rows import SEPARATORS, Format, Printed, Rows
from .sureness import Scored, word

if TYPE_CHECKING:
    import torch

    from ..zero_shot import Classifier, LinearProbe, Named, TipAdapter
    from .embedding import Pictures


# both together label a tenth more images correctly (benchmarks/none_of_these.py card)
BOTH = "mini+mini-judge"


class Method(str, Enum):
    probe = "probe"
    tip = "tip"


@partial(with_options, clip=BOTH)
def classify(
    images: Images,
    options: Options,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            "-l",
            metavar="A,B,C|FILE",
            help="The labels, or a UTF-8 file with one label per line. Synonyms can follow, as "
            "in cat: kitten, tabby. [default: the folders of --few-shot]",
        ),
    ] = None,
    templates: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="The templates for the labels: plain, default, seven (by the authors of CLIP), "
            "or a file with one template per line and {} for the label. [default: plain for "
            "mini, the template named default for other CLIPs]",
        ),
    ] = None,
    top: Annotated[
        int,
        typer.Option(
            "--top", "-k", min=1, metavar="K", help="The number of labels for each image."
        ),
    ] = 1,
    none: Annotated[
        bool,
        typer.Option("--none", help="Allow the answer that an image shows none of the labels."),
    ] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Images that each show one of the labels. They set the threshold of --none, so "
            "that it rejects at most 5 % of such images.",
        ),
    ] = None,
    few_shot: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A folder of example images. It has one subfolder for each label, named like "
            "the label.",
        ),
    ] = None,
    method: Annotated[
        Method, typer.Option(help="How to learn from the examples: a linear probe, or Tip-Adapter.")
    ] = Method.probe,
    confusion: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A PNG of the confusion matrix. The folders of the images name their classes.",
        ),
    ] = None,
    explain: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write heat maps to this folder: one PNG for each image and "
            "each label found."
        ),
    ] = None,
    format: Printed = Format.text,
) -> None:
    """Label images with the most probable label and its probability.

    The probabilities compare the labels with each other, and sum to 100 % except for a SigLIP. The
    word, such as "very sure", compares the most probable label with unrelated texts: "very sure"
    means that at least 99 % of them score lower. A high probability with "unsure" or "no match"
    means that probably none of the labels fits.

    If the images are in folders named like the labels, the command prints the accuracy to stderr.
    --none is calibrated for the embedded models on drawings. For other models or images, give
    --calibrate.
    """
    if calibrate is not None and not none:
        raise UsageError("--calibrate needs --none.")
    _check_outputs(confusion, explain)
    with console.plain_speech():
        from ..zero_shot import Classifier, read_labels

        texts = _texts(few_shot) if labels is None else read_labels(labels)
        pictures = open_pictures(images, options, prints=True)
        classifier = Classifier(pictures.clip, texts, templates=templates, none=none)
        if calibrate is not None:
            classifier.none.calibrate(_stack(_others(pictures, calibrate))[0])
        model = None if few_shot is None else _learn(classifier, pictures, few_shot, method)
        _classify(classifier, model, pictures, top, confusion, explain, format)


def _classify(
    classifier: Classifier,
    model: LinearProbe | TipAdapter | None,
    pictures: Pictures,
    top: int,
    confusion: Path | None,
    explain: Path | None,
    format: Format,
) -> None:
    rows = Rows(format, ["path", "rank", "label", "probability", "cosine", "better_than"])
    beside = Scored(classifier.clip, classifier.labels, template=classifier.templates[0])
    truth = Truth(classifier.labels)
    drawn = 0
    for embedded in pictures:
        unit_1D = embedded.unit_D[None]
        (found,) = classifier.name(unit_1D, top=top, model=model)
        (shares,) = beside.shares(unit_1D, classifier.cosines(unit_1D))
        _add(rows, format, embedded.path, found, dict(zip(classifier.labels, shares, strict=True)))
        truth.add(embedded.path, found[0].label, (model or classifier).logits(unit_1D))
        if explain is not None:
            drawn += _explain(classifier, embedded.path, found, explain, drawn)
    rows.close()
    truth.tell()
    if confusion is not None:
        truth.draw(confusion)
    pictures.finish()


def _add(
    rows: Rows, format: Format, path: str, found: list[Named], shares: dict[str, float]
) -> None:
    """Print one row for an image. A CSV has one row for each label of the image."""
    named = [
        {"label": one.label, "probability": one.probability,
         "cosine": one.cosine if one.cosine == one.cosine else None,
         "better_than": shares.get(one.label)}
        for one in found
    ]  # fmt: skip
    each = [f"{one.label} {one.probability:.1%}" for one in found]
    if found[0].label in shares:  # a word beside 0.0 % would contradict it
        each[0] += f" ({word(shares[found[0].label])})"
    shown = "  ".join(each)
    for rank, one in enumerate(named if format in SEPARATORS else named[:1], start=1):
        rows.add(
            cells=[path, rank, *("" if value is None else value for value in one.values())],
            line=f"{shown}  {path}",
            record={"path": path, "labels": named},
        )


@dataclass
class Truth:
    """Compare the labels found with the names of the folders that hold the images."""

    labels: Sequence[str]
    target: list[int] = field(default_factory=list)
    found: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)

    def add(self, path: str, label: str, logit_1N: torch.Tensor) -> None:
        """Count an image if its folder has the name of a label."""
        folder = _plain(os.path.basename(os.path.dirname(os.path.abspath(path))))
        place = {_plain(known): n for n, known in enumerate(self.labels)}
        if folder in place:
            self.target.append(place[folder])
            self.found.append(place.get(_plain(label), len(self.labels)))
            self.logits.append(logit_1N.float().cpu())

    def tell(self) -> None:
        """Print the accuracy (top-1 and so on) on stderr if the folders name the classes."""
        if self.target:
            import torch

            from ..zero_shot import figures

            turned_B = torch.tensor(self.found) == len(self.labels)
            shares = figures(torch.cat(self.logits), torch.tensor(self.target), none_B=turned_B)
            shown = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
            typer.echo(f"{len(self.target)} images whose folders name them: {shown}", err=True)

    def draw(self, path: Path) -> None:
        """Write the confusion matrix as a PNG."""
        import torch

        from ..recipe import write_png
        from ..zero_shot import NONE, confusion, draw

        if not self.target:
            raise UsageError(
                "There is no table of confusions: no image is in a folder named like a label."
            )
        columns = [*self.labels, NONE] if len(self.labels) in self.found else [*self.labels]
        target_B, found_B = torch.tensor(self.target), torch.tensor(self.found)
        table = confusion(target_B, found_B, rows=len(self.labels), columns=len(columns))
        write_png(draw(table, self.labels, columns), path)


def _texts(few_shot: Path | None) -> list[str]:
    """Return the labels: the names of the folders of the examples."""
    if few_shot is None:
        raise UsageError("There are no labels: give --labels, as in --labels cat,dog.")
    return [_spoken(folder.name) for folder in _folders(few_shot)]


def _folders(parent: Path) -> list[Path]:
    try:
        found = sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        raise UsageError(f"The folder {parent} cannot be read: {error.strerror}.") from None
    if len(found) < 2:
        raise UsageError(f"{parent} needs a folder of images for each of two labels or more.")
    return found


def _learn(
    classifier: Classifier, pictures: Pictures, parent: Path, method: Method
) -> LinearProbe | TipAdapter:
    """Return the few-shot model of the examples. Raise UsageError if a label has no examples, or a
    folder has no label."""
    import torch

    from ..zero_shot import fit_probe, fit_tip

    folders = {_plain(folder.name): folder for folder in _folders(parent)}
    wanted = {_plain(label): label for label in classifier.labels}
    missing = [wanted[name] for name in wanted if name not in folders]
    over = [folders[name].name for name in folders if name not in wanted]
    if missing or over:
        what = f"no folder for the label {missing[0]!r}" if missing else f"a folder {over[0]!r}"
        raise UsageError(
            f"{parent} has {what}{'' if missing else ' that is no label'}: name its folders like "
            "the labels."
        )
    parts = [_stack(_others(pictures, folders[name]))[0] for name in wanted]
    shot_SD = torch.cat(parts)
    target_S = torch.repeat_interleave(torch.tensor([len(part) for part in parts]))
    text_ND = classifier.text_ND
    if method is Method.probe:
        return fit_probe(shot_SD, target_S, text_ND=text_ND)
    return fit_tip(shot_SD, target_S, text_ND, logit_scale=classifier.clip.logit_scale)


def _others(pictures: Pictures, folder: Path) -> Pictures:
    """Return the images of another folder, embedded by the same engine."""
    return type(pictures)(pictures.engine, [os.fspath(folder)], pictures.options)


def _stack(pictures: Pictures) -> tuple[torch.Tensor, list[str]]:
    """Return unit vectors_BD and paths of all readable images. Raise UsageError if there are none.
    """
    import torch

    found = list(pictures)
    if not found:
        raise UsageError(f"No image in {pictures.sources[0]} can be read.")
    return torch.stack([one.unit_D for one in found]), [one.path for one in found]


def _explain(
    classifier: Classifier, path: str, found: list[Named], folder: Path, number: int
) -> int:
    """Write one PNG for each label found, with the heat map over the image. Return 1 for each."""
    from ..explain import heat_maps, overlay
    from ..images import load
    from ..recipe import write_png

    picture, mode = load(path), classifier.clip.resize_mode
    map_NHW = heat_maps(classifier.clip, [picture], classifier.text_ND)[0]
    for one in found:
        if one.label in classifier.labels:
            heat_HW = map_NHW[classifier.labels.index(one.label)]
            stem = f"{number + 1:04}-{Path(path).stem[:60]}-{_plain(one.label)[:40]}"
            name = "".join(c if c.isalnum() or c in "-_." else "-" for c in stem)
            folder.mkdir(parents=True, exist_ok=True)
            write_png(overlay(picture, heat_HW, resize_mode=mode), folder / f"{name}.png")
    return 1


def _check_outputs(sheet: Path | None, folder: Path | None) -> None:
    """Raise UsageError if an output cannot be written. Create nothing yet."""
    if sheet is not None:
        if sheet.suffix.lower() != ".png":
            raise UsageError(f"The image of confusions is a PNG: end {str(sheet)!r} in .png.")
        if os.path.lexists(sheet):
            raise UsageError(f"{sheet} is there already: choose another name.")
    if folder is not None and os.path.lexists(folder):
        if not folder.is_dir() or any(folder.iterdir()):
            raise UsageError(f"{folder} is there already: choose a new or an empty folder.")


def _spoken(name: str) -> str:
    """Return the label of a folder's name: red_fox and red-fox become "red fox"."""
    return " ".join(name.replace("_", " ").replace("-", " ").split()) or shorten(
        console.one_line(name)
    )


def _plain(name: str) -> str:
    return _spoken(name).casefold()
