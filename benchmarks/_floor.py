"""How long the arithmetic of an MMR step takes at the speed of a matrix product: its floor.

The floor is the number of floating point operations of the algorithm divided by the rate of NumPy's
float32 product of 1152x1024 and 1024x784 on the same threads.  An operation is a multiplication or
an addition; m multiply-adds are 2m operations.

Sample pass:  forward, and backward to the weights and to the input of all layers but the first:
    3 products (the first layer 2), each of the multiply-adds of one forward pass.
Dense, one hidden layer:  K - 1 rows a sample of N_1 weights times the (N_1, d) matrix; backward
    twice that, for the pairs of classes whose hinge is active.
Convolutions:  the row of each unit of the second layer, from its taps, each of which adds a filter
    of the first layer; each row of the dense layer as a sum over the units of the second, patch by
    patch; K - 1 rows from those of the dense layer.  Backward twice for the active hyperplanes
    alone: a unit of the second layer costs what its row cost; a dense unit or a pair of classes is
    backpropagated through both convolutions.  (The library goes through the patches instead, which
    takes about as many operations.)

Norms, masks and the selection of the hyperplanes are not counted: no implementation can reach the
floor.
"""

from __future__ import annotations

import time

import numpy as np

import refmmr as rm


def gemm_rate(rounds: int = 7) -> float:
    """Operations per second of a matrix product of the size that FC1 needs, median of rounds."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((1152, 1024), dtype=np.float32)
    b = rng.standard_normal((1024, 784), dtype=np.float32)
    a @ b
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - began)
    return 2 * a.shape[0] * a.shape[1] * b.shape[1] / float(np.median(seconds))


def operations(net: rm.Network, units: list[int], pairs: int, n: int) -> float:
    """Operations of value and gradient.

    Parameters
    ----------
    net : Network
        Dense with one hidden layer, or two convolutions, a dense layer and the logits.
    units : list of int
        For each hidden layer, how many of its units have a slope, over the batch.
    pairs : int
        Likewise the margins.
    n : int
        Samples of the batch.
    """
    layers = net.affine_layers
    passes = n * (3 * sum(_forward(net, k) for k in range(len(layers))) - _forward(net, 0))
    rivals = net.n_classes - 1
    if len(layers) == 2:
        row = layers[0].W.size
        return 2.0 * (passes + (n * rivals + 2 * pairs) * row)
    first, second, dense, _ = layers
    tap = first.W[0].size
    row2 = second.W[0].size * tap
    positions, d = int(np.prod(net.unit_shapes[1][1:])), int(np.prod(net.input_shape))
    patch = first.W.shape[1] * np.prod(
        [
            (k2 - 1) * step + k1
            for k1, k2, step in zip(
                first.W.shape[2:], second.W.shape[2:], first.stride, strict=True
            )
        ]
    )
    channels = len(second.b)
    rows = n * positions * channels * (row2 + len(dense.b) * patch)
    rows += n * rivals * len(dense.b) * d
    back = _forward(net, 0) + _forward(net, 1)
    slopes = units[1] * row2 + units[2] * back + pairs * (back + dense.W.size)
    return 2.0 * float(passes + rows + 2 * slopes)


def _forward(net: rm.Network, k: int) -> int:
    """Multiply-adds of one sample in layer k."""
    outputs = net.shapes[net.affine[k] + 1]
    return int(np.prod(outputs)) * net.affine_layers[k].W[0].size


def slopes(net: rm.Network, d: rm.Distances, given: dict[str, float]) -> tuple[list[int], int]:
    """How many units of each layer, and how many pairs of classes, have a slope in the batch."""
    live = _live(d.boundary, given["gamma_b"], given["k_b"])
    ends = np.cumsum([int(np.prod(shape)) for shape in net.unit_shapes])[:-1]
    # |f| and the norm have derivative 0 where the distance is 0.
    live &= d.boundary > 0
    units = [int(part.sum()) for part in np.split(live, ends, axis=1)]
    return units, int(_live(d.decision, given["gamma_d"], given["k_d"]).sum())


def _live(d: np.ndarray, gamma: float, k: int) -> np.ndarray:
    return (d <= np.partition(d, k - 1, axis=1)[:, k - 1 : k]) & (d < gamma)
