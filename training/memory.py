"""Build the generator's memory: maps of drawings that the U-Net draws well, by what they show.

    python -m training.memory candidates   # drawings of each thing, varied; their maps and codes
    python -m training.codes pairs         # then `fit`: better codes
    python -m training.memory draw         # one image of each, and sheets of them for reviewers
    python -m training.memory keep FILES   # the reviewers' verdicts, into memory.tsv
    python -m training.memory recolour     # pairs of maps before and after a drawing is recoloured
    python -m training.memory build        # train the recolouring, and write the memory
    python -m training.memory ship         # into clipguide/mini/generator

A drawing is never remembered as it is. It is turned, stretched, moved, scaled and perhaps mirrored,
and its colours shift, so that images have another pose and other tones. A reviewer gives each drawn
image a verdict: g (good), s (so-so) or b (bad). The memory keeps the good drawings of a thing, or
the so-so ones if none is good. Each line of memory.tsv, which is committed, has a thing and its
drawings, with the verdicts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import typer
from PIL import Image, ImageDraw
from torch import Tensor

from clipguide.mini import STEPS
from clipguide.mini.details import Details
from clipguide.mini.memory import MapMemory, split
from clipguide.mini.names import COLOURS, written
from clipguide.mini.pipeline import MiniPipeline
from clipguide.mini.styles import STYLES
from training import codes, common, details
from training.data.captions import usable_names
from training.data.colours import TERMS
from training.data.compose import TrainingSet
from training.data.languages import languages
from training.drawings import (
    CANDIDATES,
    SIDE,
    VARIANTS,
    by_name,
    candidates,
    drawing,
    own_colour,
    repainted,
    varied,
)
from training.samples import Maker, Maps, foreign_names
from training.styles import LABEL

CACHE = common.CACHE / "memory"
VERDICTS = Path(__file__).with_name("memory.tsv")
MOST, MAPS = 5, 3900  # drawings of a thing that are tried; maps in all
KEPT = {"g": 4, "s": 2}  # maps of a thing, by the best verdict
SHEETS = CACHE / "sheets"
ROWS = 6  # things on a sheet
HIDDEN = 64  # of the network that recolours
# What people call things that the sets call otherwise.
ALSO = {
    "camping": ("tent in forest", "campsite"),
    "desert island": ("palm tree on island", "tropical island"),
    "maple leaf": ("autumn leaf",),
    "night with stars": ("city skyline at night", "city at night"),
    "soft ice cream": ("ice cream cone",),
    "sunrise": ("sunset over ocean", "sunset over sea"),
}
app = typer.Typer(add_completion=False, help=__doc__)


# ---------------------------------------------------------------- the candidates
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
    """Choose the drawings, and compute their maps and the codes of their details. A thing of few
    drawings has several variants of each. `again`: those of the memory that ships, with its maps
    and codes, and all that were tried of the things of which none was good."""
    data, maps, said = Maker(SIDE).data, Maps(), verdicts()
    if again:
        names = [(thing, name) for thing, told in said.items() for name in told]
        drawings = by_name(data)
        rows = [(thing, *drawings[name]) for thing, name in names]
        old = shipped(names, said)
        weak = {thing for thing, told in said.items() if "g" not in told.values()}
        some = [k for k, (thing, _) in enumerate(names) if thing in weak or k in old]
        rows = [rows[k] for k in some]
        found = maps_of(maps, [varied(data, row, seed) for _, row, seed in rows])
        first = torch.full((len(rows), details.CHANNELS, 8, 8), 1 / 3).half()
        for place, k in enumerate(some):
            if k in old:
                found[place], first[place] = old[k]
    else:
        rows = [
            (thing, row, seed)
            for thing, of in candidates(data, MOST).items()
            for row, seed in [(row, seed) for seed in range(VARIANTS) for row in of][:MOST]
        ]
        found, first = seen(maps, [varied(data, row, seed) for _, row, seed in rows])
    CACHE.mkdir(parents=True, exist_ok=True)
    listed = [
        {"thing": thing, "drawing": drawing(row, seed), "style": LABEL[row["set"]]}
        for thing, row, seed in rows
    ]
    torch.save({"rows": listed, "map": found, "code": first}, CANDIDATES)
    print(f"{len(rows)} drawings of {len({thing for thing, *_ in rows})} things")


def shipped(
    names: list[tuple[str, str]], said: dict[str, dict[str, str]]
) -> dict[int, tuple[Tensor, Tensor]]:
    """Return the map and the code of each drawing that is in the memory that ships."""
    memory = MapMemory.from_pretrained(common.MINI / "generator" / "memory")
    chosen = choose([{"thing": thing, "drawing": name} for thing, name in names], said)
    kept = [k for thing in sorted(chosen) for k in chosen[thing]]
    if len(kept) != memory.config.size:
        raise SystemExit("The verdicts are not those of the memory that ships.")
    recalled = memory.recall(range(len(kept)), [None] * len(kept))
    return dict(zip(kept, zip(*split(recalled, memory.config.channels))))


@torch.no_grad()
def seen(maps: Maps, pictures: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return (maps_NK44, codes_NC88), float16, of pictures on white."""
    coder = details.load()
    found = [
        coder.code(details.shapes(np.stack(pictures[k : k + 64])))
        for k in range(0, len(pictures), 64)
    ]
    return maps_of(maps, pictures), torch.cat(found).half()


