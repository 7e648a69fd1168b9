"""Write docs/support.md: test every family of pipelines with every scheduler that it runs with.

    python benchmarks/support_table.py            # write docs/support.md
    python benchmarks/support_table.py --print    # only print it

A cell is "yes" if on a tiny model with random weights strength 0 changes no bit, strength 1e-9
changes almost nothing, a second run has the same bits, and the objective is lower for every sample
and seed. If the plain pipeline cannot run, the cell is "n/a". If a test fails, the text below the
table says why.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]
DOCUMENT = ROOT / "docs" / "support.md"
SEEDS = (3, 11)  # of the first of two samples

# Schedulers by their common names: class, and what differs from the family's own configuration.
DIFFUSION = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "DDPM": ("DDPMScheduler", {"clip_sample": False}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "KDPM2": ("KDPM2DiscreteScheduler", {}),
    "KDPM2 a": ("KDPM2AncestralDiscreteScheduler", {}),
    "DPM++ SDE": ("DPMSolverSDEScheduler", {"noise_sampler_seed": 0}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM++ 2S": ("DPMSolverSinglestepScheduler", {}),
    "DEIS": ("DEISMultistepScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "SA": ("SASolverScheduler", {}),
    "LCM": ("LCMScheduler", {"clip_sample": False}),
    "TCD": ("TCDScheduler", {"clip_sample": False}),
    "EDM Euler": ("EDMEulerScheduler", {}),
}
_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
FLOWS = {
    "flow Euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow Heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "flow LCM": ("FlowMatchLCMScheduler", {}),
    "flow DPM++ 2M": ("DPMSolverMultistepScheduler", _FLOW),
    "flow DPM++ 2S": ("DPMSolverSinglestepScheduler", _FLOW),
    "flow DEIS": ("DEISMultistepScheduler", _FLOW),
    "flow UniPC": ("UniPCMultistepScheduler", _FLOW),
    "flow SA": ("SASolverScheduler", _FLOW),
}
STRAIGHT = ("SD3", "FLUX", "FLUX.2", "Qwen-Image", "Z-Image", "Sana")
STRAIGHT += ("CogView4", "HiDream", "Kandinsky 5", "Wan", "Wan 2.2")
_LCM = {name: DIFFUSION[name] for name in ("LCM", "TCD")}
_EULER = {"flow Euler": FLOWS["flow Euler"]}
_DDPM = {"DDPM": DIFFUSION["DDPM"]}
_FEW = {name: DIFFUSION[name] for name in ("DDIM", "Euler a", "DPM++ 2M")}
OWN = {
    "Sana Sprint": {"SCM": ("SCMScheduler", {})},
    "Stable Cascade": {"DDPM Würstchen": ("DDPMWuerstchenScheduler", {})},
    "LCM": _LCM,
    "DDIM": {"DDIM": ("DDIMScheduler", {})},  # its pipeline takes no other
    # Their denoising is that of SD 1.5 and SDXL: one scheduler of each kind.
    **dict.fromkeys(("SD image to image", "SD inpainting", "SD ControlNet"), _FEW),
    "SD x4 upscaling": {"DDIM": DIFFUSION["DDIM"]},
    "CogView4": {"flow Euler": FLOWS["flow Euler"]},  # its pipeline sets the sigmas itself
    **dict.fromkeys(("SDXL with moments", "SDXL image to image", "SDXL inpainting"), _FEW),
    # And these are there for how they decode.
    **dict.fromkeys(("CogView4", "HiDream", "Kandinsky 5"), _EULER),
    **dict.fromkeys(("Wan", "Wan 2.2"), {"flow UniPC": FLOWS["flow UniPC"]}),
    **dict.fromkeys((f"Hunyuan-DiT{kind}" for kind in ("", " PAG", " ControlNet")), _DDPM),
}

CLASSES = {  # the class of each pipeline's tiny model
    "SD 1.5": "StableDiffusionPipeline",
    "SD 2 (v)": "StableDiffusionPipeline",
    "SD image to image": "StableDiffusionImg2ImgPipeline",
    "SD inpainting": "StableDiffusionInpaintPipeline",
    "SD ControlNet": "StableDiffusionControlNetPipeline",
    "LCM": "LatentConsistencyModelPipeline",
    "SDXL": "StableDiffusionXLPipeline",
    "SDXL with moments": "StableDiffusionXLPipeline",
    "SDXL image to image": "StableDiffusionXLImg2ImgPipeline",
    "SDXL inpainting": "StableDiffusionXLInpaintPipeline",
    "SD3": "StableDiffusion3Pipeline",
    "FLUX": "FluxPipeline",
    "FLUX.2": "Flux2KleinPipeline",
    "Qwen-Image": "QwenImagePipeline",
    "Z-Image": "ZImagePipeline",
    "Sana": "SanaPipeline",
    "Sana Sprint": "SanaSprintPipeline",
    "PixArt-Sigma": "PixArtSigmaPipeline",
    "DDPM": "DDPMPipeline",
    "DDIM": "DDIMPipeline",
    "AnimateDiff": "AnimateDiffPipeline",
    "CogView4": "CogView4Pipeline",
    "HiDream": "HiDreamImagePipeline",
    "Stable Cascade": "StableCascadeDecoderPipeline",
    "Kandinsky 5": "Kandinsky5T2IPipeline",
    "Wan": "WanPipeline",
    "Wan 2.2": "WanPipeline",
    "SD x4 upscaling": "StableDiffusionUpscalePipeline",
    "Hunyuan-DiT": "HunyuanDiTPipeline",
    "Hunyuan-DiT PAG": "HunyuanDiTPAGPipeline",
    "Hunyuan-DiT ControlNet": "HunyuanDiTControlNetPipeline",
}
HEADS = {"SDXL denoising_end": "SDXL with `denoising_end`"}  # of the tasks' columns
LABELS = {  # of the methods' rows; the others are names of methods
    "shortcut, noise fixed": '`shortcut`, `fixed="noise"`',
    "travel": "`shortcut`, `travel=2`",
    "backprop, both": "`backprop`, `mu=0.5`, `inner=2`",
    "embedding, null": '`embedding`, `of="null"`',
}


def schedulers(family: str) -> dict[str, tuple[str, dict]]:
    """Return the schedulers that are tested with a family."""
    return OWN.get(family) or (FLOWS if family in STRAIGHT else DIFFUSION)


def prepared(family: str, scheduler: str):
    """Return a tiny pipeline with a scheduler that has the pipeline's betas and prediction, and its
    settings."""
    import diffusers
    from tiny_pipelines import tiny

    pipe, settings = tiny(family)
    name, config = schedulers(family)[scheduler]
    kind = getattr(diffusers, name)
    keep = ("beta_start", "beta_end", "beta_schedule", "prediction_type", "use_dynamic_shifting")
    takes = inspect.signature(kind.__init__).parameters
    own = {k: pipe.scheduler.config[k] for k in keep if k in pipe.scheduler.config and k in takes}
    if name == "EDMEulerScheduler" or family in STRAIGHT:
        own = {k: v for k, v in own.items() if k == "use_dynamic_shifting"}
    pipe.scheduler = kind(**{**own, **config})
    return pipe, settings


def cell(family: str, scheduler: str) -> str:
    """Return "yes", or the reason why not."""
    from test_families import Red
    from tiny_pipelines import BATCH, draw

    from clipguide.errors import ClipguideError
    from clipguide.guidance import steer

    try:
        pipe, settings = prepared(family, scheduler)
        plain = draw(pipe, settings, seed=SEEDS[0])
    except Exception as error:  # any that diffusers has
        return f"n/a: {reason(str(error))}"
    if not plain.isfinite().all():
        return "n/a: the plain image is not a number"

    def loss(image_N3HW: torch.Tensor) -> torch.Tensor:
        return Red()(image_N3HW).view(BATCH, -1).mean(1)

    try:
        with steer(pipe, Red(), strength=0):
            if not torch.equal(draw(pipe, settings, seed=SEEDS[0]), plain):
                return "strength 0 changes bits"
        with steer(pipe, Red(), strength=1e-9, window=(0, 1)):
            if (draw(pipe, settings, seed=SEEDS[0]) - plain).abs().max() > 1e-4:
                return "strength 1e-9 changes the image"
        for seed in SEEDS:
            before = loss(plain if seed == SEEDS[0] else draw(pipe, settings, seed=seed))
            with steer(pipe, Red(), strength=0.3):
                steered = draw(pipe, settings, seed=seed)
                again = draw(pipe, settings, seed=seed) if seed == SEEDS[0] else steered
                if not torch.equal(again, steered):
                    return "a run does not repeat"
            if not (loss(steered) < before).all():
                return "the objective does not fall"
    except ClipguideError as error:
        return f"refused: {error}"
    return "yes"


INTRO = """# Supported pipelines and samplers

