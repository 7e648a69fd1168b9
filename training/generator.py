"""The embedded generator as a whole: `training.vae`, `training.prior` and `training.decoder` in one
`clipguide.mini.pipeline.MiniPipeline`.

    python -m training.generator sheet FILE            # what it draws, a prompt a line
    python -m training.generator right                 # how often its maps show the right thing
    python -m training.generator painted               # maps of composed images, painted
    python -m training.generator export                # clipguide/mini/generator, fp16
    python -m training.generator recover               # the cache, from what is shipped
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save_file

from training import common, decoder, memory, pack, prior, samples, text, vae

CACHE = common.CACHE / "generator"
AXES = "map_axes.safetensors"  # of the map that prior and decoder share: see training.samples
app = typer.Typer(add_completion=False, help=__doc__)


def pipeline(large: bool | None = None):
    """Return the pipeline of the latest checkpoints, float32; at 256 px if it has been grown."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    from clipguide.mini.pipeline import MiniPipeline

    if large is None:
        large = (vae.LARGE / "checkpoint.pt").exists()
    autoencoder, first = vae.load(large), prior.load()
    mean, deviation = (x.flatten().tolist() for x in decoder.moments())
    autoencoder.register_to_config(
        scaling_factor=1.0,
        latents_mean=[round(x, 5) for x in mean],
        latents_std=[round(x, 5) for x in deviation],
        force_upcast=False,
    )
    return MiniPipeline(
        vae=autoencoder,
        text_encoder=first.text_encoder,
        tokenizer=text.load_tokenizer(),
        prior=first.transformer,
        prior_scheduler=FlowMatchEulerDiscreteScheduler(),
        unet=decoder.load().to(memory_format=torch.contiguous_format),
        scheduler=decoder.scheduler(),
        memory=memory.load(),
        details=memory.network(),
    )


def known() -> dict[str, list[str]]:
    """What `clipguide.mini.known` reads: the things that are drawn, and the words for them."""
    from clipguide.mini.known import SMALL, split
    from training.data.captions import COLOUR_WORDS, usable_names
    from training.data.languages import languages
    from training.samples import Maker, foreign_names

    names, data = foreign_names(), Maker().data
    things, words = set(), set()
    for row in data.rows:
        if row["symbol"] or not (row["emoji"] or len(data.by_concept[row["concept"]]) > 1):
            continue
        things.add(row["concept"])
        said = usable_names([row["concept"], *row["names"]], None)
        for foreign in names.get(row["emoji"], {}).values():
            said += foreign
        if row["emoji"]:
            words.add("".join(chr(int(c, 16)) for c in row["emoji"].split("-")))
        words.update(word for name in said for word in split(name))
    small = set(SMALL)
    for language in languages().values():
        small.update(form for forms in language.colours.values() for form in forms)
        small.update(
            w for order in language.orders for part in order.split() for w in part.split("/")
        )
    small = (small - things) | set(COLOUR_WORDS)  # a rose is a flower, though a colour in French
    said = {word for thing in things for word in split(thing)}
    words = {w for w in words - small if len(w) > 2 or not w.isascii() or w in said}
    return {"things": sorted(things), "words": sorted(words)}


@app.command()
def export(folder: Path = common.MINI / "generator") -> None:
    """Write the pipeline's folder, weights in fp16; the text encoder's config says float32, so
    that its type is the others' when the folder is loaded."""
    pipe = pipeline()
    pipe.to(torch.float16)
    pipe.save_pretrained(folder)
    config = folder / "text_encoder/config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2) + "\n"
    )
    save_file(torch.load(samples.CACHE / "axes.pt", weights_only=True), folder / AXES)
    (folder / "known.json").write_text(json.dumps(known(), ensure_ascii=False) + "\n", "utf-8")
    common.write_sums()


