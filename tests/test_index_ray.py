"""The index that Ray's actors make is the one that one machine makes, whoever dies meanwhile."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch
from test_clip import landscape
from typer.testing import CliRunner

pytest.importorskip("lancedb")
pytest.importorskip("lance")
pytest.importorskip("ray")

import ray

from benchmarks.search import compared
from clipguide.cli.app import app
from clipguide.engine import Engine, processors
from clipguide.errors import ClipguideError, UsageError
from clipguide.retrieval import Index, Query, beyond, update
from clipguide.retrieval import cluster as cluster_module
from clipguide.retrieval.captions import Captions
from clipguide.retrieval.items import Work
from clipguide.retrieval.lookup import Digests
from clipguide.retrieval.remote import About, Listing, caption, content
from clipguide.retrieval.store import Store

COUNTS = ("new", "changed", "moved", "same", "gone", "failed")
FACTS = ("size", "mtime", "digest", "width", "height", "format", "prompt", "thumbnail", "caption")


@pytest.fixture(scope="module")
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200_000_000,
        log_to_driver=False,
    )
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no worker finds tests
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    ray.shutdown()


@pytest.fixture
def home(tmp_path):
    """Twelve images in two folders, one with a caption, and a file that is no image."""
    home = tmp_path / "pictures"
    (home / "more").mkdir(parents=True)
    for i in range(12):
        landscape(50, 40, seed=i).save((home if i % 2 else home / "more") / f"{i}.png")
    (home / "1.txt").write_text("a red\nfox\n")
    (home / "bad.png").write_text("no image")
    old(home)
    return home


def old(home):
    for path in home.rglob("*.*"):
        os.utime(path, (1.7e9, 1.7e9))


@pytest.fixture
def run(cluster, clip, tmp_path, home, monkeypatch):
    """Update the index by an actor, in blocks of three; what was counted, without zeros. Each actor
    is a process that loads torch, so two are for a test that needs two."""
    monkeypatch.setattr(beyond, "BLOCK", 3)

    def update_(*sources, db=tmp_path / "db", settings=None, workers=1, **options):
        engine = Engine(clip, batch=2, **(settings or {}))
        update_.errors = []
        for last in beyond.update(
            db, sources or [home], engine=engine, workers=workers, **options
        ):
            update_.errors += last.errors
        update_.last = last
        return {name: getattr(last, name) for name in COUNTS if getattr(last, name)}

    return update_


def rows(db):
    """The table's rows by the names of their files; each once."""
    found = Store(db).table.to_arrow().to_pylist()
    named = {os.path.basename(row["path"]): row for row in found}
    assert len(named) == len(found)
    return named


def check_alike(db, other, *, places=True):
    """Two indexes say the same."""
    mine, others = rows(db), rows(other)
    assert mine.keys() == others.keys() and mine
    for name, row in mine.items():
        columns = (*FACTS, "path", "folder", "inode", "caption_mtime") if places else FACTS
        for column in columns:
            assert row[column] == others[name][column], (name, column)
        mine_D, others_D = (torch.tensor(r["vector"]) for r in (row, others[name]))
        torch.testing.assert_close(mine_D, others_D, atol=1e-5, rtol=0)


def test_the_rows_are_the_local_engine_s(run, clip, home, tmp_path):
    assert run(workers=2) == {"new": 12, "failed": 1}
    *_, last = update(tmp_path / "other", [home], engine=Engine(clip))
    assert (last.new, last.failed) == (12, 1)
    check_alike(tmp_path / "db", tmp_path / "other")
    query = Query(clip.encode_text(["a red fox"])[0])
    mine, others = (Index(tmp_path / name).search(query).hits for name in ("db", "other"))
    assert [hit.path for hit in mine] == [hit.path for hit in others]


