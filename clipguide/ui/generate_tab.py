"""The tab that draws, with previews and scores while it samples. Stop ends the work."""

from __future__ import annotations

import secrets
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from .. import mini
from ..errors import ClipguideError, ClipguideWarning, UsageError, out_of_memory
from ..guidance import Shortcut
from ..images import to_pil
from ..pipelines.picture import Picture, easing
from ..prompts import parse
from ..recipe import save_png
from . import parts, words
from .models import MINI

if TYPE_CHECKING:
    import gradio as gr
    from PIL import Image

    from ..guidance import Step
    from .models import Models

MOST, STEPS = 8, 100  # largest numbers of images per run, candidates per image, and steps
EXAMPLES = ["a red fox", "two owls at night", "a frog on a mushroom", "a cat, a dog and a fish"]
EVERY = 0.3  # seconds between previews
DONE = object()


class _Stopped(Exception):
    """The exception that ends a run between two steps."""


@dataclass(frozen=True)
class Moment:
    """A step of a run: its number from 0, the number of steps, mean scores, and at times previews.
    """

    index: int
    total: int
    scores: dict[str, float]
    previews: list[Image.Image]


@dataclass(frozen=True)
class Note:
    """A warning of clipguide: something was not done as asked."""

    text: str


def stream(
    run: Callable[[Callable[[Step], None]], Iterator[Picture]], stop: threading.Event
) -> Iterator[Moment | Note | Picture]:
    """Yield every step, warning and image of `run(on_step)`, which works in a thread. If `stop` is
    set or this generator is closed, the run ends after its current step, and then this ends."""
    box: SimpleQueue = SimpleQueue()

    def note(message: Warning | str, *_: object, **__: object) -> None:
        box.put(Note(str(message)))

    latest = -EVERY

    def on_step(step: Step) -> None:
        nonlocal latest
        if stop.is_set():
            raise _Stopped
        seen = {"guide": step.guide_score_B, "judge": step.judge_score_B}
        scores = {
            name: float(score_B.mean()) for name, score_B in seen.items() if score_B is not None
        }
        previews = []
        if time.monotonic() - latest >= EVERY:
            previews = to_pil(step.preview())
            latest = time.monotonic()
        box.put(Moment(step.index, step.total, scores, previews))

    def work() -> None:
        try:
            with warnings.catch_warnings():  # one run draws at a time
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", ClipguideWarning)
                warnings.showwarning = note
                for picture in run(on_step):
                    box.put(picture)
                    if stop.is_set():
                        break
        except _Stopped:
            pass
        except Exception as error:
            box.put(error)
        finally:
            box.put(DONE)

    thread = threading.Thread(target=work, name="clipguide-draw", daemon=True)
    thread.start()
    try:
        while (item := box.get()) is not DONE:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def draw(
    models: Models,
    session: str,
    folder: str,
    prompt: str,
    negative: str,
    strength: float,
    steps: int,
    seed: str,
    count: int,
    best_of: int = 1,
    rewards: Sequence[str] = (),
) -> Iterator[tuple[list[tuple[Any, str]], str, str]]:
    """Yield the images so far with their labels, the messages and the plot. Yield nothing if the
    session asked for no run.

    The finished images are PNGs in `folder` with their recipes.
    """
    stop = models.stops.begin(session)
    if stop is None:
        return
    shown: list[tuple[str, str]] = []
    trace: list[dict[str, float]] = []
    notes: dict[str, None] = {}
    finished: list[Picture] = []

    def said(line: str) -> str:
        return words.said(" ".join([line, *notes]))

    try:
        settings = _settings(prompt, negative, strength, steps, seed, count, best_of)
        settings |= _rewards(models, rewards)
        if models.model == MINI and (strength, best_of) == (0, mini.CANDIDATES):
            del settings["strength"], settings["best_of"]  # untouched: as the command draws
        yield [], words.said("The models are being loaded…"), ""
        generator = models.generator()

        def run(on_step: Callable[[Step], None]) -> Iterator[Picture]:
            return generator.iterate(**settings, trace=True, on_step=on_step)

        for item in stream(run, stop):
            if isinstance(item, Note):
                notes[item.text] = None
            elif isinstance(item, Moment):
                trace = [*(trace if item.index else []), {"step": item.index, **item.scores}]
                if item.previews:
                    label = f"step {item.index + 1} of {item.total}"
                    line = said(f"Image {len(shown) + 1} of {count}, {label}.")
                    previews = [(picture, label) for picture in item.previews]
                    yield [*shown, *previews], line, words.plot(trace)
            else:
                shown.append((_saved(item, folder), _label(item, models)))
                finished.append(item)
                line = f"Image {len(shown)} of {count} is finished."
                if len(shown) == count and (eased := easing(finished)):
                    line += f" {eased}."
                yield list(shown), said(line), words.plot(item.trace)
        if len(shown) < count:
            kept = f"; {len(shown)} of {count} are finished" if shown else ""
            yield list(shown), said(f"Stopped{kept}."), words.plot(trace)
    except ClipguideError as error:
        yield list(shown), words.said(words.sentence(error), wrong=True), words.plot(trace)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        yield list(shown), words.said("There is not enough memory.", wrong=True), ""
    finally:
        models.stops.ended(session, stop)


