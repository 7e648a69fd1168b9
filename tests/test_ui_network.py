"""The page on a network: who may ask it, and how much may be sent."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import time
import weakref

import pytest
from test_clip import landscape
from typer.testing import CliRunner

pytest.importorskip("gradio")

from clipguide.cli.app import app
from clipguide.errors import UsageError
from clipguide.ui import Models, files, guard, network, rerank_tab

JOIN, UPLOAD = "/gradio_api/queue/join", guard.UPLOAD
PIECE = b"x" * 65_536


class Asked:
    """Asks a Guard before an application that reads all of a body; how much of it was taken."""

    def __init__(self, folder, access=None):
        self.taken = 0
        self.seen = b""
        access = access or network.access("127.0.0.1")
        self.guard = guard.Guard(self.application, folder, access=access)

    async def application(self, scope, receive, send):
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError("as Starlette does")
            self.seen += message.get("body", b"")
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"fine"})

    def post(self, path, pieces, **headers):
        """The status and words of the answer to a body in pieces, of whatever length is said."""
        pieces, sent = iter(pieces), []

        async def receive():
            piece = next(pieces, None)
            self.taken += len(piece or b"")
            return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

        async def send(message):
            sent.append(message)

        given = {"host": "127.0.0.1:7860", **{k.replace("_", "-"): v for k, v in headers.items()}}
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"",
                 "headers": [(k.encode(), v.encode()) for k, v in given.items()]}  # fmt: skip
        asyncio.run(self.guard(scope, receive, send))
        assert [m["type"] for m in sent] == ["http.response.start", "http.response.body"]
        self.headers = dict(sent[0]["headers"])
        return sent[0]["status"], sent[1]["body"].decode()


@pytest.mark.parametrize("said", [{}, {"content_length": "10"}, {"transfer_encoding": "chunked"}])
@pytest.mark.parametrize("path", [JOIN, UPLOAD])
def test_bytes_are_counted_as_they_come(tmp_path, monkeypatch, path, said):
    """Whatever is said of the length; nothing is read beyond the limit, and nothing passed on."""
    monkeypatch.setattr(guard, "TOGETHER", 3 << 20)
    asked, limit = Asked(tmp_path), {JOIN: guard.ASKED, UPLOAD: 3 << 20}[path]
    assert asked.post(path, [PIECE] * 640, **said) == guard.TOO_MUCH
    assert limit < asked.taken <= limit + 2 * len(PIECE) and len(asked.seen) <= limit


def test_a_length_that_is_too_much_is_not_read_at_all(tmp_path):
    for length in (str(guard.ASKED + 1), "-1", "many"):
        asked = Asked(tmp_path)
        assert asked.post(JOIN, [PIECE], content_length=length) == guard.TOO_MUCH
        assert asked.taken == 0


def test_a_body_in_many_pieces_takes_linear_time(tmp_path):
    """A megabyte in pieces of eight bytes, which was quadratic."""
    content = b'{"data": "' + b"x" * (guard.ASKED - 20) + b'"}'
    pieces = [content[i : i + 8] for i in range(0, len(content), 8)]
    asked, begin = Asked(tmp_path), time.process_time()
    assert asked.post(JOIN, pieces)[0] == 200 and asked.seen == content
    assert time.process_time() - begin < 5


def test_uploads_have_a_quota(tmp_path, monkeypatch):
    """What lies there counts; what is older than a day goes."""
    monkeypatch.setattr(guard, "QUOTA", 1 << 20)
    (tmp_path / "a").mkdir()
    there = tmp_path / "a" / "there.png"
    there.write_bytes(PIECE * 12)
    assert files.held(tmp_path) == 12 * len(PIECE)
    assert Asked(tmp_path).post(UPLOAD, [PIECE] * 5) == guard.FULL
    assert Asked(tmp_path).post(UPLOAD, [PIECE] * 3)[0] == 200
    os.utime(there, (time.time() - 2 * files.OLDEST,) * 2)
    assert Asked(tmp_path).post(UPLOAD, [PIECE] * 5)[0] == 200 and not there.exists()


def test_a_password(tmp_path):
    access = network.access("0.0.0.0", auth="fox:red hat:ü")
    coded = "Zm94OnJlZCBoYXQ6w7w="
    for header, status in (
        ({}, 401),
        ({"authorization": f"Basic {coded}"}, 200),
        ({"authorization": f"basic {coded}"}, 200),
        ({"authorization": f"Basic {coded[:-4]}AAAA"}, 401),
        ({"authorization": f"Bearer {coded}"}, 401),
        ({"authorization": "Basic"}, 401),
        ({"authorization": "Basic \u00ff"}, 401),
    ):
        asked = Asked(tmp_path, access)
        assert asked.post(JOIN, [b"{}"], **header)[0] == status
        assert (b"www-authenticate" in asked.headers) == (status == 401)
        assert asked.taken == (2 if status == 200 else 0)


@pytest.mark.parametrize(
    ("listening", "allow", "named", "strange"),
    [
        ("127.0.0.1", [], ["127.0.0.1:7860", "localhost", "[::1]:80"], ["evil.example:7860", ""]),
        ("127.0.0.1", ["Pictures.lan"], ["pictures.lan:80", "localhost"], ["evil.example"]),
        ("0.0.0.0", ["pictures.lan"], ["pictures.lan:7860", "PICTURES.LAN"], ["evil.example"]),
        ("192.168.0.5", ["pictures.lan:8000"], ["192.168.0.5:7860", "pictures.lan"], ["evil"]),
        ("::", ["fd00::5"], ["[fd00::5]:7860"], ["[fd00::6]:7860"]),
    ],
)
def test_names(tmp_path, listening, allow, named, strange):
    """No name that another page made lead here is answered to."""
    access = network.access(listening, allow=allow)
    for host in named:
        assert Asked(tmp_path, access).post(JOIN, [b"{}"], host=host)[0] == 200, host
    for host in strange:
        assert Asked(tmp_path, access).post(JOIN, [b"{}"], host=host)[0] == 403, host


def test_with_a_password_alone_any_name_will_do():
    assert network.access("0.0.0.0", auth="a:b").names is None
    assert network.access("127.0.0.1", auth="a:b").names >= {"localhost"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--host", "0.0.0.0"), "give --auth USER:PASSWORD, or --allow-host NAME"),
        (("--host", "192.168.0.5"), "give --auth USER:PASSWORD, or --allow-host NAME"),
        (("--host", "0.0.0.0", "--auth", "secret"), "USER:PASSWORD"),
        (("--auth", ":secret"), "USER:PASSWORD"),
        (("--allow-host", "http://pictures.lan"), "a name such as pictures.lan"),
        (("--allow-host", "*"), "a name such as pictures.lan"),
    ],
)
def test_the_command_refuses(given, told):
    result = CliRunner().invoke(app, ["ui", "--no-browser", *given])
    assert result.exit_code == 2 and told in result.stderr and result.stderr.count("\n") == 1
    assert "secret" not in result.stderr


def test_the_command_refuses_before_it_imports():
    code = (
        "import sys; from clipguide.cli.app import main; sys.argv = ['clipguide', 'ui', '--host', "
        "'0.0.0.0']\ntry: main()\nexcept SystemExit: print(*sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"gradio", "torch", "lancedb", "PIL"} & set(found.stdout.split())


def test_uploads_are_shrunk_while_they_are_read(clip_folder, tmp_path, monkeypatch):
    """Of eight large images to be ranked, one is in memory at its full size."""
    paths = []
    for i in range(8):
        paths.append(str(tmp_path / f"{i}.png"))
        landscape(900, 700, seed=i).save(paths[-1])
    large, most, read = [], [], files.uploaded

    def counted(path, **settings):
        gc.collect()
        most.append(sum(one() is not None and max(one().size) > rerank_tab.SIDE for one in large))
        picture = read(path, **settings)
        large.append(weakref.ref(picture))
        return picture

    monkeypatch.setattr(files, "uploaded", counted)
    models = Models(clip=str(clip_folder))
    ranked, _ = rerank_tab.rerank(models, paths, "a fox", "", False)
    assert len(most) == 8 == len(ranked) and max(most) <= 1
    with pytest.raises(UsageError, match="up to 64"):
        rerank_tab.rerank(models, paths * 9, "a fox", "", False)
