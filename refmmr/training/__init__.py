"""Training: Adam on the cross-entropy, with MMR and with adversarial examples in the batch."""

from refmmr.training.api import fit
from refmmr.training.history import History
from refmmr.training.plan import SCHEMES

__all__ = ["SCHEMES", "History", "fit"]
