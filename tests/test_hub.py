"""Names on the hub: a cache folder made by hand, and what a hub may answer, from one of ours."""

from __future__ import annotations

import http.server
import os
import shutil
import subprocess
import sys
import threading

import pytest

SCRIPT = """
import sys
from clipguide import Reward, TextToImage, load_clip
for name in sys.argv[2:]:
    try:
        if name.startswith("ViT"):
            load_clip(name)
        elif "=" in name:
            Reward(name).load()
        else:
            images = TextToImage(model=name, clip=sys.argv[1], judge="")("fox", steps=1)
            print(name, "drew", images[0].image.size)
    except Exception as error:
        print(name, type(error).__name__, error)
"""
CLIP = "ViT-B-32/laion2b_s34b_b79k"


class Hub(http.server.BaseHTTPRequestHandler):
    """Has models with terms, and no others."""

    def do_GET(self):
        gated = "gated" in self.path
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def said(*arguments, endpoint, home, offline):
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(offline)}
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    environment = {**os.environ, **settings, "NO_PROXY": "127.0.0.1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "Retrying" not in run.stderr  # as the hub's library does for 23 s
    return run.stdout.splitlines()


def put_into_cache(home, name, folder):
    cached = home / "hub" / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)


def test_offline_with_a_cache(hub, clip_folder, generator_folder, tmp_path):
    """What is in the cache is drawn with; of what is not, offline mode is named."""
    put_into_cache(tmp_path, "some/tiny", generator_folder)
    names = ("some/tiny", "some/other", CLIP)
    drew, *refused = said(clip_folder, *names, endpoint=hub, home=tmp_path, offline=1)
    assert drew == "some/tiny drew (32, 32)"
    assert len(refused) == 2
    for line in refused:
        assert "ClipguideError" in line and "HF_HUB_OFFLINE" in line and "unset" in line


def test_what_the_hub_refuses(hub, clip_folder, tmp_path):
    names = ("gated/model", "nobody/model", CLIP)
    gated, *unknown = said(clip_folder, *names, endpoint=hub, home=tmp_path, offline=0)
    assert "consent" in gated and "hf auth login" in gated
    for line in unknown:
        assert "ClipguideError" in line and "no model of that name" in line


def test_no_hub(clip_folder, generator_folder, tmp_path):
    """A hub that is away is asked once: what is in the cache is drawn with, the rest is refused."""
    put_into_cache(tmp_path, "some/tiny", generator_folder)
    rewards = [f"{name}=some/model" for name in ("vqascore", "imagereward", "siglip2", "hpsv2")]
    names = ("some/tiny", "some/model", CLIP, *rewards)
    drew, *refused = said(
        clip_folder, *names, endpoint="http://127.0.0.1:1", home=tmp_path, offline=0
    )
    assert drew == "some/tiny drew (32, 32)"
    assert len(refused) == 2 + len(rewards)
    for line in refused:
        assert "ClipguideError" in line and "cannot be reached" in line
