"""The page in a real Chromium: `pytest -m slow tests/test_ui_browser.py`. CI runs it.

Needs playwright (pip) and chromium (of the system). Screenshots are written to the folder that
CLIPGUIDE_SHOTS names, to be looked at.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import threading
import time
from pathlib import Path

import pytest
from test_clip import landscape

pytest.importorskip("gradio")
pytest.importorskip("lancedb")
pytest.importorskip("playwright")

import uvicorn  # noqa: E402
from playwright import sync_api  # noqa: E402

from clipguide import load_clip, mini  # noqa: E402
from clipguide.engine import Engine  # noqa: E402
from clipguide.retrieval import update  # noqa: E402
from clipguide.ui import Models, files, generate_tab, listen, server  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.ci,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium"),
]
COUNT = 30  # images of the collection: more than one page of answers
PASTE = """async data => {
  const bytes = Uint8Array.from(atob(data), one => one.charCodeAt(0));
  const blob = new Blob([bytes], {type: 'image/png'});
  await navigator.clipboard.write([new ClipboardItem({'image/png': blob})]);
}"""
DROP = """data => {
  const bytes = Uint8Array.from(atob(data), one => one.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], 'dropped.png', {type: 'image/png'}));
  const place = document.querySelector('#query-picture button');
  for (const kind of ['dragenter', 'dragover', 'drop'])
    place.dispatchEvent(new DragEvent(kind, {dataTransfer: carried, bubbles: true}));
}"""
CONTRASTS = """() => {
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const bright = text => {
    const [r, g, b] = parts(text).slice(0, 3).map(one => {
      one /= 255;
      return one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = node => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if ((parts(colour)[3] ?? 1) > 0.5) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const found = [];
  for (const node of document.querySelectorAll('p, dt, dd, label > span, button, textarea, h1')) {
    if (!node.innerText?.trim() && !node.value || !node.offsetParent) continue;
    const [a, b] = [bright(getComputedStyle(node).color), bright(ground(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const size = parseFloat(getComputedStyle(node).fontSize);
    found.push([(node.innerText || node.value).slice(0, 30), ratio, size]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    home = tmp_path_factory.mktemp("collection")
    for i in range(COUNT):
        landscape(120 + i, 100, seed=i).save(home / f"{i:02}.png")
    return home


@pytest.fixture(scope="module")
def address(mini_folder, collection, tmp_path_factory):
    """A page of tiny models that is served in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mini, "FOLDER", mini_folder)
        patch.setattr(mini, "MODELS", ("guide", "judge", "generator", "vqgan"))
        folder = os.path.realpath(tmp_path_factory.mktemp("page"))
        patch.setenv("GRADIO_TEMP_DIR", folder)
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        db = tmp_path_factory.mktemp("db") / "pictures"
        for _ in update(db, [collection], engine=Engine(load_clip("mini"))):
            pass
        sock = listen("127.0.0.1", 0)
        app = server.application(Models(db=db), folder)
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]})
        thread.start()
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        running.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address):
    """Opens the page, and looks at the end whether it asked any other host or went wrong."""
    contexts, asked, wrong = [], [], []

    def open_(**settings):
        context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 900}, **settings},
            permissions=["clipboard-read", "clipboard-write"],
        )
        contexts.append(context)
        context.set_default_timeout(120_000)  # other tests run beside it
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text)
                if "Content Security Policy" in message.text else None)  # fmt: skip
        page.goto(address)
        page.wait_for_selector("#prompt textarea")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert asked and not wrong
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]


def tab(page, name):
    page.get_by_role("tab", name=name).click()


def said(page, place, pattern):
    """What a line says, once it matches."""
    page.wait_for_function(
        "([place, pattern]) => new RegExp(pattern).test(document.querySelector(place).innerText)",
        arg=[place, pattern],
    )
    return page.inner_text(place).strip()


def labels(page, place):
    return [one.inner_text() for one in page.locator(f"{place} .caption-label").all()]


def shown(page, count):
    """Waits until so many images are in the grid."""
    page.wait_for_function(
        "count => document.querySelectorAll('#grid img').length == count", arg=count
    )


def ask(page, text):
    box = page.locator("#query textarea")
    box.fill(text)
    box.press("Enter")
    shown(page, 24)


def working():
    return [one for one in threading.enumerate() if one.name == "clipguide-draw"]


def draw(page, *, pictures, steps, steered=False):
    """Type a prompt and press Enter; `steered` one candidate, slowly enough to be watched."""
    if not page.locator("#steps").is_visible():
        page.locator("#settings button").first.click()
    page.locator("#steps input[type=number]").fill(str(steps))
    page.locator("#count input[type=number]").fill(str(pictures))
    if steered:
        page.locator("#strength input[type=number]").fill("0.1")
        page.locator("#best-of input[type=number]").fill("1")
    box = page.locator("#prompt textarea")
    box.fill("a red fox")
    box.press("Enter")


def shoot(page, name):
    if folder := os.environ.get("CLIPGUIDE_SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def data_of(path):
    return base64.b64encode(path.read_bytes()).decode()


def test_pictures_are_drawn_before_ones_eyes(open_page):
    page = open_page()
    page.evaluate("""() => {
      window.seen = new Set();
      const note = () => document.querySelectorAll('#drawn img').forEach(o => seen.add(o.src));
      new MutationObserver(note).observe(document.body, {subtree: true, childList: true,
                                                         attributes: true});
    }""")
    draw(page, pictures=2, steps=100, steered=True)
    said(page, "#drawn-line", r"Image 1 of 2, step \d+ of 100")
    said(page, "#drawn-line", "Image 2 of 2 is finished")
    assert page.evaluate("seen.size") >= 4
    page.wait_for_function("document.querySelectorAll('#drawn img').length == 2")
    assert all(
        re.fullmatch(r"seed \d+\s+score -?0\.\d+ \([a-z ]+\)", one.strip())
        for one in labels(page, "#drawn")
    )
    assert page.locator("#trace polyline.guide").count() == 1
    assert page.locator("#trace polyline.judge").count() == 1
    shoot(page, "generate")


@pytest.fixture
def slowly(monkeypatch):
    """A step takes a tenth of a second, so that a run is not over before the page shows it."""

    class Slow(generate_tab.Moment):
        def __init__(self, *seen):
            time.sleep(0.1)
            super().__init__(*seen)

    monkeypatch.setattr(generate_tab, "Moment", Slow)


def test_stop_stops_the_work(open_page, slowly):
    page = open_page()
    draw(page, pictures=8, steps=100)
    said(page, "#drawn-line", "Image 1 of 8, step")
    (thread,) = working()
    page.click("#stop")
    thread.join(timeout=20)
    assert not thread.is_alive()
    said(page, "#drawn-line", "Stopped")
    draw(page, pictures=1, steps=2)  # and the next run is not in anybody's way
    said(page, "#drawn-line", "Image 1 of 1 is finished")


def test_a_page_that_is_closed_stops_the_work(open_page, slowly):
    page = open_page()
    draw(page, pictures=8, steps=100)
    said(page, "#drawn-line", "Image 1 of 8, step")
    (thread,) = working()
    page.context.close()
    thread.join(timeout=20)
    assert not thread.is_alive()


def test_what_cannot_be_drawn_is_said(open_page):
    page = open_page()
    page.locator("#prompt textarea").press("Enter")
    assert said(page, "#drawn-line", "empty") == "The prompt is empty: say what to draw."


def test_by_the_keyboard_alone(open_page):
    """The prompt has the focus; tabbing goes down the page; Enter submits, and picks."""
    page = open_page()
    where = "() => document.activeElement.closest('#prompt, #generate, #stop')?.id"
    found = []
    for _ in range(3):
        found.append(page.evaluate(where))
        page.keyboard.press("Tab")
    assert found == ["prompt", "generate", "stop"]
    page.get_by_role("tab", name="Generate").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#query textarea").focus()
    page.keyboard.type("a fox")
    page.keyboard.press("Enter")
    shown(page, 24)
    for _ in range(9):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#grid') !== null"):
            break
    first = labels(page, "#grid")[0]
    page.keyboard.press("Enter")
    page.wait_for_selector("#like", state="visible")
    assert first.split()[1] in page.inner_text("#about")
    page.locator("#like").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("name => !document.querySelector('#grid').innerText.includes(name)",
                           arg=first.split()[1])  # fmt: skip
    page.wait_for_selector("#like", state="hidden")
    assert said(page, "#found-line", "24 of 30")
    shoot(page, "search")


def test_more_pictures(open_page):
    page = open_page()
    tab(page, "Search")
    ask(page, "a fox")
    before = labels(page, "#grid")
    page.click("#further")
    shown(page, 30)
    assert labels(page, "#grid")[:24] == before
    page.wait_for_selector("#further", state="hidden")


@pytest.mark.parametrize("way", ["drop", "paste", "choose"])
def test_a_picture_is_what_is_asked_for(open_page, collection, way):
    page = open_page()
    tab(page, "Search")
    ask(page, "a fox")
    path = collection / "07.png"
    if way == "drop":
        page.evaluate(DROP, data_of(path))
    elif way == "paste":
        page.evaluate(PASTE, data_of(path))
        page.locator("#query textarea").fill("")
        page.keyboard.press("Control+v")
    else:
        page.set_input_files("#query-picture input[type=file]", path)
    if way != "paste":  # the text still counts
        page.wait_for_selector("#query-picture img")
        page.locator("#query textarea").fill("")
        page.locator("#query textarea").press("Enter")
    page.wait_for_function(
        "document.querySelector('#grid .caption-label')?.innerText.includes('1.000 07.png')"
    )


def test_a_filter_that_is_none(open_page):
    page = open_page()
    tab(page, "Search")
    ask(page, "a fox")
    page.click("#filters button")
    box = page.locator("#where textarea")
    box.fill("width > 145")
    box.press("Enter")
    shown(page, 4)
    box.fill("width > 145; drop table images")
    box.press("Enter")
    assert "nothing more" in said(page, "#found-line", "The filter")
    assert len(labels(page, "#grid")) == 4  # what was found stays


def test_a_large_upload_is_refused(open_page, address, tmp_path):
    """200 MB: one sentence, and nothing is kept of it."""
    page = open_page()
    tab(page, "Search")
    large = tmp_path / "large.png"
    landscape(50, 50, seed=0).save(large)
    os.truncate(large, 200 << 20)
    page.set_input_files("#query-picture input[type=file]", large)
    told = page.locator("[data-testid=toast-body]").inner_text()
    assert re.search(r"maximum allowed size of 20.*large\.png", told)
    folder = os.environ["GRADIO_TEMP_DIR"]
    sizes = [path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()]
    assert max(sizes, default=0) <= files.LARGEST
    shoot(page, "large")


def test_a_hostile_upload_is_refused(open_page, tmp_path):
    page = open_page()
    tab(page, "Search")
    for name, content in {"eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n", "junk.png": b"hello"}.items():
        (tmp_path / name).write_bytes(content)
        page.set_input_files("#query-picture input[type=file]", tmp_path / name)
        assert said(page, "#found-line", name).startswith(f"{name} is not an image")
        page.get_by_label("Remove Image").click()
    asked = page.locator("#query textarea")
    asked.fill("<img src=x onerror=document.title='hacked'>")
    asked.press("Enter")
    shown(page, 24)
    assert page.title() == "clipguide"


def test_the_best_first(open_page, collection, tmp_path):
    page = open_page()
    tab(page, "Rerank")
    (tmp_path / "junk.png").write_text("hello")
    paths = [*sorted(collection.iterdir())[:5], tmp_path / "junk.png"]
    page.set_input_files("#rank-pictures input[type=file]", paths)
    page.wait_for_function("document.querySelector('#rank-pictures').innerText.includes('junk')")
    box = page.locator("#rank-text textarea")
    box.fill("a fox")
    box.press("Enter")
    told = said(page, "#ranked-line", "5 images")
    assert "junk.png is not an image" in told
    page.wait_for_function("document.querySelectorAll('#ranked img').length == 5")
    ranks, scores = zip(*(one.split()[:2] for one in labels(page, "#ranked")))
    assert ranks == tuple("12345") and sorted(map(float, scores)) == list(map(float, scores))[::-1]
    shoot(page, "rerank")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_by_day_and_by_night(open_page, collection, scheme):
    """At 360 pixels nothing is cut off, everything can be read, and dark is dark."""
    page = open_page(viewport={"width": 360, "height": 740}, color_scheme=scheme, is_mobile=True,
                     has_touch=True)  # fmt: skip
    draw(page, pictures=1, steps=5)
    said(page, "#drawn-line", "finished")
    shoot(page, f"phone-generate-{scheme}")
    drawn, settings = (page.locator(one).first.bounding_box()["y"]
                       for one in ("#drawn img", "#settings"))  # fmt: skip
    assert drawn < settings, "the image comes above the settings"
    for name in ("Generate", "Search", "Rerank"):
        tab(page, name)
        if name == "Search":
            ask(page, "a fox")
            page.locator("#grid button").first.click()
            page.wait_for_selector("#like", state="visible")
            shoot(page, f"phone-search-{scheme}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        found = page.evaluate(CONTRASTS)
        assert len(found) > 5
        assert not [one for one in found if one[1] < 4.5 or one[2] < 12]
    brightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0]")
    assert (int(brightness) < 60) == (scheme == "dark")
