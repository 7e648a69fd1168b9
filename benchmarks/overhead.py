"""What steering costs at a real size: time and peak memory of guided ÷ plain.

    python -m benchmarks.overhead            # SD 1.5 on the CPU; on CUDA SDXL and SD3.5 too
    python -m benchmarks.overhead --devices cuda --decoders auto,vae --out benchmarks/overhead.json
    python -m benchmarks.overhead --count    # write the table of docs/memory.md: nothing is run
    python -m benchmarks.overhead --gradients 32   # needs as counted, against memory as measured

The models are of real classes and sizes with random weights, which cost the same; one image,
classifier-free guidance, the steering as it is by default. Pipelines are in float32 on the CPU, in
float16 on CUDA, SD3.5's in bfloat16.

Each measurement has a process of its own. Its peak, resident memory or what PyTorch allocated on
CUDA, is that of two steps and the decoding, loaded models included; a plain process loads no CLIP.

Time is that of a whole run of 50 steps, of which only the first few are drawn, plain and guided in
turn, before the image is decoded: `whole` adds up the run by their medians. A toy's whole run
under the same scheduler tells which of the 50 steps are steered. The denoiser's work is the same in
both, so that one median serves both, and noise that is larger than the steering does not drown it.
Loading is no part of the time. On the CPU the ratio of processor seconds stands beside that of the
clock: it is the better one where others use the cores.

The table counts instead, on "meta", where tensors have sizes and no values: operations of the
decoder's gradient, by PyTorch's counter, ÷ those of a step as the package estimates them
(tests/test_ladder.py checks that), and the bytes alive at most, forward and back.

Shapes: S steps drawn, 2 readings of a moment: seconds by the clock, and of the processor.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.random_models import LATENTS, guide, hollow, pipeline, scheduler

ROOT = Path(__file__).resolve().parent.parent
TOTAL = 50  # steps of these pipelines by default
PROMPT = "a red fox"
TIME_BAR, MEMORY_BAR = 1.20, 1.15  # of the default
DOCUMENT = ROOT / "docs" / "memory.md"
GIB = 2**30
MEMORY = 4.0  # GiB: the default, whatever is free
CARDS = 8, 12, 16, 24, 48, 80  # GiB
WIDTHS = 6, 4, 7, 12, 12, 12, 18, 0


@dataclass(frozen=True)
class Job:
    """What one process measures: the "time" of both, or the peak of "plain" or "guided"; in
    `rounds` runs of `steps` steps; at `side` latents a side, the pipeline's own if None."""

    geometry: str
    device: str
    what: str = "time"
    decoder: str = "auto"
    side: int | None = None
    steps: int = 2
    rounds: int = 1


@dataclass(frozen=True)
class Pieces:
    """Seconds of a step's denoiser; of the rest of a step that is plain, steered, or the first one
    (steered and scored, and the linear decoder is fitted in it); of a score; of its picture where
    the step was not steered; of what comes before the first step and after the last."""

    denoiser: float
    plain: float
    steered: float
    first: float
    score: float
    picture: float
    start: float
    decoding: float


def whole(pieces: Pieces, run: list[tuple[bool, bool]]) -> tuple[float, float]:
    """Seconds of a plain run and of a guided one, whose steps are (steered, scored)."""
    plain = len(run) * (pieces.denoiser + pieces.plain) + pieces.decoding
    guided = pieces.start + len(run) * pieces.denoiser + pieces.first + pieces.decoding
    for steered, scored in run[1:]:
        guided += pieces.steered if steered else pieces.plain
        guided += scored * (pieces.score + (not steered) * pieces.picture)
    return plain, guided


def default_run(geometry: str) -> list[tuple[bool, bool]]:
    """Of each step of a whole run by default: whether it is steered, and whether it is scored."""
    from clipguide import TotalVariation, steer
    from clipguide.guidance.steer import SCORE_EVERY

    pipe, settings = pipeline("toy flow" if geometry == "SD3.5-medium" else "toy")
    pipe.scheduler = scheduler(geometry)
    with steer(pipe, TotalVariation()) as s:  # which steps are steered is the same for any
        pipe(**settings, num_inference_steps=TOTAL, output_type="latent")
    steered = [seen.loss_B is not None for seen in s.report.trace]
    return [(due, i % SCORE_EVERY == 0 or i == TOTAL - 1) for i, due in enumerate(steered)]


def now(device: str) -> torch.Tensor:
    """A moment_2."""
    if device == "cuda":
        torch.cuda.synchronize()
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)


