"""Steering of diffusers pipelines: `steer`, and one file a method."""

from .backprop import Backprop
from .best_of import BestOf
from .lookahead import Lookahead
from .noise import Noise
from .particles import Particles
from .report import Report, Step, Trace
from .rollover import Rollover
from .shortcut import Shortcut
from .steer import METHODS, steer
from .steering import Steering

__all__ = [
    "METHODS",
    "Backprop",
    "BestOf",
    "Lookahead",
    "Noise",
    "Particles",
    "Report",
    "Rollover",
    "Shortcut",
    "Steering",
    "Step",
    "Trace",
    "steer",
]