def test_an_actor_has_the_settings_of_the_driver_s_engine(clip, home, tmp_path):
    """So that it makes the same key; and it looks at an object when the listing did."""
    settings = {"icc": True, "megapixels": 1e-4, "frames": 2, "alpha": "drop", "fast": True}
    engine = Engine(clip, batch=2, **settings)
    job = beyond.RayUpdate(Store(tmp_path / "db", make=True), engine, Captions(), [])
    with job:
        job.make_ready()
        worker = beyond.actors.Worker(job._job(SimpleNamespace(device="cpu", threads=1)), ())
        worker.ready()
    reader = worker.reader
    assert reader.key == engine.key
    assert {name: getattr(reader, name) for name in settings} == settings
    report = worker.embed([Work(str(home / "1.png"), 1, None, None, None, False)])
    ((_, error),) = report.errors
    assert "more than 0.0001 are not read" in error
    about = About(7, 10**18, 0)
    reader.works = {"memory://a.png": Work("memory://a.png", 5, about, None, None, False)}
    with ThreadPoolExecutor(1) as pool:
        slot = reader.start("memory://a.png", pool)
    assert (slot.about, slot.seen) == (about, 5)


@pytest.mark.parametrize("bound", [1, 3])
def test_ray_alone_takes_the_processors_of_this_program(monkeypatch, bound):
    """Not all of the machine's."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(bound)))
    told, alone = {}, lambda **settings: told.update(settings)
    fake = SimpleNamespace(is_initialized=lambda: False, init=alone, shutdown=lambda: None)
    with cluster_module.cluster(fake, None, None):
        assert told["num_cpus"] == min(bound, processors())
    with cluster_module.cluster(fake, 4, 2):
        assert told["num_cpus"] == 8


@pytest.mark.slow
def test_urls_give_the_same_vectors(run, clip, home, tmp_path):
    """fsspec's reader, as of object storage, into a table at a URL; then what changed alone."""
    url, db = f"file://{home}", f"file://{tmp_path}/db"
    passed = []
    assert run(url, db=db, passed=passed) == {"new": 12, "failed": 1}
    assert passed == [f"{url}/1.txt"]
    list(update(tmp_path / "other", [home], engine=Engine(clip)))
    check_alike(db, tmp_path / "other", places=False)
    found = rows(db)
    assert found["1.png"]["path"] == f"{url}/1.png" and found["1.png"]["folder"] == url
    assert found["1.png"]["caption"] == "a red fox"
    assert run(f"{url}/*.png", db=db) == {"same": 6, "failed": 1}
    assert run(url, db=db, recursive=False) == {"same": 6, "failed": 1}
    (home / "bad.png").unlink()
    shutil.rmtree(home / "more")
    (home / "1.txt").unlink()
    (home / "3.png").unlink()
    assert run(url, db=db) == {"same": 4, "changed": 1, "gone": 1}
    assert "more is not there, and 6 images of it stay" in run.last.errors[0]
    assert rows(db)["1.png"]["caption"] is None
    shutil.rmtree(home)
    home.mkdir()
    assert run(url, db=db) == {} and "5 images of it stay" in run.last.errors[0]
    assert run(url, db=db, prune=True) == {"gone": 11}


@pytest.mark.slow
def test_a_second_run_does_what_the_local_engine_s_does(run, clip, home, tmp_path, monkeypatch):
    """A touched file, a changed one, a moved one, a copy, a new one, one that is gone, captions."""

    def local():
        *_, last = update(tmp_path / "other", [home], engine=Engine(clip))
        return {name: getattr(last, name) for name in COUNTS if getattr(last, name)}

    assert run() == local()
    (home / "bad.png").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(beyond.cluster, "Crew", None)  # nobody is asked where nothing is new
        assert run() == local() == {"same": 12}
    landscape(60, 40, seed=50).save(home / "3.png")
    (home / "5.png").rename(home / "moved.png")
    shutil.copy(home / "more" / "2.png", home / "copy.png")
    landscape(50, 40, seed=51).save(home / "new.png")
    (home / "7.png").unlink()
    (home / "9.txt").write_text("a hare")
    (home / "1.txt").unlink()
    old(home)
    for name in ("3.png", "11.png"):
        os.utime(home / name, (1e9, 1e9))
    counted = run()
    assert counted == local() == {"new": 2, "moved": 1, "changed": 3, "same": 7, "gone": 2}
    check_alike(tmp_path / "db", tmp_path / "other")
    assert run() == {"same": 13}


