"""A tape of one run: what goes on from its last step after a stop, with the same bits.

At each step the scheduler's input is kept, as the method made it, with the states of the generators
that the objective draws from and what was seen. A run that finds a tape gives the scheduler these
inputs again, which rebuilds its history and draws what it drew, and asks the denoiser, the decoder
and the CLIP for nothing until the tape ends.

Shapes: B samples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from diffusers.utils import BaseOutput
from torch import nn

from ..errors import ClipguideError
from ..recipe import write_file
from .families import denoiser
from .report import Trace

FORMAT = 1
SEEN = ("loss_B", "gradient_B", "angle_B", "guide_score_B", "judge_score_B")


@dataclasses.dataclass(frozen=True)
class Kept:
    """One step: what the scheduler was given, which samples' gradients were numbers (None where
    none was taken), the generators' states after it, and its row of the trace."""

    model_output: torch.Tensor
    finite_B: torch.Tensor | None
    states: list[torch.Tensor]
    trace: Trace


class Tape:
    """The steps of one run in a folder, one file each; `position` is the step that comes next.

    A file that cannot be read ends the tape: that step is drawn again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.position = folder, 0
        self._kept: list[Kept] = []
        self._shapes: list = []  # of the denoiser's answer: one, or where it gives a list one each
        self._first = ""
        while step := self._load(len(self._kept)):
            self._kept.append(step)

    @property
    def replaying(self) -> bool:
        """Whether the step that comes next is on the tape."""
        return self.position < len(self._kept)

    def begin(self, sample: torch.Tensor, timesteps: torch.Tensor) -> None:
        """Say what the run begins with. ClipguideError if the tape is of another."""
        digest = hashlib.sha256()
        for part in (sample, timesteps):
            digest.update(part.detach().float().cpu().contiguous().numpy().tobytes())
        digest = digest.hexdigest()
        if self._kept and digest != self._first:
            raise ClipguideError(f"{self.folder} keeps another run's steps: delete it.")
        self._first = digest

    def next(self) -> Kept:
        """The step at `position`, which moves on."""
        self.position += 1
        return self._kept[self.position - 1]

    def keep(self, step: Kept) -> None:
        """Write the step at `position`, whole or not at all, and move on."""
        tensors = {"model_output": step.model_output.detach().contiguous().cpu()}
        if step.finite_B is not None:
            tensors["finite_B"] = step.finite_B.cpu()
        tensors |= {f"state.{i}": state for i, state in enumerate(step.states)}
        values = {name: getattr(step.trace, name) for name in SEEN}
        tensors |= {f"trace.{k}": v.contiguous() for k, v in values.items() if v is not None}
        facts = {
            "format": FORMAT,
            "index": step.trace.index,
            "noise": step.trace.noise,
            "sigma": step.trace.sigma,
            "shapes": self._shapes,
            "first": self._first,
            "states": len(step.states),
        }
        metadata = {"clipguide": json.dumps(facts)}
        write_file(
            self._path(self.position),
            lambda path: safetensors.torch.save_file(tensors, path, metadata),
            overwrite=True,
        )
        self.position += 1

    def heard(self, output: torch.Tensor | list[torch.Tensor]) -> None:
        """The shape of the denoiser's answer, one or a list of them, goes on the tape."""
        listed = isinstance(output, (list, tuple))
        self._shapes = [list(part.shape) for part in output] if listed else list(output.shape)

    def nothing(self, like: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Zeros in that shape."""
        if any(isinstance(shape, list) for shape in self._shapes):
            return [like.new_zeros(shape) for shape in self._shapes]
        return like.new_zeros(self._shapes)

    @staticmethod
    def erase(folder: Path) -> None:
        """Remove a tape, and the folder that it was in if there is nothing else in that."""
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()

    def listen(self, pipe: object) -> Mute:
        """What answers for the pipeline's denoiser while the tape is replayed."""
        return Mute(self, denoiser(pipe))

    def _path(self, index: int) -> Path:
        return self.folder / f"step-{index:05d}.safetensors"

    def _load(self, index: int) -> Kept | None:
        path = self._path(index)
        try:
            with safetensors.safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {})["clipguide"])
                found = {name: file.get_tensor(name) for name in file.keys()}
            if facts["format"] != FORMAT or facts["index"] != index:
                return None
            seen = {name: found.get(f"trace.{name}") for name in SEEN}
            trace = Trace(index=index, noise=facts["noise"], sigma=facts["sigma"], **seen)
            states = [found[f"state.{i}"] for i in range(facts["states"])]
            self._shapes, self._first = list(facts["shapes"]), facts["first"]
            return Kept(found["model_output"], found.get("finite_B"), states, trace)
        except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError):
            return None


@dataclasses.dataclass
class _Output(BaseOutput):
    """As the denoisers of diffusers answer."""

    sample: torch.Tensor


class Mute:
    """Answers for a denoiser with nothing, in the shape of its own answer, while a tape is
    replayed; else it listens. Closed, it is gone."""

    def __init__(self, tape: Tape, model: nn.Module) -> None:
        self._model, self._own = model, model.__dict__.get("forward")
        forward = model.forward

        def answer(*args, **kwargs):
            if not tape.replaying:
                output = forward(*args, **kwargs)
                tape.heard(output[0])
                return output
            weight = next(model.parameters())
            nothing = tape.nothing(weight)
            return _Output(sample=nothing) if kwargs.get("return_dict", True) else (nothing,)

        model.forward = answer

    def close(self) -> None:
        """Undo."""
        del self._model.forward
        if self._own is not None:
            self._model.forward = self._own
