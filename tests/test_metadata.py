"""Prompts that generators leave in files, in files made as they make them."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest
from PIL import Image, PngImagePlugin
from test_recipe import RECIPE

from clipguide.metadata import prompt
from clipguide.recipe import save_png

SCENE = Image.new("RGB", (16, 16), "red")
TEXT = "a red fox, (snow:1.2)\nin the style of nobody"
INFO = f"{TEXT}\nNegative prompt: blurry, Steps\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1"


def png(**texts):
    chunks = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        chunks.add_text(name.replace("_", "-") if name == "sd_metadata" else name, text)
    stream = io.BytesIO()
    SCENE.save(stream, "png", pnginfo=chunks)
    return stream.getvalue()


def with_exif(format_, tags=None, comment=None):
    exif = Image.Exif()
    for tag, value in (tags or {}).items():
        exif[tag] = value
    if comment is not None:
        exif.get_ifd(0x8769)[0x9286] = comment
    stream = io.BytesIO()
    SCENE.save(stream, format_, exif=exif)
    return stream.getvalue()


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


COMFY = {
    "3": node("KSampler", model=["4", 0], positive=["10", 0], negative=["7", 0], seed=1),
    "4": node("CheckpointLoaderSimple", ckpt_name="a.safetensors"),
    "6": node("CLIPTextEncode", text="a red fox", clip=["4", 1]),
    "7": node("CLIPTextEncode", text="blurry", clip=["4", 1]),
    "8": node("CLIPTextEncode", text=["9", 0], clip=["4", 1]),
    "9": node("PrimitiveString", value="in snow"),
    "10": node("ConditioningCombine", conditioning_1=["6", 0], conditioning_2=["8", 0]),
    "11": node("SaveImage", images=["3", 0], filename_prefix="a fox"),
}
FLUX = {
    "1": node("SamplerCustomAdvanced", guider=["2", 0], noise=["9", 0], latent_image=["8", 0]),
    "2": node("BasicGuider", model=["4", 0], conditioning=["3", 0]),
    "3": node("FluxGuidance", conditioning=["5", 0], guidance=3.5),
    "4": node("UNETLoader", unet_name="x"),
    "5": node("CLIPTextEncodeFlux", clip_l="a red fox", t5xxl="a red fox in snow", clip=["6", 0]),
}
CIRCLE = node("Reroute", anything=["2", 0])
NOVEL = {"prompt": "old", "uc": "blurry", "v4_prompt": {"caption": {"base_caption": "a fox"}}}
INVOKE = {"positive_prompt": "a red fox", "negative_prompt": "blurry"}
OLD_INVOKE = {"image": {"prompt": [{"prompt": "a red fox", "weight": 1.0}], "steps": 9}}
UNICODE = b"UNICODE\0"

FILES = {
    "A1111 PNG": (png(parameters=INFO), TEXT),
    "A1111 without negative": (png(parameters="a fox\nSteps: 20, Seed: 1"), "a fox"),
    "A1111 JPEG": (with_exif("jpeg", comment=UNICODE + INFO.encode("utf-16-be")), TEXT),
    "A1111 WebP": (with_exif("webp", comment=UNICODE + INFO.encode("utf-16-le")), TEXT),
    "ComfyUI PNG": (png(prompt=json.dumps(COMFY), workflow="{}"), "a red fox in snow"),
    "ComfyUI WebP": (
        with_exif("webp", {0x0110: f"prompt:{json.dumps(COMFY)}", 0x010F: "workflow:{}"}),
        "a red fox in snow",
    ),
    "ComfyUI of FLUX": (png(prompt=json.dumps(FLUX)), "a red fox a red fox in snow"),
    "InvokeAI": (png(invokeai_metadata=json.dumps(INVOKE)), "a red fox"),
    "InvokeAI 2": (png(sd_metadata=json.dumps(OLD_INVOKE)), "a red fox"),
    "InvokeAI 1": (png(Dream='"a \\"red\\" fox" -s 50 -S 1'), 'a \\"red\\" fox'),
    "NovelAI": (png(Software="NovelAI", Description="x", Comment=json.dumps(NOVEL)), "a fox"),
    "NovelAI 3": (
        png(Software="NovelAI", Description="a fox", Comment='{"uc": "blurry"}'),
        "a fox",
    ),
    "Fooocus": (png(parameters='{"prompt": "a red fox", "seed": 1}'), "a red fox"),
    "Fooocus JPEG": (with_exif("jpeg", comment=b'{"prompt": "a red fox"}'), "a red fox"),
    "SwarmUI": (png(parameters='{"sui_image_params": {"prompt": "a fox"}}'), "a fox"),
    "diffusers": (png(prompt="a red fox", negative_prompt="blurry"), "a red fox"),
    "long": (png(prompt=json.dumps({**COMFY, "note": node("Note", x="y" * (3 << 20))})), None),
    "a photo": (with_exif("jpeg", {0x010F: "Canon", 0x0110: "EOS"}, b"ASCII\0\0\0"), None),
    "a comment": (png(Comment="Created with GIMP", Description="a house"), None),
    "nothing": (png(), None),
    "cut JSON": (png(prompt='{"3": {"inp', parameters='{"prompt"'), None),
    "no graph": (png(prompt='{"3": 4, "5": {"inputs": 6}}'), None),
    "a graph in a circle": (
        png(prompt=json.dumps({"1": node("KSampler", positive=["2", 0]), "2": CIRCLE})),
        None,
    ),
    "no image": (b"nonsense", None),
}
FILES["long"] = (FILES["long"][0], "a red fox in snow")


@pytest.mark.parametrize("what", FILES)
def test_the_prompt_of(what):
    content, expected = FILES[what]
    assert prompt(content) == expected
    assert prompt(io.BytesIO(content)) == expected


def test_ours_is_the_recipes(tmp_path):
    save_png(SCENE, RECIPE, tmp_path / "a.png")
    assert prompt(tmp_path / "a.png") == RECIPE.prompt


@pytest.mark.parametrize("model", ["a,b", "C:\\models\\a.safetensors", "a\nb", 'plain "x"', "a-b"])
def test_our_parameters_are_read_as_they_are_by_others(model):
    """A setting with a comma, a colon or a newline is in quotes, as AUTOMATIC1111 has it."""
    line = dataclasses.replace(RECIPE, model=model).parameters().split("Model: ", 1)[1]
    if set(",:\n") & set(model):
        value, end = json.JSONDecoder().raw_decode(line)
        rest = line[end:]
    else:
        value, _, rest = line.partition(", ")
        rest = f", {rest}"
    assert value == model and rest.startswith(", Version: clipguide")


@pytest.mark.parametrize("model", ["a-b", "C:\\a, b.safetensors"])
def test_sd_parsers_reads_it(tmp_path, model):
    """It knows no quotes, and leaves out what is in them; all else is right."""
    parsers = pytest.importorskip("sd_parsers")
    save_png(SCENE, dataclasses.replace(RECIPE, model=model), tmp_path / "a.png")
    found = parsers.ParserManager().parse(tmp_path / "a.png")
    assert [str(one.value) for one in found.prompts] == [RECIPE.prompt]
    (sampler,) = found.samplers
    assert sampler.name == RECIPE.scheduler and sampler.parameters["seed"] == str(RECIPE.seed)
    assert {one.name for one in found.models} == {model if "," not in model else None}
