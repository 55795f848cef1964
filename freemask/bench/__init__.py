"""Runs over many clips or many forwards: which masks are good, what the method gives, and what it costs."""

from .benchmark import Options, benchmark_steps
from .calibrate import Sample, calibrate_steps, davis_samples, example_maps, toyworld_samples
from .levers import LEVERS, lever_steps
from .methods import METHODS, usual_methods
from .profile import profile_steps
from .selftest import selftest_steps
from .speed import FULL, full_backbone
from .table import markdown, save_figure

__all__ = [
    "LEVERS",
    "METHODS",
    "Options",
    "Sample",
    "benchmark_steps",
    "calibrate_steps",
    "davis_samples",
    "example_maps",
    "FULL",
    "full_backbone",
    "lever_steps",
    "markdown",
    "profile_steps",
    "save_figure",
    "selftest_steps",
    "toyworld_samples",
    "usual_methods",
]
