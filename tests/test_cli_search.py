"""clipguide index, search and duplicates, as they are typed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from test_clip import landscape
from typer.testing import CliRunner

pytest.importorskip("lancedb")

from clipguide.cli.app import app
from clipguide.clip import load_clip
from clipguide.engine import Engine
from clipguide.retrieval import default_path
from clipguide.retrieval.store import Store


@pytest.fixture
def pictures(tmp_path):
    home = tmp_path / "pictures"
    home.mkdir()
    for i in range(4):
        landscape(50, 40, seed=i).save(home / f"{i}.png")
        os.utime(home / f"{i}.png", (time.time() - 100,) * 2)
    (home / "1.txt").write_text("a red fox")
    return home


@pytest.fixture
def run(clip_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPGUIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CLIPGUIDE_DB", str(tmp_path / "db"))
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments, clip=clip_folder, code=0):
        named = ["--clip", str(clip)] if arguments[0] == "index" and clip else []
        result = CliRunner().invoke(app, [*map(str, arguments), *named])
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return invoke


@pytest.fixture
def indexed(run, pictures):
    run("index", pictures)
    return run


def paths(result):
    return [line.split("  ")[-1].strip() for line in result.stdout.splitlines()]


def test_index_then_search(run, clip, pictures, tmp_path):
    """Both mean the same index, and search the CLIP that it was made by."""
    result = run("index", pictures)
    assert result.stdout == f"{tmp_path / 'db'}  4 new\n"
    assert result.stderr == ""
    assert run("index", pictures).stdout.endswith("  4 unchanged\n")
    result = run("search", "a red fox")
    text_D = clip.encode_text(["a red fox"])[0]
    rows = list(Engine(clip).embed(sorted(pictures.glob("*.png"))))
    expected = sorted(rows, key=lambda row: -float(row.unit_D @ text_D))
    assert paths(result) == [row.path for row in expected]
    shown = [line.split()[0] for line in result.stdout.splitlines()]
    assert shown == [f"{float(row.unit_D @ text_D):.4f}" for row in expected]


def test_the_default_is_in_the_user_s_data(monkeypatch, tmp_path):
    monkeypatch.delenv("CLIPGUIDE_DB", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_path() == tmp_path / "clipguide" / "pictures"


def test_json_pages_and_conditions(indexed, pictures):
    found = json.loads(indexed("search", "fox", "--format", "json", "-k", 3).stdout)
    lines = indexed("search", "fox", "--format", "jsonl", "-k", 3).stdout.splitlines()
    assert list(map(json.loads, lines)) == found and len(found) == 3
    (head, *cells) = csv.reader(indexed("search", "fox", "--format", "csv").stdout.splitlines())
    assert head == list(found[0]) and [row[0] for row in cells[:3]] == [h["path"] for h in found]
    hit = found[0]
    assert 0 <= hit["better_than"] <= 1
    assert hit["width"] == 50 and hit["path"].startswith(str(pictures)) and "thumbnail" not in hit
    everything = paths(indexed("search", "fox"))
    pages = [paths(indexed("search", "fox", "-k", 3, "--page", page)) for page in (1, 2, 3)]
    assert pages == [everything[:3], everything[3:], []]
    assert "no more images" in indexed("search", "fox", "-k", 3, "--page", 3).stderr
    assert paths(indexed("search", "fox", "--where", "caption = 'a red fox'")) == [
        str(pictures / "1.png")
    ]
    result = indexed("search", "fox", "--where", "date > '2024-01-01' and width > 512")
    assert result.stdout == "" and "No image is left." in result.stderr


def test_by_picture_and_sums(indexed, clip, pictures):
    best = paths(indexed("search", "--image", pictures / "2.png"))
    assert best[0] == str(pictures / "2.png")
    units = {row.path: row.unit_D for row in Engine(clip).embed(sorted(pictures.glob("*.png")))}
    night_D, people_D = clip.encode_text(["at night", "people"])
    first_D, second_D = units[str(pictures / "2.png")], units[str(pictures / "3.png")]
    for options, sum_D in (
        (("--plus", "at night:0.5", "--negative", "people"), first_D + 0.5 * night_D - people_D),
        (("--image", pictures / "3.png"), first_D + second_D),
    ):
        result = indexed("search", "--image", pictures / "2.png", *options)
        expected = sorted(units, key=lambda path: -float(units[path] @ sum_D))
        assert paths(result) == expected
        top = float(units[expected[0]] @ sum_D / sum_D.norm())
        assert float(result.stdout.split()[0]) == pytest.approx(top, abs=1e-4)
    assert len(paths(indexed("search", "fox", "--hybrid", "-k", 2))) == 2
    assert len(paths(indexed("search", "fox", "--diversity", 0.5))) == 4


def test_a_picture_to_texts(run, clip_folder, clip, pictures, tmp_path):
    lines = ["a red fox", "a house", "the sea", "a house"]
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    one = ("search", "--image", pictures / "0.png", "--texts", "texts.txt", "--clip", clip_folder)
    found = json.loads(run(*one, "-k", 2, "--format", "json").stdout)
    (row,) = Engine(clip).embed([pictures / "0.png"])
    cosine_N = clip.encode_text(lines[:3]) @ row.unit_D
    best = cosine_N.argsort(descending=True)[:2].tolist()
    assert [one["text"] for one in found] == [lines[n] for n in best]
    assert [one["score"] for one in found] == pytest.approx(cosine_N[best].tolist(), abs=1e-6)
    assert len(run(*one).stdout.splitlines()) == 3


def test_sheets(indexed, tmp_path):
    indexed("search", "fox", "--contact-sheet", "a.html")
    indexed("search", "fox", "--contact-sheet", "a.png")
    assert (tmp_path / "a.html").read_text().count("<img") == 4
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "is there already" in indexed("search", "fox", "--contact-sheet", "a.png", code=2).stderr


def test_open_shows_a_page(indexed, monkeypatch):
    import typer

    shown = []
    monkeypatch.setattr(typer, "launch", shown.append)
    indexed("search", "fox", "--open")
    assert len(shown) == 1 and os.path.getsize(shown[0]) > 1000
    shutil.rmtree(os.path.dirname(shown[0]))


def test_broken_thumbnails_do_no_harm(indexed, tmp_path):
    Store(tmp_path / "db").table.update(values={"thumbnail": b"broken"})
    indexed("search", "fox", "--contact-sheet", "a.html")
    indexed("search", "fox", "--contact-sheet", "a.png")
    assert (tmp_path / "a.html").read_text().count("no preview") == 4


@pytest.mark.parametrize("text", ["красная лиса", "赤い狐", "🦊", "'; drop", "x " * 5000])
def test_odd_queries(indexed, text):
    for options in ((), ("--hybrid",)):
        assert len(paths(indexed("search", text, *options))) == 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "nothing to search for"),
        (("   ",), "The text is empty"),
        (("fox", "-k", "0"), "count from 1, not 0"),
        (("fox", "--page", "0"), "count from 1, not 0"),
        (("fox", "--where", "width >"), "--where is not understood at '>'"),
        (("fox", "--where", "1=1; drop table images"), "nothing more"),
        (("--image", "none.png"), "There is no file none.png."),
        (("--image", "pictures/1.txt"), "is not an image"),
        (("--image", "pictures/1.png", "--hybrid"), "--hybrid searches in words"),
        (("fox", "--negative", "fox"), "cancel each other out"),
        (("fox", "--plus", ""), "prompt is empty"),
        (("fox", "--db", "nowhere"), "There is no index nowhere: make it with clipguide index"),
        (("fox", "--db", ""), "The name of the index is empty"),
        (("fox", "--device", "xpu"), "clipguide: There is no device 'xpu' here"),
        (("fox", "--texts", "pictures/1.txt"), "give it --image alone"),
        (("fox", "--contact-sheet", "a.txt"), "must end in .png or .html"),
        (("fox", "--clip", "mini"), "give --clip"),
    ],
)
def test_what_is_refused(indexed, arguments, message):
    result = indexed("search", *arguments, code=2)
    assert message in " ".join(result.stderr.split()), result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and result.stdout == ""


def test_index_refuses(run, indexed, judge_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (("nowhere",), "There is no folder or file nowhere."),
        (("",), "The name of a folder is empty"),
        (("empty",), "There are no images in empty."),
        (("*.bmp",), "No file matches *.bmp"),
        (("pictures", "--urls"), "index reads files, not URLs"),
        (("pictures", "--captions", "none.csv"), "There is no file of captions none.csv."),
    ):
        assert message in run("index", *arguments, code=2).stderr
    assert "was made by the CLIP" in run("index", "pictures", clip=judge_folder, code=2).stderr
    with Store(tmp_path / "db").writer():
        assert "Another program is writing" in run("index", "pictures", code=1).stderr


def test_bad_pictures(run, pictures):
    (pictures / "bad.png").write_text("no image")
    result = run("index", pictures)
    assert "bad.png is not an image" in result.stderr and "1 of 5 could not be" in result.stderr
    run("index", pictures, "--strict", code=1)
    assert len(paths(run("search", "fox"))) == 4


def test_duplicates(indexed, pictures, tmp_path):
    shutil.copy(pictures / "0.png", pictures / "copy.png")
    indexed("index", pictures)
    result = indexed("duplicates", "--identical", "--contact-sheet", "copies.html")
    assert [line.split("  ")[0] for line in result.stdout.splitlines()] == [
        "first ".strip(),
        "same",
    ]
    assert "1 copies in 1 groups: each" in result.stderr
    assert "The same content" in (tmp_path / "copies.html").read_text()
    rows = json.loads(indexed("duplicates", "--identical", "--format", "json").stdout)
    assert {row["path"] for row in rows} == {str(pictures / "0.png"), str(pictures / "copy.png")}
    assert all(row["exact"] and row["group"] == 1 for row in rows)
    assert len(list(pictures.glob("*.png"))) == 5
    for row in json.loads(indexed("duplicates", "--duplicate", 0.5, "--format", "json").stdout):
        assert row["score"] >= 0.5
    said = indexed("duplicates", "--duplicate", 0.5).stderr
    assert "or a cosine of at least 0.5 with it" in said
    assert "above 0" in indexed("duplicates", "--duplicate", 2, code=2).stderr


def test_a_read_only_index_can_be_searched(indexed, clip_folder, tmp_path):
    """A disk that cannot be written is no reason not to search; root may write anyway."""
    for folder, _, files in os.walk(tmp_path / "db"):
        for name in files:
            os.chmod(os.path.join(folder, name), 0o444)
        os.chmod(folder, 0o555)
    try:
        assert len(paths(indexed("search", "fox"))) == 4
        if os.geteuid():
            result = indexed("index", "pictures", code=1)
            assert "cannot be written" in result.stderr
    finally:
        for folder, _, _ in os.walk(tmp_path / "db"):
            os.chmod(folder, 0o755)


REFUSED = (
    (["index", "nowhere"], "There is no folder or file nowhere."),
    (["index", "nowhere", "--db", "db"], "What the index holds of it stays there."),
    (["index", "full", "--db", "file.txt"], "is no folder, so it is no index"),
    (["index", "full", "--captions", "none.csv"], "There is no file of captions none.csv."),
    (["index", "full", "--engine", "dask"], "--engine is local or ray"),
    (["index", "full", "--bogus"], "No such option"),
    (["search", "fox", "--db", "nowhere"], "There is no index nowhere: make it with"),
    (["search", "fox", "--db", "full"], "full holds no index of images: make it with"),
    (["search", "fox", "--db", "file.txt"], "is no folder, so it is no index"),
    (["search", "fox", "-k", "0"], "count from 1, not 0"),
    (["search", " "], "The text is empty"),
    (["search", "fox", "--where", "width >"], "--where is not understood at"),
    (["search", "fox", "--where", "widht > 5"], "there is no column widht"),
    (["search", "fox", "--contact-sheet", "a.txt"], "must end in .png or .html"),
    (["search", "fox", "--diversity", "2"], "--diversity is from 0 to 1, not 2."),
    (["duplicates", "--db", "nowhere"], "There is no index nowhere: make it with"),
    (["duplicates", "--duplicate", "2"], "above 0 and at most 1"),
    (["ui", "--host", "0.0.0.0"], "give --auth"),
)
REFUSE = """
import contextlib, io, json, sys
from clipguide.cli.app import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["clipguide", *arguments]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            main()
    except SystemExit as end:
        print(json.dumps([end.code, said.getvalue()]))