# ------------------------------------------------------------------- the verdicts
@app.command()
@torch.no_grad()
def draw(part: int = 0, parts: int = 1, again: bool = False) -> None:
    """Draw one image of each map, in bfloat16, and sheets of them for the reviewers: every one of
    `parts`, from `part` on. It goes on after a stop. `again`: only of things of which no image was
    good so far."""
    kept, fitted = torch.load(CANDIDATES, weights_only=True), codes.load()
    things: dict[str, list[int]] = {}
    for k, row in enumerate(kept["rows"]):
        things.setdefault(row["thing"], []).append(k)
    memory = fitted.remembered(range(len(kept["rows"])))
    pipe = MiniPipeline.from_pretrained(common.MINI / "generator", memory=memory)
    pipe.register_modules(details=fitted.details)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(torch.bfloat16)
    SHEETS.mkdir(exist_ok=True)
    said = verdicts()
    names = [name for name in things if not again or "g" not in said.get(name, {}).values()]
    (SHEETS / "names.json").write_text(json.dumps(names), "utf-8")
    for first in range(ROWS * part, len(names), ROWS * parts):
        if (file := SHEETS / f"{first:04d}.png").exists():
            continue
        some = names[first : first + ROWS]
        rows = [k for thing in some for k in things[thing]]
        told = [kept["rows"][k] for k in rows]
        images = pipe(
            [f"a {row['thing']}, {STYLES[row['style']]}" for row in told],
            maps=memory.recall(rows, [None] * len(rows)),
            num_inference_steps=STEPS,
            generator=[torch.Generator().manual_seed(k) for k in rows],
        ).images
        sheet(some, told, images).save(file)


def sheet(things: list[str], rows: list[dict], images: list[Image.Image]) -> Image.Image:
    """Return a sheet with a row of drawings for each thing."""
    side = 200
    page = Image.new("RGB", (MOST * (side + 4) + 4, len(things) * (side + 26)), "white")
    told = ImageDraw.Draw(page)
    for line, thing in enumerate(things):
        top = line * (side + 26)
        told.text((8, top + 2), f"ROW {line + 1}: a {thing}", fill="black", font_size=19)
        own = [image for row, image in zip(rows, images) if row["thing"] == thing]
        for k, image in enumerate(own):
            page.paste(image.resize((side, side)), (4 + k * (side + 4), top + 25))
    return page


@app.command()
def keep(files: list[Path]) -> None:
    """Write the verdicts of reviewers' files into memory.tsv: in each line the number of a sheet,
    and the letters of each of its rows. Things on no sheet keep what they have. A variant that was
    on none has the letter of its drawing."""
    rows = torch.load(CANDIDATES, weights_only=True)["rows"]
    drawn: dict[str, list[str]] = {}
    for row in rows:
        drawn.setdefault(row["thing"], []).append(row["drawing"])
    names = json.loads((SHEETS / "names.json").read_text("utf-8"))
    told = verdicts()
    for line in (x for file in files for x in file.read_text().splitlines()):
        first, *letters = line.split("\t")
        for thing, said in zip(names[int(first) : int(first) + ROWS], letters):
            if len(said) != len(drawn[thing]) or set(said) - set("gsb"):
                raise SystemExit(f"Sheet {first}: {said!r} is not a letter for each drawing.")
            told[thing] = {name: one for one, name in zip(said, drawn[thing])}
    for thing, of in drawn.items():
        for name in of:
            if letter := told.get(thing, {}).get(name.partition("#")[0]):
                told[thing].setdefault(name, letter)
    VERDICTS.write_text(
        "".join(
            "\t".join([thing, *(f"{one} {name}" for name, one in told[thing].items())]) + "\n"
            for thing in sorted(told)
        ),
        "utf-8",
    )
    said = [one for of in told.values() for one in of.values()]
    shares = ", ".join(f"{said.count(k) / len(said):.0%} {k}" for k in "gsb")
    print(f"{len(said)} drawings of {len(told)} things: {shares}")


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
    before, after, terms, things = [], [], [], []
    for row in data.rows:
        for term in rng.choice(TERMS, of_each, replace=False).tolist():
            new = repainted(data, row, term, rng)
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


