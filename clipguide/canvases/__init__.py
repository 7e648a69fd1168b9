"""What an optimisation loop draws on: one file a canvas, one contract."""

from .base import Canvas
from .fourier import Fourier
from .latent import Latent
from .pixels import Pixels
from .vqgan import VQGAN

__all__ = ["VQGAN", "Canvas", "Fourier", "Latent", "Pixels"]
