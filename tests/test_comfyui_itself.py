"""The ComfyUI pack in ComfyUI itself: its loader, samplers and executor, on the CPU.

Put a checkout of ComfyUI on PYTHONPATH; without one these tests are skipped.
"""

from __future__ import annotations

import asyncio
import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_comfyui_nodes import FOLDER, SETTINGS, node, pack
from test_comfyui_workflows import CORE, of_node
from tiny_pipelines import BATCH, noise
from torch import nn

from clipguide import Similarity, load_clip
from clipguide.guidance.guides import VIT_B_32


@pytest.fixture(scope="module")
def comfy():
    """ComfyUI's own modules, on the CPU."""
    cli = pytest.importorskip("comfy.cli_args", reason="ComfyUI is not on PYTHONPATH")
    cli.args.cpu = True
    import comfy.model_base
    import comfy.model_patcher
    import comfy.sample
    import comfy.samplers
    import comfy.sd
    import comfy.supported_models
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    return comfy


def comfy_model(comfy, flow: bool = False):
    """A patcher of a tiny U-Net, and its VAE, made in inference mode as ComfyUI's loaders do."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    unet = {
        "image_size": 16, "in_channels": 4, "out_channels": 4, "model_channels": 32,
        "num_res_blocks": [1, 1], "channel_mult": [1, 2], "num_heads": 2, "context_dim": 16,
        "transformer_depth": [0, 1], "transformer_depth_output": [0, 0, 1, 1],
        "transformer_depth_middle": 1, "use_spatial_transformer": True, "legacy": False,
        "dtype": torch.float32,
    }  # fmt: skip
    parts = {
        "double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3,
        "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    config = comfy.supported_models.SD15(unet)
    config.unet_config = unet
    kind = comfy.model_base.ModelType.FLOW if flow else comfy.model_base.ModelType.EPS
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(0)
        base = comfy.model_base.BaseModel(config, kind)
        for parameter in base.parameters():  # some are left empty, some zero
            nn.init.normal_(parameter, std=0.05)
        settings = {"ddconfig": parts, "embed_dim": 4}
        own = AutoencoderKL(**copy.deepcopy(settings))
        for parameter in own.parameters():
            nn.init.normal_(parameter, std=0.1)
        vae = comfy.sd.VAE(sd=own.state_dict(), config={"params": settings})
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(base, load_device=cpu, offload_device=cpu), vae


def comfy_draw(comfy, model, sampler: str = "euler"):
    """Four steps, with classifier-free guidance."""
    latents = torch.zeros(BATCH, 4, 16, 16)
    words = [[[noise(1, 5, 16, seed=seed), {}]] for seed in (5, 6)]
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise(BATCH, 4, 16, 16), 4, 4.0, sampler, "normal", *words, latents, seed=1,
            disable_pbar=True,
        )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("flow", [False, True])
def test_in_comfyui(comfy, clip_folder, flow):
    """0 changes no bit, a strength lowers the loss, and the unpatched model stays as it was."""
    model, vae = comfy_model(comfy, flow)
    settings = {**SETTINGS, "clip": str(clip_folder)}
    plain = comfy_draw(comfy, model)
    with torch.inference_mode():
        (off,) = node.SteerByClip().patch(model, vae, **{**settings, "strength": 0.0})
        (patched,) = node.SteerByClip().patch(model, vae, **settings)
    assert torch.equal(comfy_draw(comfy, off), plain)
    steered = comfy_draw(comfy, patched)
    assert torch.equal(comfy_draw(comfy, model), plain)
    objective = Similarity(load_clip(str(clip_folder)), "a red fox", views=None)
    with torch.inference_mode():
        loss_B = [objective(vae.decode(x).movedim(-1, 1)) for x in (plain, steered)]
    assert (loss_B[1] < loss_B[0]).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_sampler_of_comfyui(comfy, clip_folder):
    model, vae = comfy_model(comfy)
    with torch.inference_mode():
        (patched,) = node.SteerByClip().patch(model, vae, **SETTINGS, clip=str(clip_folder))
    for sampler in comfy.samplers.KSampler.SAMPLERS:
        plain, steered = (comfy_draw(comfy, m, sampler) for m in (model, patched))
        assert not torch.equal(plain, steered), sampler


def test_comfyuis_loader(comfy):
    """A folder of custom_nodes gives its nodes."""
    nodes = pytest.importorskip("nodes", reason="ComfyUI's own packages are not installed")
    assert asyncio.run(nodes.load_custom_node(str(FOLDER)))
    for name, shown in pack.NODE_DISPLAY_NAME_MAPPINGS.items():
        found = nodes.NODE_CLASS_MAPPINGS[name]
        assert callable(getattr(found(), found.FUNCTION))
        assert nodes.NODE_DISPLAY_NAME_MAPPINGS[name] == shown
    assert nodes.LOADED_MODULE_DIRS["comfyui"] == str(FOLDER)


def test_the_v3_interface(comfy, clip_folder, tmp_path):
    """The V3 nodes have the inputs and outputs of the V1 nodes, and do the same; ComfyUI loads them
    where it finds no mappings."""
    nodes = pytest.importorskip("nodes", reason="ComfyUI's own packages are not installed")
    from comfy_api import latest as comfy_api

    extension = asyncio.run(pack.comfy_entrypoint())
    found = {one.GET_SCHEMA().node_id: one for one in asyncio.run(extension.get_node_list())}
    assert found.keys() == pack.NODE_CLASS_MAPPINGS.keys()
    for name, first in pack.NODE_CLASS_MAPPINGS.items():
        third = found[name]
        groups, others = first.INPUT_TYPES(), third.INPUT_TYPES()
        for group, inputs in groups.items():
            assert list(inputs) == list(others[group])
            for key, (kind, *options) in inputs.items():
                given = others[group][key]
                assert given[0] == kind or (given[0], given[1]["options"]) == ("COMBO", kind)
                assert (options or [{}])[0].items() <= given[1].items()
        assert list(third.RETURN_TYPES) == list(first.RETURN_TYPES)
        lists = getattr(first, "OUTPUT_IS_LIST", (False,) * len(first.RETURN_TYPES))
        assert list(third.OUTPUT_IS_LIST) == list(lists)
    image_BHW3 = noise(BATCH, 3, 32, 32).sigmoid().movedim(1, -1)
    given = {"images": image_BHW3, "text": "a red fox", "clip": str(clip_folder)}
    out = found["ClipguideScoreImages"].execute(**given)
    assert out.result == pack.ScoreImages().score(**given)
    line = f"import sys\ncomfy_entrypoint = sys.modules[{pack.__name__!r}].comfy_entrypoint\n"
    (tmp_path / "__init__.py").write_text(line)
    assert asyncio.run(nodes.load_custom_node(str(tmp_path)))
    for name, shown in pack.NODE_DISPLAY_NAME_MAPPINGS.items():
        assert issubclass(nodes.NODE_CLASS_MAPPINGS[name], comfy_api.io.ComfyNode)
        assert nodes.NODE_DISPLAY_NAME_MAPPINGS[name] == shown


def test_comfyui_takes_the_workflows(comfy, tmp_path):
    """ComfyUI's own check of a prompt finds no fault in the examples."""
    nodes = pytest.importorskip("nodes", reason="ComfyUI's own packages are not installed")
    import execution
    import folder_paths
    from comfy_extras.nodes_preview_any import NODE_CLASS_MAPPINGS as extras

    asyncio.run(nodes.load_custom_node(str(FOLDER)))
    nodes.NODE_CLASS_MAPPINGS.update(extras)
    (tmp_path / "v1-5-pruned-emaonly-fp16.safetensors").touch()
    folder_paths.add_model_folder_path("checkpoints", str(tmp_path))
    for path in sorted((FOLDER / "example_workflows/api").glob("*.json")):
        graph = json.loads(path.read_text())
        good, error, _, faults = asyncio.run(execution.validate_prompt("1", graph, None))
        assert good and not faults, (error, faults)


