"""Compare our figures with those of the programs that people publish with.

    python -m venv peers
    peers/bin/pip install clip_benchmark "numpy<2.4" typer pyyaml
    PYTHONPATH=. peers/bin/python -m benchmarks.peers clip-benchmark

    python -m venv peers-old
    peers-old/bin/pip install torchmetrics "transformers<5" typer
    python -m benchmarks.peers torchmetrics --python peers-old/bin/python

The other programs have their own environments. `clip-benchmark` runs in that of clip_benchmark,
which also has our dependencies. torchmetrics needs an older transformers than ours. `torchmetrics`
therefore runs in our environment, and starts the other half, `torchmetrics-half`, with the Python
of the other environment. Both read the same PNG files, texts and weights. Each command prints a
table, and writes it to benchmarks/peers.json and docs/peers.md. The held-out drawings are used too
if they have been built (`python -m training.data build`).

Shapes: B images, K names, N texts, D of an embedding; 3 channels, H rows, W columns.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "samples" / "pictures"
BUILT = ROOT / "training" / "cache" / "data" / "pictures.npy"
OUT = ROOT / "benchmarks" / "peers.json"
DOCUMENT = ROOT / "docs" / "peers.md"
TEMPLATES = {
    "plain": ("{}",),
    "seven": (
        "{}",
        "a picture of a {}",
        "a drawing of a {}",
        "a bad photo of a {}",
        "a {} in a video game",
        "art of the {}",
        "the small {}",
    ),
}
TASKS = {**TEMPLATES, "retrieval": None}
MODELS = ("mini", "random ViT")
CAPTIONS = ("a {}", "a drawing of a {}", "somebody drew a {} here")  # of a picture in retrieval
RECALLS = (1, 5, 10)
BATCH = 64
VIT_SIZE = 64
CLIP = "openai-clip"  # torchmetrics loads a path only with such a word in it
LONG = (
    "somebody sat down on an ordinary afternoon in the middle of the week with paper, pencils, "
    "a little water and plenty of time, and made, for no reason other than the joy of it, "
    "a picture of a {}"
)
app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)


@dataclass(frozen=True)
class Data:
    """RGB images, all names that they may have, and the name of each. `own` are the texts with
    which retrieval searches for each image, if they are not CAPTIONS of the names."""

    name: str
    pictures: list[Image.Image]
    names: list[str]
    target: list[int]
    own: list[str] | None = None

    @property
    def texts(self) -> list[list[str]]:
        """Return the texts of each image."""
        if self.own is not None:
            return [[text] for text in self.own]
        return [[c.format(self.names[k]) for c in CAPTIONS] for k in self.target]


def folder_data(folder: Path, name: str) -> Data:
    """Return every image of a folder. The name of each is that of its file, without an ImageNet id.
    """
    from clipguide.images import load

    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    said = [
        re.sub(r"^n\d{8}_", "", path.stem).replace("_", " ").replace("-", " ") for path in paths
    ]
    names = sorted(set(said))
    return Data(name, [load(path) for path in paths], names, [names.index(n) for n in said])


def held_out_data() -> Data:
    """Return the drawings that no embedded model was trained on, among all concepts."""
    from training.evaluate.drawings import Drawings

    drawings = Drawings()
    held = drawings.held_out
    pictures = [drawings.picture(d.index) for d in held]
    return Data("held-out drawings", pictures, drawings.concepts, drawings.targets(held).tolist())


def style_data(title: str, *, coloured: bool) -> Data:
    """Return the drawings of a held-out style, the first of each concept, with its name as the
    text; or those with one colour on half of the area, with the text "a {colour} {thing}"."""
    from training.data.colours import dominant_colour
    from training.evaluate.clips import CLEAR
    from training.evaluate.drawings import Drawings

    drawings = Drawings()
    first = {d.concept: d for d in reversed(drawings.tests()[title])}
    found, texts = [], []
    for concept, drawing in sorted(first.items()):
        term, share = dominant_colour(drawings.rgba[drawing.index])
        if not coloured or share >= CLEAR:
            found.append(drawing)
            texts.append(f"a {term} {concept}" if coloured else concept)
    return Data(
        f"{title}, {'a {colour} {thing}' if coloured else 'by name'}",
        [drawings.picture(d.index) for d in found],
        [d.concept for d in found],
        list(range(len(found))),
        own=texts,
    )


def without_twins(data: Data) -> Data:
    """Return the first image of each name. Captions that repeat would tie, and the order of ties is
    arbitrary."""
    first = {k: i for i, k in reversed(list(enumerate(data.target)))}
    places = sorted(first.values())
    names = [data.names[data.target[i]] for i in places]
    own = data.own and [data.own[i] for i in places]
    pictures = [data.pictures[i] for i in places]
    return replace(data, pictures=pictures, names=names, target=list(range(len(names))), own=own)


# ---------------------------------------------------------------------------- our own figures


def accuracies(score_BK: torch.Tensor, target_B: torch.Tensor) -> dict[str, float]:
    """Return top-1, top-5 and the mean recall of the classes that have an image.

    A name is among the first k if fewer than k others score as high: ties count against it. With
    fewer than 5 names, top-5 is NaN.
    """
    higher_B = (score_BK >= score_BK.gather(1, target_B[:, None])).sum(1) - 1
    recalls = [(higher_B[target_B == k] < 1).double().mean() for k in target_B.unique()]
    top5 = int((higher_B < 5).sum()) / len(target_B) if score_BK.shape[1] >= 5 else float("nan")
    return {
        "acc1": int((higher_B < 1).sum()) / len(target_B),
        "acc5": top5,
        "mean_per_class_recall": float(np.mean(recalls)),
    }


def recalls(score_NB: torch.Tensor, image_N: torch.Tensor) -> dict[str, float]:
    """Return recall@k of images by texts and of texts by images, if text n belongs to image_N[n]:
    the share of the queries that find at least one match among the first k."""
    right_NB = image_N[:, None] == torch.arange(score_NB.shape[1])
    found = {}
    for query, score, right in (
        ("image", score_NB, right_NB),
        ("text", score_NB.T, right_NB.T),
    ):
        best = score.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        higher = ((score >= best) & ~right).sum(1)
        for k in RECALLS:
            found[f"{query}_retrieval_recall@{k}"] = (higher < k).float().mean().item()
    return found


# ---------------------------------------------------------------------------- clip_benchmark


class _Loaded(torch.utils.data.Dataset):
    """The data that clip_benchmark reads: transformed images, each with its class or its captions.
    """

    def __init__(self, data: Data, transform: Callable, answers: list) -> None:
        self.classes, self._pictures, self._transform = data.names, data.pictures, transform
        self._answers = answers

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, i: int) -> tuple:
        return self._transform(self._pictures[i]), self._answers[i]


def _collate(batch: list) -> tuple[torch.Tensor, list]:
    images, captions = zip(*batch)
    return torch.stack(images), list(captions)


def write_vit(folder: Path, *, seed: int = 0) -> Path:
    """Write an open_clip folder of a tiny ViT with random weights, a crop, and open_clip's own
    tokenizer."""
    import open_clip
    from safetensors.torch import save_file

    config = {
        "embed_dim": 48,
        "vision_cfg": {
            "image_size": VIT_SIZE,
            "layers": 2,
            "width": 64,
            "head_width": 32,
            "patch_size": 16,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 48,
            "heads": 2,
            "layers": 2,
        },
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**config)
    preprocess = {
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    (folder / "open_clip_config.json").write_text(text)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def theirs(
    folder: Path, data: Data, templates: Sequence[str] | None, *, amp: bool
) -> dict[str, float]:
    """Return clip_benchmark's figures of an open_clip folder: of classification, or without
    templates those of retrieval."""
    from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
    from clip_benchmark.models import load_clip

    model, transform, tokenizer = load_clip("open_clip", f"local-dir:{folder}", None, None, "cpu")
    model.eval()
    if templates:
        loader = torch.utils.data.DataLoader(_Loaded(data, transform, data.target), BATCH)
        said = [template.replace("{}", "{c}") for template in templates]
        return zeroshot_classification.evaluate(
            model, loader, tokenizer, data.names, said, "cpu", amp=amp
        )
    loader = torch.utils.data.DataLoader(
        _Loaded(data, transform, data.texts), BATCH, collate_fn=_collate
    )
    return zeroshot_retrieval.evaluate(
        model, loader, tokenizer, "cpu", amp=amp, recall_k_list=list(RECALLS)
    )


def ours(folder: Path, data: Data, templates: Sequence[str] | None) -> dict[str, float]:
    """Return the same figures by clipguide."""
    from clipguide import load_clip
    from clipguide.zero_shot import Classifier

    clip = load_clip(str(folder))
    image_BD = clip.encode_pictures(data.pictures)
    if templates:
        classifier = Classifier(clip, data.names, templates=templates)
        return accuracies(classifier.cosines(image_BD), torch.tensor(data.target))
    score_NB = clip.similarity(clip.encode_text(sum(data.texts, [])), image_BD)
    count_B = torch.tensor([len(texts) for texts in data.texts])
    return recalls(score_NB, torch.arange(len(image_BD)).repeat_interleave(count_B))


@app.command("clip-benchmark")
def clip_benchmark() -> None:
    """Compare the zero-shot and retrieval figures of clip_benchmark with ours, for the same
    weights."""
    from clipguide import mini

    sets = [folder_data(PICTURES, "samples/pictures")]
    sets += [held_out_data()] if BUILT.exists() else []
    asked = [(every, model, task) for every in sets for model in MODELS for task in TASKS]
    if BUILT.exists():
        styles = [
            style_data(s, coloured=c) for s in ("OpenMoji", "EmojiOne v1") for c in (False, True)
        ]
        asked += [(style, "mini", "retrieval") for style in styles]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folders = {"mini": mini.path("guide"), "random ViT": write_vit(Path(scratch) / "vit")}
        for every, model, task in asked:
            folder, templates = folders[model], TASKS[task]
            data = every if templates else without_twins(every)
            peer = theirs(folder, data, templates, amp=False)
            own = ours(folder, data, templates)
            row = {"data": data.name, "pictures": len(data.pictures), "names": len(data.names)}
            row |= {"model": model, "task": task}
            row |= {"clip_benchmark": peer, "clipguide": own, "equal": peer == own}
            rows.append(row | {"mixed": theirs(folder, data, templates, amp=True)})
            print(data.name, model, task, peer == own, file=sys.stderr, flush=True)
    packages = ("clip_benchmark", "open_clip_torch", "torch", "timm", "transformers", "numpy")
    facts = {"versions": versions(*packages), "rows": rows}
    publish("clip-benchmark", facts, table_of_clip_benchmark)


def table_of_clip_benchmark(found: dict) -> list[str]:
    """Return the lines of a table in Markdown: one figure if both programs agree, otherwise both;
    and those of clip_benchmark in mixed precision."""
    lines = []
    for naming in (True, False):
        rows = [row for row in found["rows"] if ("acc1" in row["clipguide"]) == naming]
        keys = list(rows[0]["clip_benchmark"])
        heads = [_brief(key) for key in keys]
        lines += [f"| data | model | {'templates' if naming else 'task'} | program |"]
        lines[-1] += f" {' | '.join(heads)} |"
        lines.append("|---" * (len(keys) + 4) + "|")
        for row in rows:
            label = f"{row['data']}: {row['pictures']} images, {row['names']} names"
            same = {"both": "clip_benchmark"}
            apart = {"clip_benchmark": "clip_benchmark", "clipguide": "clipguide"}
            shown = (same if row["equal"] else apart) | {"mixed precision": "mixed"}
            for program, key_of in shown.items():
                cells = [f"{row[key_of][key]:.6f}" for key in keys]
                head = f"| {label} | {row['model']} | {row['task']} |"
                lines.append(f"{head} {program} | {' | '.join(cells)} |")
        lines += [""] if naming else []
    return lines


def _brief(key: str) -> str:
    for long, short in (("acc", "top-"), ("mean_per_class", "mean class"), ("_retrieval", "")):
        key = key.replace(long, short)
    return key.replace("_", " ")


# ---------------------------------------------------------------------------- torchmetrics


def write_pairs(folder: Path, side: int) -> dict[str, list[tuple[str, str]]]:
    """Write PNG files and texts, as groups of (file, text): images at the size of the model,
    larger, oblong, and one of them with different texts that are all too long."""
    data = folder_data(PICTURES, "samples/pictures")
    names = [data.names[k] for k in data.target]
    shapes: dict[str, Callable[[Image.Image], Image.Image]] = {
        "own size": lambda p: p.resize((side, side), Image.Resampling.BICUBIC),
        "larger": lambda p: p,
        "oblong": on_sheet,
    }
    groups: dict[str, list[tuple[str, str]]] = {}
    for i, picture in enumerate(data.pictures):
        for shape, change in shapes.items():
            file = f"{shape}-{i}.png"
            change(picture).save(folder / file)
            said = (names[i], names[i - 1])
            groups.setdefault(shape, []).extend((file, text) for text in said)
        long = f"{names[i]} {LONG.format(names[i])}"
        groups.setdefault("one picture, too long texts", []).append(("own size-0.png", long))
    (folder / "pairs.json").write_text(json.dumps(groups))
    return groups


@app.command("torchmetrics-half", hidden=True)
def torchmetrics_half(folder: Path) -> None:
    """Write the CLIPScore of each pair and of each group to scores.json. It runs in the environment
    of torchmetrics."""
    from torchmetrics.functional.multimodal import clip_score
    from torchmetrics.multimodal.clip_score import CLIPScore

    name = str(folder / CLIP)
    metric, found = CLIPScore(model_name_or_path=name), {}
    for group, pairs in json.loads((folder / "pairs.json").read_text()).items():
        files, texts = zip(*pairs)
        arrays = [np.array(Image.open(folder / file)) for file in files]
        images = [torch.from_numpy(array).permute(2, 0, 1) for array in arrays]
        each = [metric(image, text).item() for image, text in zip(images, texts)]
        whole = clip_score(images, list(texts), model_name_or_path=name)
        found[group] = {"each": each, "whole": whole.item()}
    packages = ("torchmetrics", "transformers", "torch", "torchvision", "pillow")
    found = {"versions": versions(*packages), "groups": found}
    (folder / "scores.json").write_text(json.dumps(found))


@app.command()
def torchmetrics(
    python: Annotated[Path, typer.Option(help="The Python of torchmetrics' environment.")],
) -> None:
    """Compare CLIPScore of torchmetrics ÷ 100 with our max(cosine, 0), pair by pair."""
    sys.path.append(str(ROOT / "tests"))
    from conftest import IMAGE_SIZE
    from hf_folder import write_hf_clip
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from clipguide import load_clip

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_hf_clip(folder / CLIP)
        groups = write_pairs(folder, IMAGE_SIZE)
        half = [python.absolute(), Path(__file__), "torchmetrics-half", folder]
        subprocess.run([str(word) for word in half], check=True)
        peer = json.loads((folder / "scores.json").read_text())
        clip = load_clip(str(folder / CLIP))
        by_pillow = CLIPImageProcessorPil.from_pretrained(folder / CLIP)
        rows = []
        for group, pairs in groups.items():
            theirs_B = torch.tensor(peer["groups"][group]["each"]) / 100
            whole = peer["groups"][group]["whole"] / 100
            rows.append(
                {"group": group, **compare(clip, by_pillow, folder, pairs, theirs_B, whole)}
            )
    packages = ("transformers", "torch", "torchvision", "pillow")
    facts = {"versions": peer["versions"], "ours": versions(*packages), "rows": rows}
    publish("torchmetrics", facts, table_of_torchmetrics)


def compare(
    clip,
    by_pillow: Callable,
    folder: Path,
    pairs: Sequence[tuple[str, str]],
    theirs_B: torch.Tensor,
    whole: float,
) -> dict[str, float]:
    """Return the difference between our max(cosine, 0) and the figure of torchmetrics, with the
    checkpoint's transform and with Pillow's processor; and the figure of the group in both orders
    of clamping and averaging."""
    pictures = [Image.open(folder / file).convert("RGB") for file, _ in pairs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of texts that are too long
        text_BD = clip.encode_text([text for _, text in pairs])
    cosine_B = (clip.encode_pictures(pictures) * text_BD).sum(1)
    pixel_B3HW = by_pillow(images=pictures, return_tensors="pt")["pixel_values"]
    own_B3HW = torch.stack([clip.prepare(picture) for picture in pictures])
    std_3 = torch.tensor(clip.preprocess["std"])[:, None, None]
    pillow_B = (clip.encode_prepared(list(pixel_B3HW)) * text_BD).sum(1)
    return {
        "pairs": len(pairs),
        "positive": int((cosine_B > 0).sum()),
        "distinct": len({round(value, 5) for value in theirs_B.tolist()}),
        "distinct of ours": len({round(value, 5) for value in cosine_B.tolist()}),
        "levels": round(((own_B3HW - pixel_B3HW) * std_3).abs().max().item() * 255),
        "difference": (cosine_B.clamp(min=0) - theirs_B).abs().max().item(),
        "difference by Pillow": (pillow_B.clamp(min=0) - theirs_B).abs().max().item(),
        "whole": whole,
        "mean, then clamp": cosine_B.mean().clamp(min=0).item(),
        "clamp, then mean": cosine_B.clamp(min=0).mean().item(),
    }


GROUPS = {  # as the page names them
    "own size": "the model's own size",
    "larger": "160 x 160 pixels",
    "oblong": "a 4:3 canvas",
    "one picture, too long texts": "one image, texts that are too long",
}


def table_of_torchmetrics(found: dict) -> list[str]:
    """Return the lines of a table in Markdown, one for each group."""
    heads = ("pairs", "cosine above 0", "distinct scores: torchmetrics / clipguide")
    heads += ("largest difference", "largest difference of a pixel (of 255)")
    heads += ("largest difference with Pillow's processor", "torchmetrics: all pairs")
    heads += ("clipguide: mean, then clamp", "clipguide: clamp, then mean")
    lines = [f"| images | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for row in found["rows"]:
        cells = [GROUPS[row["group"]], row["pairs"], row["positive"]]
        cells += [f"{row['distinct']} / {row['distinct of ours']}", f"{row['difference']:.1e}"]
        cells += [row["levels"], f"{row['difference by Pillow']:.1e}"]
        cells += [f"{row[key]:.4f}" for key in ("whole", "mean, then clamp", "clamp, then mean")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


# ---------------------------------------------------------------------------- the tables


def on_sheet(picture: Image.Image) -> Image.Image:
    """Return the image in the middle of a white sheet of 4 to 3."""
    sheet = Image.new("RGB", (picture.height * 4 // 3, picture.height), "white")
    sheet.paste(picture, ((sheet.width - picture.width) // 2, 0))
    return sheet


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of installed packages."""
    return {package: importlib.metadata.version(package) for package in packages}


def publish(command: str, found: dict, table_of: Callable[[dict], list[str]]) -> None:
    """Print a command's table; write its facts to OUT, and its table to DOCUMENT."""
    facts = json.loads(OUT.read_text()) if OUT.exists() else {}
    OUT.write_text(json.dumps(facts | {command: found}, indent=1) + "\n")
    table = "\n".join(table_of(found))
    print(table)
    if DOCUMENT.exists():
        DOCUMENT.write_text(insert(DOCUMENT.read_text(), command, table))


def insert(document: str, command: str, table: str) -> str:
    """Return the document with this table between the marks of the command, or unchanged if it has
    no marks."""
    start, end = f"<!-- {command} -->\n", f"<!-- end of {command} -->"
    head, begun, rest = document.partition(start)
    _, ended, tail = rest.partition(end)
    return f"{head}{start}{table}\n{end}{tail}" if begun and ended else document


if __name__ == "__main__":
    app()
