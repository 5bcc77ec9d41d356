"""Certificates: how far an attacker must move a point, proved, and what a test set is worth."""

from refmmr.certify.api import METHODS, Certificates, certify
from refmmr.certify.evaluate import RobustError, robust_error

__all__ = ["METHODS", "Certificates", "RobustError", "certify", "robust_error"]
