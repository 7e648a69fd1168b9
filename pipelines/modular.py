"""Steer Modular Diffusers: wrap the denoising loop in a block.

    blocks = steered(StableDiffusionXLAutoBlocks())
    pipe = blocks.init_pipeline("a Stable Diffusion XL")
    pipe.load_components()
    pipe.update_components(clip=load_clip("ViT-B-32/laion2b_s34b_b79k"))
    pipe(prompt="a fox", clip_prompt="a red fox", clip_strength=0.2, output="images")[0]

`clip` is a component like the guider. By default it is the CLIP of the pipeline's family. The state
has `report`, the report of steering.
"""

from __future__ import annotations

import copy

from diffusers.modular_pipelines import (
    ComponentSpec,
    ConfigSpec,
    InputParam,
    LoopSequentialPipelineBlocks,
    ModularPipeline,
    ModularPipelineBlocks,
    OutputParam,
    PipelineState,
)

from ..clip import Clip
from ..errors import ClipguideError, UsageError
from ..guidance import Report, Shortcut, steer

PROMPT = "what CLIP steers towards: a text or one a prompt, or an Objective; by default the prompt"
STRENGTH = "of the steering, as a fraction of rms(x0); 0 changes no bit"
WINDOW = "the noise levels that are steered at: 1 pure noise, 0 clean"


def steered(blocks: ModularPipelineBlocks) -> ModularPipelineBlocks:
    """Return a copy of blocks in which each loop over the steps of a scheduler is in a Steered.
    Raise ClipguideError if there is no loop."""
    if isinstance(blocks, LoopSequentialPipelineBlocks):
        return Steered(blocks)
    blocks = copy.deepcopy(blocks)
    if not _wrap(blocks):
        raise ClipguideError(
            f"{type(blocks).__name__} has no loop that denoises, so nothing to steer."
        )
    return blocks


def _wrap(blocks: ModularPipelineBlocks) -> int:
    """Put each loop in these blocks into a Steered. Return their number."""
    count = 0
    for name, block in blocks.sub_blocks.items():
        if isinstance(block, LoopSequentialPipelineBlocks):
            blocks.sub_blocks[name] = Steered(block)
            count += 1
        else:
            count += _wrap(block)
    return count


class Steered(ModularPipelineBlocks):
    """A block that runs another block, which denoises, under `clipguide.steer`.

    To other blocks it is a leaf, so that code that extracts workflows keeps it.
    """

    def __init__(self, block: ModularPipelineBlocks) -> None:
        super().__init__()
        self.block = block

    @property
    def model_name(self) -> str | None:
        return self.block.model_name

    @property
    def description(self) -> str:
        return f"{self.block.description}\nSteered by a CLIP."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [*self.block.expected_components, ComponentSpec("clip", Clip)]

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        return self.block.expected_configs

    @property
    def inputs(self) -> list[InputParam]:
        own = [
            InputParam("prompt"),
            InputParam("clip_prompt", description=PROMPT),
            InputParam("clip_strength", float, Shortcut.strength, description=STRENGTH),
            InputParam("clip_window", tuple, Shortcut.window, description=WINDOW),
            InputParam("height", int),
            InputParam("width", int),
        ]
        names = self.block.input_names
        return [*self.block.inputs, *(given for given in own if given.name not in names)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [*self.block.intermediate_outputs, OutputParam("report", Report)]

    def set_progress_bar_config(self, **settings: object) -> None:
        self.block.set_progress_bar_config(**settings)

    def __call__(
        self, components: ModularPipeline, state: PipelineState
    ) -> tuple[ModularPipeline, PipelineState]:
        """Run the block with steering. Raise UsageError without a prompt, ClipguideError without a
        VAE."""
        given = self.get_block_state(state)
        if getattr(components, "vae", None) is None:
            raise ClipguideError(
                "Steering looks at images, and this pipeline has no VAE: load one, or keep the "
                "block that decodes."
            )
        towards = given.prompt if given.clip_prompt is None else given.clip_prompt
        if towards is None:
            raise UsageError("There is nothing to steer towards: give clip_prompt=…")
        steering = steer(
            components,
            towards,
            clip=components.clip,
            strength=given.clip_strength,
            window=given.clip_window,
        )
        timesteps = state.get("timesteps")
        steps = None if timesteps is None else len(timesteps)
        steering.expect(height=given.height, width=given.width, steps=steps)
        with steering:
            components, state = self.block(components, state)
        state.set("report", steering.report)
        return components, state
