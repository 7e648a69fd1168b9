"""Read the prompt that an image generator stored in a file."""

from __future__ import annotations

import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from . import recipe
from .errors import UsageError
from .reading import PNG, chunks, open_image

MOST = 64 << 20  # bytes of a text in a PNG, unpacked
LONGEST = 20_000  # characters of a prompt
GRAPHS = ("prompt:", "workflow:")  # begin ComfyUI's texts in EXIF, in camera fields
MAKE, MODEL, DESCRIPTION, COMMENT, INNER = 0x010F, 0x0110, 0x010E, 0x9286, 0x8769
SETTINGS = re.compile(r"^\s*Steps: *\d+, ")  # the line after the prompts of AUTOMATIC1111
NEGATIVE = "Negative prompt:"
# ComfyUI: inputs with a text, and inputs that do not lead to the prompt
WORDS = ("text", "text_g", "text_l", "clip_l", "t5xxl", "prompt", "string", "value", "positive")
ASIDE = ("negative", "model", "clip", "vae", "image", "samples", "latent_image", "noise", "sigmas")
ASIDE += ("sampler", "control_net", "mask", "pixels")


def prompt(
    source: str | os.PathLike | bytes | BinaryIO, *, image: Image.Image | None = None
) -> str | None:
    """Return the prompt in an image file, or None.

    It reads the formats of clipguide, of AUTOMATIC1111 and compatible programs (Forge, SD.Next,
    Fooocus), of ComfyUI, InvokeAI, NovelAI and SwarmUI, and a text named "prompt" (of kohya's and
    diffusers' scripts). Unusual content is not an error.

    Args:
        source: the path of a file, its bytes, or a stream of them.
        image: the image of that file, if it is open already and not decoded yet.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(source, bytes):
        content = source
    elif hasattr(source, "read"):
        source.seek(0)
        content = source.read()
    else:
        content = Path(source).read_bytes()
    found = _texts(content) if content.startswith(PNG) else {}
    found = {**_exif(content, image), **found}
    for name, read in READERS.items():
        if name in found:
            try:
                said = read(found[name], found)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError):
                continue
            if isinstance(said, str) and said.strip():
                return said.strip()[:LONGEST].encode(errors="replace").decode()
    return None


def _recipe(text: str, _: dict) -> str:
    return recipe.from_json(text).prompt


def _parameters(text: str, _: dict) -> str | None:
    """Return the prompt in AUTOMATIC1111's text (prompt, negative prompt, a line of settings), or
    in the JSON of Fooocus and SwarmUI."""
    if text.lstrip().startswith("{"):
        facts = json.loads(text)
        facts = facts.get("sui_image_params", facts)
        return facts.get("prompt", facts.get("Prompt"))
    lines = []
    for line in text.splitlines():
        if line.startswith(NEGATIVE) or SETTINGS.match(line):
            break
        lines.append(line)
    return "\n".join(lines)


def _invoke(text: str, _: dict) -> str | None:
    """Return InvokeAI's prompt, of version 3 and later, or of earlier versions."""
    facts = json.loads(text)
    found = facts.get("positive_prompt", facts.get("image", {}).get("prompt"))
    if isinstance(found, list):  # of weighted parts
        found = " ".join(part["prompt"] for part in found)
    return found


def _dream(text: str, _: dict) -> str | None:
    found = re.match(r'\s*"((?:[^"\\]|\\.)*)"', text)
    return found[1] if found else None


def _novel(text: str, found: dict) -> str | None:
    """Return NovelAI's prompt from the comment, or else from the description."""
    if found.get("Software") != "NovelAI":
        return None
    facts = json.loads(text)
    fourth = facts.get("v4_prompt", {}).get("caption", {}).get("base_caption")
    return fourth or facts.get("prompt") or found.get("Description")


def _graph_or_text(text: str, _: dict) -> str | None:
    """Return the prompt of ComfyUI's graph, or the text itself."""
    return _graph(text, _) if text.lstrip().startswith("{") else text