class Mortal(beyond.actors.Worker):
    """Dies once when its fragment is written but not told of, and once in the middle of reading."""

    def embed(self, block):
        self.marks = os.path.dirname(os.path.dirname(self.job.uri))
        if self.first("reading"):
            self.reader._encode = lambda frames: die()
        done = super().embed(block)
        if self.first("written"):
            die()
        return done

    def first(self, what):
        try:
            os.close(os.open(os.path.join(self.marks, what), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_actors_that_are_killed_lose_nothing(run, clip, home, tmp_path, monkeypatch):
    monkeypatch.setattr(beyond.actors, "Worker", Mortal)
    assert run() == {"new": 12, "failed": 1}
    assert (tmp_path / "written").exists() and (tmp_path / "reading").exists()
    list(update(tmp_path / "other", [home], engine=Engine(clip)))
    check_alike(tmp_path / "db", tmp_path / "other")
    table = Store(tmp_path / "db").table
    (home / "bad.png").unlink()  # which an actor would read again
    assert run() == {"same": 12} and table.count_rows() == 12


class Poisoned(beyond.actors.Worker):
    """Dies of one image, whenever."""

    def embed(self, block):
        if any(work.path.endswith("bad.png") for work in block):
            self.reader.read = die
        return super().embed(block)


@pytest.mark.slow
def test_an_image_that_kills_costs_itself_alone(run, home, tmp_path, monkeypatch):
    """Its block is halved until it is found."""
    monkeypatch.setattr(beyond.actors, "Worker", Poisoned)
    assert run() == {"new": 12, "failed": 1}
    (error,) = run.errors
    assert error == f"{home / 'bad.png'} cannot be read: workers died over it."
    assert len(rows(tmp_path / "db")) == 12


class Actor:
    """An actor without Ray, which dies of what is poison; what it was asked is in `asked`."""

    def __init__(self, asked, poison):
        self.asked, self.poison, self.is_dead = asked, poison, False
        self.ready = SimpleNamespace(remote=lambda: ("ready", self, None))
        self.embed = SimpleNamespace(remote=lambda works: ("embed", self, tuple(works)))


class Dead(Exception):
    pass


def fake_ray():
    def get(task):
        kind, actor, works = task
        if kind == "ready":
            return None
        actor.asked.append(works)
        actor.is_dead = actor.is_dead or bool(actor.poison & set(works))
        if actor.is_dead:
            raise Dead
        return works

    errors = SimpleNamespace(RayActorError=Dead, ObjectLostError=Dead)
    first = lambda tasks, num_returns: (tasks[:num_returns], tasks[num_returns:])  # noqa: E731
    return SimpleNamespace(get=get, wait=first, exceptions=errors, kill=lambda actor: None)


@pytest.mark.parametrize("poison", [set(), {0}, {37}, {5, 6, 99}, set(range(40, 60))])
@pytest.mark.parametrize("actors", [1, 3])
def test_blocks_are_halved_over_what_kills(poison, actors):
    """Every file is done once, but for those that kill, each of which is found."""
    asked = []
    crew = cluster_module.Crew(fake_ray(), lambda: Actor(asked, poison), actors)
    blocks = [list(range(i, i + 20)) for i in range(0, 100, 20)]
    done, killed = [], []
    for works, report in crew.run(iter(blocks)):
        (done if report else killed).extend(works)
    assert sorted(done) == sorted(set(range(100)) - poison) and sorted(killed) == sorted(poison)
    if len(poison) == 1:
        assert len(asked) <= 5 + 2 * 6 + 10, "about two deaths a halving"


def test_blocks_are_asked_for_as_they_are_done():
    """What is under way is all that is in memory, however long the list is."""
    pulled = []

    def blocks():
        for i in range(10_000):
            pulled.append(i)
            yield [i]

    run = cluster_module.Crew(fake_ray(), lambda: Actor([], set()), 2).run(blocks())
    for count, _ in enumerate(run, start=1):
        assert len(pulled) <= count + 2 * cluster_module.AT_ONCE
    assert count == 10_000


@pytest.mark.slow
def test_nothing_is_seen_before_its_commit(cluster, clip, home, tmp_path, monkeypatch):
    """A driver that stops: what it had committed is there, and the next run does the rest."""
    monkeypatch.setattr(beyond, "BLOCK", 3)
    monkeypatch.setattr(beyond, "COMMIT", 5)
    db, kept = tmp_path / "db", []
    steps = beyond.update(db, [home], engine=Engine(clip, batch=2), workers=2)
    for progress in steps:
        kept += progress.kept
        there = Store(db).table.to_arrow()["path"].to_pylist()
        assert sorted(there) == sorted(kept) and len(set(kept)) == len(kept)
        if kept:
            break
    assert 5 <= len(kept) < 12
    steps.close()
    *_, last = beyond.update(db, [home], engine=Engine(clip), workers=2)
    assert (last.new, last.same, last.failed) == (12 - len(kept), len(kept), 1)
    assert len(rows(db)) == 12


def test_an_actor_s_own_words_reach_the_user(run, home, tmp_path, monkeypatch, judge, clip):
    """A worker's CLIP of the same name that is another; then a folder that is not there."""
    monkeypatch.setattr(clip, "name", judge.name)
    with pytest.raises(ClipguideError, match="on a worker is another than the driver's"):
        run()
    with pytest.raises(UsageError, match=r"There is no folder or file file:///no/such"):
        run("file:///no/such")
    with pytest.raises(UsageError, match="no place that fsspec knows"):
        run("nonsense://bucket/folder")
    with pytest.raises(UsageError, match="workers must be at least 1"):
        list(beyond.update(tmp_path / "db", [home], engine=Engine(clip), workers=0))


def test_fragments_that_others_wrote_elsewhere_are_refused(run, clip, home, tmp_path, monkeypatch):
    """As of workers without the driver's disk: no commit makes the table lack a file."""
    list(update(tmp_path / "db", [home / "1.png"], engine=Engine(clip)))
    publish = beyond.RayUpdate.publish

    def elsewhere(self, fragments, again):
        for path in (tmp_path / "db" / "pictures.lance" / "data").iterdir():
            if path.name in {file.path for f in fragments for file in f.files}:
                path.unlink()
        publish(self, fragments, again)

    monkeypatch.setattr(beyond.RayUpdate, "publish", elsewhere)
    with pytest.raises(ClipguideError, match="give a --db that every machine sees"):
        run()
    assert list(rows(tmp_path / "db")) == ["1.png"]


def test_the_command(run, clip, clip_folder, home, tmp_path, monkeypatch):
    """An actor makes what search then finds; mistakes cost a sentence each."""

    def invoke(*arguments, code):
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == code and "Traceback" not in result.output, result.output
        return result

    place = ("--db", tmp_path / "db", "--clip", clip_folder)
    many = ("--engine", "ray", "--actors", 1)
    assert "12 new" in invoke("index", home, *place, *many, code=0).stdout
    found = invoke("search", "a red fox", "--db", tmp_path / "db", code=0).stdout
    assert len(found.splitlines()) == 10
    for arguments, words in (
        (("--engine", "dask"), "--engine is local or ray"),
        (("--actors", 2), "--actors needs --engine ray"),
        ((*many, "--cache", tmp_path / "cache"), "The cache belongs to one machine"),
        (("s3://bucket/folder",), "--engine ray reads it where fsspec does"),
    ):
        assert words in invoke("index", home, *place, *arguments, code=2).stderr
    monkeypatch.setitem(sys.modules, "lance", None)
    said = invoke("index", home, *place, *many, code=2).stderr
    assert "needs lance, which is not installed: pip install 'clipguide[ray]'." in said


def test_listings_of_object_storage():
    """Hidden files and other kinds are passed over, sidecars noted, patterns and names taken."""
    from fsspec.implementations.memory import MemoryFileSystem

    fs = MemoryFileSystem()
    for name in ("a.png", "b.JPG", "a.txt", ".hidden.png", ".more/c.png", "sub/d.png", "e.pdf"):
        fs.pipe(f"/bucket/set/{name}", name.encode())
    fs.pipe("/bucket/set/a.txt", "ein  Häschen\n".encode("cp1252"))
    url, passed = "memory://bucket/set", []
    listing = Listing([url], recursive=True, passed=passed)
    base, found = fs.unstrip_protocol("/bucket/set"), list(listing)
    assert [one.path for one in found] == [f"{base}/{n}" for n in ("a.png", "b.JPG", "sub/d.png")]
    assert [os.path.basename(name) for name in passed] == ["a.txt", "e.pdf"]
    assert content(f"{base}/b.JPG") == b"b.JPG"
    assert listing.folders == {f"{base}/", f"{base}/sub/"} and listing.roots == [f"{base}/"]
    first, second, _ = (Work(o.path, o.at, o.about, o.stamp, None, False) for o in found)
    assert caption(first) == "ein Häschen" and second.stamp is None and caption(second) is None
    assert len(list(Listing([url], recursive=False))) == 2
    for named in (f"{url}/*.png", f"{url}/a.png"):
        (one,) = Listing([named], recursive=True)
        assert one.path == f"{base}/a.png" and one.stamp
    with pytest.raises(UsageError, match="No file matches"):
        Listing([f"{url}/*.gif"], recursive=True)


def test_the_driver_s_memory_does_not_grow_with_the_list(tmp_path):
    """Listing, comparing and what is to be done, of 5,000 and of 20,000 names: within a tenth."""
    peaks = []
    for count in (5_000, 5_000, 20_000):
        tracemalloc.start()
        assert compared(count, tmp_path / "db") == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[-1] < 1.1 * peaks[1]


def test_folders_that_a_store_does_not_list_keep_their_rows(tmp_path):
    """Under --prune too, and below them; what is gone of a folder that is listed goes."""
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    class Closed(MemoryFileSystem):
        protocol, store, pseudo_dirs = "closed", {}, [""]

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(path.removeprefix("closed://"))

        def ls(self, path, detail=True, **settings):
            if path.rstrip("/").endswith("/shut"):
                raise PermissionError(13, "access denied", path)
            return super().ls(path, detail=detail, **settings)

    fsspec.register_implementation("closed", Closed, clobber=True)
    fs, url = Closed(), "closed://bucket/set"
    for name in ("a.png", "open/b.png", "shut/c.png", "shut/below/d.png"):
        fs.pipe(f"/bucket/set/{name}", b"x")
    base = fs.unstrip_protocol("/bucket/set")
    there = ["a.png", "gone.png", "open/b.png", "shut/c.png", "shut/below/d.png", "was/e.png"]
    store = Store(tmp_path / "db", make=True)
    store.create(4, key="0 float32 alpha white frames 1", model="made")
    paths = [f"{base}/{name}" for name in there]
    known = {"path": paths, "folder": [path.rpartition("/")[0] for path in paths]}
    known["vector"] = [[1.0, 0, 0, 0]] * len(paths)
    rows_ = [{n: known[n][i] for n in known} for i in range(len(paths))]
    store.table.add(pa.Table.from_pylist(rows_, schema=store.table.schema))
    with beyond.RayUpdate(Store(tmp_path / "db"), None, Captions(), []) as job:
        job.listing = Listing([url], recursive=True, walked=job.walked)
        job.compare(job.listing)
        errors = job.remove(recursive=True, prune=True)
    assert job.listing.unread == [f"{base}/shut/"]
    assert errors == [f"{base}/shut/ cannot be listed: what the index holds of it stays."]
    left = Store(tmp_path / "db").table.to_arrow()["path"].to_pylist()
    kept = ("a.png", "open/b.png", "shut/c.png", "shut/below/d.png")
    assert sorted(left) == sorted(f"{base}/{name}" for name in kept)


def test_a_listing_that_breaks_off_is_an_error():
    """Of whatever kind: what was not listed is not taken for gone."""

    class Broken:
        def walk(self, place, **_):
            yield place, {}, {"a.png": {"size": 1}}
            raise RuntimeError("connection reset by peer")

        def unstrip_protocol(self, place):
            return place

    listing = Listing([], recursive=True)
    listing._sources = [(Broken(), "x://bucket", None)]
    with pytest.raises(ClipguideError, match="cannot be listed to its end .connection reset"):
        list(listing)


def test_what_listings_say_of_an_object():
    """As S3, Google and Azure say it; to the microsecond, for a table keeps no less."""
    when = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=2)))
    ns = 1767315845678901000
    for info in ({"LastModified": when}, {"updated": when.isoformat()}, {"mtime": ns / 1e9}):
        assert About.listed({"size": 7, **info}) == About(7, ns, 0)
    one, two = (About.listed({"size": 7, "ETag": tag}).st_ino for tag in ('"a"', '"b"'))
    assert one != two and one == About.listed({"ETag": '"a"'}).st_ino


