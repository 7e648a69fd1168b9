"""The tables of docs/memory.md: what steering costs, as measured and as counted. Nothing is run.

    python -m benchmarks.memory_table

Measured is what `python -m benchmarks.overhead --out benchmarks/overhead.json` found. Counted, on
"meta", where tensors have sizes and no values, are operations of the decoder's gradient, by
PyTorch's counter, ÷ those of a step as the package estimates them (tests/test_ladder.py checks
that), and the bytes alive at most, forward and back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from benchmarks.overhead import LADDER_BAR, MEMORY, MEMORY_BAR, RESULTS, ROOT, TIME_BAR
from benchmarks.random_models import LATENTS, hollow

DOCUMENT = ROOT / "docs" / "memory.md"
GIB = 2**30
CARDS = 8, 12, 16, 24, 48, 80  # GiB
COUNTED = "<!-- table -->\n", "<!-- end of table -->"
MEASURED = "<!-- measured -->\n", "<!-- end of measured -->"


@dataclass(frozen=True)
class Counted:
    """Of a decoder's gradient for an image: × plain sampling if every step is steered, and GiB
    beside weights."""

    decoder: str
    times: float
    gibibytes: float


def counted(geometry: str) -> tuple[list[Counted], float, float]:
    """Every decoder and rung; GiB of plain decoding, and of the denoiser's and VAE's weights in 16
    bits."""
    import diffusers

    from clipguide.guidance import cost, ladder, tinies
    from clipguide.guidance.clean import Made
    from clipguide.guidance.decoders import Decoder
    from clipguide.guidance.latents import denoiser

    pipe, shape = hollow(geometry), LATENTS[geometry]
    decoder = Decoder(pipe, kind="vae")
    made, decode = Made.of(pipe.vae), decoder.family.decode
    latents = decoder.sizes(torch.empty(shape, device="meta"))
    step = cost.of_step(pipe, shape)
    once = ladder.operations(made, decode, latents)
    rungs = [plan for plan in ladder.PLANS if plan != ladder.PLANS[1]]
    rows = [
        Counted(
            f"vae, {plan}",
            1 + plan.passes(1) * once / step,
            ladder.need(made, decode, latents, plan) / GIB,
        )
        for plan in rungs
    ]
    if latents[1] in (4, 16) and geometry != "Qwen-Image":
        with torch.device("meta"):
            tiny = Made.of(diffusers.AutoencoderTiny(latent_channels=latents[1]))
        few = ladder.operations(tiny, tinies.decode, latents)
        plan = ladder.planned(
            lambda plan: ladder.need(tiny, tinies.decode, latents, plan), MEMORY * GIB, number=1
        )
        need = ladder.need(tiny, tinies.decode, latents, plan) / GIB
        rows.append(Counted(f"tiny, {plan}", 1 + plan.passes(1) * few / step, need))
    rows.append(Counted("linear", 1.0, 0.0))
    weights = sum(p.numel() for m in (denoiser(pipe), pipe.vae) for p in m.parameters())
    return rows, ladder.forward(made, decode, latents) / GIB, 2 * weights / GIB


def table() -> str:
    """The table of docs/memory.md."""
    lines = [
        "| model | decoder | time ÷ plain | GiB beside weights | GiB with weights | card |",
        "|---|---|---|---|---|---|",
    ]
    for geometry in LATENTS:
        rows, plain, weights = counted(geometry)
        rows = [Counted("none: plain sampling, decoding at the end", 1.0, plain), *rows]
        for row in rows:
            most = max(row.gibibytes, plain)  # the image is decoded at the end in any case
            card = next((f"{card} GiB" for card in CARDS if weights + most < 0.95 * card), "none")
            cells = [geometry, row.decoder, f"{row.times:.2f}", f"{row.gibibytes:.1f}"]
            lines.append(f"| {' | '.join(cells)} | {weights + most:.1f} | {card} |")
    return "\n".join(lines)


def measured() -> str:
    """The table of what was measured."""
    lines = [
        "| model | on | images | decoder | time ÷ plain | peak ÷ plain | peak above plain |",
        "|---|---|---|---|---|---|---|",
    ]
    kept = json.loads(RESULTS.read_text())
    for row in kept["rows"]:
        if row["what"] != "cost":
            continue
        cuda = row["device"] == "cuda"
        time = row["clock" if cuda else "processor"]
        default = row["decoder"] == "auto"
        chose = row["chose"].removeprefix("decoder: ")
        name = f"default: {chose}" if default else chose
        if not default:
            name += f", memory={row['memory']:g}"
        place = "CUDA" if cuda else "CPU, " + ("bfloat16" if row["half"] else "float32")
        cells = [row["geometry"], place, str(row["batch"]), name]
        cells.append(f"{time:.2f}" + verdict(time <= TIME_BAR, default))
        cells.append(f"{row['peak']:.2f}" + verdict(row["peak"] <= MEMORY_BAR, default))
        barred = not default and row["geometry"] == "SDXL"
        cells.append(f"{row['above']:.1f} GiB" + verdict(row["above"] <= LADDER_BAR, barred))
        lines.append(f"| {' | '.join(cells)} |")
    for row in kept["rows"]:
        if row["what"] == "growth":
            size, count = 8 * row["side"], len(row["held"])
            lines.append(
                f"\n{count} images in a row in one context ({row['geometry']}, {size} x {size}): "
                f"the process holds {row['growth']:+.1f} MiB more after the last than after the "
                "second."
            )
    return "\n".join(lines)


def verdict(met: bool, barred: bool) -> str:
    return (" (met)" if met else " (missed)") if barred else ""


def write() -> None:
    """Put the tables in their places."""
    text = DOCUMENT.read_text()
    for (begin, end), made in ((MEASURED, measured()), (COUNTED, table())):
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}{made}\n{end}{after}"
    DOCUMENT.write_text(text)


if __name__ == "__main__":
    write()
