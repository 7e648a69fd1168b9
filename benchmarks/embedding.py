"""Measure the speed, memory and robustness of embedding files.

    python -m benchmarks.embedding speed              # ViT-B/32's size, ÷ open_clip's DataLoader
    python -m benchmarks.embedding speed --clip mini
    python -m benchmarks.embedding memory             # 100,000 small images, about 20 minutes
    python -m benchmarks.embedding odd                # 300 files that break readers

Each adds its figures to benchmarks/embedding.json. The images are synthetic: JPEGs of 512 pixels,
with as much detail as photographs have (about 80 KB each). The baseline is what users of open_clip
write: a DataLoader over its transform with two workers, batches of 32, float32, inference mode. A
loop of one image at a time is measured too. The modes run in turn, in several rounds. A ratio is
the median over the rounds of our images per second divided by those of the baseline in the same
round.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image

from benchmarks.odd_files import make
from clipguide import load_clip
from clipguide.cli.console import one_line
from clipguide.clip import Clip
from clipguide.engine import Cache, Engine, encoder, find

OUT = Path(__file__).with_suffix(".json")
BATCH, WORKERS = 32, 2
SETTLED = 5_000  # images after which the memory should not grow
app = typer.Typer(add_completion=False, help=__doc__)


@contextmanager
def photographs(count: int, side: int = 512) -> Iterator[list[Path]]:
    """Yield JPEGs with edges, gradients and grain, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i:06}.jpg" for i in range(count)]
        random = np.random.default_rng(0)
        for path in paths:
            layers = sum(
                np.asarray(
                    Image.fromarray(
                        random.normal(0, 1, (n, n, 3)).astype(np.float32)[..., 0]
                    ).resize((side, side), Image.Resampling.BICUBIC)
                )[..., None]
                * random.uniform(0.5, 1, 3)
                * scale
                for n, scale in ((4, 60), (16, 30), (64, 15), (side, 6))
            )
            Image.fromarray((128 + layers).clip(0, 255).astype(np.uint8)).save(path, quality=90)
        yield paths


def vit_b_32() -> Clip:
    """Return a CLIP with the sizes of ViT-B/32 and random weights."""
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms("ViT-B-32")
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    return Clip(model, transform=transform, tokenizer=tokenizer, name="ViT-B-32")


class Files(torch.utils.data.Dataset):
    """The data set that users of open_clip write."""

    def __init__(self, paths: Sequence[Path], transform: Callable) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[index]))


@torch.inference_mode()
def peer(model: torch.nn.Module, transform: Callable, paths: Sequence[Path], batch: int) -> None:
    """Return a DataLoader with two workers. With a batch of 1, it reads in the loop itself."""
    loader = torch.utils.data.DataLoader(
        Files(paths, transform), batch_size=batch, num_workers=WORKERS if batch > 1 else 0
    )
    for image in loader:
        model.encode_image(image, normalize=True)


