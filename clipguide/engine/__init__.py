"""Files of pictures to vectors: found, decoded beside the model, cached."""

from .cache import Cache, default_path
from .engine import Embedded, Engine, processes, shared
from .files import find

__all__ = ["Cache", "Embedded", "Engine", "default_path", "find", "processes", "shared"]
