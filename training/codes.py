"""Fit the codes of the memory's drawings, one by one, together with the network that reads them.

    python -m training.codes pairs               # latents and maps of the candidates
    python -m training.codes fit --minutes 60    # processor minutes in all; resumes

The encoder of `training.details` finds a code in one pass. The codes that ship need no encoder:
each is fitted to its own drawing by gradient, starting from what the encoder found (as in DeepSDF,
Park et al. 2019). The candidates are those of `training.memory candidates`. A third of the samples
are the drawing in another colour, with the map of that: so a code says nothing of colours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import typer
from torch import Tensor, nn

from clipguide.mini.details import Details
from clipguide.mini.details import packed as packed_details
from clipguide.mini.memory import LEVELS as MAP_LEVELS
from clipguide.mini.memory import MapMemory, packed, unpacked
from clipguide.mini.names import COLOURS
from clipguide.mini.pipeline import MiniPipeline
from training import common, details
from training.data.colours import TERMS
from training.drawings import CANDIDATES, SIDE, by_name, own_colour, repainted, varied
from training.loop import Loop, averaged
from training.samples import Maker, Maps
from training.styles import LABEL

CACHE = common.CACHE / "codes"
PAIRS = CACHE / "pairs.pt"
COMPONENTS = 128  # of a map
OWN, PAINTED = 32, 16  # of a batch
NEAR = (0.3466, 1.2)  # numbers whose tanh rounds to the inner and to the outer levels
RATES = {"numbers": 50.0, "parts": 80.0}  # multiples of the learning rate of the network
BETAS = (0.9, 0.95)  # of Adam, over the visits to a candidate
app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
@torch.no_grad()
def pairs() -> None:
    """Keep the latents and the map of each candidate, and of it in another colour if it can have
    one."""
    rows = torch.load(CANDIDATES, weights_only=True)["rows"]
    data, maps, rng = Maker(SIDE).data, Maps(), np.random.default_rng(6)
    pipe = MiniPipeline.from_pretrained(common.MINI / "generator")
    pipe.vae.to(memory_format=torch.channels_last)
    drawings = by_name(data)
    kept: dict[str, list] = {"latent": [], "map": [], "row": [], "told": [], "painted": []}
    pictures = []
    for k, told in enumerate(rows):
        row, seed = drawings[told["drawing"]]
        term = str(rng.choice(TERMS))
        new = repainted(data, row, term, rng)
        for colour, rgba in ((own_colour(data, row), None), (COLOURS.index(term), new)):
            if rgba is None and len(kept["row"]) and kept["row"][-1] == k:
                continue  # it cannot have that colour
            pictures.append(varied(data, row, seed, rgba))
            kept["row"].append(k)
            kept["painted"].append(rgba is not None)
            kept["told"].append((told["thing"], LABEL[row["set"]], colour))
        if len(pictures) >= 32 or k == len(rows) - 1:
            image = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
            with common.autocast():
                z = pipe.encode((image * 2 - 1).contiguous(memory_format=torch.channels_last))
            kept["latent"].append(z.half())
            kept["map"].append(maps(image).half())
            pictures = []
    CACHE.mkdir(parents=True, exist_ok=True)
    joined = {k: torch.cat(v) if k in ("latent", "map") else v for k, v in kept.items()}
    torch.save(joined, PAIRS)
    print(f"{len(rows)} drawings, {sum(kept['painted'])} in another colour")


class Codes(nn.Module):
    """What the memory keeps of each candidate, before it is rounded: numbers of which
    `details.rounded` makes codes, and the components of the maps, in steps. And the network that
    shows the codes to the U-Net.

    Args:
        memory: the maps of the candidates, as the memory rounds them.
        code_NC88: the codes to start from.
        network: the network to start from.
    """

    def __init__(self, memory: MapMemory, code_NC88: Tensor, network: Details) -> None:
        super().__init__()
        inner, outer = (code_NC88.sign() * size for size in NEAR)
        self.register_buffer("numbers", torch.where(code_NC88.abs() > 0.9, outer, inner))
        self.register_buffer("parts", unpacked(memory.codes) - MAP_LEVELS)
        for name in RATES:  # the moments of Adam
            like = torch.zeros_like(getattr(self, name))
            self.register_buffer(f"{name}_mean", like)
            self.register_buffer(f"{name}_square", like.clone())
        self.register_buffer("visits", torch.zeros(len(code_NC88)))
        self.details, self.memory = network, memory.requires_grad_(False)

    def map(self, part_BC: Tensor) -> Tensor:
        """Return maps_B(28)44. The gradient passes through the rounding."""
        bounded = part_BC.clamp(-MAP_LEVELS, MAP_LEVELS)
        whole, memory = bounded + (bounded.round() - bounded).detach(), self.memory
        return (whole * memory.step @ memory.axes + memory.centre).view(len(whole), -1, 4, 4)

    @torch.no_grad()
    def move(self, row_B: Tensor, gradients: dict[str, Tensor], rate: float) -> None:
        """Take a step of Adam (Kingma & Ba 2015) with what belongs to some candidates. The moments
        of the others stay, so that they count visits and not steps."""
        row_N, place_B = row_B.unique(return_inverse=True)
        self.visits[row_N] += 1
        for name, gradient in gradients.items():
            of_N, mean, square = (
                getattr(self, f"{name}{kind}") for kind in ("", "_mean", "_square")
            )
            total = torch.zeros_like(of_N[row_N]).index_add_(0, place_B, gradient)
            mean[row_N] = torch.lerp(total, mean[row_N], BETAS[0])
            square[row_N] = torch.lerp(total.square(), square[row_N], BETAS[1])
            least = [
                (1 - beta ** self.visits[row_N]).view(-1, *(1,) * (of_N.ndim - 1))
                for beta in BETAS
            ]
            change = mean[row_N] / least[0] / ((square[row_N] / least[1]).sqrt() + 1e-8)
            of_N[row_N] -= RATES[name] * rate * change

    @torch.no_grad()
    def remembered(self, rows: Sequence[int], **config: object) -> MapMemory:
        """Return a memory of some of the candidates."""
        own = self.memory
        memory = MapMemory(
            **config,
            components=own.config.components,
            size=len(rows),
            detail_channels=own.config.detail_channels,
        )
        memory.axes, memory.centre, memory.step = own.axes, own.centre, own.step
        memory.details.copy_(packed_details(details.rounded(self.numbers[rows])))
        whole = self.parts[rows].clamp(-MAP_LEVELS, MAP_LEVELS).round() + MAP_LEVELS
        memory.codes.copy_(packed(whole))
        return memory


class Kept(details.Pairs):
    """The pairs of `pairs`."""

    def __init__(self, pipe: MiniPipeline) -> None:
        kept = torch.load(PAIRS, weights_only=True)
        self.latent, self.map = kept["latent"], kept["map"]
        self.painted = np.array(kept["painted"])
        self.told = [(*told, bool(k)) for told, k in zip(kept["told"], kept["painted"])]
        self.shape = torch.tensor(kept["row"])  # the candidate, in place of what it looks like
        self.encode, self.device = pipe.encode_prompt, pipe.device


@app.command()
def fit(minutes: float = 60, lr: float = 1e-3, fall: float = 0.4, device: str = "cpu") -> None:
    """Fit for so many minutes in all, of which the rate falls over the last `fall`. Then print the
    error before and after."""
    pipe = MiniPipeline.from_pretrained(common.MINI / "generator").to(device)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False)
    pipe.unet.to(memory_format=torch.channels_last)
    kept, model = Kept(pipe), first(pipe).to(device)
    loop = Loop(
        CACHE, model, minutes=minutes, lr=lr, betas=(0.9, 0.98), ema=0.998, fall=fall,
        weight_decay=0.0,
    )  # fmt: skip
    torch.manual_seed(loop.index)
    rng = np.random.default_rng(loop.index)
    own, painted = np.flatnonzero(~kept.painted), np.flatnonzero(kept.painted)
    for _ in loop:
        rows = np.append(rng.choice(own, OWN), rng.choice(painted, PAINTED))
        said = kept.batch(rows, rng)
        t_B = (torch.sigmoid(1.1 * torch.randn(len(rows)) + 0.8) * 1000).long().clamp(0, 999)
        t_B = t_B.to(device)
        given = {name: getattr(model, name)[said.shape].requires_grad_() for name in RATES}
        loss = error(pipe, model, said, kept.painted[rows], t_B, **given).mean()
        far = details.excess(given["numbers"] / NEAR[1])
        loop.step(loss + details.EXCESS * far, error=loss)
        rate = loop.optimizer.param_groups[0]["lr"]
        model.move(said.shape, {name: x.grad for name, x in given.items()}, rate)
    before = first(MiniPipeline.from_pretrained(common.MINI / "generator")).to(device)
    after = load().to(device)
    for name, rows in (("as they are", own), ("in another colour", painted)):
        some = rng.choice(rows, 192, replace=False)
        told = [f"{of_all(pipe, kept, model, some):.4f}" for model in (before, after)]
        print(f"error of drawings {name}: before {told[0]}, after {told[1]}")


def first(pipe: MiniPipeline) -> Codes:
    """Return the codes of the candidates, with the network that ships."""
    kept = torch.load(CANDIDATES, weights_only=True)
    config = {"components": COMPONENTS, "detail_channels": details.CHANNELS}
    memory = MapMemory(**config, size=len(kept["map"]))
    memory.remember(kept["map"], kept["code"].float())
    return Codes(memory, kept["code"].float(), pipe.details.float().requires_grad_(True))


def carried(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what of the weights of `Codes` travels: not the moments of Adam and its counts."""
    return {k: v for k, v in state.items() if not k.endswith(("_mean", "_square", "visits"))}


