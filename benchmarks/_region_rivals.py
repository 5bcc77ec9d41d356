"""The tools that `regions.py` times: one run of one of them, in a process of its own.

Called as ``_region_rivals.py TOOL LIMIT NET.npz [PATTERNS.npz]``; the file of the network holds its
layers as ``W0, b0, W1, b1, ...`` in float64, the last of them without a ReLU.  Prints one line of
JSON: how many full-dimensional regions the tool finds in the box [-`RADIUS`, `RADIUS`]^n, the
seconds of a run and the memory.  Importing, converting the network and a first run on a tiny
network come before the clock starts; a run of more than LIMIT seconds ends the process by an alarm.
Then, if asked to, writes the activation pattern of each region, for `_region_judge.py`: that of the
tool if it tells one, else that of a point in the middle of the region.

Needs NumPy and the tool alone, so that the rivals can live in an environment without the library.
What each counts by which option:

* regioncam (Rust, float32, two inputs only): the faces of the plane after the last ReLU.  The
  output layer is left out; it would not split faces, only `decision_boundary` does.
* affinitree (Rust, float64, linear programs): the leaves of the decision tree, with the box as
  precondition; the output layer is left out here too.
* relucent (Python, linear programs by Gurobi, exact arithmetic for what they leave undecided):
  the cells that a search from the origin meets, those that do not meet the box left aside
  (``cube_mode="intersect"``).  One worker; without the certificates that topology needs
  (``verify=False``).  The licence that comes with Gurobi's package is limited in size, and for
  evaluation only.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from typing import Any, NamedTuple, TextIO

import numpy as np
from _memory import children_peak, forget_peak, peak

Layers = list[tuple[np.ndarray, np.ndarray]]
RADIUS = 1.0
ENOUGH, REPETITIONS = 2.0, 9
"""Seconds after which a run is not repeated, and repetitions at most."""


class NotThereError(Exception):
    """The tool has no such thing, say more than two inputs."""


class Tool(NamedTuple):
    """How a tool is used."""

    package: str
    prepare: Callable[[Layers], Callable[[], Any]]
    """Converts the network; what it returns is timed."""
    count: Callable[[Any], int]
    patterns: Callable[[Any, Layers], np.ndarray]
    """Of each region, bool (regions, hidden units)."""


def main() -> None:
    """Run the tool that the command line names."""
    tool, limit, path, *target = sys.argv[1:]
    output = own_output()
    result, found = measure(TOOLS[tool], load(path), int(limit))
    print(json.dumps(result), file=output, flush=True)
    if target and found is not None:
        patterns = TOOLS[tool].patterns(found, load(path))
        np.savez(target[0], packed=np.packbits(patterns, axis=1))


def own_output() -> TextIO:
    """The standard output, for the result alone: what the tools print is discarded."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return output