def draw(pipe, settings: dict, steps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Seconds_S2 of the denoiser, seconds_S2 of the rest of a step, seconds_2 of the decoding."""
    from clipguide.guidance.latents import denoiser

    moments = []

    def mark(*_: object) -> None:
        moments.append(now(pipe.device.type))

    def ended(pipe, index: int, timestep: torch.Tensor, tensors: dict) -> dict:
        mark()
        pipe._interrupt = index + 1 >= steps
        return tensors

    model = denoiser(pipe)
    hooks = [model.register_forward_pre_hook(mark), model.register_forward_hook(mark)]
    pipe(**settings, num_inference_steps=TOTAL, callback_on_step_end=ended, output_type="pt")
    mark()
    for hook in hooks:
        hook.remove()
    seconds = torch.stack(moments).diff(dim=0)
    return seconds[0::3], seconds[1::3], seconds[-1]


def timed(job: Job) -> dict[str, Pieces]:
    """By the clock, and of the processor. On CUDA a first round warms up, and does not count."""
    from clipguide import Similarity, steer
    from clipguide.guidance.steer import SCORE_EVERY

    pipe, settings = pipeline(job.geometry, device=job.device, side=job.side)
    clip = guide(job.geometry, device=job.device)
    rounds = []
    for _ in range(job.rounds + (job.device == "cuda")):
        denoiser_S2, plain_S2, decoding_2 = draw(pipe, settings, job.steps)
        begin_2 = now(job.device)
        objective = Similarity(clip, PROMPT)
        steering = steer(pipe, objective, decoder=job.decoder, memory=MEMORY)
        start_2 = now(job.device) - begin_2
        with steering:
            again_S2, guided_S2, decoded_2 = draw(pipe, settings, job.steps)
        image_B3HW = torch.rand(1, 3, settings["height"], settings["width"])
        begin_2 = now(job.device)
        objective.score(image_B3HW)
        score_2 = now(job.device) - begin_2
        unscored = [i % SCORE_EVERY != 0 for i in range(len(guided_S2))]  # the last one at its end
        rounds.append({
            "denoiser": torch.cat([denoiser_S2, again_S2]),
            "plain": plain_S2,
            "steered": guided_S2[unscored],
            "first": guided_S2[:1],
            "score": score_2[None],
            "start": start_2[None],
            "decoding": torch.stack([decoding_2, decoded_2]),
        })  # fmt: skip
    rounds = rounds[-job.rounds :]
    middle = {key: torch.cat([r[key] for r in rounds]).quantile(0.5, 0) for key in rounds[0]}
    middle["picture"] = middle["decoding"] * (job.decoder == "vae")  # the linear map costs nothing
    return {
        clock: Pieces(**{key: float(value_2[i]) for key, value_2 in middle.items()})
        for i, clock in enumerate(("clock", "processor"))
    }


def peak(job: Job) -> float:
    """MiB at most, of two steps and the decoding."""
    pipe, settings = pipeline(job.geometry, device=job.device, side=job.side)
    if job.what == "plain":
        draw(pipe, settings, job.steps)
    else:
        from clipguide import Similarity, steer

        objective = Similarity(guide(job.geometry, device=job.device), PROMPT)
        with steer(pipe, objective, decoder=job.decoder, memory=MEMORY):
            draw(pipe, settings, job.steps)
    if job.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def measured(job: Job, **changes: object) -> dict | float:
    """What a process of its own finds."""
    told = json.dumps(asdict(replace(job, **changes)))
    command = [sys.executable, "-m", "benchmarks.overhead", "--job", told]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def rows(job: Job, decoders: list[str]) -> Iterator[dict]:
    """Rows of the table, each with what it was made from."""
    run, before = default_run(job.geometry), measured(job, what="plain", steps=2)
    for decoder in decoders:
        after = measured(job, what="guided", decoder=decoder, steps=2)
        pieces = measured(job, what="time", decoder=decoder)
        seconds = {clock: whole(Pieces(**found), run) for clock, found in pieces.items()}
        row = {**asdict(job), "decoder": decoder, "pieces": pieces, "mebibytes": (before, after)}
        row |= {"steered": sum(steered for steered, _ in run), "seconds": seconds}
        row |= {clock: guided / plain for clock, (plain, guided) in seconds.items()}
        yield {**row, "memory": after / before}


def line(row: dict) -> str:
    """A row as it is printed: the bars are the default's, and not a toy's."""
    cells = [row["geometry"], row["device"], row["decoder"]]
    barred = row["decoder"] == "auto" and row["geometry"] != "toy"
    for key, bar in (("clock", TIME_BAR), ("processor", TIME_BAR), ("memory", MEMORY_BAR)):
        verdict = (" met" if row[key] <= bar else " missed") if barred else ""
        cells.append(f"{row[key]:.3f}{verdict}")
    (plain, guided), (before, after) = row["seconds"]["clock"], row["mebibytes"]
    cells += [f"{plain:.1f} -> {guided:.1f} s", f"{before:.0f} -> {after:.0f} MiB"]
    return " | ".join(f"{cell:{width}s}" for cell, width in zip(cells, WIDTHS, strict=True))


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


def write_table() -> None:
    """Put the table in its place in docs/memory.md."""
    begin, end = "<!-- table -->\n", "<!-- end of table -->"
    text = DOCUMENT.read_text()
    before, after = text.split(begin)[0], text.split(end)[1]
    DOCUMENT.write_text(f"{before}{begin}{table()}\n{end}{after}")


def gradient_peak(job: Job) -> tuple[float, float]:
    """MiB above the start that a gradient by plan number `steps` of Stable Diffusion's VAE takes,
    as counted and as measured in this process."""
    import diffusers

    from benchmarks.random_models import VAES, filled
    from clipguide.guidance import ladder
    from clipguide.guidance.clean import Made, clean
    from clipguide.guidance.latents import PLAIN

    plan, shape = ladder.PLANS[job.steps], (1, 4, job.side, job.side)
    with torch.device("meta"):
        vae = getattr(diffusers, VAES["SD 1.5"][0])(**VAES["SD 1.5"][1])
    counted = ladder.need(Made.of(vae), PLAIN.decode, shape, plan)
    vae = filled(vae, job.device, torch.float32)
    decoding = ladder.Decoding(clean(vae, job.device), PLAIN.decode, plan)
    del vae
    latents = torch.randn(shape, device=job.device, requires_grad=True)
    if job.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        before = resident()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    torch.autograd.grad(decoding(latents).sum(), latents)
    after = torch.cuda.max_memory_allocated() if job.device == "cuda" else resident("VmHWM")
    return counted / 2**20, (after - before) / 2**20


def resident(line: str = "VmRSS") -> int:
    """Bytes of this process."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[line].split()[0]) * 1024


def main(
    decoders: Annotated[str, typer.Option(help="By commas.")] = "auto,vae",
    devices: Annotated[str, typer.Option(help="By commas.")] = "cpu,cuda",
    steps: Annotated[int, typer.Option(min=2, max=TOTAL, help="Drawn of a run.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each kind.")] = 3,
    side: Annotated[int | None, typer.Option(help="Latents a side, if not the model's.")] = None,
    quick: Annotated[bool, typer.Option(help="A toy on the CPU: shows that it runs.")] = False,
    count: Annotated[bool, typer.Option(help="Write docs/memory.md's table.")] = False,
    gradients: Annotated[
        int | None, typer.Option(help="Latents a side: counted, measured.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file.")] = None,
    job: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure and print the table."""
    if job:
        one = Job(**json.loads(job))
        what = {"time": timed, "gradient": gradient_peak}.get(one.what, peak)
        typer.echo(json.dumps(what(one), default=asdict))
        return
    if count:
        write_table()
        return
    if gradients:
        device = "cuda" if torch.cuda.is_available() and "cuda" in devices else "cpu"
        one = Job(geometry="SD 1.5", device=device, what="gradient", side=gradients)
        for number in (0, 2, 3, 4):
            expected, found = measured(one, steps=number)
            typer.echo(f"plan {number}: counted {expected:.0f} MiB, measured {found:.0f} MiB")
        return
    jobs = [Job(geometry="SD 1.5", device="cpu", side=side, steps=steps, rounds=rounds)]
    if torch.cuda.is_available():
        names = "SD 1.5", "SDXL", "SD3.5-medium"
        jobs += [replace(jobs[0], geometry=name, device="cuda") for name in names]
    jobs = [one for one in jobs if one.device in devices.split(",")]
    if quick:
        jobs = [Job(geometry="toy", device="cpu")]
    heads = "model", "on", "decoder", "time", "processor", "memory", "a picture", "at most"
    typer.echo(" | ".join(f"{head:{width}s}" for head, width in zip(heads, WIDTHS, strict=True)))
    found = []
    for one in jobs:
        for row in rows(one, decoders.split(",")):
            typer.echo(line(row))
            found.append(row)
    if out:
        facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "total": TOTAL}
        out.write_text(json.dumps({**facts, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
