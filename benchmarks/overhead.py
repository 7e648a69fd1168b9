"""Measure the cost of steering at a real size: time and peak memory divided by plain sampling.

    python -m benchmarks.overhead            # SD 1.5 on the CPU; on CUDA SDXL and SD3.5 too
    python -m benchmarks.overhead --models SDXL --half --decoders auto,vae --memory 3
    python -m benchmarks.overhead --growth   # ten images in a row in one context
    python -m benchmarks.overhead --growth --models "SD 1.5 with a small U-Net" --side 32
    python -m benchmarks.overhead --gradients 32   # needs as counted, against memory as measured
    python -m benchmarks.overhead --exact --models SDXL --half --memory 3   # by the exact decoder
    python -m benchmarks.memory_table        # both tables of docs/memory.md: nothing is run

The models have the classes and sizes of real ones, and random weights, which take the same time.
Each run draws one image with classifier-free guidance and the default steering. On the CPU,
pipelines are in float32, or in bfloat16 with `--half`. On CUDA they are in float16, and that of
SD3.5 in bfloat16.

Each row has its own process. It draws plain images first, then loads a CLIP and draws steered ones.
A peak is that of one whole run of a few steps, with decoding, and with everything that the process
holds: resident memory, or the memory that PyTorch allocated on CUDA.

Time is that of a run of 50 steps. Only a few of them are drawn: the first (which chooses the
decoder, and fits the linear map), some in the middle, and the last (the VAE decodes for its score).
`whole` adds up the run of 50 steps from their medians. A tiny model with the same scheduler shows
which of the 50 steps are steered. The denoiser does the same work in both runs, so one median
serves both, and noise in it does not hide the cost of steering. Loading is not counted. On the CPU,
the ratio of processor time is given next to that of the clock. It is better if other jobs use the
cores.

Shapes: S steps drawn, 2 readings of a moment: seconds by the clock, and of the processor.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.meter import forget_peak, now, peak, resident
from benchmarks.random_models import guide, pipeline, scheduler

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "overhead.json"
TOTAL = 50  # steps of these pipelines by default
PROMPT = "a red fox"
TIME_BAR, MEMORY_BAR = 1.20, 1.15  # of the default
LADDER_BAR = 3.0  # GiB above plain of the exact decoder, at SDXL's size
MEMORY = 4.0  # GiB: the default, whatever is free
WIDTHS = 6, 4, 7, 12, 12, 12, 18, 0
IN_A_ROW = 10  # images of one context
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc gives back what is freed


@dataclass(frozen=True)
class Job:
    """What one process measures.

    Its kind is the "cost" of plain and steered runs, the "growth" of memory from image to image,
    the memory of the "exact" decoder in comparison with plain decoding, or of a "gradient" at the
    levels that `decoder` names. It takes `rounds` runs of `steps` steps with `batch` images of
    `side` latents a side; None is the pipeline's own side. `half`: in bfloat16 on the CPU. `memory`
    is that of `steer`.
    """

    geometry: str
    device: str
    what: str = "cost"
    decoder: str = "auto"
    side: int | None = None
    steps: int = 3
    rounds: int = 1
    batch: int = 1
    half: bool = False
    memory: float = MEMORY


@dataclass(frozen=True)
class Pieces:
    """The seconds of a step's denoiser; of the rest of a plain step, a steered step, the first step
    and the last step; of a score; and of the work before the first step and after the last."""

    denoiser: float
    plain: float
    steered: float
    first: float
    last: float
    score: float
    start: float
    decoding: float


def whole(pieces: Pieces, run: list[tuple[bool, bool]]) -> tuple[float, float]:
    """Return the seconds of a plain run and of a steered one. Its steps are pairs (steered,
    scored). Every scored step between the first and the last is also steered."""
    plain = len(run) * (pieces.denoiser + pieces.plain) + pieces.decoding
    guided = pieces.start + len(run) * pieces.denoiser + pieces.first + pieces.last
    for steered, scored in run[1:-1]:
        guided += (pieces.steered if steered else pieces.plain) + scored * pieces.score
    return plain, guided + pieces.decoding


def default_run(geometry: str) -> list[tuple[bool, bool]]:
    """Return for each step of a whole run with the defaults whether it is steered, and whether it
    is scored."""
    from clipguide import TotalVariation, steer
    from clipguide.guidance.steer import SCORE_EVERY

    pipe, settings = pipeline("toy flow" if geometry == "SD3.5-medium" else "toy")
    pipe.scheduler = scheduler(geometry)
    with steer(pipe, TotalVariation()) as s:  # which steps are steered is the same for any
        pipe(**settings, num_inference_steps=TOTAL, output_type="latent")
    steered = [seen.loss_B is not None for seen in s.report.trace]
    return [(due, i % SCORE_EVERY == 0 or i == TOTAL - 1) for i, due in enumerate(steered)]


def draw(pipe, settings: dict, steps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return seconds_S2 of the denoiser, seconds_S2 of the rest of a step, and seconds_2 of the
    decoding."""
    from clipguide.guidance.pipe_parts import denoiser

    moments = []

    def mark(*_: object) -> None:
        moments.append(now(pipe.device.type))

    def ended(pipe, index: int, timestep: torch.Tensor, tensors: dict) -> dict:
        mark()
        return tensors

    model = denoiser(pipe)
    hooks = [model.register_forward_pre_hook(mark), model.register_forward_hook(mark)]
    pipe(**settings, num_inference_steps=steps, callback_on_step_end=ended, output_type="pt")
    mark()
    for hook in hooks:
        hook.remove()
    seconds = torch.stack(moments).diff(dim=0)
    return seconds[0::3], seconds[1::3], seconds[-1]


