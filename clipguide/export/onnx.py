"""Export an encoder to ONNX, and compare it in onnxruntime.

Shapes: B images or texts, L tokens, 3 channels, H rows, W columns, D the width of the embedding.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..clip import Clip
from ..errors import ClipguideError, out_of_memory, reason
from .folder import no_space
from .probes import Agreement, Probes, compare
from .towers import ImageTower, TextTower

EXACT, HALF = 0.9999, 0.999  # minimum cosine similarity to torch, in float32 and float16
BIG = 1_800_000_000  # bytes of weights beyond the limit of one ONNX file
OUTPUT = "vectors"


def tower_of(clip: Clip, kind: str) -> nn.Module:
    """Return the image or the text encoder of a CLIP for export."""
    return (ImageTower(clip) if kind == "image" else TextTower(clip)).eval()


def example(clip: Clip, kind: str) -> torch.Tensor:
    """Return an example input for tracing. None of its sides, and not the batch, equals another
    meaningful number."""
    if kind == "text":
        return clip._tokenizer(["a red fox", "a house"])
    return torch.full((2, 3, clip.image_size + 19, clip.image_size + 42), 0.5)


def dynamic(kind: str) -> dict[int, object]:
    """Return the sides of an input that may change: the batch, and the rows and columns of images.
    """
    names = {"image": {0: "batch", 2: "height", 3: "width"}, "text": {0: "batch"}}[kind]
    return {side: torch.export.Dim(name, min=1) for side, name in names.items()}


def export_tower(tower: nn.Module, given: torch.Tensor, path: Path, *, what: str) -> None:
    """Write an encoder. Its input is named image or tokens, and its output vectors."""
    image = given.ndim == 4
    size = sum(p.numel() * p.element_size() for p in tower.parameters())
    with quiet(), failing(f"{what} cannot be exported to ONNX"):
        program = torch.onnx.export(
            tower,
            (given,),
            dynamo=True,
            verbose=False,
            input_names=["image" if image else "tokens"],
            output_names=[OUTPUT],
            dynamic_shapes=(dynamic("image" if image else "text"),),
        )
    program.save(str(path), external_data=size > BIG)


def measure(path: Path, kind: str, probes: Probes) -> Agreement:
    """Return how well onnxruntime agrees with torch, image by image and on all texts at once."""
    with failing(f"onnxruntime cannot run {path.name}"):
        run = session(path)
        ours = run_images(run, probes) if kind == "image" else run(probes.tokens_NL.numpy())
    theirs_ND = probes.image_ND if kind == "image" else probes.text_ND
    return compare(torch.from_numpy(np.asarray(ours)), theirs_ND, what=path.name)


def run_images(run: Callable[[np.ndarray], np.ndarray], probes: Probes) -> np.ndarray:
    """Return vectors_ND of the images, each alone. Also run the first one twice in a batch."""
    first_13HW = probes.image_13HW[0]
    twice_2D = run(torch.cat([first_13HW, first_13HW.flip(-1)]).numpy())
    rest = [run(image_13HW.numpy()) for image_13HW in probes.image_13HW[1:]]
    return np.concatenate([twice_2D[:1], *rest])


def session(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that runs a file of one input and one output on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    made = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = made.get_inputs()[0].name
    return lambda given: made.run(None, {name: given})[0]


@contextmanager
def failing(what: str) -> Iterator[None]:
    """Turn any error of an exporter or a runtime into one sentence."""
    try:
        yield
    except (ClipguideError, OSError):
        raise
    except Exception as error:  # torch, onnxscript and onnxruntime raise different errors
        if out_of_memory(error) or no_space(error):
            raise
        raise ClipguideError(f"{what}: {reason(error)}.") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters, and switch off fused attention, which they cannot trace."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        torch.backends.mha.set_fastpath_enabled(fast)
