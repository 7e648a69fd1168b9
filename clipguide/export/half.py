"""Convert the layers with weights of an ONNX file to float16, and what lies between them.

The preprocessing before and the normalisation after stay in float32, because float16 cannot hold
their integers and squares. Layer norms stay too, as in torch's autocast.
"""

from __future__ import annotations

import copy
from pathlib import Path

from .onnx import failing, quiet
from .quantise import weighted

APART = ("LayerNormalization",)


def halve(source: Path, path: Path) -> None:
    """Write the float16 version of an encoder. Inputs and outputs stay float32."""
    import onnx
    from onnxruntime.transformers import float16

    model = onnx.load(source)
    with quiet(), failing(f"{source.name} cannot be made float16"):
        made = float16.convert_float_to_float16(
            copy.deepcopy(model),
            keep_io_types=True,
            disable_shape_infer=False,
            op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *APART],
            node_block_list=_outside(model),
        )
    large = any(source.parent.glob(source.name + ".data"))
    onnx.save(made, path, save_as_external_data=large, location=path.name + ".data")


def _outside(model) -> list[str]:
    """Return the names of the nodes before the first weights, and of those after the last."""
    nodes = list(model.graph.node)
    names = [node.name for node, _ in weighted(model)]
    first, last = (next(i for i, n in enumerate(nodes) if n.name == names[k]) for k in (0, -1))
    wanted, before = set(nodes[first].input), []
    for node in reversed(nodes[:first]):
        if wanted & set(node.output):
            wanted |= set(node.input)
            before.append(node.name)
    return before + [node.name for node in nodes[last + 1 :]]