def cost(job: Job) -> dict:
    """Return the pieces by the clock and by the processor, the MiB of plain and steered runs, and
    the decoder. On CUDA, a first round warms up and does not count."""
    from clipguide import Similarity, steer
    from clipguide.guidance.steer import guide_dtype

    pipe, settings = made(job)
    forget_peak(job.device)
    drawn = [draw(pipe, settings, job.steps)]
    before = peak(job.device)
    clip = guide(job.geometry, device=job.device, dtype=guide_dtype(pipe))  # as steer loads it
    objective = Similarity(clip, PROMPT)
    rounds, after = [], 0.0
    for _ in range(job.rounds + (job.device == "cuda")):
        plain = drawn.pop() if drawn else draw(pipe, settings, job.steps)
        denoiser_S2, plain_S2, decoding_2 = plain
        forget_peak(job.device)
        begin_2 = now(job.device)
        steering = steer(pipe, objective, decoder=job.decoder, memory=job.memory)
        start_2 = now(job.device) - begin_2
        with steering:
            again_S2, guided_S2, decoded_2 = draw(pipe, settings, job.steps)
        after = max(after, peak(job.device))
        image_B3HW = torch.rand(job.batch, 3, settings["height"], settings["width"])
        begin_2 = now(job.device)
        objective.score(image_B3HW.to(job.device))
        rounds.append({
            "denoiser": torch.cat([denoiser_S2, again_S2]),
            "plain": plain_S2,
            "steered": guided_S2[1:-1],
            "first": guided_S2[:1],
            "last": guided_S2[-1:],
            "score": (now(job.device) - begin_2)[None],
            "start": start_2[None],
            "decoding": torch.stack([decoding_2, decoded_2]),
        })  # fmt: skip
    rounds = rounds[-job.rounds :]
    middle = {key: torch.cat([r[key] for r in rounds]).quantile(0.5, 0) for key in rounds[0]}
    pieces = {
        clock: Pieces(**{key: float(value_2[i]) for key, value_2 in middle.items()})
        for i, clock in enumerate(("clock", "processor"))
    }
    return {"pieces": pieces, "mebibytes": (before, after), "chose": steering.report.decoder}


def growth(job: Job) -> list[float]:
    """Return the MiB of the process after each of ten images of one context. On the CPU the images
    are small, because a leak would grow by whole images and graphs."""
    from clipguide import Similarity, steer

    pipe, settings = made(job)
    objective, after = Similarity(guide(job.geometry, device=job.device), PROMPT), []
    with steer(pipe, objective, decoder=job.decoder, memory=job.memory) as s:
        for _ in range(IN_A_ROW):
            s(**settings, num_inference_steps=job.steps, output_type="pt")
            gc.collect()
            after.append(held(job.device))
    return after


def made(job: Job) -> tuple[object, dict]:
    """Return the pipeline and its settings."""
    dtype = torch.bfloat16 if job.half else None
    return pipeline(job.geometry, device=job.device, side=job.side, batch=job.batch, dtype=dtype)