def rates(ways: dict[str, Callable[[Sequence[Path]], None]], paths, rounds: int) -> dict:
    """Return the images per second of each mode in each round. The modes run in turn. A first round
    does not count."""
    found = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            some = paths[: len(paths) // 4] if name == "one at a time" else paths
            begin = time.perf_counter()
            way(some)
            if number:
                found[name].append(len(some) / (time.perf_counter() - begin))
    return found


def save(key: str, facts: dict) -> None:
    """Put a section into embedding.json."""
    known = json.loads(OUT.read_text()) if OUT.exists() else {}
    versions = {"torch": torch.__version__, "processors": os.cpu_count()}
    OUT.write_text(json.dumps({**known, key: {**versions, **facts}}, indent=1) + "\n")


@app.command()
def speed(
    clip: Annotated[str, typer.Option(help="vit-b-32 (random weights), or mini.")] = "vit-b-32",
    pictures: Annotated[int, typer.Option(min=8)] = 128,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    holds: Annotated[
        float,
        typer.Option(
            help="The change of a cosine up to which bf16 is kept: random weights need "
            "more than the engine's 0.001, at the same speed."
        ),
    ] = 1e-3,
    keep: bool = True,
) -> dict:
    """Measure images per second, from file to embedding, divided by those of the baseline; and of a
    second pass, from the cache."""
    import open_clip

    encoder.HOLDS = holds
    ours = vit_b_32() if clip == "vit-b-32" else load_clip(clip)
    if clip == "vit-b-32":
        model, transform = ours._model, ours._transform
    else:  # as open_clip loads it: batch norms as they were trained
        from clipguide import mini

        source = f"local-dir:{mini.path({'mini': 'guide', 'mini-judge': 'judge'}[clip])}"
        model, transform = open_clip.create_model_from_pretrained(source)
        model.eval()

    def engine(**settings) -> Callable:
        def run(paths: Sequence[Path]) -> None:
            embedder = engines.setdefault(str(settings), Engine(ours, **settings))
            assert all(row.error is None for row in embedder.embed(paths))

        return run

    engines: dict[str, Engine] = {}
    ways = {
        "DataLoader": lambda paths: peer(model, transform, paths, BATCH),
        "one at a time": lambda paths: peer(model, transform, paths, 1),
        "float32": engine(),
        "fast": engine(fast=True),
        "bf16": engine(bf16=True),
        "fast, bf16": engine(fast=True, bf16=True),
    }
    with photographs(pictures) as paths, tempfile.TemporaryDirectory() as folder:
        found = rates(ways, paths, rounds)
        second = _second_pass(ours, paths, Path(folder) / "cache.sqlite")
        change = _change(engines, paths)
    table = {
        name: {
            "pictures a second": statistics.median(values),
            "ratio": statistics.median(a / b for a, b in zip(values, found["DataLoader"])),
        }
        for name, values in found.items()
    }
    for name, row in table.items():
        typer.echo(f"{name:14} {row['pictures a second']:8.1f} a second   {row['ratio']:5.2f}")
    typer.echo(f"second pass ÷ first: {second:.0f}   largest change of a cosine: {change}")
    held = {name: e.encoder.half is not None for name, e in engines.items()}
    typer.echo(f"in bfloat16: {[name for name, half in held.items() if half]}")
    facts = {
        "rows": table,
        "holds": holds,
        "bfloat16": held,
        "second pass": second,
        "change of a cosine": change,
    }
    if keep:
        save(f"speed {clip}", {"pictures": pictures, "rounds": rounds, **facts})
    return facts


def _second_pass(clip: Clip, paths: Sequence[Path], cache: Path) -> float:
    for path in paths:  # as if they had been there for a while
        os.utime(path, (time.time() - 60,) * 2)
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        list(Engine(clip, cache=Cache(cache)).embed(paths))
        seconds.append(time.perf_counter() - begin)
    return seconds[0] / seconds[1]


def _change(engines: dict[str, Engine], paths: Sequence[Path]) -> dict[str, float]:
    """Return the largest change of a cosine similarity with eight texts, of each mode against
    float32."""
    some, first = paths[:32], next(iter(engines.values()))
    text_ND = first.clip.encode_text(["a cat", "a car", "a tree", "a face", "food", "a house"])
    cosines = {
        name: torch.stack([row.unit_D for row in engine.embed(some)]) @ text_ND.T
        for name, engine in engines.items()
    }
    exact = cosines["{}"]
    return {k: (v - exact).abs().max().item() for k, v in cosines.items() if k != "{}"}


@app.command()
def memory(
    pictures: Annotated[int, typer.Option(min=100)] = 100_000,
    keep: bool = True,
) -> dict:
    """Measure resident memory over many small images: the peak after the first 5,000, divided by
    that at 5,000."""
    settled = min(SETTLED, pictures // 4)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.embedding", "embed-many", folder]
        run = subprocess.run(
            [*command, str(pictures), str(settled)], capture_output=True, text=True, check=True
        )
    facts = json.loads(run.stdout.splitlines()[-1])
    typer.echo(f"{pictures} pictures: {facts['ratio']:.3f} (bar 1.05) of {facts['settled MB']} MB")
    if keep:
        save("memory", facts)
    return facts


@app.command(hidden=True)
def embed_many(folder: Path, pictures: int, settled: int) -> None:
    """Make images, embed them with a cache, and print the memory that was used. It runs in a
    separate process."""
    random = np.random.default_rng(0)
    for i in range(pictures):
        place = folder / f"{i // 1000:03}"
        place.mkdir(exist_ok=True)
        values = random.integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(values).save(place / f"{i:06}.png")
    engine = Engine(load_clip("mini"), cache=Cache(folder / "cache.sqlite"))
    highest, base = 0, 0
    for i, row in enumerate(engine.embed(find([folder]))):
        assert row.error is None, row.error
        if i == settled:
            base = _resident()
        elif i > settled and i % 100 == 0:
            highest = max(highest, _resident())
    facts = {"pictures": pictures, "settled MB": base >> 20, "highest MB": highest >> 20}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps({**facts, "peak MB": peak, "ratio": highest / base}))


def _resident() -> int:
    """Return the resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@app.command()
def odd(files: int = 300, keep: bool = True) -> dict:
    """Run the program on damaged and unusual files: it must survive all, name each once, and exit
    as it should."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "odd"
        readable = make(folder, count=files)
        runs = {}
        for strict in (False, True):
            command = [sys.executable, "-m", "clipguide", "embed", str(folder), "--no-cache"]
            command += ["-o", str(Path(home) / f"{strict}.npz"), *(["--strict"] if strict else [])]
            runs[strict] = subprocess.run(command, capture_output=True, timeout=900)
        written = np.load(Path(home) / "False.npz")["paths"].tolist()
        lines = runs[False].stderr.decode(errors="surrogateescape").splitlines()
        named = Counter(
            path
            for path, works in readable.items()
            if not works
            for line in lines
            if f"{one_line(path)} " in line or f"{one_line(path)}." in line
        )
    bad = {path for path, works in readable.items() if not works}
    facts = {
        "files": len(readable),
        "unreadable": len(bad),
        "named once": sum(named[path] == 1 for path in bad),
        "embedded": len(written),
        "embedded as expected": set(written) == {p for p, works in readable.items() if works},
        "exit": runs[False].returncode,
        "exit with --strict": runs[True].returncode,
        "lines on stderr": len(lines),
        "traceback": any("Traceback" in line for line in lines),
    }
    typer.echo(json.dumps(facts, indent=1))
    if keep:
        save("odd files", facts)
    return facts


if __name__ == "__main__":
    app()
