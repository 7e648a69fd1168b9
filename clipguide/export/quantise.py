"""Quantise to int8 with the fastest scheme that keeps the vectors.

The schemes are tried in this order: scales for weights and activations that images or texts
calibrate (Jacob et al. 2018), with more and more of the first layers left in float, because early
errors spread; then scales of activations computed at run time; then weights alone, which saves
space but no time.

Shapes: B images or texts, L tokens, 3 channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import ClipguideError
from .onnx import BIG, failing, measure, quiet
from .probes import Agreement, Probes

KINDS = ("Conv", "MatMul", "Gemm", "Gather")  # operations with weights
TRIES = (("static", 0), ("static", 2), ("static", 4), ("static", 8), ("dynamic", 0), ("weights", 0))
SMALL = 256  # numbers: a smaller constant needs no scale
WORDS = {
    "static": "weights and activations",
    "dynamic": "weights, and activations as they come",
    "weights": "weights alone",
}


def quantise(
    source: Path, path: Path, kind: str, probes: Probes, *, bar: float
) -> tuple[str, Agreement]:
    """Write the int8 version of an encoder. Return its scheme, and its cosine similarities to
    torch.

    Every second image or text calibrates; the others measure.

    Raises:
        ClipguideError: no scheme is exact enough.
    """
    measured = _every_second(probes, 1)
    best = -1.0
    for method, floats in TRIES:
        with quiet(), failing(f"{source.name} cannot be quantised"):
            _write(source, path, method, floats, _Calibration(kind, _every_second(probes, 0)))
            found = measure(path, kind, measured)
        if found.lowest >= bar:
            left = f", the first {floats} layers in floats" if floats else ""
            return f"{WORDS[method]}{left}", found
        best = max(best, found.lowest)
    raise ClipguideError(
        f"{source.name} loses too much in int8, however it is quantised (cosine {best:.4f} at the "
        f"lowest, not {bar:g}): export without --int8."
    )


def _write(source: Path, path: Path, method: str, floats: int, calibration: _Calibration) -> None:
    import onnx

    if method == "weights":
        model = onnx.load(source)
        _weights_alone(model)
        large = model.ByteSize() > BIG
        onnx.save(model, path, save_as_external_data=large, location=path.name + ".data")
        return
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    model = onnx.load(source, load_external_data=False)
    nodes = [node.name for node, _ in weighted(model)][floats:]
    shared = {
        "op_types_to_quantize": list(KINDS),
        "nodes_to_quantize": nodes,
        "per_channel": True,
        "weight_type": QuantType.QInt8,
        "use_external_data_format": any(source.parent.glob(source.name + ".data")),
        "extra_options": {"MatMulConstBOnly": True},
    }
    if method == "dynamic":
        quantize_dynamic(source, path, **shared)
    else:
        quantize_static(source, path, calibration, quant_format=QuantFormat.QDQ, **shared)


def weighted(model) -> Iterator[tuple[object, int]]:
    """Return the nodes with a large float constant, in the order of execution, and the input that
    is the constant."""
    sizes = {
        one.name: int(np.prod(one.dims))
        for one in model.graph.initializer
        if one.data_type == 1  # float32
    }
    for node in model.graph.node:
        place = 0 if node.op_type == "Gather" else 1
        if node.op_type in KINDS and sizes.get(node.input[place], 0) >= SMALL:
            yield node, place


def _weights_alone(model) -> None:
    """Insert DequantizeLinear of int8 before each weight, with a scale for each output channel."""
    from onnx import helper, numpy_helper

    weights = {one.name: one for one in model.graph.initializer}
    nodes, added = [], {}
    for node, place in list(weighted(model)):
        name = node.input[place]
        node.input[place] = name + "_float"
        if name in added:
            continue
        array = numpy_helper.to_array(weights[name])
        axis = _channel_axis(node)
        others = tuple(i for i in range(array.ndim) if i != axis)
        scale = np.abs(array).max(axis=others, keepdims=True) / 127
        scale = np.where(scale == 0, 1, scale).astype(np.float32)
        rounded = np.round(array / scale).astype(np.int8)
        model.graph.initializer.remove(weights[name])
        added[name] = [
            numpy_helper.from_array(rounded, name + "_int8"),
            numpy_helper.from_array(scale.reshape(-1), name + "_scale"),
        ]
        given, made = [name + "_int8", name + "_scale"], [name + "_float"]
        nodes.append(helper.make_node("DequantizeLinear", given, made, axis=axis))
    model.graph.initializer.extend(one for pair in added.values() for one in pair)
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes + rest)


def _channel_axis(node) -> int:
    """Return the axis of the output channels of a weight, or of the rows of a table."""
    transposed = any(one.name == "transB" and one.i for one in node.attribute)
    return 0 if node.op_type in ("Conv", "Gather") or transposed else 1


def _every_second(probes: Probes, start: int) -> Probes:
    return Probes(
        probes.image_13HW[start::2],
        probes.image_ND[start::2],
        probes.texts[start::2],
        probes.tokens_NL[start::2],
        probes.text_ND[start::2],
    )


class _Calibration:
    """The reader of onnxruntime's calibration: it returns one input at a time, then None."""

    def __init__(self, kind: str, probes: Probes) -> None:
        if kind == "image":
            feeds = [{"image": image_13HW.numpy()} for image_13HW in probes.image_13HW]
        else:
            feeds = [{"tokens": tokens_1L.numpy()} for tokens_1L in probes.tokens_NL.split(1)]
        self._feeds, self._next = feeds, iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._next, None)

    def rewind(self) -> None:
        self._next = iter(self._feeds)
