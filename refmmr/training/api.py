"""`fit`: train a network."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from refmmr import _validate as check
from refmmr.network import Network
from refmmr.training.history import History
from refmmr.training.plan import Plan
from refmmr.training.run import Run

LEFT_OUT = 1 / 8
"""Share of the samples above which `fit` warns that an epoch leaves them out: with eight batches or
more an epoch it is always less."""


def fit(
    net: Network,
    X: ArrayLike,
    y: ArrayLike,
    scheme: str = "plain",
    *,
    p: float | str = 2,
    eps: float | None = None,
    lam: float | None = None,
    gamma: float | tuple[float, float] | None = None,
    epochs: int = 100,
    batch_size: int = 128,
    drop_last: bool = True,
    lr: float = 1e-3,
    rng: int | np.random.Generator | None = 0,
    box: Any = (0, 1),
    pgd_steps: int = 40,
    k_b_shares: tuple[float, float] = (0.1, 0.02),
    k_d: int | None = None,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> tuple[Network, History]:
    """Train a network with Adam: minimise the mean of ``CE(f(x), y) + lam * MMR(x)``.

    The learning rate, lambda and k_B follow the schedules of the authors' code, see
    `refmmr.training.plan`.

    Parameters
    ----------
    net : Network
        The initial network; it is not changed.  Its dtype is the dtype of the training.
    X : array_like, shape (n, *input_shape)
    y : array_like of int, shape (n,)
    scheme : {"plain", "at", "mmr", "mmr+at", "kw"}
        Cross-entropy alone; with the first half of each batch replaced by PGD examples; plus
        ``lam * MMR``; both.  "kw" is the method of Wong and Kolter: the cross-entropy of the
        worst-case margins on the ball of radius ``eps``, bounded by their linear relaxation.
    p : {1, 2, inf}
        Norm of the distances, of the adversarial examples and of the ball of "kw"; "l1", "l2" and
        "linf" are understood too.
    eps : float
        Radius of the adversarial examples, for "at" and "mmr+at"; of the ball, for "kw", where it
        grows over the first third of the training.
    lam : float
        Weight of the regularizer, for "mmr" and "mmr+at"; it grows over the first tenth.
    gamma : float or (gamma_b, gamma_d)
        Target distances of the regularizer, see `refmmr.mmr`, for "mmr" and "mmr+at".
    epochs, batch_size : int
        Each epoch goes through the samples in batches, in a new random order.
    drop_last : bool
        Leave out the last samples of an epoch if they do not fill a batch, as the authors' code
        does; each epoch leaves out others.  A warning says so where this is more than an eighth of
        the samples.  If False, the last batch of an epoch can be smaller.  Fewer samples than
        batch_size are one batch in any case.
    lr : float
        Learning rate of Adam; a tenth of it for the last tenth of the epochs.
    rng : int, numpy.random.Generator or None
        Source of the order of the samples.  The same seed gives the same weights.  A generator
        gives one number, and None a fresh one, which the checkpoint keeps.
    box : (lo, hi) or None
        Adversarial examples stay in ``lo <= z <= hi``.  The ball of "kw" is whole: no box cuts it.
    pgd_steps : int
        Steps of size ``2 * eps / pgd_steps`` for the adversarial examples.
    k_b_shares : (float, float)
        k_B as a share of the hidden units, in the first and after the last epoch.
    k_d : int, optional
        Number of decision boundaries that count; all K if not given.
    validation : (X, y), optional
        Its error is recorded after every epoch.
    checkpoint : path-like, optional
        An ``.npz`` file, written after every epoch.  If it is there already, the training continues
        from it, to the same weights as without the interruption.
    progress : bool, optional
        Show a progress bar; if not given, on a terminal only.

    Returns
    -------
    net : Network
        The trained network.
    history : History
        One record per epoch.

    Raises
    ------
    ValueError, TypeError
        For invalid arguments, and for a checkpoint of a training with other arguments.
    FloatingPointError
        When the loss is no longer finite.

    Warns
    -----
    UserWarning
        When an epoch leaves out more than an eighth of the samples.  When stopped by Ctrl-C: the
        result is the network after its last full epoch.

    References
    ----------
    Croce, Andriushchenko, Hein (2019): training with MMR and MMR+at; schedules as in their code.
    Madry et al. (2018): "at".  Kingma, Ba (2015): Adam.
    Wong, Kolter (2018), "Provable defenses against adversarial examples via the convex outer
    adversarial polytope": "kw".

    Examples
    --------
    >>> import refmmr as rm
    >>> data = rm.datasets.load("moons")
    >>> net = rm.Network.mlp([2, 16, 2], rng=0)
    >>> net, history = rm.fit(net, data.X_train, data.y_train, "mmr", p=2, lam=0.5, gamma=0.1,
    ...                       epochs=2)
    >>> len(history)
    2
    """
    plan = Plan(
        net, X, y, scheme, p=p, eps=eps, lam=lam, gamma=gamma, epochs=epochs,
        batch_size=batch_size, drop_last=drop_last, lr=lr, rng=rng, box=box, pgd_steps=pgd_steps,
        k_b_shares=k_b_shares, k_d=k_d,
    )  # fmt: skip
    if validation is not None:
        if not isinstance(validation, (tuple, list)) or len(validation) != 2:
            raise TypeError(f"validation: expected a pair (X, y), got {validation!r}")
        X_val = check.check_inputs(net, validation[0], "validation X")
        y_val = check.check_labels(validation[1], len(X_val), net.n_classes, "validation y")
        validation = X_val, y_val
    run = Run(net, plan, checkpoint, validated=validation is not None)
    if plan.left_out > LEFT_OUT * len(plan.X):
        warnings.warn(
            f"batch_size: {plan.left_out} of {len(plan.X)} samples fill no batch of "
            f"{plan.batch_size}, and each epoch leaves out as many; pass drop_last=False to train "
            "on all, or another batch_size",
            stacklevel=2,
        )
    bar = tqdm(
        total=plan.epochs * plan.batches,
        initial=len(run.history) * plan.batches,
        desc=plan.scheme,
        unit="batch",
        disable=None if progress is None else not progress,
    )
    with bar:
        try:
            while len(run.history) < plan.epochs:
                run.epoch(validation, bar.update)
                bar.set_postfix(loss=f"{run.history.records[-1]['loss']:.4f}")
        except KeyboardInterrupt:
            run.keep()
            run.history.interrupted = True
            warnings.warn(
                f"training stopped by hand after {len(run.history)} of {plan.epochs} epochs",
                stacklevel=2,
            )
    return run.network(), run.history
