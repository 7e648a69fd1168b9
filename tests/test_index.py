"""Folders into an index, and the index kept as the folders are."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import torch
from PIL import Image, PngImagePlugin
from test_clip import landscape
from test_metadata import FILES
from test_reading import swapped_profile
from test_recipe import RECIPE

pytest.importorskip("lancedb")

from clipguide import images
from clipguide.engine import Cache, Engine
from clipguide.engine.resources import Budget
from clipguide.errors import ClipguideError, UsageError
from clipguide.recipe import CHUNK, save_png
from clipguide.retrieval import Index, changes, facts, update
from clipguide.retrieval.captions import Captions
from clipguide.retrieval.store import Store

COUNTS = ("new", "changed", "moved", "same", "gone", "failed")


@pytest.fixture
def home(tmp_path):
    """Five images in two folders, as old as if they had been there for a while."""
    home = tmp_path / "pictures"
    (home / "more").mkdir(parents=True)
    for i in range(5):
        place = home if i < 3 else home / "more"
        landscape(50, 40, seed=i).save(place / f"{i}.png")
    settle(home)
    return home


def settle(home):
    for path in home.rglob("*.*"):
        os.utime(path, (time.time() - 100, time.time() - 100))


@pytest.fixture
def run(clip, tmp_path, home, monkeypatch):
    """Update the index; what was counted, without zeros. `run.encoded` is what the model saw."""
    seen = []
    encode = Engine._encode

    def counted(self, frames):
        seen.append(len(frames))
        return encode(self, frames)

    monkeypatch.setattr(Engine, "_encode", counted)

    def update_(*sources, clip=clip, db=tmp_path / "db", settings=None, **options):
        seen.clear()
        engine = Engine(clip, **(settings or {}))
        *_, last = update(db, sources or [home], engine=engine, **options)
        update_.encoded, update_.errors = sum(seen), last.errors
        return {name: getattr(last, name) for name in COUNTS if getattr(last, name)}

    return update_


def rows(tmp_path):
    """The table's rows by their paths' names."""
    found = Store(tmp_path / "db").table.to_arrow().to_pylist()
    named = {os.path.basename(row["path"]): row for row in found}
    assert len(named) == len(found)
    return named


def test_the_vectors_are_the_engine_s(run, clip, home, tmp_path):
    assert run() == {"new": 5} and run.encoded == 5
    found = rows(tmp_path)
    for path in home.rglob("*.png"):
        (expected,) = Engine(clip).embed([path])
        row = found[path.name]
        torch.testing.assert_close(torch.tensor(row["vector"]), expected.unit_D)
        assert row["path"] == str(path) and row["folder"] == str(path.parent)
        assert (row["width"], row["height"], row["format"]) == (50, 40, "PNG")
        assert row["size"] == path.stat().st_size
        with Image.open(io.BytesIO(row["thumbnail"])) as small:
            assert small.size == (50, 40) and small.format == "JPEG"


def test_only_what_changed_is_embedded(run, home, tmp_path):
    run()
    assert run() == {"same": 5} and run.encoded == 0
    os.utime(home / "0.png", (1e9, 1e9))  # touched, not changed
    assert run() == {"same": 5} and run.encoded == 0
    landscape(60, 40, seed=9).save(home / "0.png")
    landscape(50, 40, seed=10).save(home / "5.png")
    assert run() == {"new": 1, "changed": 1, "same": 4} and run.encoded == 2
    assert rows(tmp_path)["0.png"]["width"] == 60
    (home / "1.png").unlink()
    assert run() == {"same": 5, "gone": 1} and run.encoded == 0
    assert sorted(rows(tmp_path)) == ["0.png", "2.png", "3.png", "4.png", "5.png"]


def test_what_moved_is_not_embedded_again(run, home, tmp_path):
    run()
    was = rows(tmp_path)
    (home / "more").rename(home / "less")
    shutil.copy(home / "0.png", home / "copy.png")
    assert run() == {"new": 1, "moved": 2, "same": 3} and run.encoded == 0
    assert "more is not there, and 2 images of it stay in the index" in run.errors[0]
    assert run(prune=True) == {"same": 6, "gone": 2}
    now = rows(tmp_path)
    assert now["3.png"]["folder"] == str(home / "less")
    for name, original in {"3.png": "3.png", "copy.png": "0.png"}.items():
        for column in ("vector", "thumbnail", "digest", "width"):
            assert now[name][column] == was[original][column]


def test_contents_that_change_places(run, home, tmp_path):
    """Each of two files has now what the other had: both are changed, neither is embedded."""
    run()
    was = rows(tmp_path)
    first, second = ((home / name).read_bytes() for name in ("0.png", "1.png"))
    (home / "0.png").write_bytes(second)
    (home / "1.png").write_bytes(first)
    assert run() == {"changed": 2, "same": 3} and run.encoded == 0
    now = rows(tmp_path)
    assert now["0.png"]["vector"] == was["1.png"]["vector"]
    assert now["1.png"]["vector"] == was["0.png"]["vector"]


def test_verify_sees_what_the_clock_does_not(run, home, tmp_path):
    """Another content of the same size, time and inode."""
    contents = [(home / name).read_bytes() for name in ("0.png", "1.png")]
    size, path = max(map(len, contents)), home / "0.png"

    def write(content):
        path.write_bytes(content.ljust(size, b"\0"))
        os.utime(path, (1e9, 1e9))

    write(contents[0])
    run()
    write(contents[1])
    assert run() == {"same": 5}
    assert run(verify=True) == {"same": 4, "changed": 1} and run.encoded == 1


def test_a_file_that_had_not_settled_is_digested_again(run, home):
    os.utime(home / "0.png")  # now: it may yet change within the clock's step
    run()
    engine_reads = []
    read = facts.Reader.read
    try:
        facts.Reader.read = lambda *a: engine_reads.append(a[1]) or read(*a)
        assert run() == {"same": 5}
    finally:
        facts.Reader.read = read
    assert engine_reads == [str(home / "0.png")]


def test_metadata(run, home, tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "ACME", "ACME X100", 6
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    landscape(50, 40, seed=20).save(home / "photo.jpg", exif=exif)
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0132] = "Acme", "Z", "0000:00:00 00:00:00"
    landscape(50, 40, seed=21).save(home / "odd.jpg", exif=exif)
    run()
    photo, odd = rows(tmp_path)["photo.jpg"], rows(tmp_path)["odd.jpg"]
    assert photo["date"] == datetime(2024, 5, 6, 7, 8, 9) and photo["camera"] == "ACME X100"
    assert (photo["width"], photo["height"], photo["format"]) == (40, 50, "JPEG")
    assert odd["date"] is None and odd["camera"] == "Acme Z"


@pytest.mark.parametrize("fast", (False, True))
def test_the_size_is_that_of_the_turned_image(run, tmp_path, fast):
    """Of every format with EXIF, whether Pillow turns it as it decodes (TIFF) or not."""
    home = tmp_path / "turned"
    home.mkdir()
    scene, ways = landscape(400, 300, seed=40), range(1, 9)
    for way in ways:
        exif = Image.Exif()
        exif[0x0112], exif[0x0110] = way, f"camera {way}"
        for end in ("jpg", "png", "tif", "webp"):
            scene.save(home / f"{way}.{end}", exif=exif)
    assert run(home, settings={"fast": fast}) == {"new": 4 * len(ways)}
    for name, row in rows(tmp_path).items():
        assert (row["width"], row["height"]) == images.load(home / name).size, name
        assert row["camera"] == f"camera {name[0]}"


def test_the_prompt_of_a_recipe(run, home, tmp_path):
    recipe = replace(RECIPE, prompt="a red fox | snow:0.5")
    save_png(landscape(50, 40, seed=30), recipe, home / "made.png")
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(CHUNK, '{"version": 2, "prompt": "no recipe"}')
    landscape(50, 40, seed=31).save(home / "false.png", pnginfo=chunks)
    run()
    assert rows(tmp_path)["made.png"]["prompt"] == "a red fox | snow:0.5"
    assert rows(tmp_path)["false.png"]["prompt"] is None


def test_the_prompts_of_other_generators(run, tmp_path):
    """And no graph of ComfyUI's in EXIF is a camera."""
    home, images = tmp_path / "made", {k: v for k, v in FILES.items() if k != "no image"}
    home.mkdir()
    for name, (content, _) in images.items():
        (home / f"{name}.png").write_bytes(content)
    assert run(home) == {"new": len(images)}
    found = rows(tmp_path)
    for name, (_, prompt) in images.items():
        assert found[f"{name}.png"]["prompt"] == prompt, name
        assert found[f"{name}.png"]["camera"] == ("Canon EOS" if name == "a photo" else None)


