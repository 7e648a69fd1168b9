"""The page of all figures, docs/figures.md, from the JSON files that the benchmarks keep.

    python -m benchmarks.figures            # write docs/figures.md

Nothing is measured here. A figure of weights that have changed since is left out, and named at the
end of its section, so that the page is never of another version than the models beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from clipguide import load_clip, mini
from training.evaluate.ledger import fingerprint

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "figures.md"
USEARCH = "usearch HNSW"
HEAD = """# Figures

`python -m benchmarks.figures` makes this page from the JSON files in `benchmarks/` and `training/`.
Each section names the script that measures it. A figure of earlier weights is left out.

Figures that have pages of their own: [Beside other programs](peers.md),
[Time and memory](memory.md), [Supported pipelines and samplers](support.md).
"""


def read(place: str) -> dict:
    """Return a JSON file of the repository."""
    return json.loads((ROOT / place).read_text(encoding="utf-8"))


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def share(value: float, digits: int = 0) -> str:
    """Return a share in [0, 1] as a percentage."""
    return f"{100 * value:.{digits}f} %"


def embedded() -> str:
    """Return the section of the embedded models."""
    weights = {name: fingerprint(mini.path(name)) for name in mini.MODELS}
    rows, old = [], set()
    for one in read("training/figures.json")["figures"]:
        model, _, what = one["key"].partition(": ")
        if model not in weights:  # the referee is not shipped
            continue
        shipped = {name: one["weights"][name] for name in one["weights"] if name in weights}
        if any(weights[name] != digest for name, digest in shipped.items()):
            old.add(model)
            continue
        is_share = one["unit"] == "%"
        value = share(one["value"], 1) if is_share else f"{one['value']:.2f} {one['unit']}".strip()
        rows.append((model, what, value, one["bar"] or "–", one["n"], one["date"]))
    said = "`python -m training.evaluate all` measures them. Their cards explain each."
    shown = table(("model", "figure", "measured", "bar", "n", "date"), rows) if rows else ""
    return f"{said}\n\n{shown}\n{_left_out(sorted(old))}"


def canvases() -> str:
    """Return the section of the loop's canvases."""
    data, rows, old = read("benchmarks/canvases.json"), [], []
    for name, one in data.items():
        if name.startswith("minute "):
            canvas = name.removeprefix("minute ")
            if not current(one.get("models", {})):
                old.append(canvas)
                continue
            rows.append((canvas, one["prompts"], share(one["top5"]), f"{one['steps']:.0f}"))
    memory, tile = data["memory"], data["tile"]
    said = (
        "`python -m benchmarks.canvases minute`: how often a CLIP that took no part has the thing "
        "among its first five of 1,740 names, after 60 seconds of one core an image.\n\n"
    )
    shown = table(("canvas", "prompts", "among the first five", "steps"), rows) if rows else (
        "This is being measured on the present models."
    )
    return (
        f"{said}{shown}\n{_left_out(old)}\n"
        f"Peak memory of 512 cutouts ÷ that of 32: {memory['512 ÷ 32']:.2f}. The step "
        f"across the edge of a tile ÷ the steps inside it: {tile['tile']:.2f} with `--tile`, "
        f"{tile['none']:.2f} without (mean of {tile['pictures']} images).\n"
    )


def steering() -> str:
    """Return the section of what steering gains."""
    said = (
        "`python -m benchmarks.steering`: 200 prompts, four seeds each, by a CLIP that took no "
        "part. Cost is that of an image ÷ plain sampling's. Of each budget, a method's way is "
        "chosen on one half of the prompts and shown on the other.\n\n"
    )
    path = ROOT / "benchmarks" / "steering.json"
    data = read("benchmarks/steering.json") if path.exists() else {}
    if not current(data.get("models", {})):
        return f"{said}This is being measured on the present models.\n"
    heads = ("budget", "method", "way", "cost", "gain, 10⁻³", "top-5", "better", "worse by 2 s.e.",
             "diversity")  # fmt: skip
    rows = []
    for budget, best in data["budgets"].items():
        for row in best:
            many = f", best of {row['best_of']}" if row["best_of"] > 1 else ""
            gain = f"{1000 * row['gain']:+.1f} ± {1000 * row['error']:.1f}"
            rows.append(
                (
                    budget,
                    "plain" if row["way"] == "plain" else row["method"],
                    row["way"] + many,
                    f"{row['cost']:.2f}",
                    gain,
                    share(row["top5"], 1),
                    share(row["better"]),
                    share(row["worse"], 1),
                    f"{row['spread']:.3f}",
                )
            )
    return said + table(heads, rows) + "\n"


