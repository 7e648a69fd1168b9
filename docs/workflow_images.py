"""Draw the image of each example workflow of the ComfyUI pack from its JSON.

ComfyUI's template browser shows NAME.jpg next to NAME.json. The layout comes from the workflow for
the page. The names of the values come from the same workflow for the API. The image holds the
digest of both files, so that a test can tell whether it is out of date.

    python docs/workflow_images.py
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from clipguide.pipelines.comfyui import NODE_DISPLAY_NAME_MAPPINGS
from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).resolve().parents[1] / "pipelines/comfyui/example_workflows"
MARGIN, TITLE, ROW, VALUE = 30, 30, 21, 25  # pixels
SCALE = 1.25  # pixels of the image for each pixel of the workflow
PAPER, NODE, OURS, HEAD, FIELD, INK, FAINT = (
    "#1e1f22", "#35373b", "#2c4a3e", "#27292c", "#212327", "#f0f0f0", "#a9adb3",
)  # fmt: skip
COLOURS = {
    "MODEL": "#b39ddb", "CLIP": "#ffd54f", "VAE": "#ff6e6e", "CONDITIONING": "#ffa931",
    "LATENT": "#ff9cf9", "IMAGE": "#64b5f6", "CLIPGUIDE_REWARD": "#7ee0a8",
}  # fmt: skip
Box = tuple[float, float, float, float]


def digest(path: Path) -> str:
    """Return the SHA-256 of a workflow: its file for the page and its file for the API."""
    both = path.read_bytes() + (path.parent / "api" / path.name).read_bytes()
    return hashlib.sha256(both.replace(b"\r\n", b"\n")).hexdigest()


def boxes(workflow: dict) -> dict[int, Box]:
    """Return the box of each node by its number, with the title: left, top, right, bottom."""
    found = {}
    for node in workflow["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        found[node["id"]] = (x, y - TITLE, x + width, y + height)
    return found


def socket(node: dict, side: str, place: int) -> tuple[float, float]:
    """Return the centre of an input or an output of a node."""
    (x, y), (width, _) = node["pos"], node["size"]
    return (x + (width if side == "outputs" else 0), y + ROW * (place + 0.75))


class Sheet:
    """A drawing surface in the coordinates of a workflow."""

    def __init__(self, workflow: dict) -> None:
        edges = list(zip(*boxes(workflow).values()))
        self.left, self.top = min(edges[0]) - MARGIN, min(edges[1]) - MARGIN
        size = max(edges[2]) + MARGIN - self.left, max(edges[3]) + MARGIN - self.top
        self.image = Image.new("RGB", [round(SCALE * side) for side in size], PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.font = ImageFont.load_default(13 * SCALE)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixel at a point of the workflow."""
        return SCALE * (x - self.left), SCALE * (y - self.top)

    def rectangle(self, box: Box, colour: str, radius: float = 6) -> None:
        corners = [*self.at(*box[:2]), *self.at(*box[2:])]
        self.draw.rounded_rectangle(corners, radius=SCALE * radius, fill=colour)

    def text(self, x: float, y: float, text: str, width: float, colour: str = INK,
             anchor: str = "lm") -> None:  # fmt: skip
        """Write a line in `width`, and shorten it with an ellipsis if it is longer."""
        shown = text
        while self.font.getlength(shown) > SCALE * width:
            text = text[:-1]
            shown = text.rstrip() + "…"
        self.draw.text(self.at(x, y), shown, fill=colour, font=self.font, anchor=anchor)

    def link(self, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
        """Draw a cubic Bezier curve that leaves to the right and arrives from the left."""
        reach = max(40.0, abs(end[0] - start[0]) / 3)
        points = []
        for k in range(49):
            t = k / 48
            near, far = 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t)
            x = (1 - t) ** 3 * start[0] + near * (start[0] + reach)
            x += far * (end[0] - reach) + t**3 * end[0]
            y = ((1 - t) ** 3 + near) * start[1] + (far + t**3) * end[1]
            points.append(self.at(x, y))
        self.draw.line(points, fill=colour, width=round(2.5 * SCALE), joint="curve")

    def dot(self, centre: tuple[float, float], colour: str) -> None:
        x, y = self.at(*centre)
        r = 5 * SCALE
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def draw_node(sheet: Sheet, node: dict, values: dict[str, object]) -> None:
    """Draw one node: its title, its inputs and outputs, and its values by name."""
    x, top, right, bottom = boxes({"nodes": [node]})[node["id"]]
    y, width = top + TITLE, right - x
    sheet.rectangle((x, top, right, bottom), OURS if node["type"].startswith("Clipguide") else NODE)
    sheet.rectangle((x, top, right, y), HEAD)
    name = node.get("title") or NODE_DISPLAY_NAME_MAPPINGS.get(node["type"], node["type"])
    sheet.text(x + 12, top + TITLE / 2, name, width - 24)
    for side, anchor, inset in (("inputs", "lm", 12), ("outputs", "rm", -12)):
        for place, one in enumerate(node[side]):
            a, b = socket(node, side, place)
            sheet.dot((a, b), COLOURS.get(one["type"], FAINT))
            sheet.text(a + inset, b, one["name"], width / 2 - 16, anchor=anchor)
    y += ROW * max(len(node["inputs"]), len(node["outputs"])) + 8
    for label, value in values.items():
        sheet.rectangle((x + 10, y, right - 10, y + VALUE - 4), FIELD, radius=4)
        sheet.text(x + 18, y + VALUE / 2 - 2, label, 100, FAINT)
        room = width - 48 - sheet.font.getlength(label) / SCALE
        sheet.text(right - 18, y + VALUE / 2 - 2, str(value), room, anchor="rm")
        y += VALUE
    if y > bottom:
        raise ValueError(f"the node {name} is {y - bottom:g} pixels too low for its values")


def drawing(path: Path) -> Image.Image:
    """Return the image of a workflow."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    called = json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    sheet = Sheet(workflow)
    for _, source, out, target, place, kind in workflow["links"]:
        start = socket(nodes[source], "outputs", out)
        sheet.link(start, socket(nodes[target], "inputs", place), COLOURS.get(kind, FAINT))
    for number, node in nodes.items():
        inputs = called[str(number)]["inputs"]
        draw_node(sheet, node, {k: v for k, v in inputs.items() if not isinstance(v, list)})
    return sheet.image


def main() -> None:
    for path in sorted(FOLDER.glob("*.json")):
        image, target = drawing(path), path.with_suffix(".jpg")
        image.save(target, quality=88, optimize=True, comment=digest(path).encode())
        print(target.name, *image.size)


if __name__ == "__main__":
    main()
