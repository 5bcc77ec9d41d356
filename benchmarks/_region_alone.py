"""What `regions.py` times of this library alone, where no rival takes part.

Called by it as ``_region_alone.py JOB LIMIT OPTIONS`` (JSON), each job in a process of its own;
prints a list of rows in JSON.  The clock starts after a first run on a tiny network.
"""

from __future__ import annotations

import io
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _memory import forget_peak, peak

import refmmr as rm

OUT = Path("out/regions")
MILLION = [2, 1440, 64, 2]
COST = ([2, 32, 32, 2], [2, 64, 64, 64, 2], [2, 128, 128, 128, 2], [2, 256, 256, 256, 2])
PLOT = [2, 52, 52, 52, 2]
WALKED = (
    [2, 16, 16, 2], [2, 32, 32, 2], [3, 16, 16, 2], [4, 12, 12, 2], [2, 64, 64, 64, 2],
    [2, 128, 128, 128, 2], [8, 10, 10, 2],
)  # fmt: skip
QUICK = [2, 16, 16, 2]
BIAS = 0.1
"""Standard deviation of the biases: with 0 all hyperplanes of the first layer meet in 0."""


def main() -> None:
    """Run the job that the command line names."""
    job, limit, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    with rm.use_backend(best_backend()):
        count(random_network([2, 4, 4, 2]))
        rows = JOBS[job](limit, options)
    print(json.dumps(rows))


def best_backend() -> str:
    """Numba where it is installed."""
    return "numba" if "numba" in rm.available_backends() else "numpy"


def random_network(sizes: list[int], seed: int = 0) -> rm.Network:
    """He initialisation with small biases, so that the hyperplanes are in general position."""
    start, rng = rm.Network.mlp(sizes, rng=seed), np.random.default_rng([seed, 1])
    layers = [
        rm.Linear(layer.W, BIAS * rng.normal(size=len(layer.b)))
        for layer in start.layers
        if isinstance(layer, rm.Linear)
    ]
    return rm.Network(layers, sizes[0])


def layers_of(net: rm.Network) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and biases of a dense network."""
    return [(layer.W, layer.b) for layer in net.layers if isinstance(layer, rm.Linear)]


def name_of(sizes: list[int]) -> str:
    """A network as it is asked for."""
    return "-".join(map(str, sizes))


def count(net: rm.Network, domain: rm.Box | rm.Slice | None = None) -> rm.RegionComplex:
    """The call that is timed."""
    n = net.input_shape[0]
    return rm.enumerate_regions(net, domain or rm.Box([-1] * n, [1] * n), progress=False)


def timed(what: str, limit: int, run: Callable[[], Any]) -> dict[str, Any]:
    """A row of the table: one run, with its memory."""
    before = forget_peak()
    signal.alarm(limit)
    began = time.perf_counter()
    found = run()
    seconds = time.perf_counter() - began
    signal.alarm(0)
    row = {"what": what, "seconds": seconds, "peak_mb": peak() - before}
    row["backend"] = best_backend()
    return row | ({"regions": len(found)} if isinstance(found, rm.RegionComplex) else {})


def enumerate_random(sizes: list[int], limit: int) -> dict[str, Any]:
    """Count the regions of one random network."""
    net = random_network(sizes)
    return timed(f"{name_of(sizes)}, box", limit, lambda: count(net))


def million(limit: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    """A plane with a million regions."""
    return [enumerate_random(QUICK if options["quick"] else MILLION, limit)]


def cost(limit: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Time of a region against their number."""
    return [enumerate_random(sizes, limit) for sizes in COST[: 2 if options["quick"] else None]]


def plot(limit: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Draw some 10^4 regions and write the picture to memory."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def draw(regions: rm.RegionComplex) -> None:
        figure = regions.plot().figure
        figure.savefig(io.BytesIO())
        plt.close(figure)

    draw(count(random_network([2, 4, 4, 2])))
    sizes = QUICK if options["quick"] else PLOT
    found = count(random_network(sizes))
    what = f"{name_of(sizes)}, plot to PNG"
    return [timed(what, limit, lambda: draw(found)) | {"regions": len(found)}]


def slice_lenet(limit: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    """The plane through three images, of the convolutional network at its initialisation."""
    X = rm.datasets.load("mnist", images=True).X_train[:3]
    net = rm.Network.lenet_small(rng=0)
    plane = rm.Slice(*X, extent=(-0.5, 0.5, -0.5, 0.5)) if options["quick"] else rm.Slice(*X)
    return [timed("lenet_small at init, slice of MNIST", limit, lambda: count(net, plane))]


def slice_fc1(limit: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    """The plane through three images, of a trained dense network."""
    data = rm.datasets.load("mnist")
    net = rm.load(options["fc1"]) if options["fc1"] else trained(data, options["quick"])
    plane = rm.Slice(*data.X_train[:3])
    where = Path(options["fc1"]).name if options["fc1"] else "1 epoch"
    return [timed(f"FC1 trained ({where}), slice of MNIST", limit, lambda: count(net, plane))]


def trained(data: Any, quick: bool) -> rm.Network:
    """FC1 after an epoch of plain training, kept in out/; picks up where it stopped."""
    path = OUT / f"fc1{'-quick' if quick else ''}.npz"
    if path.exists():
        return rm.load(path)
    many = 1000 if quick else len(data.X_train)
    OUT.mkdir(parents=True, exist_ok=True)
    net, _ = rm.fit(
        rm.Network.mlp([784, 1024, 10], rng=0), data.X_train[:many], data.y_train[:many], "plain",
        epochs=1, checkpoint=path.with_suffix(".checkpoint.npz"), progress=False,
    )  # fmt: skip
    rm.save(net, path)
    return net


def walks(limit: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    """The networks of the comparison once more, by walking instead of splitting."""
    rows = []
    for sizes in WALKED[: 1 if options["quick"] else None]:
        net, box = random_network(sizes), rm.Box([-1] * sizes[0], [1] * sizes[0])
        found = []

        def walk(net: rm.Network = net, box: rm.Box = box, found: list = found) -> None:
            found.append(rm.enumerate_regions(net, box, method="walk", progress=False))

        row = timed(f"{name_of(sizes)}, walk", limit, walk)
        graph, cx = found[0], count(net, box)
        both = [{bits.tobytes() for bits in part.packed_patterns} for part in (graph, cx)]
        agrees = "the same patterns" if both[0] == both[1] else "OTHER PATTERNS"
        row["what"] += f" ({agrees} as by splitting, {graph.undecided} undecided)"
        rows.append(row | {"regions": len(graph)})
    return rows


JOBS = {
    "million": million,
    "cost": cost,
    "plot": plot,
    "slice-lenet": slice_lenet,
    "slice-fc1": slice_fc1,
    "walks": walks,
}

if __name__ == "__main__":
    main()
