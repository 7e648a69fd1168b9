"""The page of all figures, docs/figures.md, from the JSON files that the benchmarks keep.

    python -m benchmarks.figures            # write docs/figures.md

Nothing is measured here. Figures that were measured with other weights than those of this tree are
not shown. The end of the section names them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.gains import Row
from clipguide import load_clip, mini
from clipguide.retrieval.maintenance import ONE_GRAPH
from training.evaluate.ledger import FIGURES, NAMES, Ledger, fingerprint

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "figures.md"
HEAD = """# Figures

`python -m benchmarks.figures` makes this page from the JSON files in `benchmarks/` and `training/`.
Each section names the script that measures it. Figures that were measured with earlier weights are
not shown, except in the last section.

Three pages have figures of their own: [Comparison with other programs](peers.md),
[Time and memory](memory.md), [Supported pipelines and samplers](support.md).
"""
NONE_YET = "There are no figures yet for the present models."


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
    for one in Ledger(FIGURES).figures.values():
        model, _, what = one.key.partition(": ")
        if model not in weights:  # the referee is not shipped
            continue
        shipped = {name: one.weights[name] for name in one.weights if name in weights}
        if any(weights[name] != digest for name, digest in shipped.items()):
            old.add(model)
            continue
        value = share(one.value, 1) if one.unit == "%" else f"{one.value:.2f} {one.unit}".strip()
        target, met = one.bar or "–", {True: "yes", False: "no", None: ""}[one.met()]
        rows.append((model, NAMES.get(what, what), value, target, met, one.n, one.date))
    met = [row[4] for row in rows if row[4]]
    cards = ", ".join(
        f"[{name}](../clipguide/mini/{name}/README.md)"
        for name in mini.MODELS
    )
    said = (
        f"`python -m training.evaluate all` measures them. The model cards have notes on each "
        f"figure: {cards}. "
        "The *referee* is a CLIP that is not in the package: it neither steers nor selects. "
        "\"Top-5\" is the share of images whose right name is among the first five. The feature "
        "distance is that between an image and its reconstruction by the autoencoder, in the "
        "features of EfficientNet-Lite0. Variety is the mean distance between eight images of one "
        "prompt, by the referee. \"Other languages\" compares texts only: it is the share of names "
        "in 15 other languages whose English name is among the five nearest of all English names. "
        f"{_of_reviewers()} "
        "A target is what the authors aim at: "
        f"{met.count('yes')} of the {len(met)} targets are met."
    )
    head = ("model", "figure", "measured", "target", "met", "n", "date")
    shown = table(head, rows) if rows else ""
    return f"{said}\n\n{shown}\n{_left_out(sorted(old))}"


def _of_reviewers() -> str:
    """Return what the rows about reviewed images mean."""
    eyes = read("training/eyes.json")
    prompts, reviewers = len(eyes["prompts"]), eyes["reviewers"]
    return (
        f"\"Called good by reviewers\": {reviewers} reviewers, AI models that see images, looked "
        f"at the images of {prompts} prompts such as a new user types first, and called each image "
        "good, so-so or bad. The images are "
        "those of `clipguide generate` at seed 0 without other options (`python -m "
        f"training.eyes`). The figure is the share of all {prompts * reviewers} answers. \"Images "
        "with a warning\" says how often the command warns that an image may not show its prompt: "
        "[If the generator does not know a "
        "word](get-started.md#if-the-generator-does-not-know-a-word). `training/unknown.txt` has "
        "the prompts that it cannot draw."
    )


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
        "`python -m benchmarks.canvases minute` measures how often the referee has the right name "
        "among its first five of 1,740, after 60 seconds of one core for each image.\n\n"
    )
    head = ("canvas", "prompts", "among the first five", "steps")
    shown = table(head, rows) if rows else NONE_YET
    return (
        f"{said}{shown}\n{_left_out(old)}\n"
        "Two other figures do not depend on the models. 512 cutouts need "
        f"{memory['512 ÷ 32']:.2f} times the peak memory of 32. With `--tile`, neighbouring pixels "
        f"across the seam between two copies of an image differ {tile['tile']:.2f} times as much "
        "as neighbouring pixels inside the image. Without it, they differ "
        f"{tile['none']:.2f} times as much (mean of {tile['pictures']} images).\n"
    )


COLUMNS = ("cost", "gain, 10⁻³", "top-5", "better", "worse by 2 s.e.", "diversity")  # of a table


def steering() -> str:
    """Return the section of what steering gains."""
    path = ROOT / "benchmarks" / "steering.json"
    data = read("benchmarks/steering.json") if path.exists() else {}
    said = (
        "`python -m benchmarks.steering` draws prompts in many ways, with four seeds each. The "
        "referee scores the images. "
    )
    if not current(data.get("models", {})):
        return f"{said}\n\n{NONE_YET}\n"
    said += (
        f"So far it has drawn {data['prompts']} of 200 prompts, so small differences mean nothing. "
        "Cost is the time for one image, divided by that of plain sampling with 30 steps. "
        '"best of" keeps the sample that guide and judge together score highest. "by both" is '
        '`--best-of` of the command, which draws in batches. "community" is the algorithm of '
        "`clip_guided_stable_diffusion`, at its scale. "
        '"judged" is with the judge that eases steering, as on the command line. "default" is '
        f"`clipguide generate` without options: the best of {mini.CANDIDATES} by both, with "
        f"{mini.STEPS} steps.\n\n"
    )
    ranked = sorted(data["rows"], key=lambda row: row["cost"])
    every = table(
        ("settings", "prompts", *COLUMNS), [_way(row, row["prompts"]) for row in ranked]
    )
    rows = [
        (budget, Row(**row).kind, *_way(row))
        for budget, best in data["budgets"].items()
        for row in best
    ]
    return (
        f"{said}{every}\n\n"
        "For each budget, the settings of a method are selected on one half of the prompts and "
        "measured on the other half:\n\n"
        f"{table(('budget', 'method', 'settings', *COLUMNS), rows)}\n\n"
        f"{_of_auto(data['auto'])}\n"
        f"{_of_fewer(data['fewer'], data['versus'])}\n"
        f"{_of_classes(data['classes'])}\n{_of_judge(data['judge'])}"
    )


def _of_fewer(rows: list[dict], pairs: list[dict]) -> str:
    """Return the ways that were drawn for fewer prompts, and those of other programs beside ours.
    """
    ranked = sorted(rows, key=lambda row: row["cost"])
    said = [
        "Some ways were drawn for fewer prompts. These are all ways on the prompts that those have:"
        f"\n\n{table(('settings', 'prompts', *COLUMNS), [_way(r, r['prompts']) for r in ranked])}"
    ]
    cells = [
        (
            pair["peer"],
            pair["prompts"],
            f"{pair['peer_cost']:.2f}",
            _gain(pair["peer_gain"], pair["peer_error"]),
            " or ".join(pair["ours"]),
            f"{pair['cost']:.2f}",
            _gain(pair["gain"], pair["error"]),
            f"{pair['gain'] / pair['peer_gain']:.2f}",
        )
        for pair in pairs
    ]
    head = ("other program", "prompts", "cost", "gain, 10⁻³", "ours", "cost", "gain, 10⁻³", "ratio")
    said.append(
        "Another program's algorithm, beside the settings of ours that gain most within its cost. "
        "Each half of the prompts selects our settings for the other half. The ratio is that of "
        f"the gains:\n\n{table(head, cells)}"
    )
    return "\n\n".join(text for text, shown in zip(said, (rows, pairs)) if shown) + "\n"


def _of_auto(found: dict[str, list]) -> str:
    """Return what `auto` reaches, a row for each budget."""
    rows = [(budget, settings, f"{ratio:.2f}") for budget, (settings, ratio) in found.items()]
    head = ("budget", "chosen by `auto`", "its gain, divided by the best")
    return (
        "With the embedded generator, `auto` knows the methods `shortcut`, `best-of` and `drafts`, "
        "and fewer steps. Its table, made of the one half of the "
        "prompts, chooses for the other half. The best is the method in the table above with the "
        f"highest gain on the first half:\n\n{table(head, rows)}\n"
    )


def _of_classes(found: dict[str, dict]) -> str:
    """Return what settings gain for each class of objects."""
    rows = [
        (settings, name, one["prompts"], _gain(one["gain"], one["error"]))
        for settings, classes in found.items()
        for name, one in classes.items()
    ]
    head = ("settings", "class", "prompts", "gain, 10⁻³")
    return (
        "The gain by class, of two settings: the default, and the one that gains most for at most "
        "four plain samples:\n\n"
        f"{table(head, rows)}\n"
    )


def _gain(gain: float, error: float | None) -> str:
    """Return a gain with its standard error, if it has one."""
    return f"{1000 * gain:+.1f}" + ("" if error is None else f" ± {1000 * error:.1f}")


def _of_judge(seen: dict | None) -> str:
    """Return how often the judge sees that the guide was fooled."""
    if seen is None:
        return ""
    return (
        "Of images that `shortcut` steered, the guide scores some higher and the referee lower "
        "than the image of the same seed without steering. On one half of the prompts, there are "
        f"{seen['fooled']} such images, and {seen['sound']} that neither scores lower. The judge's "
        f"score fell by more than {seen['threshold']:.3f} in {share(seen['caught'])} of the "
        f"former and in {share(seen['false'], 1)} of the latter. This threshold is from the other "
        "half, where it is passed by 5 % of the latter.\n"
    )


def _way(row: dict, *more: object) -> tuple[object, ...]:
    """Return the cells of a way of steering; `more` follow its name."""
    return (
        Row(**row).name,
        *more,
        f"{row['cost']:.2f}",
        _gain(row["gain"], row["error"]),
        share(row["top5"], 1),
        share(row["better"]),
        share(row["worse"], 1),
        f"{row['spread']:.3f}",
    )


def current(models: dict[str, str]) -> bool:
    """Return whether a figure belongs to the models of this tree. The referee is not one of them.
    """
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
    head = ("CLIP", "images", "n", "labels", "rejected rightly", "rejected wrongly")
    return (
        "`python -m benchmarks.none_of_these` measures `classify --none`. \"Rejected rightly\" is "
        "the share of the images without any of the labels that get the answer \"none of these\". "
        "\"Rejected wrongly\" is the share of the images with one of the labels that get this "
        "answer too. The threshold of each row is set for about 5 % of wrong rejections.\n\n"
        + table(head, rows)
        + f"\n{_left_out(old)}"
    )


def vectors(data: dict) -> str:
    """Return the table of searches among synthetic embeddings.

    Sizes below ONE_GRAPH are left out: they were measured with cells, and `index` makes a graph.
    """
    rows = [
        (
            f"{one['count']:,}",
            name,
            *(one[name][key] for key in ("effort", "recall@10", "p50 ms", "p99 ms")),
            one[name]["p50 processor ms"],
        )
        for key, one in sorted(data.items(), key=lambda item: item[1].get("count", 0))
        if key.startswith("vectors") and one["count"] >= ONE_GRAPH
        for name in one
        if isinstance(one[name], dict)
    ]
    head = ("embeddings", "program and query", "searched", "recall@10", "ms", "ms, p99")
    return table((*head, "ms of the processor"), rows)


def beside(data: dict) -> str:
    """Return the sentences about the peers of `vectors`: how many times as long clipguide takes."""
    said = [
        f"{ratio:g} times that of {name.removeprefix('clipguide ÷ ')}"
        for one in data.values()
        if one.get("count", 0) >= ONE_GRAPH
        for name, ratio in one.items()
        if name.startswith("clipguide ÷ ")
    ]
    if not said:
        return ""
    return (
        "\n\nfaiss and usearch keep all embeddings in memory and return numbers of rows; "
        "clipguide reads from disk and returns columns and thumbnails. Each has the least effort "
        "of those tried that reaches a recall of 0.95. By the processor, the median time of "
        "clipguide is "
        + ", ".join(said)
        + "."
    )


def span(overhead: dict) -> str:
    """Return the smallest and the largest ratio of the rounds, if they are known."""
    rounds = overhead.get("ratio, rounds")
    return f" ({rounds[0]:.2f} to {rounds[-1]:.2f} over {len(rounds)} rounds)" if rounds else ""


def search() -> str:
    """Return the section of search."""
    data = read("benchmarks/search.json")
    photographs, names, warm = (
        data[key] for key in ("photographs", "listing", "search from a warm disk")
    )
    return (
        "Two scripts measure this section: `python -m benchmarks.vectors` the table, and `python "
        f"-m benchmarks.search` the rest. The second one searches {photographs['photographs']} "
        f"photographs with 10 queries and {photographs['clip']}. The right photograph is among "
        f"the first five results for {photographs['among five']} queries, and in first place for "
        f"{photographs['first']} of them.\n\n"
        "The table is for synthetic embeddings of 512 numbers. The ten nearest are searched, one "
        "query at a time, on one processor. The time includes "
        "reading columns and thumbnails from disk. \"Cold\" means the first 100 searches, when "
        "nothing of the index is in the disk cache. "
        f"From {ONE_GRAPH:,} images, `clipguide index` builds an IVF index, which divides the "
        "embeddings into *cells*. A search reads only the cells that are nearest to the query. "
        f"Below {ONE_GRAPH:,} images, it builds a graph (HNSW) instead: "
        "`benchmarks/README.md` has its recall and time.\n\n"
        + vectors(data)
        + beside(data)
        + "\n\nIndexing takes "
        + ", and ".join(
            f"{one['ratio']:.2f} times as long as embedding alone{span(one)} with "
            f"{key.removeprefix('overhead ')}, which embeds "
            f"{one['pictures'] / one['embedding alone, s']:.0f} images per second on "
            f"{one['processors']} processor{'s' * (one['processors'] > 1)}"
            for key, one in data.items()
            if key.startswith("overhead")
        )
        + f".\n\nA `clipguide search` with mini takes {warm['processor s']} s of processor time "
        f"if its files are in the disk cache. Imports take {warm['imports, %']} % of the time: "
        + ", ".join(f"{name} {share} %" for name, share in warm["of these"].items())
        + ".\n\nWhile it lists files, the process that starts `index --engine ray` needs at most "
        "this much memory: "
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
        "`python -m benchmarks.embedding` reads files and embeds them, on "
        f"{odd['processors']} processors without a GPU. The files are JPEGs of 512 x 512 pixels. "
        "The baseline is a loop over a PyTorch "
        "DataLoader. \"One at a time\" is a loop that reads and embeds one image after the other. "
        "`fast` decodes JPEGs at a smaller size. `bf16` computes in bfloat16. The modes ran in "
        "turn, in several rounds. \"Images per second\" is the median of the rounds. The last "
        "column is the median of the ratios within each round, so it is not the ratio of the two "
        "medians.\n\n"
        + table(("CLIP", "mode", "images per second", "÷ DataLoader"), rows)
        + f"\n\nOver {memory['pictures']:,} images the process takes "
        f"{memory['settled MB']} MB after the start, and {memory['highest MB']} MB at most. Of "
        f"{odd['files']} damaged or unusual files, {odd['unreadable']} cannot be read. Each of "
        "them is reported once.\n"
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
            "accuracy on 50 concepts of a style that mini was not trained on, from 8 images of "
            "each",
            f"{share(few['ours'], 1)} by `finetune`, {share(few['probe'], 1)} by a linear probe, "
            f"{share(few['tip-adapter'], 1)} by Tip-Adapter, {share(few['zero-shot'], 1)} "
            f"zero-shot ({data['few']['seeds'][0]['test pictures']} test images, one draw)",
        ),
        (
            "trained on half of OpenMoji's concepts, tested on the other half, among 1,740 "
            "names",
            f"top-1 {share(before, 1)} before, {share(after, 1)} after; retention "
            f"{share(kept[0], 1)} before, {share(kept[1], 1)} after",
        ),
        (
            f"comparison with open_clip's training loop, {peer['model']}, {peer['steps']} steps",
            f"the losses differ by {peer['largest difference of a loss']:.1g} at most; clipguide "
            f"is {peer['their time / ours']:.2f} times as fast",
        ),
        (
            "gradients in chunks (GradCache)",
            f"a batch of 4,096 in chunks of 16 needs {cache['memory']:.2f} times the memory of a "
            f"batch of 256 in such chunks; a batch of 256 takes {cache['time']:.2f} times as long "
            "in chunks as without chunks",
        ),
        ("time not spent waiting for images", share(data["data"]["in the model"], 1)),
    ]
    said = (
        "`python -m benchmarks.finetune` measures these on one core, while another program uses "
        "the second core."
    )
    return f"{said}\n\n{table(('what', 'measured'), rows)}\n"


def guiding() -> str:
    """Return the section of a guide made by `finetune --for-guiding`."""
    data = read("training/guiding.json")
    names = {"guiding": "after 40 minutes", "mini": "guide that was shipped then"}
    rows = [
        (what, *(share(data[name][what], 1) for name in names))
        for what in ("referee's top-5", "held-out drawings, top-1")
    ]
    concepts = data["mini"]["concepts"]
    return (
        "This section shows what `finetune --for-guiding` reaches in 40 minutes of one core "
        "(`python -m training.guiding`). The run started from an earlier version of mini's guide "
        "that had not yet been trained to be robust. The last column is the guide that the package "
        "contained at that time, not the present one. For the first row, the gradient of the guide "
        f"alone drew {concepts} concepts. The row says how often the referee names them among its "
        "first five of 1,740 names. Its standard error is about 5 percentage points.\n\n"
        + table(("what", *names.values()), rows)
        + "\n"
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
