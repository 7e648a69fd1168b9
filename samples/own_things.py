"""Things of your own: creatures that no CLIP has met, learned by fine-tuning and as mere words.

Twenty of each make the fine-tuned guide, under attack, so that it stays one; five make a word.
"""

import runpy
from pathlib import Path

import torch
import typer

import clipguide
from clipguide.clip import load_parts
from clipguide.clip.concepts import with_concept
from clipguide.finetune.guiding import GuidingConfig, for_guiding
from clipguide.finetune.inversion import OTHERS, Inversion, InversionConfig
from clipguide.images import contact_sheet
from clipguide.zero_shot import fit_probe

CREATURES = runpy.run_path(str(Path(__file__).parent / "own" / "creatures.py"))
NAMES, picture, batches = (CREATURES[name] for name in ("NAMES", "draw", "batches"))


def main(quick: bool = False, out: Path = Path("own_things.png")) -> None:
    """Learn, draw, and ask the judge which of the five each picture is."""
    count, steps, sampled = (2, 1, 2) if quick else (20, 120, 20)
    parts, stock, concepts = load_parts("mini"), clipguide.load_clip("mini"), []
    for name in NAMES:
        five = [picture(name, k) for k in range(5)]
        word = Inversion(parts, five, name, InversionConfig(steps=steps))
        print(f"{name}: cosine {max(step.cosine for step in word):.2f}")
        concepts.append(word.concept())
    config, kinds = GuidingConfig(steps=steps, keep=0.2, warmup=10), [*NAMES, *OTHERS]
    for step in for_guiding(parts, batches(count, steps), classes=kinds, config=config):
        print(f"step {step.index} of {steps}: loss {step.loss:.3f}")
    ways = {"stock": stock, "words": with_concept(stock, *concepts), "fine-tuned": parts.clip()}
    judge, draw, sheet = clipguide.load_clip("mini-judge"), clipguide.TextToImage(), {}
    known = judge.encode_pictures([picture(name, k) for name in NAMES for k in range(20)])
    probe = fit_probe(known, torch.arange(5).repeat_interleave(20))
    for way, clip in ways.items():
        draw.clip = clip
        drawn = draw(["a drawing"] * 5, guide=NAMES, steps=sampled, cfg=1, strength=1.6)
        seen = probe.logits(judge.encode_pictures([p.image for p in drawn])).argmax(1)
        print(f"{way}: {(seen == torch.arange(5)).sum()} of 5")
        sheet |= {f"{way}: {name}": p.image for name, p in zip(NAMES, drawn)}
    contact_sheet(list(sheet.values()), labels=list(sheet), columns=5).save(out)


if __name__ == "__main__":
    typer.run(main)