def gradient(job: Job) -> dict[str, tuple[float, float]]:
    """Return the MiB above the start that a gradient through Stable Diffusion's VAE takes at each
    level, as estimated and as measured in this process."""
    import diffusers

    from benchmarks.random_models import VAES, filled
    from clipguide.guidance import ladder
    from clipguide.guidance.clean import Made, clean
    from clipguide.guidance.latents import PLAIN

    found, decode = {}, PLAIN.decode
    with torch.device("meta"):
        vae = getattr(diffusers, VAES["SD 1.5"][0])(**VAES["SD 1.5"][1])
    made, live = Made.of(vae), filled(vae, job.device, torch.float32)
    for rung in job.decoder.split(","):
        counted = ladder.need(made, decode, (1, 4, job.side, job.side), ladder.RUNGS[rung])
        decoding = ladder.Decoding(clean(live, job.device), decode, ladder.RUNGS[rung])
        for side in (8, job.side):  # the first warms up
            latents = torch.randn(1, 4, side, side, device=job.device, requires_grad=True)
            before = held(job.device)
            forget_peak(job.device)
            torch.autograd.grad(decoding(latents).sum(), latents)
            most = peak(job.device) - before
        found[rung] = counted / 2**20, most
    return found


def exact(job: Job) -> dict:
    """Return the peak MiB of decoding an image, and of the guide's gradient through the VAE before
    it, and the decoder. The process has no denoiser, because it needs the same memory in both
    cases."""
    from benchmarks.random_models import LATENTS, filled, hollow
    from clipguide import Similarity
    from clipguide.guidance.decoders import Decoder
    from clipguide.guidance.run import Run
    from clipguide.objectives import fresh_generators

    pipe, dtype = hollow(job.geometry), torch.bfloat16 if job.half else torch.float32
    pipe.vae = filled(pipe.vae, job.device, dtype)
    x0 = torch.randn(LATENTS[job.geometry], dtype=dtype, device=job.device)
    begin = held(job.device)
    forget_peak(job.device)
    with torch.no_grad():
        pipe.vae.decode(x0, return_dict=False)
    plain = peak(job.device)
    clip = guide(job.geometry, device=job.device, dtype="bfloat16" if job.half else "float32")
    decoder = Decoder(pipe, kind="vae", memory=job.memory)
    run = Run(
        scheduler=pipe.scheduler,
        decode=decoder,
        objective=Similarity(clip, PROMPT),
        generators=fresh_generators(1),
        streams=(),
        warn=typer.echo,
    )
    gc.collect()
    forget_peak(job.device)
    run.gradient(x0)
    guided = max(peak(job.device), plain + held(job.device) - begin)  # decoded at the end as well
    return {"mebibytes": (plain, guided), "chose": decoder.choose(x0)}


def held(device: str) -> float:
    """Return the MiB that are held now."""
    return (torch.cuda.memory_allocated() if device == "cuda" else resident()) / 2**20


def measured(job: Job) -> object:
    """Return what a separate process measures."""
    command = [sys.executable, "-m", "benchmarks.overhead", "--job", json.dumps(asdict(job))]
    env = {**os.environ, **({} if job.what == "cost" else RETURNED)}
    kind = {"env": env, "stdout": subprocess.PIPE, "text": True}
    run = subprocess.run(command, cwd=ROOT, check=True, **kind)
    return json.loads(run.stdout.splitlines()[-1])


def rows(job: Job, decoders: list[str]) -> Iterator[dict]:
    """Yield the rows of the table, each with the settings that made it."""
    run = default_run(job.geometry)
    assert all(steered for steered, scored in run[1:-1] if scored)
    for decoder in decoders:
        found = measured(replace(job, decoder=decoder))
        seconds = {clock: whole(Pieces(**p), run) for clock, p in found["pieces"].items()}
        before, after = found["mebibytes"]
        row = {**asdict(job), "decoder": decoder, **found, "seconds": seconds}
        row |= {"steered": sum(steered for steered, _ in run)}
        row |= {clock: guided / plain for clock, (plain, guided) in seconds.items()}
        yield {**row, "peak": after / before, "above": (after - before) / 1024}


def line(row: dict) -> str:
    """Return a row as it is printed. Targets apply to the default, and not to a tiny model."""
    cells = [row["geometry"], row["device"], row["decoder"]]
    barred = row["decoder"] == "auto" and row["geometry"] != "toy"
    for key, bar in (("clock", TIME_BAR), ("processor", TIME_BAR), ("peak", MEMORY_BAR)):
        verdict = (" met" if row[key] <= bar else " missed") if barred else ""
        cells.append(f"{row[key]:.3f}{verdict}")
    (plain, guided), (before, after) = row["seconds"]["clock"], row["mebibytes"]
    cells += [f"{plain:.1f} -> {guided:.1f} s", f"{before:.0f} -> {after:.0f} MiB"]
    return " | ".join(f"{cell:{width}s}" for cell, width in zip(cells, WIDTHS, strict=True))