def build(models: Models, folder: str) -> None:
    """Build the components of the tab, and connect them."""
    import gradio as gr

    with gr.Row(equal_height=False, elem_classes="work"):
        with gr.Column(scale=2, min_width=300, elem_classes="asked"):
            prompt = parts.text("Prompt", "a red fox | oil painting:0.5", "prompt", autofocus=True)
            with gr.Row():
                start = gr.Button("Generate", variant="primary", elem_id="generate", min_width=120)
                halt = gr.Button("Stop", elem_id="stop", min_width=120)
        with gr.Column(scale=3, min_width=300, elem_classes="shown"):
            line = gr.HTML(words.said("Say what to draw, and press Enter."), elem_id="drawn-line")
            pictures = parts.gallery("drawn", "download", "fullscreen")
            plot = gr.HTML(elem_id="trace")
        with gr.Column(scale=2, min_width=300, elem_classes="settings"):
            with gr.Accordion("Settings", open=False, elem_id="settings"):
                negative = parts.text("Negative", "what to keep away from", "negative")
                # By default, the embedded generator draws candidates, which nothing steers.
                pull, candidates, own = (
                    (0.0, mini.CANDIDATES, mini.STEPS)
                    if models.model == MINI
                    else (Shortcut.strength, 1, 30)
                )
                strength = gr.Slider(
                    0, 1, value=pull, step=0.01, label="Strength of the steering",
                    elem_id="strength",
                )  # fmt: skip
                steps = gr.Slider(1, STEPS, value=own, step=1, label="Steps", elem_id="steps")
                seed = parts.text("Seed", "a new one", "seed")
                count = gr.Slider(1, MOST, value=1, step=1, label="Images", elem_id="count")
                best_of = gr.Slider(
                    1, MOST, value=candidates, step=1, label="Candidates of each, the best is kept",
                    elem_id="best-of",
                )  # fmt: skip
                rewards = []  # a component, if the server offers rewards
                if models.rewards:
                    offered = list(models.rewards)
                    rewards = [gr.CheckboxGroup(offered, label="Rewards", elem_id="rewards")]
            gr.Examples(EXAMPLES, inputs=prompt, label="Examples", cache_examples=False)
    asked = [prompt, negative, strength, steps, seed, count, best_of, *rewards]
    triggers = [prompt.submit, negative.submit, seed.submit, start.click]
    _wire(models, folder, triggers, halt, asked, [pictures, line, plot])


