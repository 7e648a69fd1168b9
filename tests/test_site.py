"""The site: it builds without a warning, links lead somewhere, commands and code are true."""

from __future__ import annotations

import ast
import functools
import html
import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from clipguide.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
OTHERS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "samples/README.md")
OTHERS += ("pipelines/DIFFUSERS.md", "pipelines/comfyui/README.md")
PAGES = [*sorted(DOCS.rglob("*.md")), *(ROOT / name for name in OTHERS)]
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
FENCE = re.compile(r"^( *)```([\w-]*)[^\n]*\n(.*?)^\1```$", re.M | re.S)
SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.S)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FOREIGN = {  # options of other programs that pages name
    *("--upgrade", "--no-deps", "--depth", "--head", "--address", "--runtime-env-json"),
    *("--nproc_per_node", "--count", "--no_amp", "--python", "--photos", "--minutes", "--towards"),
    *("--help", "--quick"),
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    return SPAN.sub("", FENCE.sub("", text))


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and mkdocs make it of plain English."""
    words = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", words))


def anchors(page: Path) -> set[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return {slug(found) for found in re.findall(r"^#+ (.+)$", text, re.M)}


# ------------------------------------------------------------ the build
@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. A process of its own, in which no other host can be asked."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -e '.[docs]'")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is missing: pip install -e '.[docs]'")
    pytest.importorskip("tomllib", reason="the site is built by Python 3.11 or later")
    folder = tmp_path_factory.mktemp("site")
    program = (
        "import socket, sys\n"
        "def refuse(*_, **__): raise OSError('the build asked another host')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from mkdocs.__main__ import cli\n"
        "cli(['build', '--strict', '--quiet', '--site-dir', sys.argv[1]])\n"
    )
    command = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_it_builds_strictly(site):
    pages = [page for page in DOCS.rglob("*.md") if page.name != "README.md"]
    for page in pages:
        folder = page.relative_to(DOCS).with_suffix("")
        built = site / ("" if page.stem == "index" else folder) / "index.html"
        assert built.is_file(), f"{name(page)} is not on the site"
    assert (site / "samples" / "red-fox.png").is_file()


def test_it_lists_what_the_generator_draws(site):
    from clipguide.mini import known

    page = html.unescape((site / "things" / "index.html").read_text(encoding="utf-8"))
    listed = re.search(r"<article.*</article>", page, re.DOTALL)[0]
    names = {name for part in re.findall(r"<p>(.*?)</p>", listed, re.DOTALL)[1:] for name in
             part.split(", ")}
    assert set(known.things()) <= names and "<!-- things" not in page


def test_pages_ask_no_other_host(site):
    """Nothing that a browser loads by itself comes from elsewhere."""
    loaded = re.compile(r"<(?:script|img|iframe)[^>]+src=\"(https?:[^\"]+)|<link[^>]+rel=\"?"
                        r"(?:stylesheet|preconnect)\"?[^>]+href=\"(https?:[^\"]+)")
    for page in site.rglob("*.html"):
        assert not loaded.findall(page.read_text(encoding="utf-8")), page


def test_the_api_page_has_each_public_name(site):
    """Each name of `clipguide`, under its own name or that of what it stands for."""
    import clipguide

    shown = html.unescape((site / "api" / "index.html").read_text(encoding="utf-8"))
    ids = set(re.findall(r'id="([\w.]+)"', shown))
    wanted = "TextToImage TextToCanvas steer load_clip load_pipeline Similarity UsageError Recipe"
    for public in wanted.split():
        thing = getattr(clipguide, public)
        home = thing.__module__.replace("clipguide.pipelines", "pipelines")
        assert f"{home}.{thing.__qualname__}" in ids, public


def shown_code(page: Path) -> list[str]:
    """The text of the code on a page of the site."""
    text = re.sub(r"<script.*?</script>", "", page.read_text(encoding="utf-8"), flags=re.S)
    found = re.findall(r"<code[^>]*>(.*?)</code>", text, re.S)
    return [html.unescape(re.sub(r"<[^>]+>", "", code)) for code in found]


def test_no_backslash_is_shown_before_a_bar(site):
    """Python-Markdown keeps it in the code of a table, and a prompt that is copied has it then."""
    pages = list(site.rglob("*.html"))
    assert sum(len(shown_code(page)) for page in pages) > 1000
    for page in pages:
        assert not [code for code in shown_code(page) if "\\|" in code], page


def test_a_backslash_before_a_bar_would_be_found(tmp_path):
    import markdown

    text = "| a |\n|---|\n| `x \\| y` |\n"
    (tmp_path / "a.html").write_text(markdown.markdown(text, extensions=["tables"]))
    assert shown_code(tmp_path / "a.html") == ["x \\| y"]


def test_docstrings_show_their_asterisks(site):
    """In `0.7*mini+0.3*mini-judge` outside of code, Markdown takes the asterisks for emphasis."""
    text = (site / "api" / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r"\w<(?:em|strong)>[^<]*</(?:em|strong)>", text)
    assert any("0.7*mini+0.3*mini-judge" in code for code in shown_code(site / "api/index.html"))


# ------------------------------------------------------------ links
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links(page):
    """Each relative link leads to a file, and to a heading of it."""
    for target in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"\w+:", target):
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        assert file.exists(), f"{name(page)}: {target}"
        if anchor and file.suffix == ".md" and file != DOCS / "api.md":
            assert anchor in anchors(file), f"{name(page)}: {target}"


def test_a_heading_that_is_not_there_is_found():
    assert slug("Which CLIP?") == "which-clip" and "which-clip" in anchors(DOCS / "guides.md")
    assert "which-clop" not in anchors(DOCS / "guides.md")


def test_one_place_has_the_addresses():
    """Every file that names the project's home names that of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    home = re.search(r'^Repository = "https://(.+)"$', text, re.M)[1]
    owner = re.compile(r"(?:github\.com|colab\.research\.google\.com/github)/([\w-]+/clipguide)\b")
    files = [*PAGES, *NOTEBOOKS, ROOT / "CITATION.cff", *(ROOT / ".github").rglob("*.yml")]
    for file in files:
        for found in owner.findall(file.read_text(encoding="utf-8")):
            assert home.endswith(found), name(file)


# ------------------------------------------------------------ commands
@functools.cache
def program():
    return get_command(app)


def command_lines(page: Path) -> list[str]:
    """What begins with `clipguide` in code, in blocks and in the text."""
    text = page.read_text(encoding="utf-8")
    lines = []
    for _, language, block in FENCE.findall(text):
        if language in ("", "bash", "sh", "console", "text"):
            lines += block.replace("\\\n", " ").splitlines()
    lines += [re.sub(r"\s+", " ", code).replace("\\|", "|") for _, code in SPAN.findall(
        FENCE.sub("", text))]
    found = (re.search(r"(?:^|[&;]\s|=auto |-m )(clipguide .*?)(?:\s#.*|&&.*)?$", line.strip())
             for line in lines)
    return [match[1] for match in found if match]


COMMANDS = [(name(page), line) for page in PAGES for line in command_lines(page)]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: value[:60])
def test_commands_parse(page, line):
    """The verb exists, and so does each option; nothing is run."""
    words, command = shlex.split(line)[1:], program()
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    group = hasattr(command, "commands")
    assert not (group and words and words[0][0] != "-"), f"no verb {words[0]}"
    parser = command.make_parser(command.context_class(command))
    _, left, _ = parser.parse_args(words)
    assert not left, f"more arguments than {page} may give: {left}"


