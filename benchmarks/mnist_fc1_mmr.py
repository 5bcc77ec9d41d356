"""The paper's FC1 network with MMR on MNIST, by the NumPy reference alone.

Trains 784-1024-10 plain and with MMR (l_2) for a few epochs, certifies the first 1,000 test
points, and writes ``mnist_fc1_mmr.json`` and ``.md`` with the figures and how long it took.  The
paper trains for 100 epochs: these figures show that the method works and how slow the reference is,
not its best result.  Needs ``REFMMR_DATA``.  Stopped, it goes on from its last epoch when started
again.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import _command
import numpy as np
from _machine import machine
from _markdown import in_words, table, write

import refmmr as rm

P, EPS = 2, 0.3
# The authors' values for MNIST, FC1, l_2, with a larger learning rate for the short training.
LAM, GAMMA, LR = 1.5, 0.6, 5e-4
POINTS = 1000
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Train, certify, write."""
    parser = _command.parser(__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("out/mnist_fc1_mmr"), help="checkpoints")
    options = parser.parse_args()
    data = rm.datasets.load("mnist", dtype=np.float32)
    X, y = data.X_test[:POINTS], data.y_test[:POINTS]
    rows = []
    for scheme in ("plain", "mmr"):
        start = rm.Network.mlp([784, 1024, 10], rng=0).astype(np.float32)
        net, history = rm.fit(
            start,
            data.X_train,
            data.y_train,
            scheme,
            p=P,
            lam=LAM,
            gamma=GAMMA,
            lr=LR,
            epochs=options.epochs,
            checkpoint=options.work / f"{scheme}-{options.epochs}.npz",
        )
        rm.save(net, options.work / f"fc1-{scheme}.npz")
        began = time.perf_counter()
        result = rm.robust_error(net, X, y, p=P, eps=EPS, methods=("region", "attack"))
        certify_seconds = time.perf_counter() - began
        rows.append(
            {
                "scheme": scheme,
                "epochs": len(history),
                "test_error_10000": float((net.predict(data.X_test) != data.y_test).mean()),
                "test_error": result.test_error,
                "robust_error_lower": result.lower_bound,
                "robust_error_upper": result.upper_bound,
                "mean_certified_radius": float(result.certificates.lower.mean()),
                "exact_share": result.exact_share,
                "train_seconds_per_epoch": history["seconds"].tolist(),
                "certify_and_attack_seconds": certify_seconds,
            }
        )
    report = {
        "what": f"FC1 784-1024-10, MNIST, l_{P}, eps {EPS}, box [0, 1], {POINTS} test points",
        "lam": LAM,
        "gamma": GAMMA,
        "lr": LR,
        "backend": rm.get_backend(),
        "load_average": os.getloadavg()[1],
        "machine": machine(),
        "rows": rows,
    }
    write(RESULTS / "mnist_fc1_mmr", report, markdown(report))
    print(markdown(report))


def markdown(report: dict) -> str:
    """The figures as a table."""
    head = ["scheme", "epochs", "TE % (10,000)", "TE %", "LB %", "UB %", "mean radius", "exact %"]
    head += ["s an epoch", "certify and attack, s"]
    rows = [
        [
            row["scheme"],
            row["epochs"],
            f"{100 * row['test_error_10000']:.2f}",
            f"{100 * row['test_error']:.1f}",
            f"{100 * row['robust_error_lower']:.1f}",
            f"{100 * row['robust_error_upper']:.1f}",
            f"{row['mean_certified_radius']:.4f}",
            f"{100 * row['exact_share']:.1f}",
            f"{np.median(row['train_seconds_per_epoch']):.0f}",
            f"{row['certify_and_attack_seconds']:.0f}",
        ]
        for row in report["rows"]
    ]
    what = f"{report['what']}; lambda {report['lam']}, gamma {report['gamma']}, lr {report['lr']}."
    how = f"Backend {report['backend']}, float32 training; {in_words(report['machine'])}; "
    how += f"load average at the end {report['load_average']:.1f}."
    return "\n".join([what, "", *table(head, rows), "", how, ""])


if __name__ == "__main__":
    main()
