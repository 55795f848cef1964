"""Runs over many clips or many forwards: what the method costs, and which masks are good."""

from .calibrate import Sample, calibrate_steps, davis_samples, example_maps, toyworld_samples
from .profile import profile_steps

__all__ = ["Sample", "calibrate_steps", "davis_samples", "example_maps", "profile_steps", "toyworld_samples"]
