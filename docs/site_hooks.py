"""Hooks of mkdocs: one place for addresses, links that lead out of docs/, and the list of objects.

Pages link to the rest of the repository by relative paths, so that they work in a clone. On the
site an image from samples/ or benchmarks/ is copied, and any other file becomes a link to the
repository.
"""

import itertools
import posixpath
import re
from pathlib import Path

import tomllib  # Python 3.11 or later
from mkdocs.structure.files import File

from clipguide.mini import known

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ("samples/*.png", "samples/*.webp", "benchmarks/*.webp")
THINGS = "<!-- things -->"
LINK = re.compile(r"\]\(((?:\.\./)+)([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config):
    """Take the addresses from pyproject.toml."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    config.repo_url, config.site_url = urls["Repository"], urls["Documentation"]
    config.repo_name = config.repo_url.removeprefix("https://").partition("/")[2]
    return config


def on_files(files, config):
    """Add the images that pages show."""
    for pattern in IMAGES:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrite the links of a page that lead out of docs/, and list the objects where it asks."""
    if THINGS in markdown:
        markdown = markdown.replace(THINGS, things())
    folder = posixpath.dirname(page.file.src_uri)

    def rewritten(match):
        up, rest, anchor = match[1], match[2], match[3] or ""
        place = posixpath.normpath(posixpath.join("docs", folder, up, rest))
        if place.startswith("docs/"):
            return match[0]
        if files.get_file_from_path(place):
            return f"]({posixpath.relpath(place, folder or '.')})"
        return f"]({config.repo_url}/blob/main/{place}{anchor})"

    return LINK.sub(rewritten, markdown)


def things():
    """Return the names of what the embedded generator draws, a section for each first letter."""

    def letter(name):
        return name[0].upper() if name[0].isalpha() else "0 – 9"

    parts = itertools.groupby(sorted(known.things(), key=lambda name: (letter(name), name)), letter)
    return "\n\n".join(f"## {first}\n\n{', '.join(names)}" for first, names in parts)
