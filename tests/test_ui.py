"""The page without a browser: what it serves and refuses, and the functions behind it."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import zlib
from dataclasses import replace
from datetime import datetime

import pytest
import typer
from PIL import Image
from test_clip import landscape
from typer.testing import CliRunner

pytest.importorskip("gradio")
pytest.importorskip("lancedb")

from clipguide.pipelines.text_to_image import TextToImage
from starlette.testclient import TestClient

from clipguide import images, mini
from clipguide.cli import ui as command
from clipguide.cli.app import _Commands
from clipguide.engine import Engine
from clipguide.errors import ClipguideError, UsageError
from clipguide.recipe import read_png, read_trace
from clipguide.retrieval import update
from clipguide.transparency import ALPHA
from clipguide.ui import Models, files, generate_tab, listen, rerank_tab, search_tab, server, words
from clipguide.ui.models import Stops

COUNT = 9  # images of the collection
FILE = "/gradio_api/file="
JOIN = "/gradio_api/queue/join"


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    home = tmp_path_factory.mktemp("collection")
    for i in range(COUNT):
        landscape(60 + 9 * i, 50, seed=i).save(home / f"{i}.png")
    return home


@pytest.fixture(scope="module")
def db(collection, clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("db") / "pictures"
    for _ in update(path, [collection], engine=Engine(clip)):
        pass
    return path


@pytest.fixture
def models(db, clip_folder):
    return Models(db=db, clip=str(clip_folder))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder of the page's files."""
    return os.path.realpath(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def page(db, home):
    """The page as it is served, asked as a browser on this machine asks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", home)  # which the page sets: put back behind the tests
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        models = Models(db=db)
        app = server.application(models, home)
        with TestClient(app, base_url="http://127.0.0.1:7860") as client:
            client.stops = models.stops
            yield client


def png(width: int, height: int) -> bytes:
    """A PNG whose head says these sides."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    packed = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d))
              for t, d in chunks)  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


# The files that it serves


@pytest.fixture(scope="module")
def places(home, collection, tmp_path_factory):
    """A file of the page, a secret beside its folder, and links to the secret in the folder."""
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    outside.write_text("secret")
    os.makedirs(os.path.join(home, "a"))
    mine = os.path.join(home, "a", "mine.png")
    landscape(20, 20, seed=0).save(mine)
    os.symlink(outside, os.path.join(home, "a", "link.png"))
    os.symlink(outside.parent, os.path.join(home, "a", "folder"))
    os.symlink(mine, os.path.join(home, "a", "within.png"))
    with open(os.path.join(os.path.dirname(home), "secret.png"), "w") as stream:
        stream.write("secret")
    return {"home": home, "outside": str(outside), "mine": mine, "picture": f"{collection}/0.png"}


def test_its_own_files_are_served(page, places):
    answer = page.get(FILE + places["mine"])
    assert answer.status_code == 200
    with open(places["mine"], "rb") as stream:
        assert answer.content == stream.read()
    assert page.get(f"{FILE}{places['home']}/a/within.png").content == answer.content


@pytest.mark.parametrize(
    "path",
    [
        "{outside}",
        "{picture}",  # of the collection: shown by its row, never by its path
        "/etc/passwd",
        "//etc/passwd",
        "/proc/self/environ",
        "{home}/a/link.png",
        "{home}/a/folder/secret.png",
        "{home}/../secret.png",
        "{home}/a/../../secret.png",
        "{home}/a/%2e%2e/%2e%2e/secret.png",
        "{home}/a/..%2f..%2fsecret.png",
        "{home}%00/a/mine.png",
        "{home}",
        "{home}/",
        "{home}/a",
        "{home}x/a/mine.png",
        "a/mine.png",
        "../../etc/passwd",
        "~/.bashrc",
        "file:///etc/passwd",
        "http://127.0.0.1:9/x.png",
        "https://example.invalid/x.png",
        "",
    ],
)
@pytest.mark.parametrize("verb", ["GET", "HEAD"])
def test_other_files_are_not(page, places, path, verb):
    for route in (FILE, "/file=", "/gradio_api/file/", "/file/", "/gradio_api/proxy="):
        answer = page.request(verb, route + path.format(**places), follow_redirects=False)
        assert answer.status_code in (403, 404), route
        assert "secret" not in answer.text and "root:" not in answer.text