print(json.dumps(sorted(sys.modules)))
"""


def test_what_is_wrong_is_told_before_anything_heavy_is_imported(tmp_path):
    """All of these in one process, which has no torch, and no LanceDB, in the end. Pillow may look
    at the header of an image."""
    (tmp_path / "db" / "pictures.lance").mkdir(parents=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "file.txt").write_text("precious")
    done = subprocess.run(
        [sys.executable, "-c", REFUSE, json.dumps([given for given, _ in REFUSED])],
        capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**os.environ, "XDG_DATA_HOME": str(tmp_path)},
    )  # fmt: skip
    *answers, modules = map(json.loads, done.stdout.splitlines())
    for (given, words), (code, said) in zip(REFUSED, answers, strict=True):
        assert code == 2 and words in " ".join(said.split()), (given, said)
    heavy = {"torch", "transformers", "diffusers", "open_clip", "lancedb", "lance", "ray", "gradio",
             "pyarrow"}  # fmt: skip
    assert not heavy & set(modules)


def test_without_lancedb(tmp_path):
    """One sentence, with what to install."""
    script = (
        "import sys; sys.modules['lancedb'] = None; from clipguide.cli.app import main; "
        f"sys.argv = ['clipguide', 'duplicates', '--db', {str(tmp_path)!r}]; main()"
    )
    (tmp_path / "pictures.lance").mkdir()
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == (
        "clipguide: Search needs LanceDB, which is not installed: pip install "
        "'clipguide[search]'.\n"
    )


def test_both_embedded_clips_are_the_default(run):
    words = run("index", "--help", clip=None).stdout.split()
    assert "[default: mini+mini-judge]" in " ".join(words)


def test_the_index_keeps_the_name_of_its_clip(indexed, clip_folder, tmp_path):
    assert Store(tmp_path / "db").model == str(clip_folder)
    assert load_clip(Store(tmp_path / "db").model).image_fingerprint in Store(tmp_path / "db").key
