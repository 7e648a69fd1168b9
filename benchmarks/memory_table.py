"""Write the tables of docs/memory.md: the cost of steering, measured and estimated. It runs no
model.

    python -m benchmarks.memory_table

The measurements are those of `python -m benchmarks.overhead --out benchmarks/overhead.json`. The
estimates are made on "meta", where tensors have sizes and no values. Time is the number of
operations of the decoder's gradient, by PyTorch's counter, divided by those of a step as the
package estimates them (tests/test_ladder.py checks that). Memory is the largest number of bytes
that exist at one time, forward and backward.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from benchmarks.overhead import LADDER_BAR, MEMORY, MEMORY_BAR, RESULTS, ROOT, TIME_BAR
from benchmarks.random_models import GUIDES, LATENTS, hollow

DOCUMENT = ROOT / "docs" / "memory.md"
GIB = 2**30
BARRED = ("SD 1.5", 4), ("SDXL", 1)  # with so many images there are bars for the default
CARDS = 8, 12, 16, 24, 48, 80  # GiB
GROWTH = 10  # MiB: less is noise of the allocator
COUNTED = "<!-- table -->\n", "<!-- end of table -->"
DEFAULTS = "<!-- defaults -->\n", "<!-- end of defaults -->"
MEASURED = "<!-- measured -->\n", "<!-- end of measured -->"


@dataclass(frozen=True)
class Counted:
    """The estimate for the gradient of one image through a decoder: the time divided by plain
    sampling if every step is steered, and GiB besides the weights."""

    decoder: str
    times: float
    gibibytes: float


def counted(geometry: str) -> tuple[list[Counted], float, float]:
    """Return the estimates of every decoder and level, the GiB of plain decoding, and the GiB of
    the denoiser's and the VAE's weights in 16 bits."""
    import diffusers

    from clipguide.guidance import cost, ladder, tinies
    from clipguide.guidance.clean import Made
    from clipguide.guidance.decoders import Decoder
    from clipguide.guidance.pipe_parts import denoiser

    pipe, shape = hollow(geometry), LATENTS[geometry]
    decoder = Decoder(pipe, kind="vae")
    made, decode = Made.of(pipe.vae), decoder.family.decode
    latents = decoder.sizes(torch.empty(shape, device="meta"))
    step = cost.of_step(pipe, shape)
    once = ladder.operations(made, decode, latents)
    rungs = [plan for plan in ladder.PLANS if plan != ladder.PLANS[1]]
    rows = [
        Counted(
            f"`vae:{plan.rung}`",
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
        rows.append(Counted(f"`tiny:{plan.rung}`", 1 + plan.passes(1) * few / step, need))
    rows.append(Counted("`linear`", 1.0, 0.0))
    weights = sum(p.numel() for m in (denoiser(pipe), pipe.vae) for p in m.parameters())
    return rows, ladder.forward(made, decode, latents) / GIB, 2 * weights / GIB


def table() -> str:
    """Return the table of all decoders."""
    lines = [
        "| model | decoder | time ÷ plain | GiB for decoding | peak GiB with weights | card |",
        "|---|---|---|---|---|---|",
    ]
    for geometry in LATENTS:
        rows, plain, weights = counted(geometry)
        rows = [Counted("none (plain sampling)", 1.0, plain), *rows]
        for row in rows:
            most = max(row.gibibytes, plain)  # the image is decoded at the end in any case
            card = next((f"{card} GiB" for card in CARDS if weights + most < 0.95 * card), "none")
            cells = [geometry, row.decoder, f"{row.times:.2f}", f"{row.gibibytes:.1f}"]
            lines.append(f"| {' | '.join(cells)} | {weights + most:.1f} | {card} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Default:
    """The estimate for the defaults, with models in 16 bits: for the linear map and the guide the
    time and the peak divided by those of plain sampling, if every step is steered; and the GiB
    above plain sampling of decoder="vae", with its level. The peaks are those of decoding: of all
    images at the end, and of the last score, one image at a time."""

    time: float
    peak: float
    above: float
    plan: str


def default(geometry: str, images: int, side: int | None = None) -> Default:
    """Return the estimate for the defaults. The gradient of the guide for its views is counted
    image by image. `side` is the side of the latents, by default that of the model."""
    import open_clip
    from torch.utils.flop_counter import FlopCounterMode

    from clipguide import Cutouts
    from clipguide.guidance import cost, ladder
    from clipguide.guidance.clean import Made
    from clipguide.guidance.decoders import Decoder
    from clipguide.guidance.pipe_parts import denoiser

    pipe, shape = hollow(geometry), (images, *LATENTS[geometry][1:])
    if side:
        shape = (*shape[:2], side, side)
    with torch.device("meta"):
        name = GUIDES.get(geometry, GUIDES["SDXL"])
        tower = open_clip.create_model(name, device="meta").eval()
    tower = tower.requires_grad_(False).bfloat16()
    size = tower.visual.image_size
    size = size[0] if isinstance(size, tuple) else size
    views = torch.empty(
        len(Cutouts()), 3, size, size, device="meta", dtype=torch.bfloat16, requires_grad=True
    )
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tower.encode_image(views)
    with ladder.Alive() as alive:
        torch.autograd.grad(tower.encode_image(views).sum(), views)
    decoder = Decoder(pipe, kind="vae")
    made, latents = Made.of(pipe.vae), decoder.sizes(torch.empty(shape, device="meta"))
    decoding = ladder.forward(made, decoder.family.decode, latents) / 2  # counted in float32
    weights = 2 * sum(p.numel() for m in (denoiser(pipe), pipe.vae) for p in m.parameters())
    guide = 2 * sum(p.numel() for p in tower.parameters())
    copy = 2 * sum(p.numel() for p in made.bare().parameters())
    gradient = 2 * images * counter.get_total_flops()  # going back to pixels counts as one more
    time = 1 + gradient / cost.of_step(pipe, shape)
    guided = weights + guide + max(decoding + copy, images * alive.most)
    exact = ladder.planned(
        lambda plan: ladder.need(made, decoder.family.decode, latents, plan),
        MEMORY * GIB,
        number=images,
    )
    need = ladder.need(made, decoder.family.decode, latents, exact)
    above = guide + copy * (1 if exact.half else 2) + max(need - decoding, 0)
    return Default(time, guided / (weights + decoding), above / GIB, exact.rung)


def defaults() -> str:
    """Return the table of the defaults."""
    lines = [
        "| model | images | time ÷ plain | peak ÷ plain | `decoder=\"vae\"`: GiB above plain |",
        "|---|---|---|---|---|",
    ]
    jobs = [("SD 1.5", 1), *((name, 4 if name == "SD 1.5" else 1) for name in LATENTS)]
    for geometry, images in jobs:
        found = default(geometry, images)
        cells, barred = [geometry, str(images)], (geometry, images) in BARRED
        cells.append(f"{found.time:.2f}{verdict(found.time <= TIME_BAR, barred)}")
        cells.append(f"{found.peak:.2f}{verdict(found.peak <= MEMORY_BAR, barred)}")
        met = verdict(found.above <= LADDER_BAR, geometry == "SDXL")
        cells.append(f"{found.above:.1f}{met}, `vae:{found.plan}`")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, checked()])


def checked() -> str:
    """Return a sentence that compares the estimates with the measurements, for the default decoder.
    """
    found = []
    for row in json.loads(RESULTS.read_text())["rows"]:
        if row["what"] != "cost" or row["decoder"] != "auto" or row["geometry"] not in LATENTS:
            continue
        count = default(row["geometry"], row["batch"], row["side"])
        time = row["clock" if row["device"] == "cuda" else "processor"]
        name = f"{row['geometry']}, {row['batch']} image" + "s" * (row["batch"] > 1)
        found.append(
            f"{name}: time {count.time / time:.2f}, peak {count.peak / row['peak']:.2f}"
        )
    return (
        "\nThe estimates divided by the [measurements](#measured-cost), where both are known: "
        f"{'; '.join(found)}."
    )


def measured() -> str:
    """Return the table and the sentences of the measurements."""
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
        bars = default and (row["geometry"], row["batch"]) in BARRED
        chose = row["chose"].removeprefix("decoder: ")
        name = f"default: {chose.partition(',')[0]}" if default else chose
        if not default:
            name += f", memory={row['memory']:g}"
        place = "CUDA" if cuda else "CPU, " + ("bfloat16" if row["half"] else "float32")
        cells = [row["geometry"], place, str(row["batch"]), name]
        cells.append(f"{time:.2f}" + verdict(time <= TIME_BAR, bars))
        cells.append(f"{row['peak']:.2f}" + verdict(row["peak"] <= MEMORY_BAR, bars))
        barred = not default and row["geometry"] == "SDXL"
        cells.append(f"{row['above']:.1f} GiB" + verdict(row["above"] <= LADDER_BAR, barred))
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(grown([row for row in kept["rows"] if row["what"] == "growth"]))
    lines += [exact(row) for row in kept["rows"] if row["what"] == "exact"]
    return "\n".join(lines)


def exact(row: dict) -> str:
    """Return the paragraph on the memory of the gradient through the VAE."""
    met = verdict(row["above"] <= LADDER_BAR, row["geometry"] == "SDXL")
    return (
        f"\nWith `decoder=\"vae\", memory={row['memory']:g}`, steering {row['geometry']} at "
        f"its own size needs {row['above']:.2f} GiB more than decoding the finished image "
        f"alone{met}. The denoiser was left out of this run, because it needs the same memory "
        f"with and without steering. The report said \"{row['chose']}\"."
    )


def grown(rows: list[dict]) -> str:
    """Return the paragraph on the growth of memory from image to image."""
    if not rows:
        return ""
    grows = "grows" if any(row["growth"] > GROWTH for row in rows) else "does not grow"
    each = [
        f"{row['growth']:+.1f} MiB ({row['geometry']}, {8 * row['side']} x {8 * row['side']}, "
        f"`decoder=\"{row['decoder']}\"`)"
        for row in rows
    ]
    return (
        f"\nMemory {grows} from image to image. In a run of {len(rows[0]['held'])} images in one "
        f"`with` block, it changed from the second image to the last by {' and by '.join(each)}."
    )


def verdict(met: bool, barred: bool) -> str:
    return (" (met)" if met else " (missed)") if barred else ""


def write() -> None:
    """Put the tables in their places."""
    text = DOCUMENT.read_text()
    parts = (MEASURED, measured()), (DEFAULTS, defaults()), (COUNTED, table())
    for (begin, end), made in parts:
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}{made}\n{end}{after}"
    DOCUMENT.write_text(text)


if __name__ == "__main__":
    write()