def test_a_wrong_option_is_found():
    with pytest.raises(Exception, match="(?i)no such option"):
        test_commands_parse("", "clipguide generate fox --sede 7")
    with pytest.raises(AssertionError, match="no verb"):
        test_commands_parse("", "clipguide genrate fox")


def test_there_are_commands():
    assert len(COMMANDS) > 50 and {"README.md", "docs/search.md"} <= {page for page, _ in COMMANDS}


def options(command) -> set[str]:
    known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
    return known.union(*map(options, getattr(command, "commands", {}).values()))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_options_in_the_text_exist(page):
    """An option in the text, as `--seed 7`, is one of some verb's, or another program's."""
    known = options(program()) | FOREIGN
    for _, code in SPAN.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if code.startswith("--"):
            assert re.match(r"--[\w-]+", code)[0] in known, f"{name(page)}: {code}"


def exceptions(page: str) -> dict[str, str]:
    """The options whose argument has another name, as a page lists them."""
    text = re.sub(r"\s+", " ", (DOCS / page).read_text(encoding="utf-8"))
    return {one[2:].replace("-", "_"): other
            for one, other in re.findall(r"`(--[\w-]+)` is `(\w+)`", text)}


def arguments(*things) -> set[str]:
    return {one for thing in things for one in inspect.signature(thing).parameters}


