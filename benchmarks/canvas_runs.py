"""The runs of `benchmarks/canvases.py` for one image: draw in a given time, race, score.

Shapes: B images, K concepts, D of an embedding.
"""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path

import torch
from clipguide.pipelines.drawing import Drawing
from clipguide.pipelines.text_to_canvas import TextToCanvas
from PIL import Image

from benchmarks.classic import Classic
from benchmarks.records import models_of
from clipguide import Clip, load_clip

ALWAYS = ("generator", "guide", "judge", "referee")  # score distillation is by the generator
OWN = {"vqgan": "vqgan", "latent": "generator"}  # canvas -> the embedded model that decodes it


class Measure:
    """The referee, and the prompts of the mini generator's objects in a fixed order."""

    def __init__(self, folder: Path) -> None:
        self.models = models_of("guide", "judge", *OWN.values(), referee=folder)
        from training.evaluate.clips import all_drawings
        from training.evaluate.samples import concept_prompts, things_drawn

        drawings = all_drawings()
        self.clip: Clip = load_clip(str(folder))
        self.text_KD = self.clip.encode_text(drawings.concepts)
        every, of = concept_prompts(things_drawn(drawings.concepts))
        order = random.Random(0).sample(range(len(every)), len(every))
        self.prompts = [every[i] for i in order]
        self.place = {every[i]: drawings.place[of[i]] for i in order}

    def models_for(self, *canvases: str) -> dict[str, str]:
        """Return the fingerprints of the models that images on these canvases depend on."""
        own = {OWN[canvas] for canvas in canvases if canvas in OWN}
        return {name: self.models[name] for name in self.models if name in (*ALWAYS, *own)}

    def score(self, prompt: str, image_13HW: torch.Tensor) -> float:
        """Return the cosine similarity of an image with its prompt."""
        with torch.no_grad():
            unit_1D = self.clip.encode_image(image_13HW)
        return (unit_1D @ self.clip.encode_text([prompt]).T).item()

    def top5(self, prompt: str, picture: Image.Image) -> bool:
        """Return whether the object is among the five concepts that fit the image best."""
        from training.evaluate.drawings import ranks

        target_B = torch.tensor([self.place[prompt]])
        return ranks(self.clip.encode_pictures([picture]), self.text_KD, target_B).item() < 5


def timed(
    owner: TextToCanvas, prompt: str, drawing: Drawing, seconds: float
) -> tuple[Image.Image, int, float]:
    """Draw an image in about `seconds` of processor time.

    Three steps of a separate run measure the time of a step. They do not count.

    Returns:
        The image, its number of steps, and its processor time in seconds.
    """
    few = owner.start(prompt, replace(drawing, steps=8))
    few.step()  # warm-up
    begin = time.process_time()
    for _ in range(3):
        few.step()
    a_step = (time.process_time() - begin) / 3
    steps = max(2, int(seconds / a_step))
    begin, run = time.process_time(), owner.start(prompt, replace(drawing, steps=steps))
    for _ in run:
        if time.process_time() - begin > seconds:
            break
    return run.picture().image, run.index, time.process_time() - begin


def raced(
    measure: Measure,
    classic: TextToCanvas,
    owner: TextToCanvas,
    prompt: str,
    steps: int,
    cutouts: int,
) -> tuple[float, bool]:
    """Race our loop against the classic loop's final score.

    Returns:
        Our seconds divided by those of the classic loop, and whether our image reached its score.
    """
    torch.manual_seed(0)
    side = classic.start(prompt, Drawing()).loop.canvas.height
    sides = {"height": side, "width": side}
    loop = Classic(classic.net, classic.clip, [prompt], **sides, cutouts=cutouts)
    loop.step()  # warm-up
    begin = time.process_time()
    for _ in range(steps):
        loop.step()
    limit = time.process_time() - begin
    wanted, spent, reached = measure.score(prompt, loop.image().clamp(0, 1)), 0.0, False
    run = owner.start(prompt, Drawing(steps=steps, cutouts=cutouts))
    while not (run.done or reached):
        begin = time.process_time()
        step = run.step()
        spent += time.process_time() - begin
        if run.index % 5 == 0:
            reached = measure.score(prompt, step.image()) >= wanted
    return spent / limit, reached