def test_texts_that_pillow_refuses(run, home, tmp_path):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", f"a fox\nNegative prompt: {'x' * (2 << 20)}", zip=True)
    landscape(50, 40, seed=32).save(home / "wordy.png", pnginfo=chunks)
    assert run() == {"new": 6}
    assert rows(tmp_path)["wordy.png"]["prompt"] == "a fox"


def test_no_limit_but_the_engine_s(run, home, monkeypatch):
    """Of pixels: Pillow's own, which is a global, is not asked."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    assert run(settings={"megapixels": 1e-3}) == {"failed": 5}
    assert run(settings={"megapixels": 2e-3}) == {"new": 5}


def test_settings_of_the_engine_change_what_they_change(run, clip, tmp_path):
    """A colour profile, transparency, frames and a large JPEG, each as the engine alone has it."""
    home = tmp_path / "odd"
    home.mkdir()
    scenes = [landscape(400, 300, seed=i) for i in range(2)]
    scenes[0].save(home / "icc.png", icc_profile=swapped_profile())
    clear = scenes[0].convert("RGBA")
    clear.putalpha(100)
    clear.save(home / "alpha.png")
    scenes[0].save(home / "frames.gif", save_all=True, append_images=[scenes[1]])
    scenes[0].save(home / "fast.jpg")
    settings = {"icc": True, "alpha": "drop", "frames": 2, "fast": True}
    run(home, settings=settings)
    for name, row in rows(tmp_path).items():
        ((same,), (other,)) = (Engine(clip, **s).embed([home / name]) for s in (settings, {}))
        torch.testing.assert_close(torch.tensor(row["vector"]), same.unit_D)
        assert (same.unit_D - other.unit_D).abs().max() > 1e-5, name
        assert (row["width"], row["height"]) == (400, 300)
    index = Index(tmp_path / "db")
    for name in rows(tmp_path):  # an image as a query is read as those of the index
        (again,) = Engine(clip, **index.settings).embed([home / name])
        torch.testing.assert_close(again.unit_D, index.vector(str(home / name)))


def test_decoding_waits_for_memory(clip, home, tmp_path):
    class Watched(Budget):
        def _take(self, count):
            taken.append(count)
            return super()._take(count)

    taken, engine = [], Engine(clip)
    engine.memory = Watched()
    list(update(tmp_path / "db", [home], engine=engine))
    assert taken == [50 * 40 * 12] * 5
    assert engine.memory._left == engine.memory.bytes, "all is given back"


def test_captions_beside_pictures(run, home, tmp_path):
    (home / "0.txt").write_text("a red\nfox\n", encoding="utf-8")
    run()
    assert rows(tmp_path)["0.png"]["caption"] == "a red fox"
    assert rows(tmp_path)["1.png"]["caption"] is None
    (home / "0.txt").write_text("a blue fox", encoding="utf-8")
    (home / "1.txt").write_text("ein Häschen", encoding="cp1252")
    assert run() == {"changed": 2, "same": 3} and run.encoded == 0
    assert rows(tmp_path)["0.png"]["caption"] == "a blue fox"
    assert rows(tmp_path)["1.png"]["caption"] == "ein Häschen"
    (home / "0.txt").unlink()
    assert run() == {"changed": 1, "same": 4}
    assert rows(tmp_path)["0.png"]["caption"] is None


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_captions_of_a_table(run, home, tmp_path, end):
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    def write(text):
        table = pa.table({"path": ["0.png", str(home / "1.png")], "caption": [text, "a hare"]})
        if end == "csv":
            pa.csv.write_csv(table, home / "captions.csv")
        else:
            pa.parquet.write_table(table, home / "captions.parquet")

    write("a fox, red")
    run(captions=home / f"captions.{end}")
    assert rows(tmp_path)["0.png"]["caption"] == "a fox, red"
    assert run() == {"same": 5}, "without the table, what it said stays"
    os.utime(home / "1.png", (1e9, 1e9))
    run()
    assert rows(tmp_path)["1.png"]["caption"] == "a hare"
    write("a blue fox")
    assert run(captions=home / f"captions.{end}") == {"changed": 1, "same": 4}
    assert rows(tmp_path)["0.png"]["caption"] == "a blue fox"
    (home / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="no column 'image', or one of another usual name .path,"):
        Captions(home / "bad.csv")


def test_only_walked_folders_lose_rows(run, home, tmp_path):
    run()
    (home / "0.png").unlink()
    (home / "more" / "3.png").unlink()
    assert run(home / "more") == {"same": 1, "gone": 1}
    assert run(home / "1.png") == {"same": 1}
    assert "0.png" in rows(tmp_path)
    assert run(recursive=False) == {"same": 2, "gone": 1}
    assert "4.png" in rows(tmp_path), "the walk did not come by"


def test_an_emptied_folder_keeps_its_rows(run, home, tmp_path):
    """As a disk that is not mounted looks; a folder that was deleted is another matter."""
    run()
    for path in (home / "more").iterdir():
        path.unlink()
    assert run() == {"same": 3}
    assert "more is empty now, and 2 images of it stay" in run.errors[0]
    assert run(prune=True) == {"same": 3, "gone": 2}
    run()
    shutil.rmtree(home)
    with pytest.raises(UsageError, match="no folder or file .* What the index holds of it stays"):
        run()
    home.mkdir()
    assert run() == {} and len(rows(tmp_path)) == 3
    shutil.rmtree(home)
    assert run(tmp_path) == {} and len(rows(tmp_path)) == 3
    assert run(tmp_path, prune=True) == {"gone": 3}


def test_a_folder_that_vanishes(run, home, tmp_path, monkeypatch):
    """What was committed stays, and it is said once."""
    run(home / "0.png")
    read = facts.Reader.read

    def vanish(self, path, about):
        shutil.rmtree(home, ignore_errors=True)
        return read(self, path, about)

    monkeypatch.setattr(facts.Reader, "read", vanish)
    with pytest.raises(ClipguideError, match="vanished while it was indexed"):
        run()
    assert "0.png" in rows(tmp_path)


def test_bad_pictures_are_told_and_tried_again(run, home, tmp_path):
    run()
    (home / "0.png").write_text("no image any more")
    (home / "new.png").write_bytes(b"")
    assert run() == {"same": 4, "failed": 2}
    assert run() == {"same": 4, "failed": 2}
    landscape(50, 40, seed=3).save(home / "new.png")
    assert run() == {"same": 4, "new": 1, "failed": 1}


def test_the_cache_is_used_and_filled(run, home, tmp_path):
    cache = Cache(tmp_path / "cache.sqlite")
    run(settings={"cache": cache})
    assert run.encoded == 5
    assert run(settings={"cache": cache}, db=tmp_path / "other") == {"new": 5}
    assert run.encoded == 0
    other = Store(tmp_path / "other").table.to_arrow().to_pylist()
    mine = rows(tmp_path)
    assert all(mine[os.path.basename(r["path"])]["vector"] == r["vector"] for r in other)
    (home / "0.png").rename(home / "moved.png")  # a vector of the table does not reach the cache
    run(settings={"cache": cache})
    assert [model["vectors"] for model in cache.info()["models"]] == [5]
    vectors = {tuple(row["vector"]) for row in rows(tmp_path).values()}
    kept = cache._db.execute("SELECT vector FROM vectors").fetchall()
    assert {tuple(memoryview(v).cast("f")) for (v,) in kept} == vectors


def test_names_that_are_no_utf8(run, home, tmp_path):
    odd = os.path.join(os.fsencode(home), b"\xff.png")
    shutil.copy(home / "0.png", odd)
    os.utime(odd, (1e9, 1e9))
    assert run() == {"new": 6}
    assert run() == {"same": 6}
    os.unlink(odd)
    assert run() == {"same": 5, "gone": 1}


def test_another_clip_or_other_settings_are_refused(run, judge, home, tmp_path):
    run()
    with pytest.raises(UsageError, match=r"was made by the CLIP .* give --clip"):
        run(clip=judge)
    landscape(50, 40, seed=40).save(home / "new.png")
    with pytest.raises(UsageError, match="by other settings"):
        run(settings={"alpha": "drop"})
    assert len(rows(tmp_path)) == 5


@pytest.mark.parametrize("settings", ({"alpha": "drop"}, {"frames": 2}, {"fast": True}))
def test_other_settings_are_refused_even_if_no_image_is_new(run, settings):
    """Not passed over without a word."""
    run()
    with pytest.raises(UsageError, match="by other settings"):
        run(settings=settings)
    assert run() == {"same": 5}


def test_two_writers(run, home, tmp_path):
    run()
    with Store(tmp_path / "db").writer():
        with pytest.raises(ClipguideError, match="Another program is writing"):
            run()
        assert Index(tmp_path / "db").store.count() == 5, "which may be searched meanwhile"
    assert run() == {"same": 5}


def test_a_place_that_cannot_be_written(run, home, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UsageError, match="is no folder"):
        run(db=tmp_path / "file")
    with pytest.raises(ClipguideError, match="cannot be written"):
        run(db=Path("/proc/nowhere/db"))
    assert (tmp_path / "file").read_text() == "precious"


def test_an_index_of_a_newer_version_or_of_another_program(run, tmp_path):
    import lancedb
    import pyarrow as pa

    run()
    schema = Store(tmp_path / "db").table.schema
    newer = {**schema.metadata, b"clipguide.format": b"2"}
    for name, metadata, message in (
        ("newer", newer, "of a newer clipguide"),
        ("other", {}, "not an index of clipguide's"),
    ):
        db = lancedb.connect(tmp_path / name)
        db.create_table("pictures", schema=pa.schema(list(schema), metadata=metadata))
        with pytest.raises(ClipguideError, match=message):
            Index(tmp_path / name)
        with pytest.raises(ClipguideError, match=message):
            run(db=tmp_path / name)


@pytest.mark.parametrize("part", ["data/*", "_versions/*.manifest", "data/*.lance truncated"])
def test_half_of_an_index(run, home, tmp_path, part):
    """One sentence, whatever is missing."""
    from clipguide.retrieval import Query

    run()
    pattern, _, truncated = part.partition(" ")
    for path in (tmp_path / "db" / "pictures.lance").glob(pattern):
        path.write_bytes(b"LANC") if truncated else path.unlink()
    for ask in (lambda: Index(tmp_path / "db").search(Query(torch.ones(24) / 24**0.5)), run):
        with pytest.raises(ClipguideError, match="is damaged .*: move that folder away, and index"):
            ask()


def test_a_run_without_pictures_makes_no_table(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty") == {}
    with pytest.raises(UsageError, match="holds no index of images"):
        Index(tmp_path / "db")
    with pytest.raises(UsageError, match="There is no index .*clipguide index FOLDER --db"):
        Index(tmp_path / "none")


def test_commits_come_in_pieces_and_are_acknowledged(clip, home, tmp_path, monkeypatch):
    monkeypatch.setattr(changes, "ROWS", 2)
    kept = []
    for progress in update(tmp_path / "db", [home], engine=Engine(clip)):
        kept += progress.kept
        if progress.kept:
            assert set(kept) <= set(Store(tmp_path / "db").table.to_arrow()["path"].to_pylist())
        assert progress.total == 5 and 0 <= progress.done <= 5 and progress.left >= 0
    assert sorted(kept) == sorted(map(str, home.rglob("*.png")))
    assert progress.done == 5 and progress.left == 0


WORKER = """
import sys
import torch
torch.set_num_threads(1)
from clipguide.clip import load_clip
from clipguide.engine import Engine
from clipguide.retrieval import changes, index
changes.ROWS = 2
print("ready", flush=True)
for progress in index.update(sys.argv[1], [sys.argv[2]], engine=Engine(load_clip(sys.argv[3]), batch=2)):
    for path in progress.kept:
        print(path, flush=True)