def comfy_run(nodes, graph, folder):
    """The report, and the saved images by the beginnings of their names."""
    import execution
    import folder_paths

    folder_paths.set_output_directory(str(folder))
    server = SimpleNamespace(client_id=None, last_node_id=None, send_sync=lambda *_: None)
    runner = execution.PromptExecutor(server)
    ends = [key for key, one in graph.items() if one["class_type"] in ("SaveImage", "PreviewAny")]
    runner.execute(graph, "1", {}, ends)
    assert runner.success, runner.status_messages
    (report,) = [one["text"] for one in runner.history_result["outputs"].values() if "text" in one]
    return report[0], {path.name.split("_")[0]: to_array(path) for path in folder.glob("*.png")}


def to_array(path):
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image)).int()


@pytest.mark.filterwarnings("ignore")
def test_comfyui_runs_a_workflow(comfy, clip_folder, tmp_path, monkeypatch):
    """The best of a batch is drawn again by its seed and its place: without strength it is the same
    image, with strength another."""
    nodes = pytest.importorskip("nodes", reason="ComfyUI's own packages are not installed")
    from comfy_extras.nodes_preview_any import NODE_CLASS_MAPPINGS as extras

    model, vae = comfy_model(comfy)

    class Checkpoint(nodes.CheckpointLoaderSimple):
        def load_checkpoint(self, ckpt_name):
            return model, None, vae

    class Encode(nodes.CLIPTextEncode):
        def encode(self, clip, text):
            return ([[noise(1, 5, 16, seed=len(text)), {}]],)

    ours = {**pack.NODE_CLASS_MAPPINGS, **extras}
    ours |= {"CheckpointLoaderSimple": Checkpoint, "CLIPTextEncode": Encode}
    for name, one in ours.items():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, one)
    text = (FOLDER / "example_workflows/api/best-of-a-batch.json").read_text()
    text = text.replace(VIT_B_32.name, str(clip_folder)).replace(": 512", ": 128")
    graph = json.loads(text.replace('"steps": 20', '"steps": 3'))
    (steered,) = [one for one in graph.values() if one["class_type"] == "ClipguideSteerByReward"]
    found = []
    for strength in (0.0, 0.5):
        steered["inputs"]["strength"] = strength
        (folder := tmp_path / str(strength)).mkdir()
        report, saved = comfy_run(nodes, copy.deepcopy(graph), folder)
        assert len(report.splitlines()) == 4
        found.append(saved)
    same, other = ((one["clipguide-best"] - one["clipguide-steered"]).abs().max() for one in found)
    assert same <= 1 < other


def test_core_nodes_are_comfyuis(comfy):
    """The table of the nodes that the workflows use is true."""
    nodes = pytest.importorskip("nodes", reason="ComfyUI's own packages are not installed")
    from comfy_extras.nodes_preview_any import PreviewAny

    found = {**nodes.NODE_CLASS_MAPPINGS, "PreviewAny": PreviewAny}
    assert {name: of_node(found[name]) for name in CORE} == CORE
