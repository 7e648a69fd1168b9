"""Images and an index in object storage: S3, as moto's server imitates it on this machine."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import urllib.request

import pytest
from test_index_ray import cluster, home, rows, run  # noqa: F401
from typer.testing import CliRunner

pytest.importorskip("moto.server")
pytest.importorskip("s3fs")

import s3fs
import torch

from clipguide.cli.app import app
from clipguide.engine import Engine
from clipguide.retrieval import Index, Query, update


def wait_for(address, server):
    """Until the server answers. It is a process of its own, for Lance holds the GIL as it asks."""
    for _ in range(600):
        assert server.poll() is None, "moto's server has ended"
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            select.select([], [], [], 0.1)
    raise AssertionError("moto's server does not answer")


@pytest.fixture(scope="module", autouse=True)
def endpoint():
    """S3 without a network; keys and address where s3fs and LanceDB look for them, and Ray's
    workers, which are started after this."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(address, server)
    names = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    yield address
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    server.kill()
    server.wait()


@pytest.fixture
def bucket(home, tmp_path):  # noqa: F811
    """The images of `home` in a bucket: fsspec's view of it, and its URL."""
    fs = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    name = f"bucket-{tmp_path.name.replace('_', '-').lower()}"[:60]
    fs.mkdir(name)
    for path in home.rglob("*.*"):
        fs.put_file(str(path), f"{name}/set/{path.relative_to(home)}")
    return fs, f"s3://{name}"


def invoke(*arguments, code=0):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code and "Traceback" not in result.output, result.output
    return result


def test_a_bucket_is_indexed_into_a_bucket_and_searched(bucket, run, clip, home, tmp_path):  # noqa: F811
    """By actors; then what changed alone, what is gone; as the local engine has it from a disk."""
    fs, url = bucket
    images, db = f"{url}/set", f"{url}/index"
    assert run(images, db=db) == {"new": 12, "failed": 1}
    assert "bad.png" in run.errors[0]
    found = rows(db)
    assert found["1.png"]["path"] == f"{images}/1.png" and found["1.png"]["caption"] == "a red fox"
    list(update(tmp_path / "other", [home], engine=Engine(clip)))
    assert {n: r["digest"] for n, r in found.items()} == {
        name: row["digest"] for name, row in rows(tmp_path / "other").items()
    }
    query = Query(clip.encode_text(["a red fox"])[0])
    mine, others = (Index(place).search(query).hits for place in (db, tmp_path / "other"))
    assert [os.path.basename(h.path) for h in mine] == [os.path.basename(h.path) for h in others]
    scores = ([h.score for h in hits] for hits in (mine, others))
    torch.testing.assert_close(*scores, rtol=1e-5, atol=1e-6)  # of float32
    fs.put_file(str(home / "1.png"), f"{images}/3.png")
    fs.rm(f"{images}/5.png")
    fs.rm(f"{images}/bad.png")
    assert run(images, db=db) == {"changed": 1, "gone": 1, "same": 10}
    assert rows(db)["3.png"]["digest"] == found["1.png"]["digest"]


def test_the_commands_keep_an_index_in_a_bucket(bucket, clip_folder, home):  # noqa: F811
    """Images of a disk, an index in S3; a bucket that is not there costs a sentence."""
    _, url = bucket
    place = ("--db", f"{url}/db", "--no-cache")
    said = invoke("index", home, *place, "--clip", clip_folder).stdout
    assert "12 new" in said
    assert "12 unchanged" in invoke("index", home, *place).stdout
    found = json.loads(
        invoke("search", "a red fox", "--db", f"{url}/db", "--format", "json").stdout
    )
    assert len(found) == 10
    said = invoke("search", "a fox", "--db", "s3://no-such-bucket/db", code=1).stderr
    assert "s3://no-such-bucket/db" in said and len(said.splitlines()) == 1
