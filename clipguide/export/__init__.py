"""A CLIP for other runtimes: `export` writes ONNX, torch.export, transformers or TensorFlow."""

from .run import TARGETS, Exported, export, requirements

__all__ = ["TARGETS", "Exported", "export", "requirements"]
