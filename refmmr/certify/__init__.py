"""Certified radii of points, and robust errors of test sets."""

from refmmr.certify.api import Certificates, certify
from refmmr.certify.certificate_files import CheckedCertificate, check_certificate
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
from refmmr.certify.methods import METHODS
from refmmr.certify.outputs import OutputBounds, output_bounds
from refmmr.certify.universal import certify_universal
from refmmr.certify.verification import Verification, verify

__all__ = [
    "METHODS",
    "Certificates",
    "CheckedCertificate",
    "MinimalPerturbations",
    "OutputBounds",
    "RobustError",
    "RobustnessCurve",
    "Verification",
    "certify",
    "certify_universal",
    "check_certificate",
    "latex_table",
    "minimal_perturbations",
    "output_bounds",
    "robust_error",
    "robustness_curve",
    "verify",
]
