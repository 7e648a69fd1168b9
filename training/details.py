"""What the U-Net is shown of a drawing's details: a code, learned with the network that reads it.

    python -m training.details pairs --seed 0      # latents, maps and shapes of varied drawings
    python -m training.details pairs --seed 0 --recolour
    python -m training.details train --minutes 40  # processor minutes in all; resumes

A map of 4 x 4 cells says nothing of eyes and edges. The code says more, in 128 bytes: 8 x 8 cells
of 8 numbers with 4 levels (finite scalar quantization, Mentzer et al. 2024). Its encoder sees a
drawing of 64 x 64 pixels: how light it is and how strong its colours are, but not which they are.
In a part of the samples, the drawing to be drawn is recoloured, and only the map has its colours.
The U-Net stays as it is. The loss is the squared error of v; its gradient passes through the
rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from clipguide.mini.details import LEVELS, Details, Residual
from clipguide.mini.names import COLOURS
from clipguide.mini.pipeline import MiniPipeline
from clipguide.mini.styles import STYLES, with_style
from training import common, decoder
from training.data.colours import TERMS
from training.drawings import SIDE as WHOLE
from training.drawings import candidates, own_colour, repainted, varied
from training.loop import Loop, averaged
from training.samples import Maker, Maps
from training.styles import LABEL

CACHE = common.CACHE / "details"
CHANNELS, SIDE, MOST = 8, 64, 8  # of a code; pixels of a shape; drawings of a thing
ASIDE = 40  # one thing in so many is not learned from
NOISE, BATCH = 0.15, 48  # on the maps, at most
EXCESS = 0.01  # the weight of `Coder.excess`
app = typer.Typer(add_completion=False, help=__doc__)


# --------------------------------------------------------------------- the pairs
def shapes(pictures: np.ndarray) -> Tensor:
    """Return shapes_N2hw, uint8, of pictures_NHW3: their lightness, and how far their strongest
    primary colour is from the weakest."""
    rgb_N3hw = F.interpolate(
        torch.from_numpy(pictures).permute(0, 3, 1, 2).float(), (SIDE, SIDE), mode="area"
    )
    light = (rgb_N3hw * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)
    strong = rgb_N3hw.amax(1) - rgb_N3hw.amin(1)
    return torch.stack([light, strong], 1).round().to(torch.uint8)


@app.command()
@torch.no_grad()
def pairs(seed: int = 0, recolour: bool = False) -> None:
    """Vary the drawings that the memory may have, and keep what is learned from. `recolour`: the
    latents and the map are of a recoloured drawing, and the shape is of the drawing before."""
    data, maps, rng = Maker(WHOLE).data, Maps(), np.random.default_rng([5, seed])
    pipe = MiniPipeline.from_pretrained(common.MINI / "generator")
    pipe.vae.to(memory_format=torch.channels_last)
    found = [(thing, r) for thing, of in candidates(data, MOST).items() for r in of]
    kept: dict[str, list] = {"latent": [], "map": [], "shape": [], "told": []}
    before, after = [], []
    for k, (thing, row) in enumerate(found):
        colour, new = own_colour(data, row), None
        if recolour:
            term = str(rng.choice(TERMS))
            colour, new = COLOURS.index(term), repainted(data, row, term, rng)
        if new is not None or not recolour:
            own = 100 * recolour + seed
            before.append(varied(data, row, own))
            after.append(varied(data, row, own, new) if recolour else before[-1])
            kept["told"].append((thing, LABEL[row["set"]], colour))
        if before and (len(before) == 32 or k == len(found) - 1):
            image = torch.from_numpy(np.stack(after)).permute(0, 3, 1, 2).float() / 255
            with common.autocast():
                z = pipe.encode((image * 2 - 1).contiguous(memory_format=torch.channels_last))
            kept["latent"].append(z.half())
            kept["map"].append(maps(image).half())
            kept["shape"].append(shapes(np.stack(before)))
            before, after = [], []
    CACHE.mkdir(parents=True, exist_ok=True)
    joined = {k: torch.cat(v) for k, v in kept.items() if k != "told"}
    name = f"{'recoloured' if recolour else 'own'}-{seed}.pt"
    torch.save(joined | {"told": kept["told"]}, CACHE / name)
    print(f"{len(kept['told'])} drawings in {name}")


class Pairs:
    """All pairs that there are, in files of `pairs`."""

    def __init__(self, pipe: MiniPipeline) -> None:
        files = sorted(CACHE.glob("*-*.pt"))
        parts = [torch.load(file, weights_only=True) for file in files]
        self.latent, self.map, self.shape = (
            torch.cat([part[k] for part in parts]) for k in ("latent", "map", "shape")
        )
        self.told = [
            (*told, file.name.startswith("recoloured"))
            for part, file in zip(parts, files)
            for told in part["told"]
        ]
        aside = set(sorted({told[0] for told in self.told})[::ASIDE])
        self.aside = np.array([told[0] in aside for told in self.told])
        self.encode, self.device = pipe.encode_prompt, pipe.device

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        captions, labels = [], []
        for row in rows:
            thing, label, colour, painted = self.told[row]
            if painted or (colour < len(COLOURS) and rng.random() < 0.4):
                thing = f"{COLOURS[colour]} {thing}"
            text = f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"
            captions.append(with_style(text, STYLES[label]) if rng.random() < 0.85 else text)
            labels.append(label if rng.random() < 0.9 else 0)
        map_BK44 = self.map[rows].float()
        amount = NOISE * torch.rand(len(rows), 1, 1, 1)
        map_BK44 = map_BK44 + amount * torch.randn_like(map_BK44)
        with torch.no_grad():
            text = self.encode(captions)
        own = self.latent[rows].float(), map_BK44, torch.tensor(labels), self.shape[rows]
        x0, map_BK44, label, shape = (x.to(self.device) for x in own)
        return Batch(x0, map_BK44, text, label, shape)


@dataclass
class Batch:
    """Latents, and what the U-Net and the encoder are told of them."""

    x0: Tensor
    map: Tensor
    text: tuple[Tensor, Tensor]
    label: Tensor
    shape: Tensor


# ------------------------------------------------------------------ the training
class Coder(nn.Module):
    """The encoder of a shape, and the network that shows its code to the U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(2, 64, 4, 2, 1),
            Residual(64),
            nn.Conv2d(64, 96, 4, 2, 1),
            Residual(96),
            Residual(96),
            nn.Conv2d(96, 128, 4, 2, 1),
            Residual(128),
            Residual(128),
            nn.GroupNorm(8, 128),
            nn.SiLU(),
            nn.Conv2d(128, CHANNELS, 1),
        )
        self.details = Details(channels=CHANNELS)

    def code(self, shape_N2hw: Tensor) -> Tensor:
        """Return codes_NC88 in [-1, 1]. The gradient passes through the rounding."""
        return rounded(self.numbers(shape_N2hw))

    def numbers(self, shape_N2hw: Tensor) -> Tensor:
        """Return numbers_NC88 that `rounded` makes a code of."""
        return self.encoder(shape_N2hw.float() / 127.5 - 1).float()