def current(models: dict[str, str]) -> bool:
    """Whether a figure is of the models of this tree; the referee is not in it."""
    shipped = {name: digest for name, digest in models.items() if name != "referee"}
    known = all(name in mini.MODELS for name in shipped)
    return bool(shipped) and known and all(
        fingerprint(mini.path(name)) == digest for name, digest in shipped.items()
    )


def none_of_these() -> str:
    """Return the section of "none of these", by the score that the package uses."""
    data, rows, old = read("benchmarks/none_of_these.json"), [], []
    for name, one in data.items():
        if one["fingerprint"] != load_clip(name).fingerprint:
            old.append(name)
            continue
        for kind in ("drawings", "photographs"):
            for row in one[kind]["rows"]:
                if row["score"] == "log odds, sharpness 1":
                    caught, false = share(row["caught"]), share(row["false"], 1)
                    rows.append((name, kind, one[kind]["pictures"], row["labels"], caught, false))
    head = ("CLIP", "images", "n", "labels", "told as none", "of images that show a label")
    return (
        "`python -m benchmarks.none_of_these`: how many images that show none of the labels "
        "`classify --none` turns away, at about 5 % of the images that do show one. Each row has "
        "a threshold of its own.\n\n" + table(head, rows) + f"\n{_left_out(old)}"
    )


def vectors(data: dict) -> str:
    """Return the table of searches among made vectors."""
    rows = [
        (
            f"{one['count']:,}",
            name,
            *(one[name][key] for key in ("effort", "recall@10", "p50 ms", "p99 ms")),
            f"{one[name]['p50 ms'] / one[USEARCH]['p50 ms']:.1f}" if USEARCH in one else "",
        )
        for key, one in sorted(data.items(), key=lambda item: item[1].get("count", 0))
        if key.startswith("vectors")
        for name in one
        if isinstance(one[name], dict)
    ]
    return table(("vectors", "index", "effort", "recall@10", "ms", "ms, p99", "÷ usearch"), rows)


def search() -> str:
    """Return the section of search."""
    data = read("benchmarks/search.json")
    photographs, names, warm = (
        data[key] for key in ("photographs", "listing", "search from a warm disk")
    )
    return (
        f"Fifty photographs, ten queries, by {photographs['clip']}: "
        f"{photographs['among five']} found among the first five, {photographs['first']} of them "
        "first (`photographs`).\n\n"
        "Made vectors of 512 numbers (`python -m benchmarks.vectors`): the ten nearest, one query "
        "at a time on one processor. clipguide's time is from a query to an answer with columns "
        "and thumbnails from disk; the others have the vectors in memory, and give numbers. "
        "Images ask, but where texts do. Effort: cells looked into, or vectors a walk keeps. "
        "The rows of 100,000 are of the former, harder vectors, and clipguide's of cells, in whose "
        "place it makes a graph below 250,000 now (`benchmarks/README.md`). Another program "
        "disturbed the million's images and cold: they took 5.9 and 9.0 ms of the processor.\n\n"
        + vectors(data)
        + "\n\nIndexing ÷ embedding alone (`overhead`), by the clock: "
        + ", ".join(
            f"{one['ratio']:.2f} with {key.removeprefix('overhead ')}"
            for key, one in data.items()
            if key.startswith("overhead")
        )
        + f".\n\n`clipguide search` with mini from a warm disk (`warm`): {warm['processor s']} s "
        f"of the processor, of which imports take {warm['imports, %']} % ("
        + ", ".join(f"{name} {share}" for name, share in warm["of these"].items())
        + ").\n\nListing (`listing`), peak memory of the driver: "
        + ", ".join(f"{row['MiB']} MiB for {row['names']:,} names" for row in names["rows"])
        + ".\n"
    )


