"""Build the generator's memory: maps of drawings that the U-Net draws well, by what they show.

    python -m training.memory candidates   # up to six drawings of each thing, varied; their maps
    python -m training.memory candidates --again   # all drawings of things that have no good one
    python -m training.memory draw         # one image of each map, and sheets of them for reviewers
    python -m training.memory keep FILES   # the reviewers' verdicts, into memory.tsv
    python -m training.memory recolour     # pairs of maps before and after a drawing is recoloured
    python -m training.memory build        # train the recolouring, and write the memory
    python -m training.memory ship         # into clipguide/mini/generator

A drawing is never remembered as it is. It is turned, stretched, moved, scaled and perhaps mirrored,
and its colours shift, so that images have another pose and other tones. A reviewer gives each drawn
image a verdict: g (good), s (so-so) or b (bad). The memory keeps the good drawings of a thing, or
the so-so ones if none is good. Each line of memory.tsv, which is committed, has a thing and its
drawings, with the verdicts; "@2" after a drawing is the seed of the variation, if it is not 0.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
import typer
from PIL import Image, ImageDraw
from torch import Tensor

from clipguide.mini import STEPS
from clipguide.mini.memory import MapMemory
from clipguide.mini.names import COLOURS, written
from clipguide.mini.pipeline import MiniPipeline
from clipguide.mini.styles import STYLES
from training import common
from training.data.captions import usable_names
from training.data.colours import TERMS
from training.data.compose import ON_DISC, REPAINT, SAID_SHARE, TrainingSet
from training.data.languages import languages
from training.data.pixels import place
from training.data.recolour import recoloured
from training.samples import Maker, Maps, foreign_names
from training.styles import LABEL

CACHE = common.CACHE / "memory"
VERDICTS = Path(__file__).with_name("memory.tsv")
SIDE, MOST, MAPS = 256, 6, 6400  # pixels; drawings of a thing that are tried; maps in all
AGAIN = 14  # drawings that are tried of a thing of which none was good
TURN, STRETCH, SCALE = 6.0, 0.09, (0.88, 1.0)  # degrees; share; of the side of the image
HUE, SATURATION, VALUE = 12.0, 0.2, 0.08  # degrees; shares
COMPONENTS, HIDDEN = 256, 64
# Things whose name depends on what the map cannot show.
LEFT_OUT = re.compile(r"o.clock|thirty|icon$|flag|button|keycap|mahjong|input|under|prohibited")
app = typer.Typer(add_completion=False, help=__doc__)


# ---------------------------------------------------------------- the candidates
def candidates(data: TrainingSet, most: int = MOST) -> dict[str, list[dict]]:
    """Return up to so many drawings of each thing, of different styles as far as there are some."""
    found: dict[str, list[dict]] = {}
    for thing, rows in sorted(data.by_concept.items()):
        rows = [r for r in rows if r["set"] not in ON_DISC and not r["mono"]]
        families = {r["family"] for r in rows}
        drawn = any(r["emoji"] or r["set"] == "openclipart" for r in rows)
        if LEFT_OUT.search(thing) or not drawn or (rows[0]["symbol"] and len(families) < 4):
            continue
        order = np.random.default_rng([13, len(thing), *thing.encode()]).permutation(len(rows))
        by_style: dict[int, list[dict]] = {}
        for k in order:
            by_style.setdefault(LABEL[rows[k]["set"]], []).append(rows[k])
        turns = [by_style[k] for k in sorted(by_style)]
        rounds = [row[k] for k in range(max(map(len, turns))) for row in turns if k < len(row)]
        found[thing] = rounds[:most]
    return found


def varied(data: TrainingSet, row: dict, seed: int) -> np.ndarray:
    """Return a drawing on white, uint8 (SIDE, SIDE, 3), turned, stretched, moved and recoloured."""
    rng = np.random.default_rng([13 + seed, data.places[row["index"]]])
    rgba = data.mirrored(toned(data.rgba[row["index"]], rng), row, rng)
    image, ratio = Image.fromarray(np.ascontiguousarray(rgba)), 1 + rng.uniform(-STRETCH, STRETCH)
    size = round(image.width * min(1, ratio)), round(image.height * min(1, 1 / ratio))
    image = image.resize(size, Image.Resampling.BICUBIC)
    image = image.rotate(rng.uniform(-TURN, TURN), Image.Resampling.BICUBIC, expand=True)
    square = Image.new("RGBA", (max(image.size),) * 2)
    square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    place(canvas, np.asarray(square), rng.uniform(*SCALE), *rng.uniform(0.3, 0.7, 2))
    return np.asarray(canvas)


def toned(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the drawing with its hue shifted and its saturation and value scaled."""
    pixels = np.asarray(Image.fromarray(rgba[..., :3]).convert("HSV")).astype(np.float32)
    pixels[..., 0] = (pixels[..., 0] + rng.uniform(-HUE, HUE) * 255 / 360) % 256
    for channel, share in ((1, SATURATION), (2, VALUE)):
        scaled = pixels[..., channel] * rng.uniform(1 - share, 1 + share)
        pixels[..., channel] = scaled.clip(0, 255)
    out = rgba.copy()
    out[..., :3] = Image.fromarray(pixels.astype(np.uint8), "HSV").convert("RGB")
    return out


