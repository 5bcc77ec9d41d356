"""Certificates: how far an attacker must move a point, proved, and what a test set is worth."""

from refmmr.certify.api import METHODS, Certificates, certify
from refmmr.certify.evaluation.pipeline import robust_error
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
    "robust_error",
]
