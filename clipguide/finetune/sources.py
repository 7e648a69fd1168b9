"""List the images and texts of a source: folders, tables, tars and indexes."""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..engine.files import find, picture_endings
from ..errors import UsageError
from ..prompts import shorten
from ..tables import CAPTION, ENDINGS, sidecar
from . import tables
from .names import Names, give, is_number, spoken
from .tables import LABEL, Listing, Row

SPLITS = {"train", "training", "val", "valid", "validation", "test"}
TABLES = tuple(f"metadata{ending}" for ending in (".csv", ".jsonl", ".parquet"))
INDEX = "pictures.lance"
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def rows(
    source: str | os.PathLike,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    label_column: str | None = None,
    names: Names | None = None,
) -> Listing:
    """Return what a source holds, without decoding an image. A source is one of

    - a folder whose subfolders name classes (underscores become blanks); or, without subfolders, a
    folder of
      images with a .txt of the same name next to each, or with a metadata.csv, .jsonl or .parquet,
      or with
      tars;
    - a .csv, .tsv, .jsonl or .parquet (`tables.read`), or a .tar of webdataset, or a pattern of
    several, as in
      "shards/*.tar" or "shard-{000..012}.tar";
    - an index of `clipguide index`: its captions if most images have one, else the names of
    folders.

    `names` are the names of numbered classes: in their order, by their number, or a file of either.
    By default, a classes.txt in the source or next to it is read.

    Raises:
        UsageError: the source cannot be read, or does not say what the images show.
    """
    source = os.fspath(source)
    if not source:
        raise UsageError("There is no file or folder without a name.")
    columns = {"caption_column": caption_column, "label_column": label_column}
    place = Path(source)
    if place.is_dir():
        listing = _of_folder(place, columns, image_column)
    else:
        listing = _of_files(_files(source), columns, image_column)
    if not any(row.text for row in listing.rows):
        what = "labels" if listing.classes else "captions"
        raise UsageError(f"The {what} in {source} are all empty.")
    if not listing.classes:
        if names is not None:
            raise UsageError(f"names are of classes, and {source} has captions: leave them out.")
        if all(is_number(row.text) for row in listing.rows if row.text):
            raise UsageError(
                f"The captions in {source} are numbers: name the column by --label-column "
                "(label_column=) if they are classes, and give the names of those."
            )
        return listing
    return give(listing, names, place)


def pictures(source: str | os.PathLike, *, image_column: str | None = None) -> Listing:
    """Return all images of a folder, a pattern, a table or a tar, without their texts. Raise
    UsageError if there are none."""
    if Path(source).suffix.lower() in (*ENDINGS, ".tar"):
        rows_ = rows(source, image_column=image_column).rows
    else:
        rows_ = [Row(path, "", path) for path in find([source])]
    if not rows_:
        raise UsageError(f"There are no images in {source}.")
    return Listing([replace(row, text="a picture") for row in rows_], False)


def _of_folder(folder: Path, columns: dict, image_column: str | None) -> Listing:
    if (folder / INDEX).is_dir():
        return _of_index(folder, **columns)
    for name in TABLES:
        if (folder / name).is_file():
            return tables.read(folder / name, image_column=image_column, **columns)
    given = [name for name, value in {**columns, "image_column": image_column}.items() if value]
    classes = _class_folders(folder, given)
    if classes is not None:
        return classes
    tars = sorted(folder.glob("*.tar"))
    if tars:
        return _of_tars(tars, **columns)
    return _beside(folder, given)