@pytest.mark.parametrize(("verb", "page"), [("generate", "which-method.md"),
                                            ("optimize", "optimise.md")])
def test_an_option_is_an_argument_in_python(verb, page):
    """By the same name, or by the one that the page gives it."""
    import clipguide
    from clipguide.cli.steering import NAMES
    from clipguide.cli.verb import heading
    from clipguide.guidance.methods import METHODS

    if verb == "generate":
        from clipguide.pipelines.generation import Generation

        known = arguments(clipguide.TextToImage, Generation)
        known |= arguments(*(METHODS[name] for name in NAMES if name != "auto"))
    else:
        draw = clipguide.TextToCanvas
        known = arguments(draw, draw.__call__, clipguide.Drawing)
    titles = ("Steering", "Options of one method", "Sampling", "Canvas")
    command = program().commands[verb]
    named = {p.name: max(p.opts, key=len)[2:].replace("-", "_") for p in command.params
             if heading(verb, p) in titles}
    others, left = exceptions(page), set()
    for option in named.values():
        if others.get(option, option) not in known:
            left.add(option)
    assert left == {"generate": set(), "optimize": {"seconds"}}[verb]
    assert set(others) <= set(named.values()) and not set(others) & known


# ------------------------------------------------------------ code
BLOCKS = [
    pytest.param(page, code, id=f"{name(page)}-{i}")
    for page in PAGES
    for i, code in enumerate(
        code for _, language, code in FENCE.findall(page.read_text(encoding="utf-8"))
        if language == "python"
    )
]


@pytest.mark.parametrize(("page", "code"), BLOCKS)
def test_python_of_pages(page, code):
    """It parses; what it imports of clipguide is there; calls of it take those arguments."""
    tree = ast.parse(code)
    names: dict[str, object] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "clipguide":
            module = importlib.import_module(node.module)
            for one in node.names:
                if not hasattr(module, one.name):
                    importlib.import_module(f"{node.module}.{one.name}")
                names[one.asname or one.name] = getattr(module, one.name)
        elif isinstance(node, ast.Import):
            for one in node.names:
                if one.name.split(".")[0] == "clipguide":
                    names["clipguide"] = importlib.import_module("clipguide")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            _check_call(node, names)


def _check_call(node: ast.Call, names: dict[str, object]) -> None:
    called = node.func
    if isinstance(called, ast.Name) and called.id in names:
        thing = names[called.id]
    elif (isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name)
          and inspect.ismodule(names.get(called.value.id))):
        thing = getattr(names[called.value.id], called.attr)
    else:
        return
    given = {one.arg for one in node.keywords if one.arg}
    signature = inspect.signature(thing)
    if not any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values()):
        assert given <= set(signature.parameters), f"{thing}: {given}"


