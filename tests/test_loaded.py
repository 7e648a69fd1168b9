"""Steering a pipeline that has more on it: LoRA, IP-Adapter, true guidance, offloaded weights."""

from __future__ import annotations

import pytest
import torch
from test_families import Red
from tiny_pipelines import BATCH, draw, noise, tiny
from torch.testing import assert_close

from clipguide import steer


def check(pipe, settings: dict) -> torch.Tensor:
    """What steering promises of any pipeline; the plain image."""
    plain_N3HW = draw(pipe, settings)
    with steer(pipe, Red(), strength=0):
        assert torch.equal(draw(pipe, settings), plain_N3HW)
    with steer(pipe, Red(), strength=0.3):
        steered_N3HW = draw(pipe, settings)
        assert torch.equal(draw(pipe, settings), steered_N3HW)
    assert (Red()(steered_N3HW) < Red()(plain_N3HW)).all()
    assert torch.equal(draw(pipe, settings), plain_N3HW)
    return plain_N3HW


def test_lora():
    from peft import LoraConfig

    pipe, settings = tiny("SD 1.5")
    bare = draw(pipe, settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe.unet.add_adapter(
            LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_v"])
        )
    loaded = check(pipe, settings)
    assert not torch.allclose(loaded, bare, atol=1e-3)
    pipe.disable_lora()
    assert torch.equal(draw(pipe, settings), bare)
    pipe.enable_lora()
    assert torch.equal(draw(pipe, settings), loaded)


def test_ip_adapter():
    """Weights in the layout of `ip-adapter_sd15`, random; the image comes as embeddings."""
    pipe, settings = tiny("SD 1.5")
    bare = draw(pipe, settings)
    width, seen, tokens = pipe.unet.config.cross_attention_dim, 12, 4
    adapter = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inner = [p.to_k.out_features for n, p in attentions(pipe.unet) if n.endswith("attn2")]
        for k, size in enumerate(inner):
            for part in ("to_k_ip", "to_v_ip"):
                adapter[f"{2 * k + 1}.{part}.weight"] = torch.randn(size, width)
        project = {
            "proj.weight": torch.randn(tokens * width, seen),
            "proj.bias": torch.zeros(tokens * width),
            "norm.weight": torch.ones(width),
            "norm.bias": torch.zeros(width),
        }
    pipe.unet._load_ip_adapter_weights([{"image_proj": project, "ip_adapter": adapter}])
    embeds = torch.cat([noise(BATCH, 1, seen, seed=s) for s in (1, 2)])  # negative, positive
    loaded = check(pipe, {**settings, "ip_adapter_image_embeds": [embeds]})
    assert not torch.allclose(loaded, bare, atol=1e-3)


def attentions(unet):
    return [(n, m) for n, m in unet.named_modules() if n.endswith(("attn1", "attn2"))]


@pytest.mark.parametrize("name", ["FLUX", "Qwen-Image"])
def test_true_guidance(name):
    """Two passes and a real negative, not the embedded number of guidance-distilled models."""
    pipe, settings = tiny(name)
    bare = draw(pipe, settings)
    negative = {
        f"negative_{key}": noise(*settings[key].shape, seed=9)
        for key in ("prompt_embeds", "pooled_prompt_embeds")
        if key in settings
    }
    guided = check(pipe, {**settings, **negative, "true_cfg_scale": 4.0})
    assert not torch.allclose(guided, bare, atol=1e-3)


def test_model_offload():
    """accelerate's hooks on every part of the pipeline, woken by turns."""
    pipe, settings = tiny("SD 1.5")
    bare = draw(pipe, settings)
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(check(pipe, settings), bare)
    pipe.remove_all_hooks()


def test_sequential_offload():
    """Weights that are on the meta device but while their layer works."""
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_module

    pipe, settings = tiny("SD 1.5")
    bare = draw(pipe, settings)
    for part in (pipe.unet, pipe.vae):
        cpu_offload(part, execution_device=torch.device("cpu"))
    assert next(pipe.unet.parameters()).device.type == "meta"
    assert_close(check(pipe, settings), bare, atol=1e-6, rtol=0)
    for part in (pipe.unet, pipe.vae):
        remove_hook_from_module(part, recurse=True)