@torch.no_grad()
def maps_of(maps: Maps, pictures: list[np.ndarray]) -> Tensor:
    """Return float16 maps_NK44 of pictures on white."""
    parts = [
        maps(torch.from_numpy(np.stack(pictures[k : k + 64])).permute(0, 3, 1, 2).float() / 255)
        for k in range(0, len(pictures), 64)
    ]
    return torch.cat(parts).half()


@app.command("candidates")
def try_all(again: bool = False) -> None:
    """Choose the drawings, and compute their maps. `again`: only of things that have no good one;
    those with few drawings are varied up to three times."""
    data, maps = Maker(SIDE).data, Maps()
    chosen = candidates(data, AGAIN if again else MOST)
    if again:
        settled = {thing for thing, said in verdicts().items() if "g" in said.values()}
        chosen = {thing: of for thing, of in chosen.items() if thing not in settled}
    rows = [
        (thing, row, seed)
        for thing, of in chosen.items()
        for seed in range(min(3, max(1, MOST // len(of))) if again else 1)
        for row in of
    ]
    found = maps_of(maps, [varied(data, row, seed) for _, row, seed in rows])
    CACHE.mkdir(parents=True, exist_ok=True)
    listed = [
        {"thing": thing, "drawing": drawing(row, seed), "style": LABEL[row["set"]]}
        for thing, row, seed in rows
    ]
    torch.save({"rows": listed, "map": found}, CACHE / "candidates.pt")
    print(f"{len(rows)} drawings of {len(chosen)} things")


def drawing(row: dict, seed: int = 0) -> str:
    """Return the name of a varied drawing in memory.tsv."""
    return f"{row['set']}/{row['source']}" + (f"@{seed}" if seed else "")


# ------------------------------------------------------------------- the verdicts
@app.command()
def draw() -> None:
    """Draw one image of each map, in bfloat16, and a sheet of two things for the reviewers. It goes
    on after a stop."""
    kept = torch.load(CACHE / "candidates.pt", weights_only=True)
    things: dict[str, list[int]] = {}
    for k, row in enumerate(kept["rows"]):
        things.setdefault(row["thing"], []).append(k)
    pipe = MiniPipeline.from_pretrained(common.MINI / "generator")
    pipe.set_progress_bar_config(disable=True)
    pipe.to(torch.bfloat16)
    (CACHE / "sheets").mkdir(exist_ok=True)
    names = list(things)
    for first in range(0, len(names), 2):
        if (file := CACHE / "sheets" / f"{first:04d}.png").exists():
            continue
        two = names[first : first + 2]
        rows = [k for thing in two for k in things[thing]]
        told = [kept["rows"][k] for k in rows]
        images = pipe(
            [f"a {row['thing']}, {STYLES[row['style']]}" for row in told],
            maps=kept["map"][rows],
            num_inference_steps=STEPS,
            generator=[torch.Generator().manual_seed(k) for k in rows],
        ).images
        sheet(two, told, images).save(file)


def sheet(two: list[str], rows: list[dict], images: list[Image.Image]) -> Image.Image:
    """Return a sheet with a row of drawings for each thing."""
    side = 224
    most = max(sum(row["thing"] == thing for row in rows) for thing in two)
    page = Image.new("RGB", (most * (side + 4) + 4, len(two) * (side + 26)), "white")
    told = ImageDraw.Draw(page)
    for line, thing in enumerate(two):
        top = line * (side + 26)
        told.text((8, top + 2), f"ROW {line + 1}: a {thing}", fill="black", font_size=19)
        own = [image for row, image in zip(rows, images) if row["thing"] == thing]
        for k, image in enumerate(own):
            page.paste(image.resize((side, side)), (4 + k * (side + 4), top + 25))
    return page


@app.command()
def keep(files: list[Path]) -> None:
    """Write the verdicts of reviewers' files into memory.tsv: in each line the number of a sheet,
    the letters of its first row and those of its second. A thing of which nothing was good or so-so
    keeps its earlier verdicts."""
    rows = torch.load(CACHE / "candidates.pt", weights_only=True)["rows"]
    things: dict[str, list[str]] = {}
    for row in rows:
        things.setdefault(row["thing"], []).append(row["drawing"])
    names, lines = list(things), {}
    for line in (x for file in files for x in file.read_text().splitlines()):
        first, *letters = line.split("\t")
        for thing, said in zip(names[int(first) : int(first) + 2], letters):
            if len(said) != len(things[thing]) or set(said) - set("gsb"):
                raise SystemExit(f"Sheet {first}: {said!r} is not a letter for each drawing.")
            lines[thing] = {name: one for one, name in zip(said, things[thing])}
    before = verdicts() if VERDICTS.exists() else {}
    new = {t: of for t, of in lines.items() if t not in before or {"g", "s"} & {*of.values()}}
    told = before | new
    VERDICTS.write_text(
        "".join(
            "\t".join([thing, *(f"{one} {name}" for name, one in told[thing].items())]) + "\n"
            for thing in sorted(told)
        ),
        "utf-8",
    )
    said = [one for of in lines.values() for one in of.values()]
    shares = ", ".join(f"{said.count(k) / len(said):.0%} {k}" for k in "gsb")
    print(f"{len(said)} drawings of {len(lines)} things: {shares}")


def verdicts() -> dict[str, dict[str, str]]:
    """Return {thing: {drawing: verdict}} of memory.tsv."""
    found = {}
    for line in VERDICTS.read_text("utf-8").splitlines():
        thing, *said = line.split("\t")
        found[thing] = {name: one for one, name in (x.split(" ", 1) for x in said)}
    return found


# --------------------------------------------------------------------- the memory
@app.command()
def recolour(of_each: int = 3) -> None:
    """Compute the maps of drawings before and after they are recoloured, for `build`."""
    data, maps, rng = Maker().data, Maps(), np.random.default_rng(0)
    rows = [
        r for r in data.rows
        if r["category"] in REPAINT and r["set"] not in ON_DISC and not (r["symbol"] or r["mono"])
    ]
    before, after, terms, things = [], [], [], []
    for row in rows:
        barred = data.forbidden.get(row["concept"], frozenset())
        for term in rng.choice(TERMS, of_each, replace=False).tolist():
            new = recoloured(data.rgba[row["index"]], term, rng) if term not in barred else None
            if new is not None:
                before.append(row["index"])
                after.append(_white(new))
                terms.append(COLOURS.index(term))
                things.append(row["concept"])
    own = list(dict.fromkeys(before))
    old = dict(zip(own, maps_of(maps, [_white(data.rgba[k]) for k in own])))
    pairs = {"before": torch.stack([old[k] for k in before]), "after": maps_of(maps, after)}
    told = {"colour": torch.tensor(terms), "thing": things}
    torch.save(pairs | told, CACHE / "recoloured.pt")
    print(f"{len(after)} recoloured drawings")


def _white(rgba: np.ndarray) -> np.ndarray:
    share = rgba[..., 3:].astype(np.float32) / 255
    return (rgba[..., :3] * share + 255 * (1 - share)).astype(np.uint8)


def train(memory: MapMemory, steps: int = 2000) -> float:
    """Train the network that recolours a map. Return its squared error on things set aside, as a
    share of the change that recolouring makes there."""
    kept = torch.load(CACHE / "recoloured.pt", weights_only=True)
    before, after, colour = kept["before"].float(), kept["after"].float(), kept["colour"]
    names = sorted(set(kept["thing"]))
    aside = set(np.random.default_rng(0).choice(names, len(names) // 10, replace=False))
    aside_N = torch.tensor([thing in aside for thing in kept["thing"]])
    rows_N = (~aside_N).nonzero()[:, 0]
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(memory.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(steps):
        k = rows_N[torch.randint(len(rows_N), (256,))]
        loss = (memory(before[k], colour[k]) - after[k]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        error = (memory(before[aside_N], colour[aside_N]) - after[aside_N]).square().mean()
    return float(error / (before[aside_N] - after[aside_N]).square().mean())


@app.command()
def build() -> None:
    """Write the memory to the cache."""
    data, maps = Maker(SIDE).data, Maps()
    by_name = {drawing(row): row for row in data.rows}
    chosen = {}
    for thing, said in verdicts().items():
        best = next((k for k in "gs" if k in said.values()), None)
        kept = [name.partition("@") for name, one in said.items() if one == best]
        chosen[thing] = [(by_name[name], int(seed or 0)) for name, _, seed in kept]
    chosen = {thing: of for thing, of in chosen.items() if of}
    rows, seeds, firsts = [], [], []
    room = MAPS - sum(map(len, chosen.values()))
    for thing in sorted(chosen, key=lambda thing: len(chosen[thing])):  # the rarest vary most
        if (more := len(chosen[thing])) <= min(room, 2):
            last = max(seed for _, seed in chosen[thing])
            chosen[thing] += [(row, last + 1 + k) for k, (row, _) in enumerate(chosen[thing])]
            room -= more
    for thing in sorted(chosen):
        firsts.append(len(rows))
        for row, seed in chosen[thing]:
            seeds.append(seed)
            rows.append(row)
    names = foreign_names()
    memory = MapMemory(
        components=COMPONENTS,
        hidden=HIDDEN,
        things=[written(*names_of(data, thing, names)) for thing in sorted(chosen)],
        firsts=firsts,
        size=len(rows),
        colours=colour_words(),
    )
    memory.remember(maps_of(maps, [varied(data, row, seed) for row, seed in zip(rows, seeds)]))
    memory.style.copy_(torch.tensor([LABEL[row["set"]] for row in rows]))
    memory.colour.copy_(torch.tensor([own_colour(data, row) for row in rows]))
    left = train(memory)
    memory.half().save_pretrained(CACHE / "model")
    print(f"{len(rows)} maps of {len(chosen)} things; recolouring leaves {left:.0%} of the change")


@app.command()
def ship() -> None:
    """Put the memory into the shipped generator, whose other parts stay as they are."""
    load().half().save_pretrained(common.MINI / "generator" / "memory")
    common.register("memory", MapMemory)
    common.write_sums()


def names_of(
    data: TrainingSet, thing: str, foreign: dict[str, dict[str, list[str]]]
) -> tuple[list[str], list[str], list[str]]:
    """Return a thing's English names, its other names and its emoji, and its keywords. No English
    one has a word that is held out. The keywords of faces say a mood, and are left out."""
    rows = data.by_concept[thing]
    english = [thing, *(name for row in rows for name in row["names"])]
    told = [row for row in rows if row["category"] != "smileys & emotion"]
    keywords = [word for row in told for word in row["keywords"]]
    others = []
    for emoji in sorted({row["emoji"] for row in rows if row["emoji"]}):
        others += [name for names in foreign.get(emoji, {}).values() for name in names]
        others.append("".join(chr(int(code, 16)) for code in emoji.split("-")))
    return (
        usable_names(english, data.banned),
        list(dict.fromkeys(others)),
        sorted({w for text in usable_names(keywords, data.banned) for w in text.split()}),
    )


def own_colour(data: TrainingSet, row: dict) -> int:
    """Return the number of the colour that a caption may say of a drawing, or len(COLOURS)."""
    share = data.shares[row["index"]][: len(TERMS)]
    clear = share.max() >= SAID_SHARE
    return COLOURS.index(TERMS[int(share.argmax())]) if clear else len(COLOURS)


def colour_words() -> dict[str, str]:
    """Return the colour words of other languages, each with its English word."""
    return {
        form: colour
        for language in languages().values()
        for colour, forms in language.colours.items()
        for form in forms
    }


def load() -> MapMemory | None:
    """Return the memory that was built, or None."""
    folder = CACHE / "model"
    return MapMemory.from_pretrained(folder).float().eval() if folder.exists() else None


if __name__ == "__main__":
    app()