@pytest.mark.parametrize("under", ["static", "assets", "svelte"])
@pytest.mark.parametrize("dots", ["../", "%2e%2e/", "..%2f", "..%5c"])
def test_no_way_up_from_the_pages_own_parts(page, under, dots):
    for depth in range(1, 12):
        answer = page.get(f"/{under}/{dots * depth}etc/passwd")
        assert answer.status_code in (403, 404) and "root:" not in answer.text


@pytest.mark.parametrize(
    "path", ["{outside}", "{picture}", "/etc/passwd", "{home}/a/link.png", "{home}/../secret.png",
             "http://127.0.0.1:9/x.png", "a/mine.png"]
)  # fmt: skip
def test_other_files_are_not_taken_as_uploads(page, places, path):
    upload = {"path": path.format(**places), "meta": {"_type": "gradio.FileData"}}
    for data in ([upload], [["deep", {"er": [upload]}]]):
        body = {"data": data, "fn_index": 0, "session_hash": "a"}
        for route in (JOIN, "/gradio_api/run/predict"):
            answer = page.post(route, json=body)
            assert (answer.status_code, answer.text) == (
                403,
                "That file is not one of this page's.",
            )


@pytest.mark.parametrize(
    "path", ["/docs", "/openapi.json", "/monitoring", "/login", "/gradio_api/component_server",
             "/gradio_api/call/begin", "/gradio_api/vibe-code", "/gradio_api/process_recording",
             "/gradio_api/runs", "/gradio_api/deep_link", "/?deep_link=..%2f..%2fa"]
)  # fmt: skip
def test_what_the_page_does_not_need_is_not_there(page, path):
    assert page.get(path).status_code == 404
    assert page.post(path, json={}).status_code == 404


def test_only_the_page_itself_may_ask(page):
    """No name that another page made lead here, and no other page's forms."""
    assert page.get("/").status_code == 200
    assert page.get("/", headers={"host": "localhost:7860"}).status_code == 200
    assert page.get("/", headers={"host": "evil.example:7860"}).status_code == 403
    assert page.get("/", headers={"host": ""}).status_code == 403
    own = {"origin": "http://127.0.0.1:7860"}
    other = {"origin": "http://evil.example"}
    body = {"session_hash": "a", "fn_index": 0, "event_id": "b"}
    assert page.post("/gradio_api/cancel", json=body, headers=own).status_code == 200
    assert page.post("/gradio_api/cancel", json=body, headers=other).status_code == 403


def test_the_browser_is_told_to_ask_no_other_host(page):
    for path in ("/", "/config", "/etc"):
        policy = page.get(path).headers["content-security-policy"]
        assert policy.startswith("default-src 'self';") and "http" not in policy


# What is sent to it


def test_uploads_have_a_limit(page, home):
    fine = page.post("/gradio_api/upload", files={"files": ("a.png", b"x" * 100)})
    assert fine.status_code == 200 and files.inside(fine.json()[0], home)
    large = page.post("/gradio_api/upload", files={"files": ("a.png", b"x" * (files.LARGEST + 1))})
    assert large.status_code == 413
    route, form = "/gradio_api/upload", {"content-type": "multipart/form-data; boundary=a"}
    said = page.post(route, content=b"", headers={**form, "content-length": str(300 << 20)})
    assert (said.status_code, said.text) == (413, "That is too much at once.")
    assert page.post(JOIN, content=b"x" * (2 << 20)).status_code == 413


def test_the_queue_has_a_limit(page, tiny_mini):
    """So many wait; whoever comes then is told."""
    found = page.get("/config").json()["dependencies"]
    number = next(one["id"] for one in found if len(one["inputs"]) == 7)
    data = ["a fox", "", 0.1, 100, "1", 8, 1]
    bodies = [{"data": data, "fn_index": number, "session_hash": f"s{i}"} for i in range(20)]
    assert all(page.stops.ask(body["session_hash"]) for body in bodies)
    answers = [page.post(JOIN, json=body) for body in bodies]
    page.stops.stop()
    for body, answer in zip(bodies, answers):
        if answer.status_code == 200:
            page.post("/gradio_api/cancel", json={**body, "event_id": answer.json()["event_id"]})
    status = [answer.status_code for answer in answers]
    assert status[:16] == [200] * 16 and status[-1] == 503
    assert "full" in answers[-1].text


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_bodies_that_are_no_json(page, body):
    assert page.post(JOIN, content=body).status_code == 400


