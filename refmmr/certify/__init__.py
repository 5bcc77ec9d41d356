"""Certified radii of points, and robust errors of test sets."""

from refmmr.certify.api import METHODS, Certificates, certify
from refmmr.certify.evaluation.pipeline import (
    minimal_perturbations,
    robust_error,
    robustness_curve,
)
from refmmr.certify.evaluation.results import (
    MinimalPerturbations,
    RobustError,
    RobustnessCurve,
    latex_table,
)
from refmmr.certify.universal import certify_universal

__all__ = [
    "METHODS",
    "Certificates",
    "MinimalPerturbations",
    "RobustError",
    "RobustnessCurve",
    "certify",
    "certify_universal",
    "latex_table",
    "minimal_perturbations",
    "robust_error",
    "robustness_curve",
]