RUN = ("get-started.md", "which-method.md", "guides.md", "optimise.md", "score-and-classify.md",
       "search.md", "how-it-works.md", "plug-in.md", "index.md", "memory.md")
QUICK = ("how-it-works.md", "score-and-classify.md")


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder with the samples in it, as a clone's."""
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    for one in ("old", "new"):  # two images of one's own
        (tmp_path / f"{one}.png").symlink_to(ROOT / "samples" / "red-fox.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIPGUIDE_DB", str(tmp_path / "db"))
    return tmp_path


def _runs(block) -> bool:
    """Blocks of pages that run; `my-images` is not there, and guides.md's word has a test."""
    page, code = block.values
    return page.parent == DOCS and page.name in RUN and "my-images" not in code


RUNNING = [
    pytest.param(*b.values, id=b.id, marks=[] if b.values[0].name in QUICK else pytest.mark.slow)
    for b in BLOCKS
    if _runs(b)
]


@pytest.mark.parametrize(("page", "code"), RUNNING)
def test_python_of_pages_runs(page, code, clone):
    from clipguide.guidance import latents, methods, schedulers
    from clipguide.objectives import OBJECTIVES
    from clipguide.rewards import REWARDS

    tables = (latents.FAMILIES, methods.METHODS, schedulers.SCHEDULERS, OBJECTIVES, REWARDS)
    before = [set(table) for table in tables]
    try:
        exec(compile(code, name(page), "exec", dont_inherit=True), {"__name__": "page"})
    finally:
        for table, names in zip(tables, before, strict=True):
            for added in set(table) - names:
                table.unregister(added)