def _class_folders(folder: Path, given: list[str]) -> Listing | None:
    """Return the images of each subfolder, if any has images."""
    try:
        entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise UsageError(f"The folder {folder} cannot be read: {error.strerror}.") from None
    if not entries:
        raise UsageError(f"The folder {folder} is empty.")
    found = {entry.name: list(find([entry])) for entry in entries if entry.is_dir()}
    hollow = [spoken(name) for name, paths in found.items() if not paths]
    found = {name: paths for name, paths in found.items() if paths}
    if not found:
        return None
    if set(map(str.lower, found)) <= SPLITS:
        raise UsageError(
            f"The subfolders of {folder} ({', '.join(found)}) are parts of a data set, and name no "
            f"classes: give one of them, as {folder / next(iter(found))}; clipguide splits it."
        )
    if given:
        raise UsageError(
            f"{folder} is a folder of classes, and has no columns: leave out {given[0]}."
        )
    made = [Row(p, spoken(name), p) for name, paths in found.items() for p in paths]
    return Listing(made, True, list(find([folder], recursive=False)), hollow)


def _beside(folder: Path, given: list[str]) -> Listing:
    """Return the images of a folder without subfolders, with the captions of the files next to
    them."""
    paths = list(find([folder], recursive=False))
    if not paths:
        raise UsageError(f"The folder {folder} holds no images.")
    made = [Row(path, sidecar(path) or "", path) for path in paths]
    if given or not any(row.text for row in made):
        raise UsageError(
            f"Nothing says what the {len(paths)} images in {folder} show: put those of each "
            "class into a subfolder of its name, or give a .csv of the columns image and caption."
        )
    return Listing(made, False)


def _files(source: str) -> list[Path]:
    """Return the files of a name or pattern. Raise UsageError if there are none."""
    if os.path.exists(source):
        return [Path(source)]
    names = [source]
    while _BRACES.search(names[0]):
        names = [one for name in names for one in _expanded(name)]
    if len(names) > 1 or glob.has_magic(source):
        found = [p for name in names for p in (sorted(glob.glob(name, recursive=True)) or [name])]
        found = [Path(path) for path in found if not glob.has_magic(path) or os.path.exists(path)]
        if not found:
            raise UsageError(f"No file matches {shorten(source, 200)}.")
        return found
    raise UsageError(f"There is no file or folder {shorten(source, 200)}.")


def _expanded(name: str) -> list[str]:
    """Return the names that "shard-{000..012}.tar" stands for."""
    found = _BRACES.search(name)
    first, last = found.groups()
    numbers = range(int(first), int(last) + 1)
    return [f"{name[: found.start()]}{i:0{len(first)}}{name[found.end() :]}" for i in numbers]


def _of_files(files: list[Path], columns: dict, image_column: str | None) -> Listing:
    endings = {file.suffix.lower() for file in files}
    if endings == {".tar"}:
        if image_column:
            raise UsageError(
                "--image-column (image_column=) is of tables: a tar's images are its own files."
            )
        return _of_tars(files, **columns)
    if not endings <= set(ENDINGS):
        odd = next(file for file in files if file.suffix.lower() not in (*ENDINGS, ".tar"))
        packed = " (unpack it: a packed tar cannot be read at any place)"
        raise UsageError(
            f"{odd} must be a folder, or end in {', '.join(ENDINGS)} or .tar"
            f"{packed if '.tar.' in odd.name or odd.suffix == '.tgz' else ''}."
        )
    parts = [tables.read(file, image_column=image_column, **columns) for file in files]
    if len({part.classes for part in parts}) > 1:
        raise UsageError("Some of the tables have captions, and others labels: name the column.")
    every = [row for part in parts for row in part.rows]
    spills = [part.spill for part in parts]
    return Listing(every, parts[0].classes, names=parts[0].names, spill=spills)