def test_digests_hold_what_they_were_made_of():
    chance = random.Random(0)
    there, absent = ([chance.randbytes(32) for _ in range(5000)] for _ in range(2))
    digests = Digests(len(there))
    digests.add(there)
    assert all(digest in digests for digest in there)
    assert sum(digest in digests for digest in absent) <= 20, "one of 1,700 or so"
    assert b"\0" * 32 not in Digests(0)


def test_actors_fit_the_machines():
    """As many as fit a machine each, whatever the others have; None: as the cluster says."""
    head, gpu, other = ({"CPU": c, "GPU": g} for c, g in ((16, 0), (8, 1), (64, 4)))

    def shared(*machines, workers=None, threads=None, device=None):
        nodes = [{"Alive": True, "Resources": machine} for machine in machines]
        nodes.append({"Alive": False, "Resources": other})
        found = cluster_module.share(
            SimpleNamespace(nodes=lambda: nodes), workers=workers, threads=threads, device=device
        )
        return found.workers, found.threads, found.gpus, found.device

    assert shared(head) == (16, 1, 0, "cpu")
    assert shared(head, threads=5) == (3, 5, 0, "cpu")
    assert shared(head, gpu, other) == (5, 8, 1, "cuda")
    assert shared(head, gpu, other, device="cpu") == (88, 1, 0, "cpu")
    assert shared(head, workers=3, device="cuda") == (3, 1, 1, "cuda")
    for settings in ({"threads": 17}, {"device": "cuda"}):
        with pytest.raises(UsageError, match="No machine of Ray's has"):
            shared(head, **settings)


