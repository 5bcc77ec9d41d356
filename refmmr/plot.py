"""Figures: linear regions, bent hyperplanes, certified radii, adversarial examples."""

from refmmr.display.bound_figures import ladder, robustness_curve
from refmmr.display.figures import adversarial_examples, bent_lines, radii, regions, save

__all__ = [
    "adversarial_examples",
    "bent_lines",
    "ladder",
    "radii",
    "regions",
    "robustness_curve",
    "save",
]
