"""What commands import of torch's compiler, transformers and LanceDB's client: nothing, until it is
asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from test_clip import landscape

pytest.importorskip("lancedb")

UNNEEDED = (
    "torch._dynamo", "torch._inductor", "sympy", "triton", "lance_namespace_urllib3_client.api",
    "transformers", "datasets", "accelerate", "diffusers", "gradio", "matplotlib", "scipy",
    "sqlglot", "peft", "ray", "onnx",
)  # fmt: skip
UNDRAWN = {  # transformers' towers need torch's compiler, and so sympy and triton
    "scipy", "lancedb", "pandas", "gradio", "matplotlib", "sqlglot", "ray", "onnx", "datasets",
}  # fmt: skip
RUN = """
import json, sys
from clipguide.cli.app import app
for arguments in json.loads(sys.argv[1]):
    app(arguments, standalone_mode=False)
    print(json.dumps(sorted(sys.modules)))
"""
AFTERWARDS = """
import sys
import torch
from clipguide.clip import load_clip
from clipguide.imports import StandIn, disable, lancedb
from torch.testing import assert_close

def stood_in():
    return [name for name, module in sys.modules.items() if isinstance(module, StandIn)]

assert "torch._dynamo" not in sys.modules and not stood_in()
x = torch.rand(1, 1, 8, 8)
marked = disable(torch.sin)
assert_close(marked(x), x.sin())
assert "torch._dynamo" not in sys.modules

import torchvision
whole = torchvision.ops.roi_align(x, [torch.tensor([[0.0, 0.0, 8.0, 8.0]])], 4, aligned=True)
assert_close(whole, torch.nn.functional.avg_pool2d(x, 2))
import torchvision.tv_tensors as tv
assert type(tv.wrap(x, like=tv.Image(x))) is tv.Image

by_torch = torch.compiler.disable(torch.sin)
for one in (marked, by_torch):
    assert_close(torch.compile(lambda x: one(x) + 1, backend="eager")(x), x.sin() + 1)
    try:
        torch.compile(lambda x: one(x) + 1, backend="eager", fullgraph=True)(x)
    except torch._dynamo.exc.Unsupported:
        pass
    else:
        raise AssertionError("it was compiled")

import open_clip.hf_model as towers
assert "transformers" not in sys.modules
assert not isinstance(x, towers.BaseModelOutput)
import transformers
assert type(transformers) is not StandIn
sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
config = transformers.BertConfig(vocab_size=9, **sizes)
tower = towers.HFTextEncoder("", 4, config=config, pooler_type="cls_pooler", proj_type="linear")
tokens_BL = torch.tensor([[1, 2, 3, 0]])
assert_close(tower.eval()(tokens_BL), tower.proj(tower.transformer(
    input_ids=tokens_BL, attention_mask=(tokens_BL != 0).long()).pooler_output))
assert towers.AutoConfig.for_model("bert").model_type == "bert"
assert isinstance(config, towers.PretrainedConfig)

lancedb()
import lance_namespace_urllib3_client as client
assert client.ApiClient.__module__ == "lance_namespace_urllib3_client.api_client"
assert not stood_in()
"""
DRAWING = """
import sys
import torch
from clipguide import imports
from torch.testing import assert_close

imports.diffusion()
from diffusers import DPMSolverMultistepScheduler
from transformers.loss.loss_for_object_detection import linear_sum_assignment
assert "scipy" not in sys.modules
assert not [name for name, module in sys.modules.items() if isinstance(module, imports.StandIn)]

assert [x.tolist() for x in linear_sum_assignment([[2.0, 1.0], [1.0, 2.0]])] == [[0, 1], [1, 0]]
scheduler = DPMSolverMultistepScheduler(use_beta_sigmas=True)
scheduler.set_timesteps(5)
import scipy.stats
share = scipy.stats.beta.ppf(1 - torch.linspace(0, 1, 5).double().numpy(), 0.6, 0.6)
low, high = scheduler.sigmas[-2].double(), scheduler.sigmas[0].double()
assert_close(scheduler.sigmas[:-1].double(), low + torch.tensor(share) * (high - low),
             rtol=1e-4, atol=1e-4)
"""
ASKED = """
import sys
from clipguide import imports
import torch
with imports.stood_in({imports.COMPILER: {"disable": imports.disable}}):
    import torch._dynamo as held
    assert type(held) is imports.StandIn
    assert held.config.cache_size_limit > 0  # loads it
    assert type(sys.modules[imports.COMPILER]) is not imports.StandIn
assert torch._dynamo.is_compiling() is False
"""


def python(code, *arguments, **settings):
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_verbs_of_images_import_nothing_that_they_do_not_need(tmp_path):
    landscape(50, 40).save(tmp_path / "a.png")
    lines = [
        ["score", "a.png", "--text", "fox", "--clip", "mini"],
        ["classify", "a.png", "--labels", "fox,house", "--clip", "mini"],
        ["rerank", "a.png", "--text", "fox", "--clip", "mini"],
        ["embed", "a.png", "--out", "a.npz", "--clip", "mini"],
        ["index", "a.png", "--db", "db"],
        ["duplicates", "--db", "db"],
        ["search", "fox", "--db", "db"],
    ]
    environment = {**os.environ, "CLIPGUIDE_CACHE": str(tmp_path / "cache")}
    told = python(RUN, json.dumps(lines), cwd=tmp_path, env=environment).splitlines()
    modules = [json.loads(line) for line in told if line.startswith('["')]
    assert len(modules) == len(lines)
    assert "open_clip" in modules[-1] and "lancedb" in modules[-1]
    assert not set(UNNEEDED).intersection(modules[-1])


def test_the_compiler_and_the_client_are_whole_afterwards():
    python(AFTERWARDS)


def test_anything_else_that_is_asked_for_loads_them():
    python(ASKED)


def test_drawing_does_not_import_what_it_does_not_need(tmp_path):
    line = ["generate", "a red fox", "--steps", "2", "--out", "fox.png", "--quiet"]
    environment = {**os.environ, "CLIPGUIDE_CACHE": str(tmp_path / "cache")}
    told = python(RUN, json.dumps([line]), cwd=tmp_path, env=environment).splitlines()
    (modules,) = (json.loads(line) for line in told if line.startswith('["'))
    assert "diffusers" in modules and "transformers" in modules
    assert not UNDRAWN.intersection(modules)


def test_what_drawing_did_not_import_is_whole_afterwards():
    python(DRAWING)