def _wire(
    models: Models,
    folder: str,
    triggers: Sequence[Any],
    halt: gr.Button,
    asked: Sequence[gr.Component],
    shown: Sequence[gr.Component],
) -> None:
    """Connect the buttons. A run waits for its turn, and can be stopped while it waits or draws."""
    import gradio as gr

    def ask(request: gr.Request) -> Any:
        fresh = models.stops.ask(request.session_hash)
        return words.said("Waiting for its turn…") if fresh else gr.skip()

    def begin(request: gr.Request, *given: Any) -> Iterator[tuple]:
        shown = None
        for shown in draw(models, request.session_hash, folder, *given):
            yield shown
        if shown is None:
            yield gr.skip(), gr.skip(), gr.skip()

    def end(request: gr.Request) -> str:
        stopped = models.stops.stop(request.session_hash)
        return words.said("Stopped." if stopped else "Nothing is being drawn.")

    for function in (ask, begin, end):
        function.__annotations__["request"] = gr.Request
    hidden = {"show_progress": "hidden", "api_visibility": "private"}
    gr.on(triggers, ask, outputs=shown[1], queue=False, **hidden).then(
        begin,
        inputs=asked,
        outputs=shown,
        concurrency_id="draw",
        concurrency_limit=1,
        **hidden,
    )
    parts.follow(triggers, "#drawn-line")
    halt.click(end, outputs=shown[1], queue=False, **hidden)


def _settings(
    prompt: str,
    negative: str,
    strength: float,
    steps: int,
    seed: str,
    count: int,
    best_of: int,
) -> dict[str, Any]:
    prompt = words.checked(prompt)
    if not prompt:
        raise UsageError("The prompt is empty: say what to draw.")
    if not 1 <= count <= MOST or not 1 <= steps <= STEPS or not 1 <= best_of <= MOST:
        raise UsageError(
            f"The page draws 1 to {MOST} images of 1 to {MOST} candidates each, in 1 to {STEPS} "
            "steps."
        )
    seed = seed.strip()
    if seed and not (seed.isdecimal() and len(seed) < 20):
        raise UsageError(
            f"The seed is a whole number from 0, or nothing for a new one, not {seed!r}."
        )
    return {
        "prompts": prompt,
        "negative": words.checked(negative),
        "strength": float(strength),
        "steps": int(steps),
        "seed": int(seed) if seed else secrets.randbelow(2**31),
        "count": int(count),
        "best_of": int(best_of),
    }


def _rewards(models: Models, chosen: Sequence[str]) -> dict[str, Any]:
    """Return the settings of the chosen rewards: those with a gradient steer, the others select
    among candidates. Raise UsageError for one that the page does not offer."""
    if not chosen:
        return {}
    from ..rewards import wanted

    if unknown := [name for name in chosen if name not in models.rewards]:
        raise UsageError(f"The page does not offer the reward {unknown[0]!r}.")
    pulling = tuple(name for name in chosen if wanted(name).kind.gradient)
    selecting = tuple(name for name in chosen if name not in pulling)
    return {"rewards": pulling, "select": selecting, "question": models.question}


def _label(picture: Picture, models: Models) -> str:
    """Return the seed and the score: of the judge, or of the guide if there is no judge."""
    generator = models.generator()
    judge, score = generator.judge or generator.clip, picture.judge_score
    score = picture.guide_score if score is None else score
    import torch

    text = parse(picture.recipe.guide).text
    image_1D = judge.encode_pictures([picture.image])
    (share,) = models.unrelated(judge).shares(image_1D, text, torch.tensor([score]))
    return f"seed {picture.seed}  score {words.scored(score, share)}"


def _saved(picture: Picture, folder: str) -> str:
    """Return a new PNG with the recipe of the image."""
    path = Path(tempfile.mkdtemp(dir=folder)) / f"clipguide-{picture.seed}.png"
    save_png(picture.image, picture.recipe, path, trace=picture.trace)
    return str(path)