def embedding() -> str:
    """Return the section of the engine."""
    data, rows = read("benchmarks/embedding.json"), []
    for model in ("mini", "vit-b-32"):
        for way, one in data[f"speed {model}"]["rows"].items():
            rows.append((model, way, f"{one['pictures a second']:.0f}", f"{one['ratio']:.2f}"))
    odd, memory = data["odd files"], data["memory"]
    return (
        "`python -m benchmarks.embedding speed`: files to embeddings, beside a PyTorch DataLoader "
        f"loop, on {odd['processors']} processors without a GPU. `fast` decodes JPEGs at a "
        "smaller size, `bf16` computes in bfloat16.\n\n"
        + table(("CLIP", "way", "images a second", "÷ DataLoader"), rows)
        + f"\n\nMemory over {memory['pictures']:,} images: {memory['settled MB']} MB when settled, "
        f"{memory['highest MB']} MB at most (`memory`). Of {odd['files']} odd files, "
        f"{odd['unreadable']} cannot be read, and each is named once (`odd`).\n"
    )


def finetuning() -> str:
    """Return the section of fine-tuning."""
    data = read("benchmarks/finetune.json")
    few, style = data["few"]["mean"], data["style openmoji"]
    cache, peer = data["cache"], data["peer"]
    before, after = style["target: top-1"]
    kept = style["retention: top-1"]
    rows = [
        (
            "8 images of each of 50 concepts, of a style that mini never saw (`few`)",
            f"{share(few['ours'], 1)} by `finetune`, {share(few['probe'], 1)} by a linear probe, "
            f"{share(few['tip-adapter'], 1)} by Tip-Adapter, {share(few['zero-shot'], 1)} "
            f"zero-shot ({data['few']['seeds'][0]['test pictures']} test images, one draw)",
        ),
        (
            "half of OpenMoji's concepts, tested on the other half, among 1,740 names (`style`)",
            f"top-1 {share(before, 1)} before, {share(after, 1)} after; retention "
            f"{share(kept[0], 1)} before, {share(kept[1], 1)} after",
        ),
        (
            f"beside open_clip's own training loop, {peer['model']}, {peer['steps']} steps "
            "(`peer`)",
            f"largest difference of a loss {peer['largest difference of a loss']:.1g}; "
            f"{peer['their time / ours']:.2f} times its speed",
        ),
        (
            "GradCache (`cache`)",
            f"memory of a batch of 4,096 in chunks of 16 ÷ that of 256: {cache['memory']:.2f}; "
            f"time of 256 in chunks ÷ at once: {cache['time']:.2f}",
        ),
        ("time not spent waiting for images (`data`)", share(data["data"]["in the model"], 1)),
    ]
    said = "`python -m benchmarks.finetune`, on one core, with another job on the other."
    return f"{said}\n\n{table(('what', 'measured'), rows)}\n"


def guiding() -> str:
    """Return the section of a guide made by `finetune --for-guiding`."""
    data = read("training/guiding.json")
    names = {"guiding": "after 40 minutes", "mini": "the shipped guide then"}
    rows = [
        (what, *(share(data[name][what], 1) for name in names))
        for what in ("referee's top-5", "held-out drawings, top-1")
    ]
    concepts = data["mini"]["concepts"]
    return (
        "`python -m training.guiding train --minutes 40`, then `measure`: mini's guide from before "
        "its robust stage, trained by `--for-guiding`, beside the guide that was shipped at the "
        "time. The first row is how often the referee, a CLIP that is not shipped, has the "
        f"concept among its first five of 1,740 names, of {concepts} that the gradient alone drew. "
        "It is good to about five points.\n\n" + table(("what", *names.values()), rows) + "\n"
    )


def _left_out(names: list[str]) -> str:
    return f"\nNot measured on the present weights: {', '.join(names)}.\n" if names else ""


SECTIONS: dict[str, Callable[[], str]] = {
    "Embedded models": embedded,
    "Steering": steering,
    "Canvases": canvases,
    "None of these": none_of_these,
    "Search": search,
    "Embedding": embedding,
    "Fine-tuning": finetuning,
    "A guide made in 40 minutes": guiding,
}


def page() -> str:
    """Return docs/figures.md."""
    return "\n".join([HEAD, *(f"## {name}\n\n{make()}" for name, make in SECTIONS.items())])


if __name__ == "__main__":
    DOCUMENT.write_text(page(), encoding="utf-8")
