"""Steer diffusers pipelines: `steer`, and one file for each method."""

from .contract import Method
from .latents import register as register_family
from .methods import (
    METHODS,
    Backprop,
    BestOf,
    Drafts,
    Embedding,
    Lookahead,
    Noise,
    Particles,
    Rollover,
    Shortcut,
)
from .methods import register as register_method
from .report import Report, Step, Trace
from .run import At, Outcome, Run
from .schedulers import register as register_scheduler
from .steer import steer
from .steering import Steering

__all__ = [
    "METHODS",
    "At",
    "Backprop",
    "BestOf",
    "Drafts",
    "Embedding",
    "Lookahead",
    "Method",
    "Noise",
    "Outcome",
    "Particles",
    "Report",
    "Rollover",
    "Run",
    "Shortcut",
    "Steering",
    "Step",
    "Trace",
    "register_family",
    "register_method",
    "register_scheduler",
    "steer",
]
