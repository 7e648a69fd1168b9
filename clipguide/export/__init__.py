"""Export a CLIP to other runtimes: `export` writes ONNX, torch.export or transformers' format."""

from .run import TARGETS, Exported, export, requirements

__all__ = ["TARGETS", "Exported", "export", "requirements"]