def _of_tars(
    files: Sequence[Path], *, caption_column: str | None, label_column: str | None
) -> Listing:
    """Return the samples of webdataset: files whose names are equal up to the first point. The
    caption is in a .txt or a field of a .json, the class in a .cls or a field. Otherwise folders
    name the class."""
    samples = [sample for file in files for sample in _samples(file).values()]
    samples = [sample for sample in samples if "picture" in sample]
    where = str(files[0]) if len(files) == 1 else f"{files[0]} and the other tars"
    if not samples:
        raise UsageError(f"{where} holds no images.")
    fields = list(dict.fromkeys(name for sample in samples for name in sample["json"]))
    known = {name.lower(): name for name in reversed(fields)}
    has = {kind for sample in samples for kind in ("txt", "cls") if kind in sample}
    usual = next((known[name] for name in (*CAPTION, *LABEL) if name in known), None)
    if caption_column or label_column:
        column, classes = tables.text_column(fields, caption_column, label_column, where)
        said = [tables.texts(sample["json"].get(column))[0] for sample in samples]
    elif "txt" in has or (usual in fields and usual.lower() in CAPTION):
        said, classes = (
            [s.get("txt") or tables.texts(s["json"].get(usual))[0] for s in samples],
            False,
        )
    elif "cls" in has or usual is not None:
        said, classes = (
            [s.get("cls") or tables.texts(s["json"].get(usual))[0] for s in samples],
            True,
        )
    else:
        said, classes = [spoken(sample["folder"]).strip(".") for sample in samples], True
        if not any(said):
            raise UsageError(
                f"Nothing in {where} says what its images show: there is no .txt, .json or .cls "
                "of their names, and no folder."
            )
    made = [replace(sample["picture"], text=text) for sample, text in zip(samples, said)]
    return Listing(made, classes)


def _samples(file: Path) -> dict[str, dict]:
    """Yield the samples of a tar by their keys. Raise UsageError if it cannot be read."""
    samples: dict[str, dict] = {}
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                folder, base = os.path.split(member.name)
                key, _, ending = base.partition(".")
                if not member.isreg() or not key or not ending:
                    continue
                sample = samples.setdefault(
                    f"{folder}/{key}", {"json": {}, "folder": os.path.basename(folder)}
                )
                ending = ending.lower()
                if f".{ending}" in picture_endings():
                    row = Row(
                        f"{file}!/{member.name}", "", str(file), member.offset_data, member.size
                    )
                    sample.setdefault("picture", row)
                elif ending in ("txt", "cls", "json"):
                    content = archive.extractfile(member).read().decode("utf-8-sig", "replace")
                    sample[ending] = (
                        _json(content) if ending == "json" else tables.texts(content)[0]
                    )
            _check_end(archive, file)
    except (OSError, tarfile.TarError) as error:
        packed = "it is packed, or no tar" if isinstance(error, tarfile.ReadError) else ""
        words = packed if not samples and packed else getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{file} cannot be read: {words.rstrip('.')}.") from None
    return samples


def _check_end(archive: tarfile.TarFile, file: Path) -> None:
    """Raise UsageError if a tar does not end in a block of zeros. `tarfile` takes a header that is
    cut off for the end."""
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise UsageError(
            f"{file} is cut, or damaged after {archive.offset} bytes: copy it anew, or pack it "
            "again."
        )


def _json(text: str) -> dict:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _of_index(folder: Path, *, caption_column: str | None, label_column: str | None) -> Listing:
    """Return the images of an index, by its columns caption or prompt, or by folder."""
    from ..retrieval.store import Store

    store = Store(folder)
    columns = ["path", "folder", "caption", "prompt"]
    found = store.ask(lambda table: table.search().select(columns).limit(None).to_arrow())
    found = sorted(found.to_pylist(), key=lambda row: row["path"])
    if not found:
        raise UsageError(f"The index {folder} holds no images.")
    captioned = sum(bool(row["caption"]) for row in found)
    if caption_column is None and label_column is None and 2 * captioned <= len(found):
        label_column = "folder"
    usual = ["caption", "prompt", "folder"]
    column, classes = tables.text_column(usual, caption_column, label_column, f"The index {folder}")
    made = []
    for row in found:
        text = spoken(os.path.basename(row["folder"])) if column == "folder" else row[column]
        made.append(Row(row["path"], tables.texts(text)[0], row["path"]))
    return Listing(made, classes)
