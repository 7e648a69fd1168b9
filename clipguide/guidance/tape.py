"""A tape: the steps of one run on disk, from which an interrupted run continues with the same bits.

The tape keeps for each step the input of the scheduler, the states of the generators that the
objective draws from, and the trace. A run that finds a tape passes these inputs to the scheduler
again, which restores its history and its random numbers. Until the tape ends, the denoiser, the
decoder and the CLIP do not run. A tape belongs to one run: its digest covers the objective, the
method, all arguments of the call and all weights (`guidance/digest.py`).

Shapes: B samples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from diffusers.utils import BaseOutput
from torch import nn

from ..errors import ClipguideError
from ..recipe import write_file
from .report import Trace

FORMAT = 4
SEEN = ("loss_B", "gradient_B", "angle_B", "guide_score_B", "judge_score_B", "rank_B")


@dataclasses.dataclass(frozen=True)
class TapeStep:
    """One step: the input of the scheduler, which gradients were numbers (None if none was taken),
    the states of the generators after it, its row of the trace, and what the method keeps."""

    model_output: torch.Tensor
    sample: torch.Tensor | None
    finite_B: torch.Tensor | None
    states: list[torch.Tensor]
    trace: Trace
    kept: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)


class Tape:
    """The steps of one run in a folder, one file each. `position` is the next step. `decoder` is
    the decoder of the run, as `Decoder.name`.

    A file that cannot be read ends the tape: its step is drawn again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.position = folder, 0
        self._kept: list[TapeStep] = []
        self._shapes: list = []  # of the denoiser's output: one, or where it gives a list one each
        self._digest = self.decoder = ""
        while step := self._load(len(self._kept)):
            self._kept.append(step)

    @property
    def replaying(self) -> bool:
        """Open a context in which a denoiser returns zeros in the shape of its output, and computes
        nothing, while a tape is replayed. After that it works as before, and its shapes are written
        to the tape."""
        return self.position < len(self._kept)

    def begin(self, digest: str) -> None:
        """Set the run. Raise ClipguideError if the tape belongs to another run."""
        if self._kept and digest != self._digest:
            raise ClipguideError(f"{self.folder} keeps another run's steps: delete it.")
        self._digest = digest

    def next(self) -> TapeStep:
        """Return the step at `position`, which moves on."""
        self.position += 1
        return self._kept[self.position - 1]

    def keep(self, step: TapeStep) -> None:
        """Write the step at `position`, completely or not at all, and go to the next one."""
        tensors = {"model_output": step.model_output.detach().contiguous().cpu()}
        if step.sample is not None:
            tensors["sample"] = step.sample.detach().contiguous().cpu()
        if step.finite_B is not None:
            tensors["finite_B"] = step.finite_B.cpu()
        tensors |= {f"state.{i}": state for i, state in enumerate(step.states)}
        tensors |= {f"kept.{k}": v.detach().contiguous().cpu() for k, v in step.kept.items()}
        values = {name: getattr(step.trace, name) for name in SEEN}
        tensors |= {f"trace.{k}": v.contiguous() for k, v in values.items() if v is not None}
        facts = {
            "format": FORMAT,
            "index": step.trace.index,
            "noise": step.trace.noise,
            "sigma": step.trace.sigma,
            "shapes": self._shapes,
            "digest": self._digest,
            "decoder": self.decoder,
            "states": len(step.states),
        }
        metadata = {"clipguide": json.dumps(facts)}
        write_file(
            self._path(self.position),
            lambda path: safetensors.torch.save_file(tensors, path, metadata),
            overwrite=True,
        )
        self.position += 1

    def keep_shape(self, output: torch.Tensor | list[torch.Tensor]) -> None:
        """Put the shape of the denoiser's output, one or a list of them, on the tape."""
        listed = isinstance(output, (list, tuple))
        self._shapes = [list(part.shape) for part in output] if listed else list(output.shape)

    def zeros(self, like: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Return a denoiser's output of zeros, in that shape."""
        if any(isinstance(shape, list) for shape in self._shapes):
            return [like.new_zeros(shape) for shape in self._shapes]
        return like.new_zeros(self._shapes)

    @staticmethod
    def erase(folder: Path) -> None:
        """Delete a tape, and its folder if that is then empty."""
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()

    def _path(self, index: int) -> Path:
        return self.folder / f"step-{index:05d}.safetensors"

    def _load(self, index: int) -> TapeStep | None:
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
            kept = {k.removeprefix("kept."): v for k, v in found.items() if k.startswith("kept.")}
            self._shapes, self._digest = list(facts["shapes"]), facts["digest"]
            self.decoder = str(facts["decoder"])
            return TapeStep(
                found["model_output"],
                found.get("sample"),
                found.get("finite_B"),
                states,
                trace,
                kept,
            )
        except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError):
            return None


@dataclasses.dataclass
class _Output(BaseOutput):
    """An output like those of diffusers' denoisers."""

    sample: torch.Tensor


@contextlib.contextmanager
def replaying(tape: Tape, model: nn.Module) -> Iterator[None]:
    """Have a denoiser give zeros in the shape of its own output, and compute nothing, while a tape
    is replayed; then it is itself, and its shapes go on the tape. `forward.itself` is its own, for
    calls that are not of the run's steps."""
    own, forward = model.__dict__.get("forward"), model.forward

    def answer(*args, **kwargs):
        if not tape.replaying:
            output = forward(*args, **kwargs)
            tape.keep_shape(output[0])
            return output
        zeros = tape.zeros(next(model.parameters()))
        return _Output(sample=zeros) if kwargs.get("return_dict", True) else (zeros,)

    answer.itself = forward
    model.forward = answer
    try:
        yield
    finally:
        del model.forward
        if own is not None:
            model.forward = own