# ------------------------------------------------------------ notebooks
def cells(notebook: Path, kind: str) -> list[str]:
    found = json.loads(notebook.read_text(encoding="utf-8"))
    assert found["nbformat"] == 4
    return ["".join(one["source"]) for one in found["cells"] if one["cell_type"] == kind]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_notebooks_are_clean(notebook):
    """No outputs are kept, the first cell opens it in Colab, and the code parses."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    assert f"/blob/main/{name(notebook)})" in cells(notebook, "markdown")[0]
    for code in cells(notebook, "code"):
        ast.parse(code)


@pytest.mark.ci
@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_notebooks_run(notebook, clone):
    """Every cell, in order, in one namespace."""
    pytest.importorskip("lancedb", reason="search needs pip install -e '.[search]'")
    told: dict = {"__name__": "notebook"}
    for i, code in enumerate(cells(notebook, "code")):
        exec(compile(code, f"{notebook.name}, cell {i}", "exec", dont_inherit=True), told)


# ------------------------------------------------------------ figures
def test_figures_are_those_of_the_files():
    from benchmarks import figures

    kept = figures.DOCUMENT.read_text(encoding="utf-8")
    assert kept == figures.page(), "run: python -m benchmarks.figures"


def test_the_page_has_each_figure_of_what_is_shipped():
    """Those as well that a CLIP measured which is not shipped."""
    from benchmarks import figures
    from clipguide import mini
    from training.evaluate.ledger import FIGURES, fingerprint

    page = (ROOT / "docs/figures.md").read_text(encoding="utf-8")
    shipped = {name: fingerprint(mini.path(name)) for name in mini.MODELS}
    seen = 0
    for one in json.loads(FIGURES.read_text(encoding="utf-8"))["figures"]:
        model, _, what = one["key"].partition(": ")
        of = one["weights"]
        if model in shipped and all(shipped[k] == of[k] for k in of if k in shipped):
            assert f"| {model} | {figures.NAMES.get(what, what)} |" in page
            seen += not set(of) <= set(shipped)
    assert seen and "Not measured on the present weights: generator" not in page


def test_the_table_of_cards_is_that_of_memory():
    """docs/real-models.md quotes docs/memory.md, and the card is the least that the row needs."""

    def rows(page: str) -> list[list[str]]:
        lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]

    counted = {
        (model, decoder): (time, weights, card)
        for model, decoder, time, _, weights, card in (r for r in rows("memory.md") if len(r) == 6)
    }
    quoted = [row for row in rows("real-models.md") if len(row) == 5 and "GiB" in row[0]]
    quoted = [row for row in quoted if row[0] != "card"]
    assert len(quoted) > 5
    for card, model, decoder, time, weights in quoted:
        assert counted[model, decoder] == (time, weights, card), (model, decoder)


def said(page: str, pattern: str) -> list[str]:
    """The figures of a sentence, which stands once on a page."""
    text = re.sub(r"\s+", " ", (ROOT / page).read_text(encoding="utf-8"))
    (found,) = re.findall(pattern, text)
    return list(found) if isinstance(found, tuple) else [found]


def test_a_figure_on_two_pages_is_one_figure():
    """Sentences that quote a figure of another page, or of a file of the repository."""
    from clipguide.mini import known
    from clipguide.mini.pipeline import MiniPipeline

    def read(place: str) -> dict:
        return json.loads((ROOT / place).read_text(encoding="utf-8"))

    figures = {one["key"]: one["value"] for one in read("training/figures.json")["figures"]}
    seen = [f"{100 * figures[f'generator: looked at, {what}']:.0f}" for what in ("good", "bad")]
    things = len(read("clipguide/mini/generator/known.json")["things"])
    for page in ("README.md", "docs/index.md"):
        assert said(page, r"called \W?(\d+) % good and (\d+) % bad") == seen
        (objects,) = said(page, r"draws?\W* about ([\d,]+) objects")
        assert abs(int(objects.replace(",", "")) - things) <= 25
    page = "docs/get-started.md"
    assert said(page, r"they called (\d+) % of the images good, (\d+) % bad") == seen
    doubted = figures["generator: doubted, of bad images"]
    assert said(page, r"images that both called bad, (\d+) % had") == [f"{100 * doubted:.0f}"]
    doubted = figures["generator: doubted, of good images"]
    assert said(page, r"images that both called good, (\d+) % had") == [f"{100 * doubted:.0f}"]
    quoted = said(page, r"judge is below ([\d.]+), or below ([\d.]+) for a prompt of (\d+) words")
    assert quoted == [f"{known.LEAST}", f"{known.LEAST_IF_LONG}", f"{known.LONG}"]
    unknown = figures["generator: doubted, of prompts that it cannot draw"]
    assert said(page, r"abstract ideas, (\d+) % had") == [f"{100 * unknown:.0f}"]
    photographs = read("benchmarks/search.json")["photographs"]
    quoted = said("docs/search.md", r"test with (\d+) photographs.+?only (\d+) of 10 queries")
    assert quoted == [f"{photographs['photographs']}", f"{photographs['among five']}"]
    rows = read("benchmarks/embedding.json")["speed vit-b-32"]["rows"]
    quoted = said("docs/search.md", r"ViT-B-32 embeds (\d+) JPEGs .+? or (\d+) with `--bf16`")
    assert quoted == [f"{rows[way]['pictures a second']:.0f}" for way in ("float32", "bf16")]
    row = r"^\| ([\w. -]+) \| `([\w:]+)` \| ([\d.]+) \| [\d.]+ \| ([\d.]+) \| "
    counted = re.findall(row, (DOCS / "memory.md").read_text("utf-8"), re.M)
    peaks = {(model, decoder): peak for model, decoder, _, peak in counted}
    tiny = [float(time) for _, decoder, time, _ in counted if decoder.startswith("tiny")]
    assert said("docs/real-models.md", r"at most ([\d.]+) times as long") == [f"{max(tiny):.2f}"]
    page = "docs/real-models.md"
    assert said(page, r"By the table, this needs ([\d.]+) GiB") == [peaks["SDXL", "vae:half"]]
    assert said(page, r"This needs ([\d.]+) GiB, and the") == [peaks["SDXL", "vae:tiles2"]]
    assert said(page, r"alone then need ([\d.]+) GiB") == [peaks["FLUX", "vae:tiles2"]]
    cards = re.findall(r"^\| (\d+) GiB \| ([^|]+) \|", (ROOT / page).read_text("utf-8"), re.M)
    least = {model: card for card, model in reversed(cards)}
    quoted = said(
        "README.md",
        r"SD 1.5 fits a card of (\d+) GiB, SDXL and SD 3.5 medium (\d+) GiB, and FLUX (\d+) GiB",
    )
    assert quoted == [least[model] for model in ("SD 1.5", "SDXL", "FLUX")]
    assert least["SDXL"] == least["SD3.5-medium"]
    sizes = re.findall(r"\| (\d+) MB \| MIT \|", (DOCS / "guides.md").read_text("utf-8"))
    assert said("README.md", r"of (\d+) or (\d+) MB") == sizes
    assert said("pipelines/comfyui/README.md", r"default has (\d+) MB")[0] in sizes
    kept = re.findall(r"^\| linear \|.+?\| (\d+ ± \d+ %) \|",
                      (DOCS / "memory.md").read_text(encoding="utf-8"), re.M)[0]
    assert said("docs/memory.md", r"it kept only (\d+ ± \d+ %) of what") == [kept]
    assert said(page, r"kept (\d+ ± \d+ %) of the gain") == [kept]
    usual = [f"{MiniPipeline.default_best_of}", f"{MiniPipeline.default_steps}"]
    for page, pattern in (
        ("docs/get-started.md", r"draws (\d+) samples of the image in (\d+) steps each"),
        ("docs/which-method.md", r"draw (\d+) samples of each image, in (\d+) steps each"),
        ("training/cards/generator.md", r"draw (\d+) samples of each image in (\d+) steps each"),
    ):
        assert said(page, pattern) == usual, page
    for page, pattern in (
        ("README.md", r"By default, nothing steers: `generate` draws (\d+) samples"),
        ("CHANGELOG.md", r"nothing steers the embedded generator: it draws (\d+) samples"),
        ("docs/index.md", r"`clipguide generate` draws (\d+) samples"),
        ("docs/guides.md", r"By default, `generate` draws (\d+) samples"),
        ("docs/get-started.md", r"sum of their scores selects among the (\d+) samples"),
        ("docs/get-started.md", r"guide and judge together select among (\d+) samples"),
        ("docs/notebooks/first-image.ipynb", r"selects the image among (\d+) samples"),
        ("clipguide/cli/generate.py", r"the embedded generator. It draws (\d+) samples of each"),
        ("pipelines/generation.py", r"means 1, or (\d+) with the embedded generator"),
    ):
        assert said(page, pattern) == usual[:1], page
    steps = said("pipelines/generation.py", r"None means 30, or (\d+) with the embedded generator")
    assert steps == usual[1:]
    options = {one.name: one.help for one in get_command(app).commands["generate"].params}
    assert re.findall(r"generator, (\d+) without a steering", options["best_of"]) == usual[:1]
    assert re.findall(r"(\d+) with(?:out)? (?:a steering|--method)", options["steps"]) == 2 * steps
    memory = read("clipguide/mini/generator/memory/config.json")
    maps, objects = said("CHANGELOG.md", r"memory of about ([\d,]+) maps of ([\d,]+) things")
    assert abs(int(maps.replace(",", "")) - memory["size"]) <= 50
    assert int(objects.replace(",", "")) == len(memory["things"])


def test_pipelines_of_the_page_are_supported():
    """docs/real-models.md names classes that the table of families has, and diffusers too."""
    import diffusers

    from clipguide.guidance.latents import FAMILIES

    text = (DOCS / "real-models.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`(\w+Pipeline)`", text))
    assert len(names) > 5
    for one in names:
        assert one in FAMILIES and hasattr(diffusers, one), one
