"""The one reader of tables: strict, a part at a time, for all verbs that take one."""

from __future__ import annotations

import gc
import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from clipguide import tables
from clipguide.engine import Embedded, table
from clipguide.errors import UsageError
from clipguide.finetune import data, sources
from clipguide.tables import captions, open_table, sidecar

ROWS = [{"path": "a.png", "caption": "a red  fox"}, {"path": "sub\\b.png", "caption": "größe"}]
SAID = {"a.png": "a red fox", "sub/b.png": "größe"}


def write(file, rows, encoding="utf-8"):
    if file.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".jsonl":
        file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding)
    else:
        sign = "\t" if file.suffix == ".tsv" else ","
        lines = [sign.join(rows[0])] + [sign.join(map(str, row.values())) for row in rows]
        file.write_text("\n".join(lines), encoding)
    return file


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("names", [("path", "caption"), ("image", "text"), ("file_name", "Title")])
def test_captions_of_pictures(tmp_path, ending, names):
    rows = [dict(zip(names, row.values())) for row in ROWS]
    file = write(tmp_path / f"t.{ending}", rows)
    assert captions(file) == {str(tmp_path / name): said for name, said in SAID.items()}


def test_absolute_paths_and_those_that_are_there(tmp_path):
    (tmp_path / "x\\y.png").write_bytes(b"")
    names = ("/else/w.png", "x\\y.png", "../v.png")
    rows = [{"path": name, "caption": name[-5]} for name in names]
    found = list(captions(write(tmp_path / "t.jsonl", rows)))
    assert found == [names[0], str(tmp_path / names[1]), str(tmp_path.parent / "v.png")]


WRONG = {
    "latin-1 in a CSV": ("csv", lambda f: write(f, ROWS, "latin-1"), "is not UTF-8 text"),
    "latin-1 in a parquet": (
        "parquet",
        lambda f: write(f, [{"path": "a.png", "caption": "café fox".encode("latin-1")}]),
        "A text is not UTF-8 in .*t.parquet, row 1",
    ),
    "lists": (
        "parquet",
        lambda f: write(f, [{"path": "a.png", "caption": ["a", "b"]}]),
        r"A text is a list, \['a', 'b'\], in .*row 1",
    ),
    "numbers": ("jsonl", lambda f: write(f, [{"path": "a", "caption": 3}]), "A text is int, 3, in"),
    "an unquoted comma": (
        "csv",
        lambda f: write(f, [{"path": "a.png", "caption": "a fox, red"}]),
        "more cells than columns in line 2 of .*double quotes",
    ),
    "two captions": (
        "csv",
        lambda f: write(f, [*ROWS, {"path": "./a.png", "caption": "a hen"}]),
        "a.png has two captions, the second in line 4",
    ),
    "no column": ("csv", lambda f: write(f, [{"path": "a", "said": "b"}]), "no column 'caption'"),
    "another ending": ("xlsx", lambda f: f.write_bytes(b""), "must end in .csv, .tsv, .jsonl or"),
    "no file": ("csv", lambda f: None, "cannot be read: No such file"),
    "no rows": ("csv", lambda f: f.write_text("path,caption\n"), "has no rows"),
}


@pytest.mark.parametrize("what", WRONG)
def test_strict(tmp_path, what):
    ending, make, said = WRONG[what]
    make(tmp_path / f"t.{ending}")
    with pytest.raises(UsageError, match=said):
        captions(tmp_path / f"t.{ending}")


def test_the_same_file_is_wrong_for_finetune_too(tmp_path):
    write(tmp_path / "t.csv", [{"path": "a.png", "caption": "a fox, red"}])
    with pytest.raises(UsageError, match="more cells than columns in line 2"):
        sources.rows(tmp_path / "t.csv")


def test_files_beside_pictures(tmp_path):
    for name, content in {
        "a": b"a  red\nfox",
        "b": "\ufeffgröße".encode(),
        "c": "größe".encode("latin-1"),
        "d": b" \n",
        "e": ("ä" * 15_000).encode(),
    }.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    found = [sidecar(tmp_path / f"{name}.png") for name in "abcdf"]
    assert found == ["a red fox", "größe", "größe", None, None]
    assert set(sidecar(tmp_path / "e.png")) == {"ä"}


def test_pictures_in_a_parquet_are_not_kept_in_memory(tmp_path):
    """They go through, a row at a time, into a file that goes when the data set does."""
    rows = []
    for k in range(6):
        stream = io.BytesIO()
        Image.new("RGB", (40, 40), (40 * k, 10, 90)).save(stream, "png")
        rows.append({"image": {"bytes": stream.getvalue(), "path": f"{k}.png"}, "text": f"t{k}"})
    file = write(tmp_path / "t.parquet", rows)
    found = data.read(file, train=False)
    spilled = {Path(example.row.file) for example in found.examples}
    (place,) = spilled
    assert place.stat().st_size == sum(len(row["image"]["bytes"]) for row in rows)
    assert [e.picture().getpixel((0, 0))[0] for e in found.examples] == [40 * k for k in range(6)]
    first = data.split(found, share=0.5)[0]
    del found
    gc.collect()
    assert place.exists() and first.examples[0].picture()
    del first
    gc.collect()
    assert not place.exists()


def test_a_table_is_read_a_part_at_a_time(tmp_path):
    file = write(tmp_path / "t.parquet", [{"path": f"{k}", "caption": "x"} for k in range(3000)])
    rows = open_table(file).rows()
    where, row = next(rows)
    assert row == {"path": "0", "caption": "x"} and where.endswith("row 1")
    assert sum(1 for _ in rows) == 2999


@pytest.mark.parametrize("cut", [100, 511, 512 + 300])
def test_a_tar_that_is_cut_is_told_of(tmp_path, cut):
    """In a head, `tarfile` would take that for the end."""
    import tarfile

    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "png")
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for k in range(4):
            for ending, content in (("png", stream.getvalue()), ("txt", f"t{k}".encode())):
                info = tarfile.TarInfo(f"{k}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        last = archive.members[-2].offset
    assert len(sources.rows(tmp_path / "t.tar").rows) == 4
    os.truncate(tmp_path / "t.tar", last + cut)
    with pytest.raises(UsageError, match="t.tar (is cut|cannot be read)"):
        sources.rows(tmp_path / "t.tar")


def test_names_that_are_not_utf8_come_back_from_a_parquet(tmp_path):
    names = ["a.png", os.fsdecode(b"caf\xe9.png"), "größe.png"]
    rows = [Embedded(name, torch.eye(4)[k]) for k, name in enumerate(names)]
    table.write(tmp_path / "t.parquet", rows, key=lambda: "k s", model="m")
    assert [row.path for row in table.read(tmp_path / "t.parquet", key="k s")] == names


def test_semicolons_where_the_comma_is_decimal(tmp_path):
    (tmp_path / "a.csv").write_text("path;caption\na.png;a fox, red\n")
    assert tables.captions(tmp_path / "a.csv") == {str(tmp_path / "a.png"): "a fox, red"}


def test_a_long_caption_that_is_cut_in_a_letter_is_utf8():
    content = ("a" * (tables.LONGEST - 1) + "ß").encode()[: tables.LONGEST]
    assert tables.said(content)[:-1] == "a" * (tables.LONGEST - 1)
    assert tables.said(content)[-1] == "\N{REPLACEMENT CHARACTER}"