@pytest.mark.parametrize(
    "content, words_",
    [
        (png(60_000, 60_000), "too many pixels"),
        (png(10_000, 9_000), "10000 x 9000 pixels"),
        (b"hello", "is not an image"),
        (b"", "is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "is not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image"),
        (png(30, 30), "cannot be read"),
        (b"x" * (files.LARGEST + 1), "larger than 20 MiB"),
    ],
)
def test_hostile_pictures(tmp_path, content, words_):
    """One sentence, with the name of the file and not its folder."""
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        files.uploaded(str(path))
    told = str(caught.value)
    assert words_ in told and told.startswith("a.png ") and told.count(".") <= 2
    assert str(tmp_path) not in told


def test_a_picture_is_read_as_elsewhere(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGBA", (9, 9), (255, 0, 0, 100)).save(path)
    for alpha in ALPHA:
        assert files.uploaded(str(path), alpha=alpha) == images.load(path, alpha=alpha)


# The images of the index


@pytest.fixture
def hit(models, collection, tmp_path):
    """An image of an index, copied to where it may be changed."""
    hit = next(h for h in search(models, "a fox", count=COUNT).hits if h.path.endswith("0.png"))
    shutil.copy2(hit.path, tmp_path / "0.png")
    return replace(hit, path=str(tmp_path / "0.png"))


def test_a_picture_is_shown_while_it_is_the_one_that_was_indexed(hit):
    assert files.indexed(hit) == images.load(hit.path)


def test_another_file_in_its_place_is_not(hit, tmp_path):
    kept = os.stat(hit.path)
    moved = tmp_path / "moved.png"
    os.rename(hit.path, moved)
    assert files.indexed(hit) is None
    os.symlink(moved, hit.path)  # the right image, but by a link that may lead anywhere next
    assert files.indexed(hit) is None
    os.remove(hit.path)
    os.mkfifo(hit.path)  # must not wait for a writer
    assert files.indexed(hit) is None
    os.remove(hit.path)
    landscape(60, 50, seed=99).save(hit.path)
    os.utime(hit.path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert files.indexed(hit) is None  # of another size
    os.rename(moved, hit.path)
    assert files.indexed(hit) is not None
    os.utime(hit.path)
    assert files.indexed(hit) is None  # touched


def test_its_thumbnail_is_shown_instead(hit):
    found = search_tab.Found(hits=(hit,))
    os.remove(hit.path)
    picture, about = search_tab.picked(found, 0)
    assert max(picture.size) <= 192 and "this is its thumbnail" in about
    broken = search_tab.Found(hits=(replace(hit, thumbnail=b"broken"),))
    assert search_tab.picked(broken, 0)[0].size == search_tab.cells(broken)[0][0].size


# Search


def search(models, text="", upload=None, where="", hybrid=False, diversity=0.0, count=4):
    return search_tab.search(models, text, upload, where, hybrid, diversity, count)


def vectors(clip, collection):
    paths = [str(collection / f"{i}.png") for i in range(COUNT)]
    return paths, clip.encode_pictures([images.load(path) for path in paths])


def order(paths, score_B):
    return [paths[i] for i in score_B.argsort(descending=True).tolist()]


def test_text_picture_and_both(models, clip, collection):
    paths, unit_BD = vectors(clip, collection)
    text_D = clip.encode_text(["a fox"])[0]
    found = search(models, " a fox ")
    assert [hit.path for hit in found.hits] == order(paths, unit_BD @ text_D)[:4]
    found = search(models, upload=paths[3])
    assert [hit.path for hit in found.hits] == order(paths, unit_BD @ unit_BD[3])[:4]
    found = search(models, "a fox", upload=paths[3])
    assert [hit.path for hit in found.hits] == order(paths, unit_BD @ (text_D + unit_BD[3]))[:4]


def test_sums(models, clip, collection):
    """What is added and taken away, with weights; alone, a sum is no text to search in words."""
    paths, unit_BD = vectors(clip, collection)
    fox_D, snow_D, dog_D = clip.encode_text(["a fox", "snow", "a dog"])
    settings = ("", False, 0.0, COUNT)
    found = search_tab.search(models, "a fox", None, *settings, " snow:2 ", "a dog:0.5")
    sum_D = fox_D + 2 * snow_D - 0.5 * dog_D
    assert [hit.path for hit in found.hits] == order(paths, unit_BD @ sum_D)
    assert found.query.text is None
    found = search_tab.search(models, "", None, *settings, "snow")
    assert [hit.path for hit in found.hits] == order(paths, unit_BD @ snow_D)
    found = search_tab.search(models, "", paths[3], *settings, None, "snow")
    assert [hit.path for hit in found.hits] == order(paths, unit_BD @ (unit_BD[3] - snow_D))
    with pytest.raises(UsageError, match="nothing to search for"):
        search_tab.search(models, "", None, *settings, "", "snow")
    with pytest.raises(UsageError, match="cancel each other out"):
        search_tab.search(models, "a fox", None, *settings, "", "a fox")


def test_more_and_more(models):
    found, whole = search(models, "a fox", count=4), search(models, "a fox", count=COUNT)
    assert not found.over
    for expected in (8, COUNT, COUNT):
        found = search_tab.more(models, found)
        assert found.hits == whole.hits[:expected]
    assert found.over


def test_more_like_this(models, clip, collection):
    """The nearest of the others, and each of them once."""
    paths, unit_BD = vectors(clip, collection)
    found = search(models, "a fox")
    like = search_tab.similar(models, found, 2, 4)
    it = paths.index(found.hits[2].path)
    expected = order(paths, unit_BD @ unit_BD[it])[1:]
    assert [hit.path for hit in like.hits] == expected[:4]
    while not like.over:
        like = search_tab.more(models, like)
    assert [hit.path for hit in like.hits] == expected


def test_filters(models):
    assert len(search(models, "a fox", where="width > 100").hits) == 4
    assert [h.facts["width"] for h in search(models, "a fox", where="width = 69").hits] == [69]
    with pytest.raises(UsageError) as caught:
        search(models, "a fox", where="width >")
    assert words.sentence(caught.value).startswith("The filter is not understood at ")
    with pytest.raises(UsageError, match="nothing more"):
        search(models, "a fox", where="width > 5; drop table images")


@pytest.mark.parametrize(
    "given, told",
    [
        ({}, "nothing to search for"),
        ({"text": "   "}, "nothing to search for"),
        ({"text": "word " * 5000}, "The text has 24999 characters"),
        ({"text": "\udcff"}, "not valid text"),
        ({"upload": "{picture}", "hybrid": True}, "give a text, and no image"),
        ({"text": "a fox", "where": " ;"}, "nothing more"),
        ({"text": "a fox", "diversity": 2}, "between 0 and 1"),
    ],
)
def test_questions_that_make_no_sense(models, collection, given, told):
    if "upload" in given:
        given = {**given, "upload": str(collection / "0.png")}
    with pytest.raises(UsageError, match=told) as caught:
        search(models, **given)
    assert "--" not in words.sentence(caught.value)


def test_other_scripts_are_texts(models):
    for text in ("красная лиса", "赤い狐", "🦊", "a' OR 1=1 --", "\u202e\x00"):
        assert len(search(models, text).hits) == 4


def test_a_score_is_compared_with_unrelated_texts(models):
    """Where a text is asked for: the page says what the answer holds."""
    found = search(models, "a fox")
    hit = found.hits[0]
    assert 0 <= hit.better_than <= 1
    _, facts = search_tab.picked(found, 0)
    assert f"better than {hit.better_than:.1%} of unrelated texts" in facts


def test_no_index(tmp_path):
    with pytest.raises(UsageError, match="make it with clipguide index FOLDER"):
        search(Models(db=tmp_path / "none"), "a fox")


# Rerank


def test_rerank(models, clip, collection, tmp_path):
    paths, unit_BD = vectors(clip, collection)
    text_D, negative_D = clip.encode_text(["a fox", "snow"])
    junk = tmp_path / "junk.png"
    junk.write_text("hello")
    ranked, told = rerank_tab.rerank(models, [*paths, str(junk)], "a fox", "snow", False)
    expected = order(paths, unit_BD @ (text_D - negative_D))
    assert [label.split()[-1] for _, label in ranked] == [os.path.basename(p) for p in expected]
    assert told.startswith("9 images") and "junk.png is not an image" in told


def test_copies_are_left_out(models, collection, tmp_path):
    shutil.copy(collection / "0.png", tmp_path / "copy.png")
    given = [str(collection / "0.png"), str(tmp_path / "copy.png"), str(collection / "8.png")]
    ranked, _ = rerank_tab.rerank(models, given, "a fox", "", False)
    fewer, told = rerank_tab.rerank(models, given, "a fox", "", True)
    assert len(fewer) < len(ranked) == 3 and "left out" in told


@pytest.mark.parametrize(
    "uploads, text, told",
    [
        (None, "a fox", "There are no images"),
        (["0.png"] * 65, "a fox", "up to 64"),
        (["0.png"], " ", "nothing to rank by"),
        (["none.txt"], "a fox", "none.txt is not an image"),
    ],
)
def test_rerank_of_nothing(models, collection, tmp_path, uploads, text, told):
    (tmp_path / "none.txt").write_text("hello")
    shutil.copy(collection / "0.png", tmp_path)
    uploads = uploads and [str(tmp_path / name) for name in uploads]
    with pytest.raises(UsageError, match=told):
        rerank_tab.rerank(models, uploads, text, "", False)


# Generate


@pytest.fixture
def drawn(tiny_mini, tmp_path, monkeypatch):
    """Draws with tiny models, and gives all that is shown."""
    monkeypatch.setattr(generate_tab, "EVERY", 0.0)
    models = Models()

    def run(
        prompt="a red fox", negative="", strength=0.1, steps=4, seed="5", count=2, best_of=1
    ):
        given = (prompt, negative, strength, steps, seed, count, best_of)
        assert models.stops.ask("session")
        return list(generate_tab.draw(models, "session", str(tmp_path), *given))

    return run


def test_pictures_come_with_previews_and_recipes(drawn):
    """Every step is seen; what is kept are the images that the pipeline itself draws."""
    shown = drawn()
    expected = TextToImage()("a red fox", strength=0.1, steps=4, seed=5, count=2, trace=True)
    labels = [[label for _, label in cells] for cells, _, _ in shown]
    steps = [found[-1] for found in labels if found and found[-1].startswith("step")]
    assert steps == [f"step {i} of 4" for i in (1, 2, 3, 4)] * 2
    pictures, said, plot = shown[-1]
    assert "Image 2 of 2 is finished." in said and plot.count("<polyline") == 2
    for (path, label), picture in zip(pictures, expected, strict=True):
        assert images.load(path).tobytes() == picture.image.tobytes()
        assert read_png(path) == picture.recipe and read_trace(path) == picture.trace
        said = f"seed {picture.seed}  score {picture.judge_score:.3f} ("  # and what it means
        assert label.startswith(said)


@pytest.mark.parametrize(
    "given, told",
    [
        ({"prompt": " "}, "The prompt is empty"),
        ({"prompt": "x" * 3000}, "3000 characters"),
        ({"prompt": "a fox:nan"}, "finite number"),
        ({"seed": "-1"}, "The seed is a whole number"),
        ({"seed": "9" * 30}, "The seed is a whole number"),
        ({"seed": "9" * 19}, "The seed must be"),
        ({"count": 9}, "1 to 8 images"),
        ({"best_of": 9}, "1 to 8 candidates"),
        ({"steps": 1000}, "100 steps"),
        ({"strength": -1}, "The strength must be"),
    ],
)
def test_what_cannot_be_drawn(drawn, given, told):
    (*_, (cells, said, _)) = drawn(**given)
    assert not cells and told in said and 'class="wrong"' in said


def test_the_best_of_candidates(drawn):
    shown = drawn(count=1, best_of=3)[-1][0]
    (expected,) = TextToImage()("a red fox", strength=0.1, steps=4, seed=5, best_of=3)
    ((_, label),) = shown
    assert label.startswith(f"seed {expected.seed}  score {expected.judge_score:.3f} (")


def test_settings_that_nobody_touched_are_the_commands(drawn, monkeypatch):
    """The default candidates of the embedded generator; with a weight in the prompt, steering."""
    from diffusers import StableDiffusionPipeline  # the tiny generator's class

    monkeypatch.setattr(StableDiffusionPipeline, "default_best_of", 4, raising=False)
    untouched = {"strength": 0, "best_of": mini.CANDIDATES, "count": 1}
    for prompt, strength, number in (("a red fox", 0, 4), ("a red fox | blur:-1", 0.2, 1)):
        (cells, *_) = drawn(prompt=prompt, **untouched)[-1]
        recipe = read_png(cells[0][0])
        assert (recipe.strength, recipe.best_of) == (strength, number)


def test_what_was_done_otherwise_is_said(drawn):
    """Warnings of the run stand beside what it made."""
    *_, (cells, said, _) = drawn(prompt="red fox " * 30, count=1)
    assert len(cells) == 1 and "is finished. The CLIP " in said and "is lost." in said


def test_no_seed_is_a_new_one(drawn):
    seeds = {drawn(seed="", count=1, steps=1)[-1][0][0][1].split()[1] for _ in range(3)}
    assert len(seeds) == 3


def working() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "clipguide-draw"]


def test_stop_stops_the_work(tiny_mini, tmp_path, monkeypatch):
    """After the step that it is at: the generator ends, and no thread goes on."""
    monkeypatch.setattr(generate_tab, "EVERY", 0.0)
    models = Models()
    given = ("a red fox", "", 0.1, 100, "5", 8)
    assert models.stops.ask("session")
    shown = []
    for cells, said, _ in generate_tab.draw(models, "session", str(tmp_path), *given):
        shown.append((cells, said))
        if len(shown) == 3:
            assert working() and models.stops.stop("another") == 0
            assert not models.stops.ask("session")  # one at a time
            assert models.stops.stop("session") == 1
            assert models.stops.ask("session")  # and the next may be asked for at once
    assert "Stopped." in shown[-1][1]
    assert not working() and models.stops.stop() == 1
    steps = [label for cells, _ in shown for _, label in cells]
    assert len(set(steps)) <= 6  # one may be under way, and one wait to be shown


def test_a_run_that_nobody_watches_ends(tiny_mini, tmp_path):
    models = Models()
    models.stops.ask("session")
    run = generate_tab.draw(models, "session", str(tmp_path), "a fox", "", 0.1, 100, "5", 8)
    next(run), next(run)
    assert working()
    run.close()
    assert not working() and models.stops.stop() == 0


def test_what_fails_in_the_thread_is_raised_outside():
    def run(on_step):
        raise ZeroDivisionError
        yield

    with pytest.raises(ZeroDivisionError):
        list(generate_tab.stream(run, threading.Event()))
    assert not working()


def test_what_waits_is_stopped_as_well(tiny_mini, tmp_path):
    """A run that was stopped before its turn came draws nothing, nor one that nobody asked for."""
    models = Models()
    given = (models, "session", str(tmp_path), "a fox", "", 0.1, 100, "5", 8)
    assert not list(generate_tab.draw(*given))
    models.stops.ask("session")
    assert models.stops.stop("session") == 1
    (*_, (cells, said, _)) = generate_tab.draw(*given)
    assert not cells and "Stopped." in said


def test_a_session_asks_for_one_run_at_a_time():
    stops = Stops()
    assert stops.ask("a") and stops.ask("a") and stops.ask("b")
    one = stops.begin("a")
    assert stops.begin("a") is None and not stops.ask("a")
    assert stops.stop("a") == 1 and one.is_set() and stops.ask("a")
    two = stops.begin("a")
    stops.ended("a", one)
    assert stops.stop() == 2 and two.is_set()
    stops.ended("a", two)
    assert stops.begin("b").is_set()
    assert not stops._running.get("a") and not stops._waiting


# Words


def test_what_others_wrote_is_text():
    hostile = "<img src=x onerror=alert(1)>\udcff"
    columns = {"width": 3, "height": 4, "format": "PNG", "caption": hostile, "camera": hostile,
               "date": datetime(2024, 5, 6, 7, 8)}  # fmt: skip
    for told in (words.said(hostile), words.facts(hostile, 0.5, columns, note=hostile)):
        assert "<img" not in told and "&lt;img" in told
        told.encode()
    assert "2024-05-06 07:08" in told and "3 x 4 PNG" in told


def test_plot_of_what_was_seen():
    rows = [{"step": i, "guide": 0.1 + 0.1 * i} for i in range(3)]
    rows[2]["judge"] = 0.2
    plot = words.plot(rows)
    points = plot.split('class="guide" points="')[1].split('"')[0].split()
    x, y = zip(*(map(float, point.split(",")) for point in points))
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.2) and y[0] > y[2]
    assert "guide 0.300" in plot and "judge 0.200" in plot
    assert words.plot([]) == words.plot([{"step": 0}]) == ""
    assert "nan" not in words.plot([{"step": 0, "guide": 0.5}])


# The command


def run(*arguments):
    app = typer.Typer(cls=_Commands, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(command.ui)
    app.command()(run)
    return CliRunner().invoke(app, ["ui", *map(str, arguments)], catch_exceptions=False)


def test_port_in_use():
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        result = run("--port", port, "--no-browser")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"clipguide: Port {port} of 127.0.0.1 is in use: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "given, told",
    [
        (("--host", "no host.invalid", "--auth", "a:b"), "There is no host"),
        (("--host", "192.0.2.1", "--auth", "a:b"), "is no address of this machine"),
        (("--port", 70_000), "A port is a number from 0 to 65535"),
    ],
)
def test_where_it_cannot_listen(given, told):
    result = run("--no-browser", *given)
    assert result.exit_code == 2 and told in result.stderr and result.stderr.count("\n") == 1


def test_without_gradio(monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    result = run("--no-browser")
    assert result.exit_code == 2
    assert result.stderr == "clipguide: The page needs Gradio: pip install 'clipguide[ui]'.\n"


def test_a_port_that_nobody_may_have(monkeypatch):
    def bind(self, address):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(server.socket.socket, "bind", bind, raising=False)
    with pytest.raises(ClipguideError, match="cannot listen at port 80 .*Permission denied"):
        listen("127.0.0.1", 80)


def test_it_is_served_on_this_machine_alone_and_says_where(db, tmp_path):
    """As it is typed: the address, one answer, and an end by Ctrl+C that leaves nothing behind."""
    code = (
        "import typer; from clipguide.cli.ui import ui; app = typer.Typer(); app.command()(ui);"
        "app()"
    )
    command = [sys.executable, "-c", code, "--port", "0", "--no-browser", "--db", str(db)]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "http_proxy": "http://127.0.0.1:9"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            address = process.stdout.readline().strip()
            assert address.startswith("http://127.0.0.1:")
            import httpx

            with httpx.Client(trust_env=False) as client:
                assert "gradio" in client.get(address, timeout=30).text
                config = client.get(f"{address}/config").json()
            tabs = [c["props"]["label"] for c in config["components"] if c["type"] == "tabitem"]
            assert tabs == ["Generate", "Search", "Rerank"]
            assert "https://" not in json.dumps(config["css"] or "")
        finally:
            process.send_signal(2)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")
    assert not [name for name in os.listdir(tmp_path) if name.startswith("clipguide-")]


def test_nothing_heavy_is_imported_with_the_command():
    code = "import sys, clipguide.cli.ui; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"gradio", "torch", "lancedb", "fastapi", "PIL"} & set(loaded.stdout.split())


def test_localhost_is_this_machine():
    with listen("localhost", 0) as sock:
        assert sock.getsockname()[0] in ("127.0.0.1", "::1")
