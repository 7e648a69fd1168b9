"""Files of pictures to vectors: found, decoded beside the model, cached."""

from .cache import Cache, default_path
from .engine import Embedded, Engine, processes, shared
from .files import Named, find
from .resources import processors

__all__ = ["Cache", "Embedded", "Engine", "Named", "default_path", "find", "processes"]
__all__ += ["processors", "shared"]
