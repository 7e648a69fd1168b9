"""Steering of diffusers pipelines: `steer`, and one file a method."""

from .report import Report, Step, Trace
from .steer import Steering, steer

__all__ = ["Report", "Steering", "Step", "Trace", "steer"]
