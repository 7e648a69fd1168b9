"""The ComfyUI pack as it is shipped: its example workflows, and its files for the registry."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest
from clipguide.pipelines.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from PIL import Image

import clipguide
from clipguide.rewards.table import KINDS

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "pipelines/comfyui"
DRAWN = sorted((FOLDER / "example_workflows").glob("*.json"))
CALLED = sorted((FOLDER / "example_workflows/api").glob("*.json"))
CORE = {  # ComfyUI's own nodes that the workflows use: types of the inputs and of the outputs
    "CheckpointLoaderSimple": ({"ckpt_name": "COMBO"}, ["MODEL", "CLIP", "VAE"]),
    "CLIPTextEncode": ({"text": "STRING", "clip": "CLIP"}, ["CONDITIONING"]),
    "EmptyLatentImage": ({"width": "INT", "height": "INT", "batch_size": "INT"}, ["LATENT"]),
    "KSampler": (
        {
            "model": "MODEL", "seed": "INT", "steps": "INT", "cfg": "FLOAT",
            "sampler_name": "COMBO", "scheduler": "COMBO", "positive": "CONDITIONING",
            "negative": "CONDITIONING", "latent_image": "LATENT", "denoise": "FLOAT",
        },
        ["LATENT"],
    ),
    "LatentFromBatch": (
        {"samples": "LATENT", "batch_index": "INT", "length": "INT"}, ["LATENT"],
    ),
    "PreviewAny": ({"source": "*"}, []),
    "SaveImage": ({"images": "IMAGE", "filename_prefix": "STRING"}, []),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, ["IMAGE"]),
}  # fmt: skip
VALUES = {"BOOLEAN": bool, "COMBO": str, "FLOAT": (int, float), "INT": int, "STRING": str}
SEEDED = ("seed", "noise_seed")  # the page adds what becomes of these after a run


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def of_node(node: type) -> tuple[dict[str, str], list[str]]:
    """The types of the inputs and of the outputs of a node's class."""
    groups = node.INPUT_TYPES()
    given = {**groups["required"], **groups.get("optional", {})}
    kinds = {name: one[0] if isinstance(one[0], str) else "COMBO" for name, one in given.items()}
    return kinds, list(node.RETURN_TYPES)


SOCKETS = {**CORE, **{name: of_node(node) for name, node in NODE_CLASS_MAPPINGS.items()}}


def needed(kind: str) -> set[str]:
    """The inputs that a node does not go without."""
    inputs = set(SOCKETS[kind][0])
    node = NODE_CLASS_MAPPINGS.get(kind)
    return inputs - set(node.INPUT_TYPES().get("optional", {})) if node else inputs


def check_value(kind: str, name: str, value: object) -> None:
    """Of the type, and for our nodes within the limits."""
    expected = SOCKETS[kind][0][name]
    assert isinstance(value, VALUES[expected]), (kind, name, value)
    assert (type(value) is bool) == (expected == "BOOLEAN"), (kind, name, value)
    if kind in NODE_CLASS_MAPPINGS:
        found, options = NODE_CLASS_MAPPINGS[kind].INPUT_TYPES()["required"][name]
        assert isinstance(found, str) or value in found, (kind, name, value)
        if "min" in options:
            assert options["min"] <= value <= options["max"], (kind, name, value)


def check_link(kind: str, name: str, source: str, slot: int) -> None:
    expected = SOCKETS[kind][0][name]
    assert expected in ("*", SOCKETS[source][1][slot]), (source, slot, kind, name)


def check_called(graph: dict) -> None:
    """The API format: node types, inputs, values and links."""
    for node in graph.values():
        kind, inputs = node["class_type"], node["inputs"]
        assert needed(kind) <= set(inputs) <= set(SOCKETS[kind][0]), kind
        for name, value in inputs.items():
            if isinstance(value, list):
                source, slot = value
                check_link(kind, name, graph[source]["class_type"], slot)
            else:
                check_value(kind, name, value)


def called(drawn: dict) -> dict:
    """The API format of a graph in the page's format, which says everything twice: checked."""
    nodes = {node["id"]: node for node in drawn["nodes"]}
    links = {link[0]: link for link in drawn["links"]}
    assert len(nodes) == len(drawn["nodes"]) and drawn["last_node_id"] == max(nodes)
    assert len(links) == len(drawn["links"]) and drawn["last_link_id"] == max(links)
    for number, source, out, target, place, kind in links.values():
        output, entry = nodes[source]["outputs"][out], nodes[target]["inputs"][place]
        assert number in output["links"] and output["type"] == kind
        assert entry["link"] == number and entry["type"] in (kind, "*")
    graph = {}
    for node in drawn["nodes"]:
        inputs, outputs = SOCKETS[node["type"]]
        assert [one["type"] for one in node["outputs"]] == outputs
        assert all(set(one["links"]) <= set(links) for one in node["outputs"])
        wired = {one["name"]: one["link"] for one in node["inputs"] if one["link"] is not None}
        assert all(inputs[one["name"]] == one["type"] for one in node["inputs"])
        values = list(node["widgets_values"])
        found: dict[str, object] = {}
        for name, kind in inputs.items():
            if kind in VALUES:
                found[name] = values.pop(0)
                if name in SEEDED:
                    assert values.pop(0) in ("fixed", "increment", "decrement", "randomize")
            if name in wired:
                _, source, out, target, place, _ = links[wired[name]]
                assert target == node["id"] and node["inputs"][place]["name"] == name
                found[name] = [str(source), out]
        assert not values, node["type"]
        graph[str(node["id"])] = {"inputs": found, "class_type": node["type"]}
    return graph