def train(memory: MapMemory, own: Sequence[dict], steps: int = 2000) -> float:
    """Train the network that recolours a map on pairs of maps before and after. Each of `own` gives
    as many samples. Return the squared error on the last, for things set aside, as a share of the
    change that recolouring makes there."""
    names = sorted({thing for part in own for thing in part["thing"]})
    aside = set(np.random.default_rng(0).choice(names, len(names) // 10, replace=False))
    aside_N = [torch.tensor([thing in aside for thing in part["thing"]]) for part in own]
    rows_N = [(~part_N).nonzero()[:, 0] for part_N in aside_N]

    def error(part: dict, k: Tensor) -> Tensor:
        after = memory(part["before"][k].float(), part["colour"][k])
        return (after - part["after"][k].float()).square().mean()

    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(memory.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(steps):
        loss = sum(error(x, k[torch.randint(len(k), (128,))]) for x, k in zip(own, rows_N))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    last, k = own[-1], aside_N[-1].nonzero()[:, 0]
    change = last["before"][k].float() - last["after"][k].float()
    with torch.no_grad():
        return float(error(last, k) / change.square().mean())


@app.command()
def build() -> None:
    """Write the memory, and the network that reads its details, to the cache."""
    data, kept, fitted = Maker(SIDE).data, torch.load(CANDIDATES, weights_only=True), codes.load()
    chosen = choose(kept["rows"], verdicts())
    firsts, listed = [], []
    for thing in sorted(chosen):
        firsts.append(len(listed))
        listed += chosen[thing]
    names, drawings = foreign_names(), by_name(data)
    rows = [drawings[kept["rows"][k]["drawing"]][0] for k in listed]
    memory = fitted.remembered(
        listed,
        hidden=HIDDEN,
        things=[written(*names_of(data, thing, names)) for thing in sorted(chosen)],
        firsts=firsts,
        colours=colour_words(),
    )
    memory.style.copy_(torch.tensor([LABEL[row["set"]] for row in rows]))
    memory.colour.copy_(torch.tensor([own_colour(data, row) for row in rows]))
    recoloured = torch.load(CACHE / "recoloured.pt", weights_only=True)
    left = train(memory, (recoloured, codes.painted(fitted)))  # it will see fitted maps
    memory.half().save_pretrained(CACHE / "model")
    fitted.details.half().save_pretrained(CACHE / "details")  # it reads these codes alone
    print(f"{len(rows)} maps of {len(chosen)} things; recolouring leaves {left:.0%} of the change")


def choose(rows: list[dict], said: dict[str, dict[str, str]]) -> dict[str, list[int]]:
    """Return the candidates of each thing that the memory keeps: the good ones, or the so-so ones
    if none is good, but no more than KEPT."""
    chosen: dict[str, list[int]] = {}
    for k, row in enumerate(rows):
        told, name = said.get(row["thing"], {}), row["drawing"]
        best = next((letter for letter in KEPT if letter in told.values()), "")
        of = chosen.setdefault(row["thing"], [])
        if best and told.get(name) == best and len(of) < KEPT[best]:
            of.append(k)
    chosen = {thing: of for thing, of in chosen.items() if of}
    for _ in range(sum(map(len, chosen.values())) - MAPS):
        max(chosen.values(), key=len).pop()
    return chosen


@app.command()
def ship() -> None:
    """Put the memory and the network that reads its details into the shipped generator, whose other
    parts stay as they are."""
    load().half().save_pretrained(common.MINI / "generator" / "memory")
    common.register("memory", MapMemory)
    network().half().save_pretrained(common.MINI / "generator" / "details")
    common.register("details", Details)
    common.write_sums()


def names_of(
    data: TrainingSet, thing: str, foreign: dict[str, dict[str, list[str]]]
) -> tuple[list[str], list[str], list[str]]:
    """Return a thing's English names, its other names and its emoji, and its keywords. No English
    one has a word that is held out. The keywords of faces say a mood, and are left out."""
    rows = data.by_concept[thing]
    english = [thing, *(name for row in rows for name in row["names"]), *ALSO.get(thing, ())]
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


def network() -> Details | None:
    """Return the network that reads the details of the memory that was built, or None."""
    folder = CACHE / "details"
    return Details.from_pretrained(folder).float().eval() if folder.exists() else None


if __name__ == "__main__":
    app()