"""  # noqa: E501


def killed(db, home, folder, wait):
    """Kill an update after a while; the paths that it had acknowledged."""
    command = [sys.executable, "-c", WORKER, db, home, folder]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline()]
        wait(process, lines)
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    return [line.strip() for line in lines[1:] if line.endswith("\n")]


def check_after_a_kill(db, home, clip, acknowledged):
    """All that was acknowledged is there, and right; the next run ends right."""
    if acknowledged:
        found = Store(db).table.to_arrow()
        assert set(acknowledged) <= set(found["path"].to_pylist())
    *_, last = update(db, [home], engine=Engine(clip))
    assert not last.failed
    table = Store(db).table.to_arrow()
    paths = sorted(map(str, home.rglob("*.png")))
    assert sorted(table["path"].to_pylist()) == paths
    expected = {row.path: row.unit_D for row in Engine(clip).embed(paths)}
    for path, vector in zip(table["path"].to_pylist(), table["vector"].to_pylist()):
        torch.testing.assert_close(torch.tensor(vector), expected[path])
    *_, last = update(db, [home], engine=Engine(clip))
    assert last.same == len(paths)


def many(home, count):
    for i in range(count):
        landscape(20, 20, seed=100 + i).save(home / f"many{i}.png")
    settle(home)


def test_killed_in_the_middle(clip, clip_folder, home, tmp_path):
    many(home, 20)

    def wait(process, lines):
        lines += [process.stdout.readline() for _ in range(5)]

    acknowledged = killed(tmp_path / "db", home, clip_folder, wait)
    assert len(acknowledged) >= 5
    check_after_a_kill(tmp_path / "db", home, clip, acknowledged)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_50_random_moments(clip, clip_folder, home, tmp_path):
    many(home, 60)
    chance = random.Random(0)
    for number in range(50):
        db = tmp_path / f"db{number}"
        if number % 2:  # half of them go on from what another was killed in
            shutil.copytree(tmp_path / "half", db)

        def wait(process, lines):
            time.sleep(chance.uniform(0, 1.5))

        acknowledged = killed(db, home, clip_folder, wait)
        if not number % 2:
            shutil.rmtree(tmp_path / "half", ignore_errors=True)
            shutil.copytree(db, tmp_path / "half") if db.exists() else (tmp_path / "half").mkdir()
        check_after_a_kill(db, home, clip, acknowledged)
        shutil.rmtree(db)


def test_files_of_the_table_are_merged_as_commits_come(clip, home, tmp_path, monkeypatch):
    """Each commit is a file of the table, and after so many they are made one."""
    monkeypatch.setattr(changes, "ROWS", 1)
    monkeypatch.setattr(changes, "FRAGMENTS", 2)
    files = []
    for progress in update(tmp_path / "db", [home], engine=Engine(clip)):
        if progress.kept:
            files.append(Store(tmp_path / "db").table.stats()["fragment_stats"]["num_fragments"])
    assert len(files) == 5 and max(files) <= 2, files
