"""What `backends.py` times: the jobs, the networks they run on, and one call of each.

A job is a name such as ``mmr-fc1-l2-init``; `call` makes the function that an implementation (a
backend of the library, or a rival in PyTorch) is timed by.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import refmmr as rm

try:
    import rivals
    import torch
except ImportError:
    rivals = torch = None

GRAPH, CAREFUL, EXPERT = "torch (a)", "torch (b)", "torch (c)"
RIVALS = (GRAPH, CAREFUL, EXPERT) if torch else ()
ALONE = {"box": (GRAPH,), "pgd": (CAREFUL,), "distances": (GRAPH, CAREFUL)}
"""Rivals by kind of job, where not all take part: without gradients (b) and (c) are the same.

Within the box there is only one on the dense rows of (a).
"""
BATCH, ATTACKED, STEPS = 128, 64, 40
SAMPLES = 20 * BATCH
"""Training points that all jobs but whole epochs run on."""
OUT = Path("out/bench")
NORMS = {"l2": 2, "linf": np.inf}
EPS = {"l2": 0.3, "linf": 0.1}
# The authors' values for MNIST; the learning rate of MMR alone is larger, for short training.
MMR = {
    ("fc1", "l2"): {"lam": 1.5, "gamma": 0.6, "lr": 5e-4},
    ("fc1", "linf"): {"lam": 2.0, "gamma": 0.1, "lr": 1e-3},
    ("lenet", "l2"): {"lam": 3.0, "gamma": 0.45, "lr": 5e-4},
    ("lenet", "linf"): {"lam": 1.0, "gamma": 0.2, "lr": 1e-3},
}
MMR_AT = {
    "fc1": {"lam": 0.5, "gamma": 0.45, "lr": 5e-5},
    "lenet": {"lam": 6.0, "gamma": 0.45, "lr": 5e-5},
}
SHARE = {"init": 0.1, "trained": 0.02}
"""k_B as a share of the hidden units: where the authors' schedule starts, and where it ends."""
TRAINING_EPOCHS = {"fc1": 3, "lenet": 1}


class Job(NamedTuple):
    """One thing to time."""

    kind: str  # mmr, distances, box, pgd, epoch
    network: str  # fc1, lenet
    norm: str  # l2, linf
    state: str  # init, trained
    scheme: str = ""  # of an epoch

    @property
    def name(self) -> str:
        """As it is asked for."""
        return "-".join(part for part in (*self[:4], self.scheme) if part)

    @property
    def p(self) -> float:
        """The norm as a number."""
        return NORMS[self.norm]

    def samples(self, implementation: str) -> int:
        """How many samples a call takes; slow ones on the convolutions take few."""
        if self.kind == "box":
            return 2
        if self.kind == "pgd":
            return ATTACKED
        slow = implementation in ("numpy", GRAPH) and self.network == "lenet"
        if self.kind == "epoch":
            return BATCH * (1 if slow else 20 if self.network == "lenet" else 10)
        return 8 if slow else BATCH

    def check_samples(self) -> int:
        """How many samples are held against the reference."""
        return {"box": 1, "pgd": 16}.get(self.kind, 16 if self.network == "fc1" else 4)


def jobs(pattern: str = "*") -> list[Job]:
    """All jobs whose name fits one of some patterns, separated by commas."""
    networks, norms, states = ("fc1", "lenet"), ("l2", "linf"), ("init", "trained")
    every = [Job("mmr", n, p, s) for n in networks for p in norms for s in states]
    every += [Job("distances", n, "l2", "init") for n in networks]
    every += [Job("box", n, p, "trained") for n in networks for p in norms]
    every += [Job("pgd", n, p, "trained") for n in networks for p in norms]
    every += [Job("epoch", n, "l2", "init", s) for n in networks for s in ("mmr", "mmr+at")]
    wanted = pattern.split(",")
    return [job for job in every if any(fnmatch.fnmatch(job.name, some) for some in wanted)]


def implementations(job: Job, backends: list[str]) -> list[str]:
    """Who runs a job."""
    return [*backends, *(name for name in RIVALS if name in ALONE.get(job.kind, RIVALS))]


def first_samples(network: str, count: int | None = SAMPLES) -> tuple[np.ndarray, np.ndarray]:
    """The first training points of MNIST in float32 (all for None), as the network takes them.

    The first `SAMPLES` are kept in a small file, so that a process that measures its memory need
    not load the whole data set.
    """
    path = OUT / "mnist.npz"
    if count is not None and path.exists():
        with np.load(path) as file:
            X, y = file["X"], file["y"]
    else:
        data = rm.datasets.load("mnist", images=True, dtype=np.float32)
        X, y = data.X_train, data.y_train
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, X=X[:SAMPLES], y=y[:SAMPLES])
    X, y = X[:count], y[:count]
    return (X.reshape(len(X), -1) if network == "fc1" else X), y


def network(job: Job, quick: bool = False) -> rm.Network:
    """The network of a job, with its weights in float32."""
    if job.state == "trained":
        return rm.load(weights_path(job, quick))
    return start(job.network)


def start(name: str) -> rm.Network:
    """The network at its initialisation."""
    net = rm.Network.mlp([784, 1024, 10], rng=0) if name == "fc1" else rm.Network.lenet_small(rng=0)
    return net.astype(np.float32)


def weights_path(job: Job, quick: bool) -> Path:
    """Where the trained weights are kept."""
    return OUT / f"{'quick-' if quick else ''}{job.network}-{job.norm}.npz"


