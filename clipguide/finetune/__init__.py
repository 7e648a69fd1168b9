"""Train a CLIP on your own images: `prepare` makes a `Job`, which trains, selects and saves."""

from .attacks import l2_attack, linf_attack
from .batches import Augment, Batches
from .config import FinetuneConfig, Progress
from .data import Dataset, Example, Report, read, split
from .exam import Exam, Result
from .figure import GuideReport, guide_report
from .fit import Ema, Fit, FitConfig, FitStep
from .gradcache import Tower, cached_backward
from .guide_job import GuideJob, prepare_guide
from .guiding import GuidingConfig, for_guiding
from .inversion import Inversion, InversionConfig
from .job import Job, prepare
from .losses import bank_loss, caption_loss, sigmoid_loss
from .outcome import Outcome, select
from .run import Finetune
from .wise_ft import Place, choose, curve, interpolate

__all__ = [
    "Augment",
    "Batches",
    "Dataset",
    "Ema",
    "Exam",
    "Example",
    "Finetune",
    "FinetuneConfig",
    "Fit",
    "FitConfig",
    "FitStep",
    "GuideJob",
    "GuideReport",
    "GuidingConfig",
    "Inversion",
    "InversionConfig",
    "Job",
    "Outcome",
    "Place",
    "Progress",
    "Report",
    "Result",
    "Tower",
    "bank_loss",
    "cached_backward",
    "caption_loss",
    "choose",
    "curve",
    "for_guiding",
    "guide_report",
    "interpolate",
    "l2_attack",
    "linf_attack",
    "prepare",
    "prepare_guide",
    "read",
    "select",
    "sigmoid_loss",
    "split",
]