def rounded(number_NC88: Tensor) -> Tensor:
    """Return codes_NC88 in [-1, 1]: tanh, then the nearest of LEVELS levels (Mentzer et al. 2024,
    section 3.1). The gradient passes through the rounding (Bengio et al. 2013)."""
    half = (LEVELS - 1) / 2
    bounded = half * torch.tanh(number_NC88)
    near = (bounded + half).round() - half
    return (bounded + (near - bounded).detach()) / half


def excess(number_NC88: Tensor) -> Tensor:
    """Return how far numbers are out of [-1, 1], squared. There the tanh has hardly a gradient, and
    all codes would become -1 or 1."""
    return F.relu(number_NC88.abs() - 1).square().mean()


def error(
    pipe: MiniPipeline, said: Batch, t_B: Tensor, noise: Tensor, **more: object
) -> Tensor:
    """Return the squared error_B of v, where v = α·ε − σ·x0 (Salimans & Ho 2022, appendix D)."""
    a2 = pipe.scheduler.alphas_cumprod.to(t_B.device)[t_B].view(-1, 1, 1, 1)
    alpha, sigma = a2.sqrt(), (1 - a2).sqrt()
    x = alpha * said.x0 + sigma * noise
    v = decoder.predict(pipe.unet, x, t_B, said.map, said.text, said.label, **more)
    return (v.float() - (alpha * noise - sigma * said.x0)).square().flatten(1).mean(1)


@app.command()
def train(
    minutes: float = 40, lr: float = 2e-3, fall: float = 0.4, device: str = "cpu"
) -> None:
    """Train for so many minutes in all, of which the rate falls over the last `fall`. Then print
    the error with and without details, on things set aside."""
    pipe = MiniPipeline.from_pretrained(common.MINI / "generator").to(device)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False)
    pipe.unet.to(memory_format=torch.channels_last)
    kept = Pairs(pipe)
    torch.manual_seed(0)
    coder = Coder().to(device)
    loop = Loop(CACHE, coder, minutes=minutes, lr=lr, betas=(0.9, 0.98), ema=0.998, fall=fall)
    torch.manual_seed(loop.index)
    rng, rows = np.random.default_rng(loop.index), np.flatnonzero(~kept.aside)
    for _ in loop:
        said = kept.batch(rng.choice(rows, BATCH), rng)
        t_B = (torch.sigmoid(1.1 * torch.randn(BATCH) + 0.8) * 1000).long().clamp(0, 999)
        t_B = t_B.to(device)
        noise, size = torch.randn_like(said.x0), said.x0.shape[-2:]
        with common.autocast(device):
            numbers = coder.numbers(said.shape)
            more = coder.details(rounded(numbers), said.map, t_B, size)
            loss = error(pipe, said, t_B, noise, **more).mean()
        loop.step(loss + EXCESS * excess(numbers), error=loss)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    said = kept.batch(rng.choice(np.flatnonzero(kept.aside), 192, replace=False), rng)
    t_B, noise = torch.linspace(600, 990, 192).long().to(device), torch.randn_like(said.x0)
    trained = load().to(device)
    with torch.no_grad(), common.autocast(device):
        more = trained.details(trained.code(said.shape), said.map, t_B, said.x0.shape[-2:])
        for name, given in (("without", {}), ("with", more)):
            print(f"error {name} details: {error(pipe, said, t_B, noise, **given).mean():.4f}")


def load() -> Coder:
    """Return the trained networks with the averaged weights."""
    coder = Coder()
    coder.load_state_dict(averaged(CACHE))
    return coder.eval().requires_grad_(False)


if __name__ == "__main__":
    app()