def arrived(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of `Codes` from `carried`. Adam begins anew."""
    began = {"visits": torch.zeros(len(state["numbers"]))}
    for name in RATES:
        began |= {f"{name}_{kind}": torch.zeros_like(state[name]) for kind in ("mean", "square")}
    return state | began


def load() -> Codes:
    """Return the fitted codes and their network with the averaged weights."""
    state = averaged(CACHE)
    memory = MapMemory(
        components=COMPONENTS, size=len(state["numbers"]), detail_channels=details.CHANNELS
    )
    model = Codes(memory, state["numbers"], Details())
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def painted(fitted: Codes) -> dict[str, object]:
    """Return the fitted maps of candidates, their maps in other colours, the colours and the
    things."""
    kept = torch.load(PAIRS, weights_only=True)
    some = np.flatnonzero(kept["painted"]).tolist()
    return {
        "before": fitted.map(fitted.parts[[kept["row"][k] for k in some]]),
        "after": kept["map"][some],
        "colour": torch.tensor([kept["told"][k][2] for k in some]),
        "thing": [kept["told"][k][0] for k in some],
    }


def error(
    pipe: MiniPipeline,
    model: Codes,
    said: details.Batch,
    painted: np.ndarray,
    t_B: Tensor,
    numbers: Tensor,
    parts: Tensor,
) -> Tensor:
    """Return the squared error_B of v. A drawing as it is has the map that the memory will have; a
    painted one has its own."""
    own_B111 = torch.from_numpy(~painted).view(-1, 1, 1, 1).to(t_B.device)
    said.map = torch.where(own_B111, model.map(parts), said.map)
    with common.autocast(t_B.device.type):
        more = model.details(details.rounded(numbers), said.map, t_B, said.x0.shape[-2:])
        return details.error(pipe, said, t_B, torch.randn_like(said.x0), **more)


@torch.no_grad()
def of_all(pipe: MiniPipeline, kept: Kept, model: Codes, rows: np.ndarray) -> float:
    """Return the mean error of some pairs, always with the same noise."""
    torch.manual_seed(0)
    rng, errors = np.random.default_rng(0), []
    for some in np.array_split(rows, len(rows) // 48):
        said = kept.batch(some, rng)
        t_B = torch.linspace(600, 990, len(some)).long().to(said.x0.device)
        given = {name: getattr(model, name)[said.shape] for name in RATES}
        errors.append(error(pipe, model, said, kept.painted[some], t_B, **given))
    return float(torch.cat(errors).mean())


if __name__ == "__main__":
    app()
