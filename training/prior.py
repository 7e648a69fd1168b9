"""The generator's first half: a text becomes a map of what is where (see `training.samples`).

    python -m training.prior train --minutes 60   # resumes

A stock ``PixArtTransformer2DModel`` (Chen et al. 2024: adaLN-single, text by cross-attention) on
the 16 cells of the map, beside the text tower that `training.text` distilled, trained with it.
Flow matching with the image predicted: x_t = (1 - t)·x0 + t·noise, the loss |x0 - model|² weighted
by min(8, 1 / (t² + 0.05)), t = sigmoid(1.2·n + 0.3), n normal (Esser et al. 2024 draw t so).
"""

from __future__ import annotations

import numpy as np
import torch
import typer
from torch import Tensor, nn

from training import common, text
from training.loop import Loop, averaged
from training.samples import CHANNELS, Samples

CACHE = common.CACHE / "prior"
WIDTH, LAYERS = 224, 6
app = typer.Typer(add_completion=False, help=__doc__)
app.callback()(lambda: None)  # so that the single command keeps its name


def transformer():
    """5.4 M parameters."""
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=WIDTH // 4,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=LAYERS,
        cross_attention_dim=WIDTH,
        sample_size=4,
        patch_size=1,
        caption_channels=text.TOWERS["prior"][0],
        use_additional_conditions=False,
    )


def text_encoder():
    """Return the distilled text tower as transformers' ``CLIPTextModel``."""
    from transformers import CLIPTextConfig, CLIPTextModel

    width, heads, layers, _ = text.TOWERS["prior"]
    cfg = text.text_config("prior")
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=cfg["vocab_size"],
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            hidden_act="gelu",
            max_position_embeddings=text.CONTEXT,
            projection_dim=text.DIM,
            dtype="float32",
            bos_token_id=cfg["eos_id"] - 1,
            eos_token_id=cfg["eos_id"],
            pad_token_id=cfg["pad_id"],
        )
    )
    distilled = text.CACHE / "prior.pt"
    if not distilled.exists():  # after `training.generator recover`: the checkpoint has its weights
        return model
    theirs = torch.load(distilled, weights_only=True)
    mine = {
        "embeddings.token_embedding.weight": theirs["token_embedding.weight"],
        "embeddings.position_embedding.weight": theirs["positional_embedding"],
        "final_layer_norm.weight": theirs["ln_final.weight"],
        "final_layer_norm.bias": theirs["ln_final.bias"],
    }
    for i in range(layers):
        ours, block = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
        for kind in ("weight", "bias"):
            qkv = theirs[f"{block}.attn.in_proj_{kind}"].chunk(3)
            for name, part in zip("qkv", qkv):
                mine[f"{ours}.self_attn.{name}_proj.{kind}"] = part
            for a, b in (
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                mine[f"{ours}.{a}.{kind}"] = theirs[f"{block}.{b}.{kind}"]
    prefix = "text_model." if any(k.startswith("text_model.") for k in model.state_dict()) else ""
    model.load_state_dict({prefix + k: v for k, v in mine.items()}, strict=True)
    return model


class Prior(nn.Module):
    """Token ids_BL and a noisy map -> the map."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder, self.transformer = text_encoder(), transformer()

    def forward(self, x_BC44: Tensor, t_B: Tensor, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        hidden_BLD = self.text_encoder(ids_BL).last_hidden_state
        return self.transformer(
            x_BC44,
            encoder_hidden_states=hidden_BLD,
            timestep=t_B * 1000,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            encoder_attention_mask=mask_BL,
            return_dict=False,
        )[0]


class Tokens:
    """Captions as padded token ids: list[str] -> (ids_BL, mask_BL), L as long as the longest."""

    def __init__(self) -> None:
        self.tokenizer, self.known = text.load_tokenizer(), {}
        self.pad = text.text_config("prior")["pad_id"]

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        new = [c for c in dict.fromkeys(captions) if c not in self.known]
        if new:
            ids = self.tokenizer(new, truncation=True, max_length=text.CONTEXT)["input_ids"]
            self.known.update(zip(new, ids))
        rows = [self.known[c] for c in captions]
        length = max(map(len, rows))
        ids_BL = torch.tensor([r + [self.pad] * (length - len(r)) for r in rows])
        mask_BL = torch.tensor([[1] * len(r) + [0] * (length - len(r)) for r in rows])
        return ids_BL, mask_BL


@app.command()
def train(
    minutes: float = 60,
    lr: float = 6e-4,
    batch: int = 96,
    drop: float = 0.12,
    device: str = "cpu",
    compiled: bool = False,
    focus: float = 1.0,
    fall: float = 0.3,
    named: float = 0.8,
    text_rate: float = 0.3,
) -> None:
    """Train for so many minutes in all, of which the rate falls over the last `fall`; `focus`: see
    `Samples.chances`; `named`: how many captions name the style; `text_rate`: the text encoder's
    rate as a share of the rest's, 0 once the decoder has learned to read it."""
    samples, tokens, rng = Samples(), Tokens(), np.random.default_rng()
    ends_N = samples.chances(focus).cumsum()
    torch.manual_seed(0)
    model = Prior().to(device)
    loop = Loop(
        CACHE,
        model,
        minutes=minutes,
        lr=lr,
        weight_decay=0.03,
        ema=0.999,
        fall=fall,
        scale=lambda name: text_rate if name.startswith("text_encoder") else 1.0,
    )
    if not text_rate:  # the average is what the decoder reads
        model.text_encoder.load_state_dict(loop.average.model.text_encoder.state_dict())
        model.text_encoder.requires_grad_(False)  # no time is spent on its gradient
    torch.manual_seed(loop.index)
    network = torch.compile(model, dynamic=True) if compiled else model
    for _ in loop:
        rows = np.searchsorted(ends_N, rng.random(batch)).clip(max=len(samples) - 1)
        words = [samples.caption(i, rng, named) if rng.random() > drop else "" for i in rows]
        ids_BL, mask_BL = (x.to(device) for x in tokens(words))
        x0 = samples.map_NC44[rows].float().to(device)
        t_B = torch.sigmoid(1.2 * torch.randn(batch, device=device) + 0.3)
        t = t_B.view(-1, 1, 1, 1)
        noisy = (1 - t) * x0 + t * torch.randn_like(x0)
        with common.autocast(device), common.short_attention(device):
            found = network(noisy, t_B, ids_BL, mask_BL)
        error_B = (found.float() - x0).square().flatten(1).mean(1)
        weight_B = (1 / (t_B**2 + 0.05)).clamp(max=8)
        late_B = t_B > 0.8
        loop.step((weight_B * error_B).mean(), error=error_B.mean(), early=error_B[late_B].mean())


def load() -> Prior:
    """Return the trained prior, averaged weights."""
    model = Prior()
    model.load_state_dict(averaged(CACHE))
    return model.eval().requires_grad_(False)


if __name__ == "__main__":
    app()
