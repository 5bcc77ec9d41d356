"""refmmr: linear regions of ReLU networks, what they prove, and training that makes them large.

The method is that of Croce, Andriushchenko and Hein, "Provable Robustness of ReLU networks via
Maximization of Linear Regions", AISTATS 2019.  `refmmr.reference` is the book; everything a user
calls is on this page.  Functions that need packages beyond the core load at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from refmmr._backend import available_backends, get_backend, set_backend, use_backend
from refmmr._version import __version__ as __version__
from refmmr.attacks import minimal_attack, pgd
from refmmr.certify import (
    Certificates,
    CheckedCertificate,
    MinimalPerturbations,
    OutputBounds,
    RobustError,
    RobustnessCurve,
    Verification,
    certify,
    certify_universal,
    check_certificate,
    latex_table,
    minimal_perturbations,
    output_bounds,
    robust_error,
    robustness_curve,
    verify,
)
from refmmr.geometry import (
    MMR,
    Distances,
    LinearRegion,
    distances,
    linear_region,
    mmr,
    mmr_gradient,
)
from refmmr.interop.vnnlib import Property, read_vnnlib
from refmmr.io import load, save
from refmmr.network import Conv2d, Flatten, Linear, Network
from refmmr.regions import (
    Box,
    RegionComplex,
    RegionGraph,
    Segment,
    Slice,
    enumerate_regions,
)

if TYPE_CHECKING:
    from refmmr import datasets, plot, testing, zoo
    from refmmr._presets import presets
    from refmmr.estimator import MMRClassifier
    from refmmr.interop.pytorch import from_torch, to_torch
    from refmmr.interop.scikit_learn import from_sklearn
    from refmmr.scorer import certified_accuracy_scorer
    from refmmr.training import History, fit

__all__ = [
    "MMR",
    "Box",
    "Certificates",
    "CheckedCertificate",
    "Conv2d",
    "Distances",
    "Flatten",
    "History",
    "Linear",
    "LinearRegion",
    "MMRClassifier",
    "MinimalPerturbations",
    "Network",
    "OutputBounds",
    "Property",
    "RegionComplex",
    "RegionGraph",
    "RobustError",
    "RobustnessCurve",
    "Segment",
    "Slice",
    "Verification",
    "available_backends",
    "certified_accuracy_scorer",
    "certify",
    "certify_universal",
    "check_certificate",
    "datasets",
    "distances",
    "enumerate_regions",
    "fit",
    "from_sklearn",
    "from_torch",
    "get_backend",
    "latex_table",
    "linear_region",
    "load",
    "minimal_attack",
    "minimal_perturbations",
    "mmr",
    "mmr_gradient",
    "output_bounds",
    "pgd",
    "plot",
    "presets",
    "read_vnnlib",
    "robust_error",
    "robustness_curve",
    "save",
    "set_backend",
    "testing",
    "to_torch",
    "use_backend",
    "verify",
    "zoo",
]

_LAZY = {
    "History": "refmmr.training",
    "MMRClassifier": "refmmr.estimator",
    "certified_accuracy_scorer": "refmmr.scorer",
    "fit": "refmmr.training",
    "presets": "refmmr._presets",
    "from_sklearn": "refmmr.interop.scikit_learn",
    "from_torch": "refmmr.interop.pytorch",
    "to_torch": "refmmr.interop.pytorch",
    "datasets": "refmmr.datasets",
    "plot": "refmmr.plot",
    "testing": "refmmr.testing",
    "zoo": "refmmr.zoo",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'refmmr' has no attribute {name!r}")
    module = importlib.import_module(_LAZY[name])
    return module if _LAZY[name] == f"refmmr.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