@pytest.mark.parametrize("path", CALLED, ids=lambda path: path.stem)
def test_workflow_for_the_api(path):
    check_called(read(path))


@pytest.mark.parametrize("path", DRAWN, ids=lambda path: path.stem)
def test_workflow_for_the_page(path):
    """It is the same graph as the one for the API."""
    other = read(path.parent / "api" / path.name)
    for node in other.values():
        del node["_meta"]
    assert called(read(path)) == other


@pytest.mark.parametrize(("node", "name", "value"), [
    ("KSampler", "model", ["1", 2]), ("KSampler", "steps", "20"), ("KSampler", "clip", ["1", 1]),
    ("ClipguideSteer", "strength", 11.0), ("ClipguideSteer", "vae", ["1", 0]),
    ("ClipguideSteer", "prompt", True),
])  # fmt: skip
def test_a_fault_is_found(node, name, value):
    graph = read(FOLDER / "example_workflows/api/steer.json")
    (found,) = [one for one in graph.values() if one["class_type"] == node]
    found["inputs"][name] = value
    with pytest.raises(AssertionError):
        check_called(graph)


def test_each_workflow_has_its_image():
    """ComfyUI shows NAME.jpg with NAME.json. It is of the present files, and no node hides another.
    """
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import workflow_images
    finally:
        sys.path.remove(str(ROOT / "docs"))
    for path in DRAWN:
        image = Image.open(path.with_suffix(".jpg"))
        assert image.info["comment"].decode() == workflow_images.digest(path), (
            f"{path.name} has changed: run python docs/workflow_images.py"
        )
        assert image.size == workflow_images.drawing(path).size
        boxes = list(workflow_images.boxes(read(path)).values())
        for (a, b, c, d), (e, f, g, h) in itertools.combinations(boxes, 2):
            assert c <= e or g <= a or d <= f or h <= b, path.name


def test_every_node_is_shown():
    """Each node of the pack has a name and is in a workflow; both formats are there."""
    assert [path.name for path in DRAWN] == [path.name for path in CALLED] and len(DRAWN) == 2
    used = {node["class_type"] for path in CALLED for node in read(path).values()}
    assert used == {*CORE, *NODE_CLASS_MAPPINGS}
    assert NODE_CLASS_MAPPINGS.keys() == NODE_DISPLAY_NAME_MAPPINGS.keys()


def test_registry_file():
    """The pack has the version and the addresses of the package, and a publisher."""
    toml = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    pack, package = (
        toml.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
        for folder in (FOLDER, ROOT)
    )
    assert pack["project"]["version"] == clipguide.__version__
    assert pack["project"]["requires-python"] == package["project"]["requires-python"]
    assert pack["project"]["dependencies"] == [package["project"]["name"]]
    assert pack["project"]["urls"].items() <= package["project"]["urls"].items()
    assert pack["tool"]["comfy"]["PublisherId"] and (FOLDER / pack["project"]["readme"]).is_file()


def test_readme_names_every_node():
    """And every reward that is in clipguide."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"*{name}*" in text for name in NODE_DISPLAY_NAME_MAPPINGS.values())
    assert all(f"example_workflows/{path.name}" in text for path in DRAWN)
    assert ", ".join(KINDS) in " ".join(text.split())
    free = [name for name, kind in KINDS.items() if not kind.gradient]
    assert f"{', '.join(free[:-1])} and {free[-1]} have no gradient" in " ".join(text.split())


def test_the_wheel_has_the_whole_pack():
    """What setuptools would build from pyproject.toml: each file of the folder."""
    setuptools = pytest.importorskip("setuptools")
    distribution = setuptools.Distribution({"src_root": str(ROOT)})
    distribution.parse_config_files([str(ROOT / "pyproject.toml")])
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    build.analyze_manifest()
    name = "clipguide.pipelines.comfyui"
    assert name in build.packages
    kept = {FOLDER / "__init__.py", *map(Path, build.find_data_files(name, str(FOLDER)))}
    kept |= set(FOLDER.glob("*.py"))
    files = {one for one in FOLDER.rglob("*") if one.is_file() and one.suffix != ".pyc"}
    assert files == kept
