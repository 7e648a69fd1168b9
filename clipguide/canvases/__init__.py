"""Canvases for the optimisation loop: one file for each, one contract."""

from .base import Canvas
from .fourier import Fourier
from .latent import Latent
from .pixels import Pixels
from .taming import load_taming
from .vqgan import VQGAN
from .wrapped import Masked, Mirrored

__all__ = ["VQGAN", "Canvas", "Fourier", "Latent", "Masked", "Mirrored", "Pixels", "load_taming"]