def train(job: Job, backend: str, quick: bool) -> None:
    """Train the weights of a job with MMR, unless they are there; picks up where it stopped."""
    path = weights_path(job, quick)
    if path.exists():
        return
    X, y = first_samples(job.network, 32 if quick else None)
    with rm.use_backend(backend):
        net, history = rm.fit(
            start(job.network), X, y, "mmr", p=job.p, epochs=TRAINING_EPOCHS[job.network],
            batch_size=8 if quick else BATCH, checkpoint=path.with_suffix(".checkpoint.npz"),
            **MMR[job.network, job.norm],
        )  # fmt: skip
    if history.interrupted:
        raise KeyboardInterrupt
    rm.save(net, path)


def call(
    job: Job, implementation: str, net: rm.Network, X: np.ndarray, y: np.ndarray
) -> Callable[[], list[np.ndarray]]:
    """The function to time: no arguments, returns its results as arrays."""
    make = _rival if implementation in RIVALS else _backend
    return make(job, implementation, net, X, y)


def options(job: Job, net: rm.Network) -> dict[str, Any]:
    """Arguments of the regularizer."""
    gamma = MMR[job.network, job.norm]["gamma"]
    k_b = max(1, int(SHARE[job.state] * net.n_hidden))
    return {"gamma_b": gamma, "gamma_d": gamma, "k_b": k_b, "k_d": net.n_classes}


def training(job: Job) -> dict[str, float]:
    """lambda, gamma and the learning rate of an epoch."""
    return MMR[job.network, job.norm] if job.scheme == "mmr" else MMR_AT[job.network]


def _backend(job, name, net, X, y):
    def run():
        with rm.use_backend(name):
            return act()

    if job.kind == "mmr":
        given = options(job, net)

        def act():
            value, gradients = rm.mmr_gradient(net, X, y, job.p, **given)
            return [np.array(value), *(array for pair in gradients for array in pair)]

    elif job.kind in ("distances", "box"):
        box = (0, 1) if job.kind == "box" else None

        def act():
            return list(rm.distances(net, X, y, job.p, box=box))

    elif job.kind == "pgd":

        def act():
            return [rm.pgd(net, X, y, job.p, eps=EPS[job.norm], steps=STEPS, keep="last")]

    else:

        def act():
            trained, _ = rm.fit(
                net, X, y, job.scheme, p=job.p, eps=EPS[job.norm], epochs=1, progress=False,
                batch_size=BATCH, pgd_steps=STEPS, k_b_shares=(SHARE["init"],) * 2, **training(job),
            )  # fmt: skip
            return [_flat(trained.parameters)]

    return run


def _rival(job, name, net, X, y):
    backward = {
        GRAPH: rivals.graph_backward,
        CAREFUL: rivals.careful_backward,
        EXPERT: rivals.expert_backward,
    }[name]
    model = rivals.Model(net)
    X, y = torch.from_numpy(X), torch.from_numpy(y)
    if job.kind == "mmr":
        given = rivals.Options(job.p, **options(job, net))

        def act():
            model.clear()
            value = backward(model, X, y, given)
            return [np.array(value), *(array for pair in model.gradients() for array in pair)]

    elif job.kind == "distances":
        measure = rivals.all_graph_distances if name == GRAPH else rivals.careful_distances

        def act():
            return [d.numpy() for d in measure(model, X, y, job.p)]

    elif job.kind == "box":

        def act():
            return [d.numpy() for d in rivals.box_distances(model, X, y, job.p)]

    elif job.kind == "pgd":

        def act():
            return [rivals.pgd(model, X, y, job.p, EPS[job.norm], STEPS).numpy()]

    else:

        def act():
            return [_rival_epoch(job, backward, net, X, y)]

    return act


def _rival_epoch(job, backward, net, X, y):
    """The same batches as `rm.fit` with epochs=1, whose lambda is a tenth in its first epoch."""
    model, given = rivals.Model(net), training(job)
    gamma, k_b = given["gamma"], int(SHARE["init"] * net.n_hidden)
    asked = rivals.Options(
        job.p, gamma, gamma, k_b, net.n_classes, lam=0.1 * given["lam"], weight=1.0
    )
    size = min(BATCH, len(X))
    order = np.random.default_rng([0, 0]).permutation(len(X))[: len(X) // size * size]
    rivals.epoch(
        model, X, y, order.reshape(-1, size), asked, given["lr"],
        attack=rivals.Attack(EPS[job.norm], STEPS) if job.scheme == "mmr+at" else None,
        backward=backward,
    )  # fmt: skip
    return _flat([[leaf.detach().numpy() for leaf in model.leaves]])


def _flat(groups):
    return np.concatenate([array.ravel() for group in groups for array in group])


def deviation(results: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Largest relative deviation of an array from the reference, norm by norm.

    Infinite entries must be the same.
    """
    return float(np.max([_deviation(a, b) for a, b in zip(results, expected, strict=True)]))


def _deviation(array, expected):
    finite = np.isfinite(expected)
    if not np.array_equal(array[~finite], expected[~finite]):
        return np.inf
    scale = np.linalg.norm(expected[finite])
    off = np.linalg.norm(array[finite].astype(np.float64) - expected[finite])
    return float(off / scale if scale else off)


def check(job: Job, names: list[str], net: rm.Network) -> dict[str, float]:
    """Deviation of implementations, in float32, from the NumPy reference in float64."""
    X, y = first_samples(job.network)
    X, y = X[: job.check_samples()], y[: job.check_samples()]
    wide = net.astype(np.float64)
    expected = call(job, "numpy", wide, X.astype(np.float64), y)()
    return {name: deviation(call(job, name, net, X, y)(), expected) for name in names}