def _graph(text: str, _: dict) -> str | None:
    """Return the positive texts of ComfyUI's samplers, each once."""
    nodes = {k: v for k, v in json.loads(text).items() if isinstance(v.get("inputs"), dict)}
    said: dict[str, None] = {}
    for node in nodes.values():
        for name in ("positive", "guider"):
            if _link(node["inputs"].get(name), nodes) and "Sampler" in node.get("class_type", ""):
                said |= dict.fromkeys(_upstream(node["inputs"][name], nodes))
    return " ".join(said)


def _upstream(start: list, nodes: dict[str, dict]) -> Iterator[str]:
    """Yield the texts that lead to an input."""
    waiting, seen = [str(start[0])], set()
    while waiting:
        key = waiting.pop(0)
        if key in seen:
            continue
        seen.add(key)
        inputs = nodes[key]["inputs"]
        for name in WORDS:
            if isinstance(inputs.get(name), str) and inputs[name].strip():
                yield inputs[name].strip()
        waiting += [str(v[0]) for n, v in inputs.items() if n not in ASIDE and _link(v, nodes)]


def _link(value: object, nodes: dict) -> bool:
    return isinstance(value, list) and len(value) == 2 and str(value[0]) in nodes


READERS: dict[str, Callable[[str, dict], str | None]] = {
    recipe.CHUNK: _recipe,
    "parameters": _parameters,
    "invokeai_metadata": _invoke,
    "sd-metadata": _invoke,
    "Dream": _dream,
    "Comment": _novel,
    "prompt": _graph_or_text,
    "exif comment": _parameters,
}


def _texts(content: bytes) -> dict[str, str]:
    """Return the texts in a PNG by their names. Compressed texts may have up to 64 MiB."""
    found = {}
    for kind, body in chunks(content):
        name, _, rest = body.partition(b"\0")
        try:
            if kind == b"tEXt":
                text = rest.decode("latin-1")
            elif kind == b"zTXt":
                text = _unpacked(rest[1:]).decode("latin-1")
            elif kind == b"iTXt":
                packed, rest = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[2]
                text = (_unpacked(rest) if packed else rest).decode(errors="replace")
            else:
                continue
        except (zlib.error, IndexError):
            continue
        found.setdefault(name.decode("latin-1"), text)
    return found


def _unpacked(content: bytes) -> bytes:
    return zlib.decompressobj().decompress(content, MOST)


def _exif(content: bytes, image: Image.Image | None) -> dict[str, str]:
    """Return the texts in EXIF, by the names that they would have in a PNG."""
    try:
        image = image or open_image(io.BytesIO(content), megapixels=float("inf"))
        if image.format == "PNG" and "exif" not in image.info:
            return {}
        exif = image.getexif()
        comment = exif.get_ifd(INNER).get(COMMENT)
        places = [exif.get(tag) for tag in (MODEL, MAKE, DESCRIPTION)]
    except Exception:  # Pillow raises various errors for damaged EXIF
        return {}
    found = {}
    for text in places:
        for start in GRAPHS:
            if isinstance(text, str) and text.startswith(start):
                found.setdefault(start[:-1], text[len(start) :].rstrip("\0"))
    if comment:
        found["exif comment"] = _comment(comment)
    return found


def _comment(value: Any) -> str:
    """Return EXIF's UserComment. Its first 8 bytes name its encoding."""
    if isinstance(value, str):
        return value
    kind, rest = value[:8], value[8:]
    if kind == b"UNICODE\0":
        if rest[:2] in (b"\xfe\xff", b"\xff\xfe"):
            return rest.decode("utf-16", "replace")
        big = rest[::2].count(0) >= rest[1::2].count(0)
        return rest.decode("utf-16-be" if big else "utf-16-le", "replace")
    text = rest if kind in (b"ASCII\0\0\0", b"\0" * 8) else value
    return text.decode(errors="replace").rstrip("\0")
