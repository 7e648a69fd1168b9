"""CLIP on pictures of one's own: the loop that trains it, its losses and its attacks."""

from .attacks import l2_attack
from .fit import Ema, Fit, FitConfig, FitStep
from .losses import bank_loss, caption_loss

__all__ = ["Ema", "Fit", "FitConfig", "FitStep", "bank_loss", "caption_loss", "l2_attack"]