def keep(row: dict, out: Path | None) -> None:
    """Put a row into the file, in the place of an older one of the same job."""
    if out is None:
        return
    same = ("geometry", "device", "decoder", "side", "batch", "half", "memory", "what")
    kept = json.loads(out.read_text())["rows"] if out.exists() else []
    kept = [old for old in kept if any(old[name] != row[name] for name in same)]
    facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "total": TOTAL}
    out.write_text(json.dumps({**facts, "rows": [*kept, row]}, indent=1) + "\n")


def compare_gradients(side: int, device: str) -> None:
    """Print what plans need as counted and as measured."""
    one = Job(geometry="SD 1.5", device=device, what="gradient", side=side)
    for rung in ("whole", "layers", "half", "tiles2"):
        expected, found = measured(replace(one, decoder=rung))[rung]
        typer.echo(f"{rung}: counted {expected:.0f} MiB, measured {found:.0f} MiB")


def main(
    models: Annotated[str, typer.Option(help="By commas.")] = "SD 1.5,SDXL,SD3.5-medium",
    decoders: Annotated[str, typer.Option(help="By commas.")] = "auto,vae",
    devices: Annotated[str, typer.Option(help="By commas.")] = "cpu,cuda",
    steps: Annotated[int, typer.Option(min=3, max=TOTAL, help="Drawn of a run.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each kind.")] = 3,
    side: Annotated[int | None, typer.Option(help="Latents a side, if not the model's.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 1,
    half: Annotated[bool, typer.Option(help="In bfloat16 on the CPU; all models there.")] = False,
    memory: Annotated[float, typer.Option(help="GiB for the decoder's gradient.")] = MEMORY,
    quick: Annotated[bool, typer.Option(help="A toy on the CPU: shows that it runs.")] = False,
    in_a_row: Annotated[bool, typer.Option("--growth", help="Ten images in one context.")] = False,
    by_exact: Annotated[bool, typer.Option("--exact", help="Memory of the exact decoder.")] = False,
    gradients: Annotated[
        int | None, typer.Option(help="Latents a side: counted, measured.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file: rows are added.")] = None,
    job: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure and print the table."""
    if job:
        one = Job(**json.loads(job))
        kinds = {"cost": cost, "growth": growth, "exact": exact, "gradient": gradient}
        what = kinds[one.what]
        typer.echo(json.dumps(what(one), default=asdict))
        return
    cuda = torch.cuda.is_available() and "cuda" in devices
    if gradients:
        compare_gradients(gradients, "cuda" if cuda else "cpu")
        return
    first = Job(
        geometry="SD 1.5", device="cpu", side=side, steps=steps, rounds=rounds, batch=batch,
        half=half, memory=memory,
    )  # fmt: skip
    names = models.split(",")
    jobs = [replace(first, geometry=n) for n in names if half or n.startswith("SD 1.5")]
    jobs += [replace(first, geometry=n, device="cuda") for n in names if cuda]
    jobs = [one for one in jobs if one.device in devices.split(",")]
    if quick:
        jobs = [Job(geometry="toy", device="cpu")]
    if in_a_row:
        for one in jobs:
            one = replace(one, what="growth", decoder=decoders.split(",")[0])
            after = measured(one)
            more = after[-1] - after[1]
            typer.echo(f"{one.geometry}, {one.device}: {more:+.1f} MiB from the second image on")
            keep({**asdict(one), "held": after, "growth": more}, out)
        return
    if by_exact:
        for one in jobs:
            one = replace(one, what="exact", decoder="vae")
            found = measured(one)
            before, after = found["mebibytes"]
            above = (after - before) / 1024
            typer.echo(f"{one.geometry}, {one.device}: {above:+.2f} GiB, {found['chose']}")
            keep({**asdict(one), **found, "above": above}, out)
        return
    heads = "model", "on", "decoder", "time", "processor", "memory", "a picture", "at most"
    typer.echo(" | ".join(f"{head:{width}s}" for head, width in zip(heads, WIDTHS, strict=True)))
    for one in jobs:
        for row in rows(one, decoders.split(",")):
            typer.echo(line(row))
            keep(row, out)


if __name__ == "__main__":
    typer.run(main)
