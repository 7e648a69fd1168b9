"""Label images: zero-shot with templates, calibrated "none of these", few-shot, confusion matrices.
"""

from .classifier import NONE, Classifier, Named, class_vectors
from .confusion import confusion, draw, figures
from .few_shot import LinearProbe, TipAdapter, fit_probe, fit_tip
from .none import NoneOfThese
from .templates import default_templates, read_labels, templates

__all__ = [
    "NONE",
    "Classifier",
    "LinearProbe",
    "Named",
    "NoneOfThese",
    "TipAdapter",
    "class_vectors",
    "confusion",
    "default_templates",
    "draw",
    "figures",
    "fit_probe",
    "fit_tip",
    "read_labels",
    "templates",
]
