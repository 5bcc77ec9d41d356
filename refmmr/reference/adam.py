"""Adam, the optimiser of every training scheme (Kingma and Ba 2015)."""

from __future__ import annotations

import numpy as np

from refmmr.reference.network import Gradients

BETAS = (0.9, 0.999)
"""Decay rates of the running means of the gradient and of its square."""

EPSILON = 1e-8
"""Added to sqrt(v); the ``epsilon-hat`` of Kingma and Ba (2015, section 2), as in TensorFlow."""


def update(
    arrays: list[np.ndarray],
    means: list[np.ndarray],
    squares: list[np.ndarray],
    gradients: list[np.ndarray],
    scale: float,
) -> None:
    """Update the running means m, v, then step by ``-scale * m / (sqrt(v) + EPSILON)``.

    All lists have one array per parameter; the first three are changed in place.
    """
    first, second = BETAS
    for array, m, v, g in zip(arrays, means, squares, gradients, strict=True):
        m += (1 - first) * (g - m)
        v += (1 - second) * (g * g - v)
        array -= scale * m / (np.sqrt(v) + EPSILON)


class Adam:
    """Adam: steps along a running mean of the gradient, divided by its root mean square.

    With m and v the running means of the gradient and of its square, started at 0 and corrected for
    that start, each step is ``-lr * m / sqrt(v)``: about lr for every weight, whatever the scale of
    its gradient.

    Parameters
    ----------
    parameters : list of (W, b)
        Changed in place by `step`.
    """

    def __init__(self, parameters: Gradients) -> None:
        self.arrays = flat(parameters)
        self.means = [np.zeros_like(array) for array in self.arrays]
        self.squares = [np.zeros_like(array) for array in self.arrays]
        self.steps = 0

    def step(self, gradients: Gradients, lr: float) -> None:
        """Move all parameters once."""
        update(self.arrays, self.means, self.squares, flat(gradients), self.next_scale(lr))

    def next_scale(self, lr: float) -> float:
        """Count a step; returns lr times the bias correction ``sqrt(1 - b_2^t) / (1 - b_1^t)``."""
        self.steps += 1
        first, second = BETAS
        return lr * (1 - second**self.steps) ** 0.5 / (1 - first**self.steps)


def flat(gradients: Gradients) -> list[np.ndarray]:
    """Pairs ``(dW, db)`` as one list of arrays."""
    return [array for pair in gradients for array in pair]