@app.command()
def recover() -> None:
    """Fill the cache from the shipped folder where nothing else is left: training goes on from
    what is shipped, on images that `training.samples make` composes anew."""
    from clipguide.mini.pipeline import MiniPipeline

    folder = common.MINI / "generator"
    pipe = MiniPipeline.from_pretrained(folder)
    for part in (pipe.vae, pipe.text_encoder, pipe.prior, pipe.unet):
        part.float()
    prefixed = {f"text_encoder.{k}": v for k, v in pipe.text_encoder.state_dict().items()}
    prefixed |= {f"transformer.{k}": v for k, v in pipe.prior.state_dict().items()}
    pack.keep(prior.CACHE, prefixed)
    pack.keep(decoder.CACHE, pipe.unet.state_dict())
    pipe.memory.save_pretrained(memory.CACHE / "model")
    pipe.details.save_pretrained(memory.CACHE / "details")
    pack.keep(vae.LARGE, {f"vae.{k}": v for k, v in pipe.vae.state_dict().items()})
    config = pipe.vae.config
    moments = {"mean": config.latents_mean, "deviation": config.latents_std}
    torch.save({k: torch.tensor(v) for k, v in moments.items()}, decoder.CACHE / "moments.pt")
    samples.CACHE.mkdir(parents=True, exist_ok=True)
    torch.save(load_file(folder / AXES), samples.CACHE / "axes.pt")
    (text.CACHE / "tokenizer").mkdir(parents=True, exist_ok=True)
    pipe.tokenizer.save_pretrained(text.CACHE / "tokenizer")
    write_vocabulary(pipe.tokenizer)


def write_vocabulary(tokenizer) -> None:
    """vocab.json, which the text towers' configuration is read from."""
    vocabulary = dict(sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]))
    path = text.CACHE / "tokenizer" / "vocab.json"
    path.write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")


@app.command()
def sheet(
    prompts: Path,
    out: Path = CACHE / "sheet.png",
    steps: int = 25,
    guidance: float = 3.0,
    paint: float = 3.0,
    style: str | None = None,
    first: int = 0,
    last: int = 1000,
    columns: int = 10,
) -> None:
    """One sample of each prompt of a file (one a line, # comments), seed 0, on one sheet."""
    from clipguide.images import contact_sheet

    lines = [x.strip() for x in prompts.read_text("utf-8").splitlines()]
    lines = [x for x in lines if x and not x.startswith("#")][first:last]
    pipe, images = pipeline(), []
    pipe.set_progress_bar_config(disable=True)
    for k in range(0, len(lines), 12):
        part = lines[k : k + 12]
        images += pipe(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            map_guidance_scale=paint,
            style=style,
            generator=[torch.Generator().manual_seed(0) for _ in part],
        ).images
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(images, labels=lines, columns=columns).save(out)


@app.command()
@torch.no_grad()
def right(count: int = 192) -> None:
    """Of maps drawn for names of concepts: how many lie nearest to their concept's mean map, by the
    cosine, of all concepts' (top-1, top-5)."""
    pipe, data = pipeline(), samples.Samples()
    rows: dict[str, list[int]] = {}
    for k, concept in enumerate(data.concepts):
        if len(data.captions[k]) > 2:  # a single thing
            rows.setdefault(concept, []).append(k)
    names = sorted(concept for concept in rows if len(rows[concept]) >= 8)
    mean_KD = torch.stack([data.map_NC44[rows[c]].float().mean(0).flatten() for c in names])
    mean_KD = torch.nn.functional.normalize(mean_KD, dim=-1)
    chosen = np.random.default_rng(0).choice(len(names), min(count, len(names)), replace=False)
    prompts = [f"a {names[i]}" for i in chosen]
    map_BC44 = pipe.draw_maps(
        prompts,
        [""] * len(prompts),
        steps=20,
        guidance_scale=3.0,
        eta=1.0,
        generator=[torch.Generator().manual_seed(i) for i in range(len(prompts))],
    )
    best_B5 = (map_BC44.flatten(1) @ mean_KD.T).topk(5).indices
    hit_B5 = best_B5 == torch.from_numpy(chosen)[:, None]
    told = {
        "concepts": len(names),
        "top1": hit_B5[:, 0].float().mean().item(),
        "top5": hit_B5.any(1).float().mean().item(),
    }
    print(json.dumps(told), flush=True)


@app.command()
def painted(n: int = 48, out: Path = CACHE / "painted.png") -> None:
    """n of the composed images, above what is drawn from their maps and captions."""
    pipe, data = pipeline(), samples.Samples()
    rows = np.random.default_rng(1).choice(len(data), n, replace=False)
    drawn = pipe(
        [data.captions[i][-1] for i in rows],  # the one that names the style
        maps=data.map_NC44[rows].float(),
        num_inference_steps=25,
        generator=[torch.Generator().manual_seed(i) for i in range(n)],
        output_type="pt",
    ).images
    image_N3HW = torch.from_numpy(np.stack([data.rgb(i) for i in rows])).permute(0, 3, 1, 2) / 255
    out.parent.mkdir(parents=True, exist_ok=True)
    scale = drawn.shape[-1] / image_N3HW.shape[-1]
    common.before_and_after(out, vae.resized(image_N3HW, scale), drawn)


if __name__ == "__main__":
    app()