KILLED = """
import os, signal, sys
from clipguide.clip import load_clip
from clipguide.engine import Engine
from clipguide.retrieval import beyond

home, db, clip, marks = sys.argv[1:]
beyond.BLOCK, beyond.COMMIT, beyond.SECONDS = 3, 5, 1e9
publish, count = beyond.RayUpdate.publish, []

def die_of_the_second(self, fragments, again):
    count.append(len(fragments))
    if len(count) == 2:  # actors have written these fragments, and nobody has committed them
        os.kill(os.getpid(), signal.SIGKILL)
    publish(self, fragments, again)

beyond.RayUpdate.publish = die_of_the_second
engine = Engine(load_clip(clip), batch=2)
for progress in beyond.update(db, [home], engine=engine, workers=1):
    with open(marks, "a") as stream:
        stream.writelines(f"{path}\\n" for path in progress.kept)
"""


def test_a_driver_that_is_killed_loses_what_it_had_not_committed(
    run, clip, clip_folder, home, tmp_path
):
    """The next run does the rest, nothing is there twice, and the rows are the local engine's."""
    db, marks = tmp_path / "db", tmp_path / "kept"
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, home, db, clip_folder, marks],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = marks.read_text().splitlines()
    assert sorted(kept) == sorted(row["path"] for row in rows(db).values()) and 5 <= len(kept) < 12
    assert run() == {"new": 12 - len(kept), "same": len(kept), "failed": 1}
    list(update(tmp_path / "other", [home], engine=Engine(clip)))
    check_alike(db, tmp_path / "other")
    (home / "bad.png").unlink()
    assert run() == {"same": 12}