def load(path: str) -> Layers:
    """The layers of a network."""
    with np.load(path) as file:
        return [(file[f"W{i}"], file[f"b{i}"]) for i in range(len(file.files) // 2)]


def measure(tool: Tool, layers: Layers, limit: int) -> tuple[dict[str, Any], Any]:
    """Count the regions, as often as there is time; what was found last is for the patterns."""
    try:
        warm_up(tool, layers)
        run = tool.prepare(layers)
    except NotThereError as reason:
        return {"failed": str(reason)}, None
    before, seconds, found = forget_peak(), [], None
    while not seconds or (sum(seconds) < ENOUGH and len(seconds) < REPETITIONS):
        found = None
        gc.collect()
        signal.alarm(limit)  # no handler: it ends the process, within compiled code too
        began = time.perf_counter()
        found = run()
        seconds.append(time.perf_counter() - began)
        signal.alarm(0)
    return {
        "regions": tool.count(found),
        "seconds": float(np.median(seconds)),
        "best": min(seconds),
        "repetitions": len(seconds),
        "peak_mb": peak() - before + children_peak(),
        "version": version(tool.package),
    }, found


def warm_up(tool: Tool, layers: Layers) -> None:
    """Everything once on a tiny network with as many layers and inputs."""
    rng = np.random.default_rng(0)
    sizes = [layers[0][0].shape[1], *(3 for _ in layers[:-1]), 2]
    tiny = [(rng.normal(size=(m, n)), rng.normal(size=m)) for n, m in pairwise(sizes)]
    tool.count(tool.prepare(tiny)())


def patterns_at(points: np.ndarray, layers: Layers) -> np.ndarray:
    """Activation pattern of points, (m, n) to (m, hidden units)."""
    signs = []
    for W, b in layers[:-1]:
        points = points @ W.T + b
        signs.append(points > 0)
        points = np.maximum(points, 0)
    return np.concatenate(signs, axis=1)


# This library.  Change here when its regions have other names.


def refmmr_prepare(backend: str) -> Callable[[Layers], Callable[[], Any]]:
    """The call that is timed, on one of the library's backends."""

    def prepare(layers: Layers) -> Callable[[], Any]:
        import refmmr as rm

        n = layers[0][0].shape[1]
        if backend not in rm.available_backends():
            raise NotThereError(f"backend {backend} is not installed")
        try:
            box = rm.Box([-RADIUS] * n, [RADIUS] * n)
        except ValueError as reason:
            raise NotThereError(f"not there: {reason}") from reason
        net = rm.Network([rm.Linear(W, b) for W, b in layers], n)

        def run() -> Any:
            with rm.use_backend(backend):
                return rm.enumerate_regions(net, box, progress=False)

        return run

    return prepare


def refmmr_patterns(found: Any, layers: Layers) -> np.ndarray:
    """As the library tells them."""
    return np.asarray(found.patterns)


# The rivals.


def regioncam_prepare(layers: Layers) -> Callable[[], Any]:
    """Faces of the square, split layer by layer."""
    import regioncam

    if layers[0][0].shape[1] != 2:
        raise NotThereError("two inputs only")
    narrow = [
        (np.ascontiguousarray(W.T, dtype=np.float32), b.astype(np.float32)) for W, b in layers[:-1]
    ]

    def run() -> Any:
        plane = regioncam.Regioncam(size=RADIUS)
        for W, b in narrow:
            plane.linear(W, b)
            plane.relu()
        return plane

    return run


def regioncam_patterns(found: Any, layers: Layers) -> np.ndarray:
    """At the mean of each face's vertices."""
    vertices = np.asarray(found.vertex_inputs, dtype=np.float64)
    middles = [
        vertices[np.asarray(face.vertex_ids, dtype=int)].mean(axis=0) for face in found.faces
    ]
    return patterns_at(np.array(middles), layers)


def affinitree_prepare(layers: Layers) -> Callable[[], Any]:
    """A decision tree of the network on the box."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that PyTorch is not there
        import affinitree
    from affinitree import builder

    n = layers[0][0].shape[1]
    network = affinitree.Architecture(n)
    for W, b in layers[:-1]:
        network.linear(affinitree.AffFunc.from_mats(W, b))
        network.relu()
    box = affinitree.Polytope.hyperrectangle(n, [(-RADIUS, RADIUS)] * n)

    def run() -> Any:
        inside = affinitree.AffTree.from_poly(box, affinitree.AffFunc.identity(n))
        return builder.from_layers(network, inside)

    return run


def affinitree_patterns(found: Any, layers: Layers) -> np.ndarray:
    """At the centre of the largest ball in each leaf's polytope."""
    points = []
    for _, node, polytope in found.polyhedra():
        if node.is_terminal():
            program, cost = polytope.chebyshev_center()
            points.append(np.asarray(program.solve(cost))[:-1])
    return patterns_at(np.array(points), layers)


def relucent_prepare(layers: Layers) -> Callable[[], Any]:
    """A search through neighbours from the origin."""
    import relucent
    from relucent.model import LinearLayer, ReLULayer, ReLUNetwork

    parts: list[Any] = []
    for W, b in layers[:-1]:
        parts += [LinearLayer(W, b), ReLULayer()]
    network = ReLUNetwork([*parts, LinearLayer(*layers[-1])])

    def run() -> Any:
        cells = relucent.Complex(network)
        result = cells.bfs(
            cube_radius=RADIUS, cube_mode="intersect", nworkers=1, verify=False, verbose=0
        )
        if not result.complete:
            raise RuntimeError(
                f"incomplete: {len(cells)} cells, then {result.bad_shi_computations}"
            )
        return cells

    return run


def relucent_patterns(found: Any, layers: Layers) -> np.ndarray:
    """As the tool tells them."""
    return np.array([cell.ss_np.ravel() > 0 for cell in found])


TOOLS = {
    "refmmr numpy": Tool("refmmr", refmmr_prepare("numpy"), len, refmmr_patterns),
    "refmmr numba": Tool("refmmr", refmmr_prepare("numba"), len, refmmr_patterns),
    "regioncam": Tool(
        "regioncam", regioncam_prepare, lambda found: found.num_faces, regioncam_patterns
    ),
    "affinitree": Tool(
        "affinitree", affinitree_prepare, lambda found: found.num_terminals(), affinitree_patterns
    ),
    "relucent": Tool("relucent", relucent_prepare, len, relucent_patterns),
}

if __name__ == "__main__":
    main()
