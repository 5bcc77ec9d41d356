"""`fit`: train a network."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
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
"""Largest share of the samples that an epoch leaves out without a warning: with eight or more full
batches per epoch the share is always smaller."""


def fit(
    net: Network,
    X: ArrayLike,
    y: ArrayLike,
    scheme: str = "plain",
    *,
    p: float | str = 2,
    eps: float | None = None,
    lam: float | tuple[float, float] | None = None,
    gamma: float | tuple[float, float] | None = None,
    epochs: int = 100,
    batch_size: int = 128,
    drop_last: bool = True,
    lr: float = 1e-3,
    rng: int | np.random.Generator | None = 0,
    box: Any = (0, 1),
    pgd_steps: int = 40,
    random_start: bool = True,
    k_b_shares: tuple[float, float] | None = None,
    k_d: int | None = None,
    border: str = "exact",
    nearest: str = "each",
    validation: tuple[ArrayLike, ArrayLike] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    callback: Callable[[Network, dict[str, float]], Any] | None = None,
    progress: bool | None = None,
) -> tuple[Network, History]:
    """Train a network with Adam, so that it is provably robust.

    The loss is the mean over a batch of ``CE(f(x), y) + lam * MMR(x)``, where CE is the
    cross-entropy ``-log softmax(f(x))[y]`` and MMR the regularizer of `refmmr.mmr`.  For scheme
    "mmr-universal" it is ``CE(f(x), y) + lam_1 * MMR_1(x) + lam_inf * MMR_inf(x)``, with MMR in
    l_1 and in l_inf.  For scheme "kw" it is ``log sum_s exp(-m_s(x))``, where ``m_s(x)`` bounds
    ``f_y - f_s`` from below on the ball ``||z - x||_p <= eps``.  The learning rate, lambda and k_B
    follow the schedules of the authors' code, see `refmmr.training.plan`.

    Parameters
    ----------
    net : Network
        The initial network; it is not changed.  Its dtype is the dtype of the training: float32
        (``net.astype("float32")``), as in the paper, takes about half the time of float64.
    X : array_like, shape (n, *input_shape)
    y : array_like of int, shape (n,)
    scheme : {"plain", "at", "mmr", "mmr+at", "mmr-universal", "kw"}
        "plain" minimises the cross-entropy alone.  "at" replaces the first half of each batch by
        PGD examples, "mmr" adds ``lam * MMR``, "mmr+at" does both.  "mmr-universal" adds MMR in l_1
        and in l_inf, for certificates in every l_p (`refmmr.certify_universal`).  "kw" is the
        method of Wong and Kolter, with margins bounded by linear relaxations of the ReLUs.
    p : {1, 2, inf}
        Norm of the distances, of the adversarial examples and of the ball of "kw"; "l1", "l2" and
        "linf" are understood too.  Of no effect for "mmr-universal".
    eps : float
        Radius, in units of the input, of the adversarial examples for "at" and "mmr+at", and of the
        ball for "kw", where it grows over the first third of the training.
    lam : float or (lam_1, lam_inf)
        Weight of the regularizer, for "mmr" and "mmr+at"; for "mmr-universal" a pair, the weights
        in l_1 and in l_inf.  It grows over the first tenth of the training.
    gamma : float, (gamma_b, gamma_d) or (gamma_1, gamma_inf)
        Target distances of the regularizer, see `refmmr.mmr`, for "mmr" and "mmr+at"; for
        "mmr-universal" those in l_1 and in l_inf, both for region and decision boundaries.
    epochs, batch_size : int
        Each epoch goes through the samples in batches, in a new random order.
    drop_last : bool
        Leave out the last samples of an epoch if they do not fill a batch, as the authors' code
        does; they differ from epoch to epoch.  If they are more than an eighth of the samples, a
        warning says so.  If False, the last batch of an epoch can be smaller.  Fewer samples than
        batch_size always make one batch.
    lr : float
        Learning rate of Adam; a tenth of it for the last tenth of the epochs.  For "mmr-universal"
        the authors take 5e-4 on MNIST and Fashion-MNIST.
    rng : int, numpy.random.Generator or None
        Source of the order of the samples.  The same seed gives the same weights.  A generator and
        None give a new seed in each call; a checkpoint stores the seed.
    box : (lo, hi) or None
        Adversarial examples stay in ``lo <= z <= hi``.  The ball of "kw" is not clipped.
    pgd_steps : int
        Number of steps, of size ``2 * eps / pgd_steps``, for the adversarial examples.
    random_start : bool
        Start PGD at a random point of the ball, as the authors' code does; else at the sample.
    k_b_shares : (float, float), optional
        k_B as a share of the hidden units, at the start and at the end of the training; (0.1, 0.02)
        if not given, (0.2, 0.05) for "mmr-universal".
    k_d : int, optional
        Number of decision boundaries that count; all K if not given.
    border : {"exact", "full-filter"}
        How the regularizer measures units at the border of a padded first convolution: by the
        weights that meet the image, or, as the authors' code does, by the full filter; then they
        seem nearer than they are.
    nearest : {"each", "union"}
        Which region boundaries count for "mmr-universal": in each norm its own k_B nearest, as in
        the paper, or, as in the authors' code, in both norms those that are among the k_B nearest
        in either.  Both sums are divided by k_B.
    validation : (X, y), optional
        Its error is recorded after every epoch.
    checkpoint : path-like, optional
        An ``.npz`` file, written after every epoch.  If it is there already, the training continues
        from it, to the same weights as without the interruption.
    callback : callable, optional
        Called after every epoch as ``callback(net, record)``, with the network as it is then and
        the record of the epoch, both copies.  What it returns is ignored; an error in it ends the
        training, and `KeyboardInterrupt` stops it as Ctrl-C does.
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
        When an epoch leaves out more than an eighth of the samples; when all samples have one
        class.  When stopped by Ctrl-C: the result is the network after its last full epoch.

    References
    ----------
    Croce, Andriushchenko, Hein (2019): training with MMR and MMR+at; schedules as in their code.
    Croce, Hein (2020), "Provable robustness against all adversarial l_p-perturbations for p >= 1":
    "mmr-universal".
    Madry et al. (2018): "at".  Kingma, Ba (2015): Adam.
    Wong, Kolter (2018), "Provable defenses against adversarial examples via the convex outer
    adversarial polytope": "kw".

    Examples
    --------
    >>> import refmmr as rm
    >>> data = rm.datasets.load("moons")
    >>> net = rm.Network.mlp([2, 16, 2], rng=0)
    >>> net, history = rm.fit(
    ...     net, data.X_train, data.y_train, "mmr", p=2, lam=0.5, gamma=0.1, epochs=2
    ... )
    >>> len(history)
    2
    """
    plan = Plan(
        net, X, y, scheme, p=p, eps=eps, lam=lam, gamma=gamma, epochs=epochs,
        batch_size=batch_size, drop_last=drop_last, lr=lr, rng=rng, box=box, pgd_steps=pgd_steps,
        random_start=random_start, k_b_shares=k_b_shares, k_d=k_d, border=border, nearest=nearest,
    )  # fmt: skip
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: expected a function of (net, record), got {callback!r}")
    if validation is not None:
        if not isinstance(validation, (tuple, list)) or len(validation) != 2:
            raise TypeError(f"validation: expected a pair (X, y), got {validation!r}")
        X_val = check.check_inputs(net, validation[0], "validation X")
        y_val = check.check_labels(validation[1], len(X_val), net.n_classes, "validation y")
        validation = X_val, y_val
    _check_classes(plan)
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
                last = run.history.records[-1]
                error = last.get("validation_error", last["train_error"])
                bar.set_postfix_str(
                    f"epoch {last['epoch']} of {plan.epochs}, loss {last['loss']:.4f}, "
                    f"error {100 * error:.2f} %"
                )
                if callback is not None:
                    callback(run.network(), dict(last))
        except KeyboardInterrupt:
            run.end()
            run.history.interrupted = True
            warnings.warn(
                f"training stopped by hand after {len(run.history)} of {plan.epochs} epochs",
                stacklevel=2,
            )
    return run.network(), run.history


def _check_classes(plan: Plan) -> None:
    """Warn if there is nothing to tell apart: every scheme then ends in a constant network."""
    if (plan.y == plan.y[0]).all():
        warnings.warn(
            f"y: expected samples of two or more classes, got {len(plan.y)} of class {plan.y[0]} "
            "alone; the network will learn to answer it everywhere",
            stacklevel=3,
        )
