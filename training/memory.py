"""Build the generator's memory: maps of drawings that the U-Net draws well, by what they show.

    python -m training.memory candidates   # drawings of each thing, varied; their maps and codes
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

from pathlib import Path

import numpy as np
import torch
import typer
from PIL import Image, ImageDraw
from torch import Tensor

from clipguide.mini import STEPS
from clipguide.mini.details import Details
from clipguide.mini.memory import MapMemory
from clipguide.mini.names import COLOURS, written
from clipguide.mini.pipeline import MiniPipeline
from clipguide.mini.styles import STYLES
from training import common, details
from training.data.captions import usable_names
from training.data.colours import TERMS
from training.data.compose import TrainingSet
from training.data.languages import languages
from training.drawings import SIDE, candidates, drawing, own_colour, repainted, varied
from training.samples import Maker, Maps, foreign_names
from training.styles import LABEL

CACHE = common.CACHE / "memory"
VERDICTS = Path(__file__).with_name("memory.tsv")
MOST, MAPS = 5, 3900  # drawings of a thing that are tried; maps in all
ROWS = 6  # things on a sheet
COMPONENTS, HIDDEN = 128, 64
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
def try_all() -> None:
    """Choose the drawings, and compute their maps and the codes of their details."""
    data, maps = Maker(SIDE).data, Maps()
    rows = [(thing, row) for thing, of in candidates(data, MOST).items() for row in of]
    found, codes = seen(maps, [varied(data, row, 0) for _, row in rows])
    CACHE.mkdir(parents=True, exist_ok=True)
    listed = [
        {"thing": thing, "drawing": drawing(row), "style": LABEL[row["set"]]}
        for thing, row in rows
    ]
    torch.save({"rows": listed, "map": found, "code": codes}, CACHE / "candidates.pt")
    print(f"{len(rows)} drawings of {len({thing for thing, _ in rows})} things")


@torch.no_grad()
def seen(maps: Maps, pictures: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return (maps_NK44, codes_NC88), float16, of pictures on white."""
    coder = details.load()
    codes = [
        coder.code(details.shapes(np.stack(pictures[k : k + 64])))
        for k in range(0, len(pictures), 64)
    ]
    return maps_of(maps, pictures), torch.cat(codes).half()


# ------------------------------------------------------------------- the verdicts
@app.command()
@torch.no_grad()
def draw(part: int = 0, parts: int = 1) -> None:
    """Draw one image of each map, in bfloat16, and sheets of them for the reviewers: every one of
    `parts`, from `part` on. It goes on after a stop."""
    kept = torch.load(CACHE / "candidates.pt", weights_only=True)
    things: dict[str, list[int]] = {}
    for k, row in enumerate(kept["rows"]):
        things.setdefault(row["thing"], []).append(k)
    memory = MapMemory(
        components=COMPONENTS, size=len(kept["rows"]), detail_channels=details.CHANNELS
    )
    memory.remember(kept["map"], kept["code"].float())
    pipe = MiniPipeline.from_pretrained(common.MINI / "generator", memory=memory)
    pipe.register_modules(details=details.load().details)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(torch.bfloat16)
    (CACHE / "sheets").mkdir(exist_ok=True)
    names = list(things)
    for first in range(ROWS * part, len(names), ROWS * parts):
        if (file := CACHE / "sheets" / f"{first:04d}.png").exists():
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
    and the letters of each of its rows."""
    rows = torch.load(CACHE / "candidates.pt", weights_only=True)["rows"]
    things: dict[str, list[str]] = {}
    for row in rows:
        things.setdefault(row["thing"], []).append(row["drawing"])
    names, told = list(things), {}
    for line in (x for file in files for x in file.read_text().splitlines()):
        first, *letters = line.split("\t")
        for thing, said in zip(names[int(first) : int(first) + ROWS], letters):
            if len(said) != len(things[thing]) or set(said) - set("gsb"):
                raise SystemExit(f"Sheet {first}: {said!r} is not a letter for each drawing.")
            told[thing] = {name: one for one, name in zip(said, things[thing])}
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
    """Write the memory, and the network that reads its details, to the cache."""
    data, maps = Maker(SIDE).data, Maps()
    by_name = {drawing(row): row for row in data.rows}
    chosen = {}
    for thing, said in verdicts().items():
        best = next((k for k in "gs" if k in said.values()), None)
        chosen[thing] = [(by_name[name], 0) for name, one in said.items() if one == best]
    chosen = {thing: of for thing, of in chosen.items() if of}
    room = MAPS - sum(map(len, chosen.values()))
    for thing in sorted(chosen, key=lambda thing: len(chosen[thing])):  # the rarest vary most
        if (more := len(chosen[thing])) <= min(room, 2):
            chosen[thing] += [(row, 1) for row, _ in chosen[thing]]
            room -= more
    while room < 0:  # those that have the most have fewer
        max(chosen.values(), key=len).pop()
        room += 1
    firsts, listed = [], []
    for thing in sorted(chosen):
        firsts.append(len(listed))
        listed += chosen[thing]
    names, rows = foreign_names(), [row for row, _ in listed]
    memory = MapMemory(
        components=COMPONENTS,
        hidden=HIDDEN,
        things=[written(*names_of(data, thing, names)) for thing in sorted(chosen)],
        firsts=firsts,
        size=len(rows),
        colours=colour_words(),
        detail_channels=details.CHANNELS,
    )
    found, codes = seen(maps, [varied(data, row, seed) for row, seed in listed])
    memory.remember(found, codes.float())
    memory.style.copy_(torch.tensor([LABEL[row["set"]] for row in rows]))
    memory.colour.copy_(torch.tensor([own_colour(data, row) for row in rows]))
    left = train(memory)
    memory.half().save_pretrained(CACHE / "model")
    details.load().details.half().save_pretrained(CACHE / "details")  # it reads these codes alone
    print(f"{len(rows)} maps of {len(chosen)} things; recolouring leaves {left:.0%} of the change")


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
