"""The paper's figure of linear regions in the plane through three MNIST test images.

Trains FC1 (784-1024-10) and the paper's convolutional network, each plain and with MMR (l_2), for a
few epochs (the paper: 100); enumerates the regions in the plane through the first three test
images, of three classes, that all four networks get right; draws ``docs/images/regions-mnist.png``
and writes ``regions_figure.json`` with the counts beside the test errors.

Needs ``REFMMR_DATA`` and 8 GB of memory; with ``REFMMR_BACKEND=numba`` it takes about an hour on
one thread.  Stopped, it goes on from the last epoch, or the last panel, when started again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

import _command
import numpy as np
from _machine import machine
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Rectangle
from PIL import Image
from tqdm import tqdm

import refmmr as rm
from refmmr import _files
from refmmr.regions import DecisionBoundary

P, LR = 2, 5e-4
# The authors' values for MNIST, l_2, with a larger learning rate for the short training.
REGULARIZER = {"fc1": {"lam": 1.5, "gamma": 0.6}, "cnn": {"lam": 3.0, "gamma": 0.45}}
NAMES = {"fc1": "Fully connected", "cnn": "Convolutional"}
SCHEMES = {"plain": "plain training", "mmr": "MMR training"}
MARGIN = 0.15
"""Space around the three points, as a share of their spread."""
TILES = 8, 6
"""Parts of the plane that are enumerated one by one: all regions of a plain CNN fill the memory."""
LINE_WIDTH = {"fc1": 0.3, "cnn": 0.2}
ZOOM = 0.5
"""Half the edge of the square around the first image that the insets enlarge."""
INSET = (0.7, 0.23, 0.28, 0.39)
COLORS = 128
FRAME = "#D55E00"  # and black: the colours that tell something
SQUARE = {"facecolor": "none", "edgecolor": FRAME, "linewidth": 3}
PAPER = {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 2}}
DOT = {"marker": "o", "color": "white", "markeredgecolor": "black", "markersize": 8}
RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "regions-mnist.png"


class Trained(NamedTuple):
    """A network, its error on the 10,000 test points, the seconds of each epoch."""

    net: rm.Network
    test_error: float
    seconds: list[float]


class Plane(NamedTuple):
    """The regions of a plane, put together from tiles; `rm.plot.bent_lines` draws it as well."""

    domain: rm.Slice
    regions: int
    in_zoom: int  # regions within the square of the inset
    seconds: float  # of the enumeration alone
    segments: np.ndarray  # (m, 2, 2), cut at the edges of tiles
    units: np.ndarray  # (m,)
    boundary: np.ndarray  # (l, 2, 2)

    def bent_lines(self) -> tuple[np.ndarray, np.ndarray]:
        """As that of a `RegionComplex`."""
        return self.segments, self.units

    def decision_boundary(self) -> DecisionBoundary:
        """As that of a `RegionComplex`, without the classes."""
        return DecisionBoundary(self.boundary, np.zeros((0, 2), dtype=int))


def main() -> None:
    """Train, enumerate, draw, write."""
    parser = _command.parser(__doc__)
    parser.add_argument("--fc1-epochs", type=int, default=15)
    parser.add_argument("--cnn-epochs", type=int, default=10)
    parser.add_argument("--work", type=Path, default=Path("out/regions_figure"), help="checkpoints")
    options = parser.parse_args()
    epochs = {"fc1": options.fc1_epochs, "cnn": options.cnn_epochs}
    keys = list(itertools.product(NAMES, SCHEMES))
    trained = {key: train(*key, epochs[key[0]], options.work) for key in keys}
    data = rm.datasets.load("mnist")
    chosen = three_images([row.net for row in trained.values()], data)
    X, y = data.X_test[chosen], data.y_test[chosen]
    planes = {
        key: enumerate_plane(row.net, X, options.work / f"{'-'.join(key)}.plane.npz")
        for key, row in trained.items()
    }
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    rm.plot.save(draw(trained, planes, X, y), PICTURE, dpi=85)
    with Image.open(PICTURE) as picture:  # lines in so many shades hardly compress
        few = picture.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    _files.write_atomically(PICTURE, lambda file: few.save(file, "png", optimize=True))
    plane = next(iter(planes.values())).domain
    rows = [
        {
            "network": name,
            "scheme": scheme,
            **({} if scheme == "plain" else REGULARIZER[name]),
            "epochs": epochs[name],
            "test_error_10000": row.test_error,
            "regions": planes[name, scheme].regions,
            "regions_around_first_image": planes[name, scheme].in_zoom,
            "enumerate_seconds": planes[name, scheme].seconds,
            "train_seconds_per_epoch": row.seconds,
        }
        for (name, scheme), row in trained.items()
    ]
    report = {
        "what": "linear regions in the plane through three MNIST test images, trained in l_2",
        "test_images": chosen.tolist(),
        "classes": y.tolist(),
        "rectangle": np.concatenate(plane.rectangle).tolist(),
        "points": plane.points.tolist(),
        "around_first_image": f"square of side {2 * ZOOM:g}",
        "lr": LR,
        "backend": rm.get_backend(),
        "load_average": os.getloadavg()[1],
        "machine": machine(),
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    _files.write_text(RESULTS / "regions_figure.json", json.dumps(report, indent=1) + "\n")
    for row in rows:
        print(", ".join(f"{key} {row[key]}" for key in row if key != "train_seconds_per_epoch"))


def train(name: str, scheme: str, epochs: int, work: Path) -> Trained:
    """Train one of the networks, or go on with it, or find that it is done."""
    data = rm.datasets.load("mnist", images=name == "cnn", dtype=np.float32)
    start = rm.Network.lenet_small(rng=0) if name == "cnn" else rm.Network.mlp([784, 1024, 10], 0)
    net, history = rm.fit(
        start.astype(np.float32),
        data.X_train,
        data.y_train,
        scheme,
        p=P,
        **REGULARIZER[name],
        lr=LR,
        epochs=epochs,
        checkpoint=work / f"{name}-{scheme}-{epochs}.checkpoint.npz",
    )
    if history.interrupted:
        raise KeyboardInterrupt
    rm.save(net, work / f"{name}-{scheme}.npz")
    error = float((net.predict(data.X_test) != data.y_test).mean())
    return Trained(net, error, history["seconds"].tolist())


def three_images(nets: list[rm.Network], data: rm.datasets.Dataset) -> np.ndarray:
    """The first three test images of different classes that all networks get right."""
    right = np.all(
        [net.predict(_as_inputs(net, data.X_test)) == data.y_test for net in nets], axis=0
    )
    first: dict[int, int] = {}
    for i in np.flatnonzero(right).tolist():
        first.setdefault(int(data.y_test[i]), i)
    return np.array(list(first.values())[:3])


def enumerate_plane(net: rm.Network, X: np.ndarray, path: Path) -> Plane:
    """The plane through three images, tile by tile; kept in a file for the next time."""
    x = _as_inputs(net, X)
    points = rm.Slice(*x).points
    spare = MARGIN * np.ptp(points, axis=0).max()
    low, high = points.min(axis=0) - spare, points.max(axis=0) + spare
    plane = rm.Slice(*x, (low[0], high[0], low[1], high[1]))
    given = [X, *(array for pair in net.parameters for array in pair), np.array([MARGIN, ZOOM])]
    key = hashlib.sha256(b"".join(array.tobytes() for array in given)).hexdigest()
    if path.exists():
        found = dict(np.load(path))
        if str(found.pop("key")) == key:
            return Plane(plane, *(_plain(found[name]) for name in Plane._fields[1:]))
    edges = [np.linspace(*ends) for ends in zip(low, high, (n + 1 for n in TILES), strict=True)]
    segments, units, boundary, patterns, seconds = [], [], [], set(), 0.0
    tiles = itertools.product(*(itertools.pairwise(grid) for grid in edges))
    for across, up in tqdm(list(tiles), desc=path.name, unit="tile", disable=None):
        began = time.perf_counter()
        cx = rm.enumerate_regions(net, rm.Slice(*x, (*across, *up)), progress=False)
        seconds += time.perf_counter() - began
        # A region that reaches into several tiles is convex and has one pattern: it counts once.
        patterns |= {hashlib.sha1(bits).digest() for bits in np.packbits(cx.patterns, axis=1)}
        for parts, part in zip((segments, units), cx.bent_lines(), strict=True):
            parts.append(part)
        boundary.append(cx.decision_boundary().segments)
    zoom = rm.enumerate_regions(net, rm.Slice(*x, (-ZOOM, ZOOM, -ZOOM, ZOOM)), progress=False)
    arrays = [np.concatenate(parts) for parts in (segments, units, boundary)]
    found = Plane(plane, len(patterns), len(zoom), seconds, *arrays)
    _files.write_npz(path, {**found._asdict(), "domain": 0, "key": key})
    return found


def draw(
    trained: dict[tuple[str, str], Trained],
    planes: dict[tuple[str, str], Plane],
    X: np.ndarray,
    y: np.ndarray,
) -> Figure:
    """One panel a network: rows are architectures, columns trainings."""
    figure, axes = plt.subplots(
        2, 2, figsize=(13, 10.8), layout="compressed", sharex=True, sharey=True
    )
    for ax, ((name, scheme), plane) in zip(axes.flat, planes.items(), strict=True):
        draw_lines(ax, plane, LINE_WIDTH[name])
        draw_images(ax, plane, X, y)
        draw_inset(ax, plane, 2 * LINE_WIDTH[name], y[0])
        head = f"{NAMES[name]}, {SCHEMES[scheme]}: {plane.regions:,} linear regions"
        error = f"test error {100 * trained[name, scheme].test_error:.1f} %"
        ax.set_title(f"{head}\n{error}", fontsize=13.5)
        ax.set_xlabel(f"l_2 distance, from the {y[0]} towards the {y[1]}", fontsize=12)
        ax.set_ylabel(f"l_2 distance, across, towards the {y[2]}", fontsize=12)
        ax.label_outer()
    handles = [
        Line2D(
            [],
            [],
            color="0.4",
            lw=1,
            label="border of regions: a hidden unit switches (a colour each)",
        ),
        Line2D([], [], color="black", lw=3, label="decision boundary"),
        Line2D([], [], label="test image", ls="", **DOT),
        Rectangle((0, 0), 1, 1, label=f"square around the {y[0]}, enlarged", **SQUARE),
    ]
    figure.get_layout_engine().set(h_pad=0.1)
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=12)
    return figure


def draw_lines(ax: Axes, plane: Plane, width: float) -> None:
    """The bent lines, thin, and the decision boundary on a white rim."""
    rm.plot.bent_lines(plane, ax)
    bent, boundary = ax.collections
    bent.set_linewidth(width)
    boundary.set(linewidth=2.6, zorder=4)
    rim = LineCollection(list(plane.boundary), colors="white", linewidths=5.5, capstyle="round")
    ax.add_collection(rim)
    rim.set_zorder(3)


def draw_images(ax: Axes, plane: Plane, X: np.ndarray, y: np.ndarray) -> None:
    """A dot where each image lies in the plane, and the image above or below it."""
    points = plane.domain.points
    ax.plot(*points.T, ls="", zorder=6, **DOT)
    for (u, v), image in zip(points, X, strict=True):
        aside = u, v + np.copysign(1.13, v - points[:, 1].mean())
        picture = OffsetImage(1 - image.reshape(28, 28), cmap="gray", zoom=1.1)
        ax.add_artist(AnnotationBbox(picture, aside, pad=0.1, zorder=5))


def draw_inset(ax: Axes, plane: Plane, width: float, label: int) -> None:
    """The square around the first image, enlarged, with the number of its regions."""
    small = ax.inset_axes(INSET)
    near = ((plane.segments.min(axis=1) <= ZOOM) & (plane.segments.max(axis=1) >= -ZOOM)).all(
        axis=1
    )
    rm.plot.bent_lines(
        plane._replace(segments=plane.segments[near], units=plane.units[near]), small
    )
    small.collections[0].set_linewidth(width)
    small.plot(0, 0, ls="", zorder=6, **DOT)
    small.set(xlim=(-ZOOM, ZOOM), ylim=(-ZOOM, ZOOM), xticks=[], yticks=[], xlabel="", ylabel="")
    regions = "1 region" if plane.in_zoom == 1 else f"{plane.in_zoom:,} regions"
    small.set_title(f"around the {label}: {regions}", fontsize=12, loc="right", **PAPER)
    small.spines[:].set(color=FRAME, linewidth=3)
    ax.add_patch(Rectangle((-ZOOM, -ZOOM), 2 * ZOOM, 2 * ZOOM, **SQUARE, zorder=4))


def _plain(array: np.ndarray):
    return array if array.ndim else array.item()


def _as_inputs(net: rm.Network, X: np.ndarray) -> np.ndarray:
    return X.reshape(len(X), *net.input_shape).astype(net.dtype)


if __name__ == "__main__":
    main()