This page says which pipelines, samplers and methods `steer` works with. `python
benchmarks/support_table.py` makes the page. It runs the pipelines of diffusers on tiny models with
random weights. The [last table](#classes) has the class of each pipeline. For other pipelines, see
[Pipelines that are not listed](real-models.md#pipelines-that-are-not-listed).

- **yes**: strength 0 changes no bit of the image, and strength 1e-9 changes no pixel by more than
  0.0001. A second run gives the same image. The test draws a batch of two images for each of two
  seeds. With steering, the loss of each of these four images is lower.
- **n/a**: diffusers itself cannot run this pipeline with this scheduler, with or without steering.
  The numbers refer to the reasons below the tables.
- **refused**: clipguide stops with an error before the run.
"""
METHODS_INTRO = """## Methods

The first three columns are tasks of SD 1.5. The last is SDXL as a base model that stops early,
before a refiner (`denoising_end`). The scheduler is DDIM. "Yes" means the same as above, and that
the run leaves the pipeline as it was. For `rollover`, it was not tested that the loss is lower,
because the random noise of the method has a larger effect on these models than the steering.
`tests/test_matrix.py` repeats the table in bfloat16 and float16, with offloading, under
`inference_mode` and autocast, and with a compiled VAE.
"""
CLASSES_INTRO = """## Classes

"SDXL with moments" has a VAE with `latents_mean` and `latents_std`, as Playground 2.5 has.
"""
SENTENCES = {  # what exceptions mean
    "'<=' not supported between instances of 'int' and 'NoneType'": "the pipeline sets "
    "`original_inference_steps` to None, and the scheduler needs a number",
    "takes no `latents`": "refused: there is no initial noise to optimise",
    "begins with the image": "refused, unless the pipeline's own `strength` is 1: below 1, the "
    "pipeline begins with the image, not with noise",
    "skips steps": "refused: the pipeline skips steps, so no step can be repeated",
    "unsupported operand type(s) for /: 'int' and 'list'": "the pipeline passes the sigmas as a "
    "list, and the scheduler needs an array",
}


def reason(error: str) -> str:
    """Return why diffusers itself cannot run the two together."""
    if said := SENTENCES.get(" ".join(error.split())):
        return said
    if "does not support custom sigmas" in " ".join(error.split()):
        return "the pipeline sets the sigmas itself, and the scheduler does not accept them"
    if found := re.search(r"unexpected keyword argument '(\w+)'", error):
        return f"the pipeline passes `{found[1]}`, and the scheduler does not accept it"
    return " ".join(error.split())[:150]


def table(families: list[str]) -> str:
    """Return the page."""
    lines = [INTRO]
    groups: dict[tuple[str, ...], list[str]] = {}
    for family in families:
        groups.setdefault(tuple(schedulers(family)), []).append(family)
    notes: list[str] = []
    for names, members in groups.items():
        heads = [f"{one} pipeline" if one in DIFFUSION else one for one in members]
        lines.append("| scheduler | " + " | ".join(heads) + " |")
        lines.append("|---" * (len(members) + 1) + "|")
        for name in names:
            cells = []
            for family in members:
                said = cell(family, name)
                print(f"{family} × {name}: {said}", file=sys.stderr, flush=True)
                if said == "yes":
                    cells.append("yes")
                    continue
                word, mark, why = said.partition(": ")
                if word not in ("n/a", "refused") or not mark:
                    word, why = "no", said
                if why not in notes:
                    notes.append(why)
                cells.append(f"{word} ({notes.index(why) + 1})")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += [f"{i}. {note}" for i, note in enumerate(notes, 1)]
    lines += ["", *methods(), "", CLASSES_INTRO, "| pipeline | class |", "|---|---|"]
    lines += [f"| {family} | `{CLASSES[family]}` |" for family in families]
    return "\n".join(lines).rstrip() + "\n"


def methods() -> list[str]:
    """Return the results of the methods, by the cells of tests/test_matrix.py."""
    from test_matrix import METHODS, REFUSED, TASKS, check

    lines = [
        METHODS_INTRO,
        "| method | " + " | ".join(HEADS.get(task, task) for task in TASKS) + " |",
        "|---" * (len(TASKS) + 1) + "|",
    ]
    for method in METHODS:
        cells = []
        for task in TASKS:
            check(method, "float32", task, "plain")
            cells.append(SENTENCES.get(REFUSED.get((method, task)), "yes"))
        lines.append(f"| {LABELS.get(method, f'`{method}`')} | " + " | ".join(cells) + " |")
    return lines


def parsed(text: str) -> dict[tuple[str, str], str]:
    """Return (family, scheduler) -> cell of a page."""
    found: dict[tuple[str, str], str] = {}
    members: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|") or line.startswith("|---"):
            continue
        head, *rest = [part.strip() for part in line.strip("|").split("|")]
        if head in ("scheduler", "method", "pipeline"):
            members = [one.removesuffix(" pipeline") for one in rest] * (head == "scheduler")
        elif members:
            found |= {(family, head): said for family, said in zip(members, rest, strict=True)}
    return found


def main() -> None:
    from tiny_pipelines import TINY

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print", action="store_true", help="write nothing")
    settings = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    text = table([name for name in TINY if name != "mini"])  # which the package itself tests
    if settings.print:
        print(text, end="")
    else:
        DOCUMENT.parent.mkdir(exist_ok=True)
        DOCUMENT.write_text(text)


if __name__ == "__main__":
    main()
