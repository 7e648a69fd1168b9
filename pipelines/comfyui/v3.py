"""The nodes for ComfyUI's V3 interface. This module needs `comfy_api`, a part of ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

TYPES = {
    "BOOLEAN": io.Boolean,
    "FLOAT": io.Float,
    "IMAGE": io.Image,
    "INT": io.Int,
    "MODEL": io.Model,
    "STRING": io.String,
    "VAE": io.Vae,
}


class Extension(ComfyExtension):
    """The nodes of a pack.

    Args:
        nodes: the V1 class of each node, by its id.
        names: the display name of each node, by its id.
    """

    def __init__(self, nodes: dict[str, type], names: dict[str, str]) -> None:
        self.nodes, self.names = nodes, names

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return a V3 class for each node."""
        return [_node(key, node, self.names[key]) for key, node in self.nodes.items()]


def _node(key: str, node: type, name: str) -> type[io.ComfyNode]:
    """Return a V3 class with the inputs, outputs and function of a V1 class."""

    class Node(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> io.Schema:
            groups = node.INPUT_TYPES().items()
            return io.Schema(
                node_id=key,
                display_name=name,
                category=node.CATEGORY,
                description=node.DESCRIPTION,
                inputs=[
                    _input(id, *given, optional=group == "optional")
                    for group, inputs in groups
                    for id, given in inputs.items()
                ],
                outputs=_outputs(node),
            )

        @classmethod
        def execute(cls, **inputs: object) -> io.NodeOutput:
            return io.NodeOutput(*getattr(node(), node.FUNCTION)(**inputs))

    Node.__name__ = Node.__qualname__ = node.__name__
    return Node


def _input(
    id: str, kind: str | list[str], options: dict | None = None, *, optional: bool
) -> io.Input:
    """Return a V3 input. A list is the choices of a menu."""
    options = {**(options or {}), "optional": optional}
    if isinstance(kind, list):
        return io.Combo.Input(id, options=kind, **options)
    return _type(kind).Input(id, **options)


def _outputs(node: type) -> list[io.Output]:
    kinds = node.RETURN_TYPES
    names = getattr(node, "RETURN_NAMES", kinds)
    lists = getattr(node, "OUTPUT_IS_LIST", (False,) * len(kinds))
    return [
        _type(kind).Output(display_name=name, is_output_list=is_list)
        for kind, name, is_list in zip(kinds, names, lists, strict=True)
    ]


def _type(kind: str) -> type:
    return TYPES[kind] if kind in TYPES else io.Custom(kind)
