"""Compare our loop over a VQGAN canvas with the published one, `benchmarks/classic.py`.

    python -m benchmarks.loops speed                       # iterations a second, and where they go
    python -m benchmarks.loops speed --steps 3 --threads 1
    python -m benchmarks.loops folded                      # the embedded guide's gradient

`speed` uses models of the real classes and sizes with random weights, which take the same time: the
VQGAN of taming-transformers with a factor of 16, and ViT-B-32 of open_clip. The classic loop and
ours, in several modes, take steps in turn in one process, and the median of each counts. Other load
on the machine then slows all of them equally. All encode the same number of views per step. The
parts of a step are timed separately, with the gradient passed from one to the next.

Shapes: S steps, 2 readings of a moment: seconds by the clock, and of the processor; P pieces.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import classic
from benchmarks.overhead import now
from clipguide import Clip

PROMPT = "a red fox"
BAR = 1.5  # of our fastest loop's iterations a second, the classic loop's being 1
TAMING_F16 = {
    "block_out_channels": (128, 128, 256, 256, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
    "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 256,
    "vq_embed_dim": 256,
    "num_vq_embeddings": 1024,
}
TOY = {
    "block_out_channels": (32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 8,
    "num_vq_embeddings": 16,
}
PIECES = tuple(
    f"{part} {way}" for way in ("there", "back") for part in ("decoder", "views", "CLIP")
)


@dataclass(frozen=True)
class Way:
    """A mode of the loop: the dtypes of the CLIP and of the decoder, and whether the decoder's
    activations are stored with the channels last."""

    name: str
    clip: str = "float32"
    decoder: str = "float32"
    channels_last: bool = False


CLASSIC = Way("classic")
WAYS = (
    CLASSIC,
    Way("ours"),
    Way("channels last", channels_last=True),
    Way("bfloat16 CLIP", clip="bfloat16"),
    Way("bfloat16", clip="bfloat16", decoder="bfloat16", channels_last=True),
)


@dataclass(frozen=True)
class Running:
    """A loop that is ready: its step, and the parts of a step."""

    step: Callable[[], object]
    decode: Callable[[], torch.Tensor]
    views: Callable[[torch.Tensor], torch.Tensor]
    loss: Callable[[torch.Tensor], torch.Tensor]


def vqgan(config: dict, device: str) -> torch.nn.Module:
    """Return a frozen VQModel with random weights. Its codes are as large as the output of an
    encoder."""
    import diffusers

    torch.manual_seed(0)
    model = diffusers.VQModel(**config)
    torch.nn.init.normal_(model.quantize.embedding.weight)
    return model.eval().requires_grad_(False).to(device)


def vit_b_32(dtype: str, device: str):
    """Return a Clip with random weights."""
    import open_clip

    from clipguide.clip import Clip

    name = "ViT-B-32"
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    return Clip(
        model, transform=transform, tokenizer=tokenizer, name=name, device=device, dtype=dtype
    )


def running(way: Way, model: torch.nn.Module, clip, *, side: int, views: int) -> Running:
    """Return a loop in this mode: an image of `side` pixels a side, `views` views per step."""
    if way is CLASSIC:
        loop = classic.Classic(model, clip, [PROMPT], height=side, width=side, cutouts=views)
        size = clip.image_size
        return Running(
            loop.step, loop.decode, lambda image: classic.cutouts(image, size, views), loop.loss
        )
    from clipguide import Cutouts, Similarity
    from clipguide.canvases import VQGAN
    from clipguide.optimize import Loop

    kept = torch.channels_last if way.channels_last else torch.contiguous_format
    model = model.to(getattr(torch, way.decoder), memory_format=kept)
    canvas = VQGAN(model, side, side, [torch.Generator().manual_seed(0)])
    canvas = canvas.to(next(model.parameters()).device)
    cut, generators = Cutouts(number=views - 1), [torch.Generator().manual_seed(0)]  # and the whole
    objective = Similarity(clip, PROMPT, views=cut)
    text_D1 = clip.encode_text([PROMPT]).T
    return Running(
        Loop(canvas, objective, steps=10**6, lr=0.1).step,
        canvas.decode,
        lambda image: cut(image, generators, size=clip.image_size),
        lambda view: (1 - clip.encode_image(view) @ text_D1).mean(),
    )


def pieces(loop: Running, device: str) -> torch.Tensor:
    """Return seconds_P2 of PIECES: forward and backward through the decoder, the views and the
    CLIP."""
    there, back = [], []
    for part in (loop.decode, loop.views, loop.loss):
        given = [there[-1][1].detach().requires_grad_()] if there else []
        begin_2 = now(device)
        found = part(*given)
        there.append((now(device) - begin_2, found, *given))
    gradient = None
    for _, found, *given in reversed(there):
        begin_2 = now(device)
        found.backward(gradient)
        back.append(now(device) - begin_2)
        gradient = given[0].grad if given else None
    return torch.stack([*(took_2 for took_2, *_ in there), *reversed(back)])


def timed(loops: dict[str, Running], steps: int, device: str) -> dict[str, dict[str, list]]:
    """Return the medians for each loop: `step`, seconds_2, and `pieces`, seconds_P2. One step of
    each runs before, and does not count."""
    took = {name: ([], []) for name in loops}
    for turn in range(steps + 1):
        for name, loop in loops.items():
            begin_2 = now(device)
            loop.step()
            step_2 = now(device) - begin_2
            found_P2 = pieces(loop, device)
            if turn:
                took[name][0].append(step_2)
                took[name][1].append(found_P2)
    names = ("step", "pieces")
    return {
        name: {
            key: torch.stack(each).median(0).values.tolist()
            for key, each in zip(names, both, strict=True)
        }
        for name, both in took.items()
    }


def markdown(found: dict[str, dict[str, list]]) -> str:
    """Return a row for each loop: iterations per second divided by those of the classic loop, by
    the clock and by processor time, which is better if others use the cores; and the seconds of
    each part."""
    heads = ["loop", "s / step", "× classic", "× by processor", *PIECES]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    clock, processor = found[CLASSIC.name]["step"]
    for name, row in found.items():
        spent = [piece[1] for piece in row["pieces"]]
        cells = [name, f"{row['step'][0]:.2f}", f"{clock / row['step'][0]:.2f}"]
        cells += [f"{processor / row['step'][1]:.2f}"]
        cells += [f"{seconds:.2f} s" for seconds in spent]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


app = typer.Typer(add_completion=False, help=__doc__)


@app.callback()
def commands() -> None:
    """Compare the loops."""


@app.command("speed")
def command_speed(
    steps: Annotated[int, typer.Option(min=1, help="Of each loop.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Of the processor.")] = 1,
    side: Annotated[int, typer.Option(help="Of the picture, in pixels.")] = 256,
    views: Annotated[int, typer.Option(min=1, help="Encoded a step.")] = 32,
    device: Annotated[str, typer.Option(help="Of both models.")] = "cpu",
    ways: Annotated[str, typer.Option(help="Only these of ours, by commas.")] = "",
    quick: Annotated[bool, typer.Option(help="Toys: shows that it runs.")] = False,
    out: Annotated[Path | None, typer.Option(help="A JSON file.")] = None,
) -> None:
    """Measure iterations per second, ours divided by those of the classic loop, and the time of the
    parts."""
    import diffusers

    from clipguide import load_clip

    torch.set_num_threads(threads)
    diffusers.utils.logging.set_verbosity_error()  # it warns of every type
    names = [name for name in ways.split(",") if name]
    if unknown := set(names) - {way.name for way in WAYS}:
        raise typer.BadParameter(f"There are {[way.name for way in WAYS]}, not {unknown}.")
    wanted = [way for way in WAYS if way is CLASSIC or not names or way.name in names]
    clips = {
        name: load_clip("mini", dtype=name, device=device) if quick else vit_b_32(name, device)
        for name in {way.clip for way in wanted}
    }
    config = TOY if quick else TAMING_F16
    loops = {
        way.name: running(way, vqgan(config, device), clips[way.clip], side=side, views=views)
        for way in wanted
    }
    found = timed(loops, steps, device)
    typer.echo(markdown(found))
    best = max(found[CLASSIC.name]["step"][0] / row["step"][0] for row in found.values())
    typer.echo(f"The fastest: {best:.2f} (bar {BAR}: {'met' if best >= BAR else 'missed'}).")
    if out:
        facts = {"torch": torch.__version__, "threads": threads, "side": side, "views": views}
        out.write_text(json.dumps({**facts, "device": device, "rows": found}, indent=1) + "\n")


@app.command("folded")
def command_folded(
    times: Annotated[int, typer.Option(min=1, help="Of each, in turn.")] = 15,
    views: Annotated[int, typer.Option(min=1, help="Encoded at a time.")] = 16,
    threads: Annotated[int, typer.Option(min=1, help="Of the processor.")] = 1,
) -> None:
    """Measure the processor time of the gradient of views through the embedded guide, with its
    batch norms folded into its convolutions, divided by that without folding: the median of pairs.
    """
    from unittest.mock import patch

    from clipguide import load_clip
    from clipguide.clip import folding

    torch.set_num_threads(threads)
    folded = load_clip("mini")
    with patch.object(folding, "fold", lambda tower, see: False):
        plain = load_clip("mini")
    image_B3HW = torch.rand(views, 3, folded.image_size, folded.image_size)

    def spent(clip: Clip) -> float:
        leaf, begin = image_B3HW.clone().requires_grad_(), time.process_time()
        clip.encode_image(leaf).sum().backward()
        return time.process_time() - begin

    spent(folded), spent(plain)  # warm-up
    ratio = statistics.median(spent(folded) / spent(plain) for _ in range(times))
    typer.echo(f"folded ÷ plain: {ratio:.2f}")


if __name__ == "__main__":
    app()
