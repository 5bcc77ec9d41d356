"""The record of a training."""

from __future__ import annotations

from typing import Any

import numpy as np

from refmmr._optional import require


class History:
    """Loss, errors and scheduled values of each epoch of a training.

    Returned by `fit`.

    Attributes
    ----------
    records : list of dict
        One per epoch: ``epoch``, ``loss`` (the mean over the epoch), ``cross_entropy`` (for "kw"
        that of the worst-case margins), ``mmr`` (not yet multiplied by lambda), ``train_error`` (on
        the training batches, before each step), ``validation_error``, ``lr``, ``lam``, ``k_b``,
        ``seconds``.  For "mmr-universal" ``mmr`` is ``lam_1 MMR_1 + lam_inf MMR_inf``, with the
        weights of the arguments, and ``lam`` the share of them, which grows to 1.  For "kw" also
        ``robust_error`` (share of the samples not certified on their balls) and ``eps`` (the radius
        of these balls).
    interrupted : bool
        Whether Ctrl-C stopped the training before its last epoch.
    """

    def __init__(self, records: list[dict[str, float]] | None = None) -> None:
        self.records = records or []
        self.interrupted = False

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, column: str) -> np.ndarray:
        """One column, shape (epochs,)."""
        return np.array([record[column] for record in self.records])

    def to_frame(self) -> Any:
        """The records as a pandas DataFrame, one row per epoch."""
        pandas = require("pandas", "to_frame")
        return pandas.DataFrame(self.records).set_index("epoch")

    def _repr_html_(self) -> str:
        from refmmr.display import html

        return html.history(self)

    def __repr__(self) -> str:
        if not self.records:
            return "History(no epochs)"
        last = ", ".join(f"{key}={value:.4g}" for key, value in self.records[-1].items())
        return f"History({len(self)} epochs; last: {last})"
