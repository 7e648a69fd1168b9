"""Tiny models of random weights in the formats of the embedded ones, made once a test run."""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test goes to a network

import pytest
import torch

IMAGE_SIZE = 32
CONTEXT_LENGTH = 16


def write_tokenizer(folder) -> int:
    """Files of a lower-casing CLIPTokenizer of single bytes and a few merges; the size of it."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = [chr(byte) for byte in shown] + [chr(256 + i) for i in range(len(hidden))]
    merges = ["r e", "f o", "re d</w>", "fo x</w>"]
    tokens = letters + [f"{letter}</w>" for letter in letters]
    tokens += [merge.replace(" ", "") for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT_LENGTH, **special}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return len(tokens)


def write_clip(
    folder, *, seed: int, preprocess: dict | None = None, image_size: int = IMAGE_SIZE
):
    """An open_clip folder: CustomTextCLIP of a timm image tower and its own tokenizer."""
    import open_clip
    from safetensors.torch import save_file

    size = write_tokenizer(folder)
    config = {
        "model_cfg": {
            "embed_dim": 24,
            "custom_text": True,
            "vision_cfg": {
                "timm_model_name": "test_efficientnet",
                "timm_pool": "avg",
                "timm_proj": "linear",
                "image_size": image_size,
            },
            "text_cfg": {
                "context_length": CONTEXT_LENGTH,
                "vocab_size": size,
                "width": 16,
                "heads": 2,
                "layers": 2,
                "hf_tokenizer_name": "clipguide-mini",
                "pool_type": "eos",
                "eos_id": size - 1,
                "pad_id": size - 1,
            },
        },
        "preprocess_cfg": preprocess
        or {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        model.train()
        with torch.no_grad():  # batch norms that pass on what they see
            for _ in range(20):
                model.encode_image(torch.rand(16, 3, image_size, image_size) * 2 - 1)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def write_generator(folder, *, seed: int = 0, prediction: str = "v_prediction"):
    """A StableDiffusionPipeline folder of 32 px: 8 x 8 latents of an f4 autoencoder."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    size = write_tokenizer(folder / "files")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=size,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=CONTEXT_LENGTH,
                projection_dim=16,
                eos_token_id=size - 1,
                bos_token_id=size - 2,
                pad_token_id=size - 1,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=8,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            norm_num_groups=4,
            layers_per_block=1,
            sample_size=32,
        )
    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text.eval(),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "files"),
        unet=unet.eval(),
        scheduler=DDIMScheduler(
            prediction_type=prediction,
            clip_sample=False,
            timestep_spacing="trailing",
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny models are quickest so, and bits do not depend on the machine's cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No test reads or fills the user's cache of embeddings."""
    os.environ["CLIPGUIDE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def commands_made_once():
    """As in a process of the command. CliRunner makes them of the functions anew at each call."""
    import typer.testing

    made = typer.testing._get_command
    typer.testing._get_command = functools.cache(made)
    yield
    typer.testing._get_command = made


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"), seed=0)


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("judge"), seed=1)


@pytest.fixture(scope="session")
def clip(clip_folder):
    from clipguide.clip import load_clip

    return load_clip(str(clip_folder))


@pytest.fixture(scope="session")
def judge(judge_folder):
    from clipguide.clip import load_clip

    return load_clip(str(judge_folder))


@pytest.fixture(scope="session")
def generator_folder(tmp_path_factory):
    return write_generator(tmp_path_factory.mktemp("generator"))


@pytest.fixture(scope="session")
def tiny_decoder_folder(tmp_path_factory):
    """An AutoencoderTiny for the generator's latents."""
    import diffusers

    folder = tmp_path_factory.mktemp("tiny")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = {f"num_{side}_blocks": (1, 1, 1) for side in ("encoder", "decoder")}
        widths = {f"{side}_block_out_channels": (8, 8, 8) for side in ("encoder", "decoder")}
        tiny = diffusers.AutoencoderTiny(latent_channels=4, **blocks, **widths)
    tiny.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def loaded_pipe(generator_folder):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(generator_folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(loaded_pipe):
    """A fresh pipeline: a test may change it. A copy takes half of the time of loading."""
    return copy.deepcopy(loaded_pipe)


@pytest.fixture(scope="session")
def vqgan_folder(tmp_path_factory):
    """A VQModel of factor 4 with 16 codes of 4."""
    import diffusers

    folder = tmp_path_factory.mktemp("vqgan")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = diffusers.VQModel(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 16),
            latent_channels=4,
            norm_num_groups=4,
            num_vq_embeddings=16,
        )
        torch.nn.init.normal_(model.quantize.embedding.weight)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def mini_folder(clip_folder, judge_folder, generator_folder, vqgan_folder, tmp_path_factory):
    """A folder like clipguide/mini, of tiny models."""
    from clipguide import mini

    home = tmp_path_factory.mktemp("mini")
    folders = {
        "guide": clip_folder,
        "judge": judge_folder,
        "generator": generator_folder,
        "vqgan": vqgan_folder,
    }
    for name, folder in folders.items():
        shutil.copytree(folder, home / name)
        card = {"name": name, "licence": "Apache-2.0", "task": "test", "data": "none"}
        head = json.dumps({**card, "figures": {"top-1": 0.5}})  # JSON is YAML
        (home / name / "README.md").write_text(f"---\n{head}\n---\n# {name}\n")
    weights = sorted(home.rglob("*.safetensors"))
    lines = [f"{mini.sha256(file)}  {file.relative_to(home)}\n" for file in weights]
    (home / "SHA256SUMS").write_text("".join(lines))
    return home


@pytest.fixture
def tiny_mini(mini_folder, monkeypatch):
    """The embedded models, replaced by tiny ones."""
    from clipguide import mini

    monkeypatch.setattr(mini, "FOLDER", mini_folder)
    monkeypatch.setattr(mini, "MODELS", ("guide", "judge", "generator", "vqgan"))
    return mini_folder
