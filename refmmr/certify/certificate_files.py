"""Certificates in files, and `check_certificate`, which proves them again.

A file is an .npz archive of one point: the question (the network's hash, x, y, p, eps, the box) and
the nodes of a proof, see `refmmr.reference.proof.Proof`.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refmmr import _boxes, _files
from refmmr import _validate as check
from refmmr._boxes import Box
from refmmr.network import Network
from refmmr.reference import proof as book
from refmmr.reference.ball import ball
from refmmr.reference.proof import Proof

__all__ = ["CertificateFolder", "CheckedCertificate", "check_certificate", "network_hash"]

FORMAT = "refmmr-certificate"
VERSION = 1

MAX_BYTES = 2**31
"""Bytes of all arrays of a file, unpacked: a hostile file cannot fill the memory."""

NODES = {"target": "i", "parent": "i", "unit": "i", "sign": "i", "parameters": "f", "again": "i"}
"""The arrays of a proof, and the kinds of their numbers."""


@dataclass(frozen=True)
class CheckedCertificate:
    """One certificate, as `check_certificate` found it.

    Attributes
    ----------
    path : Path
    proved : bool
        All points of the ball within the box have class y, in real arithmetic.
    x : ndarray, shape (*input_shape)
    y : int
    p : {1, 2, inf}
    eps : float
        The radius of the closed ball around x.
    box : (lo, hi) or None
        Arrays of the shape of x.
    nodes : int
        Of all trees.
    open_nodes : list of int
        The nodes that are not proved; -1 for a class without a tree.

    Examples
    --------
    >>> import tempfile
    >>> import refmmr as rm
    >>> net, x = rm.Network([rm.Linear([[1.0], [0.0]], [0.0, 0.5])], 1), [[0.9]]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = rm.certify(net, x, [0], eps=0.3, method="bab", certificate=folder)
    ...     (found,) = rm.check_certificate(net, folder)
    >>> found.proved, found.y, found.eps, found.x.tolist()
    (True, 0, 0.3, [0.9])
    """

    path: Path
    proved: bool
    x: np.ndarray
    y: int
    p: float
    eps: float
    box: Box | None
    nodes: int
    open_nodes: list[int]

    def __repr__(self) -> str:
        answer = "proved" if self.proved else f"not proved, {len(self.open_nodes)} open nodes"
        question = f"class {self.y} within l_{self.p:g} {self.eps:g}"
        return f"CheckedCertificate({self.path.name}: {question}, {self.nodes} nodes, {answer})"


def check_certificate(net: Network, path: str | os.PathLike[str]) -> list[CheckedCertificate]:
    """Prove certificates again that ``certify(..., method="bab", certificate=path)`` has written.

    The check is a chapter of the reference (`refmmr.reference.proof`), in NumPy alone: it computes
    every bound from the weights, and takes nothing from the file but the question, the splits and
    the free parameters of bounds.  Nothing in a file is executed.

    Parameters
    ----------
    net : Network
        The network that was certified: its float64 weights and layers are compared by their hash.
    path : path-like
        A file, or a folder of files.

    Returns
    -------
    list of CheckedCertificate
        One for each file, by number: ``.proved``, and the question, ``.x``, ``.y``, ``.p``,
        ``.eps``, ``.box``.  Compare it with yours.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or none in the folder.
    ValueError
        For a file that is damaged, truncated, too large, no certificate, or of another network.

    Examples
    --------
    >>> import tempfile
    >>> import refmmr as rm
    >>> net = rm.Network([rm.Linear([[3, 4]], [0]), rm.Linear([[1], [0]], [0, 1])], 2)
    >>> asked = {"p": 2, "box": None, "eps": 0.7, "method": "bab"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rm.certify(net, [[1.0, 0.5]], [0], **asked, certificate=folder).status
    ...     rm.check_certificate(net, folder)
    array(['robust'], dtype='<U11')
    [CheckedCertificate(0.npz: class 0 within l_2 0.7, 1 nodes, proved)]
    """
    check.check_network(net)
    path = _files.as_path(path)
    net = net.astype(np.float64)
    if not path.is_dir():
        return [_check_file(net, path)]
    paths = sorted(path.glob("*.npz"), key=lambda file: (len(file.name), file.name))
    if not paths:
        raise FileNotFoundError(
            f"{path}: expected a folder of certificates, got no .npz file in it"
        )
    return [_check_file(net, file) for file in paths]


def network_hash(net: Network) -> str:
    """The SHA-256 of a network's layers and weights, as float64: 64 hexadecimal digits."""
    from refmmr.interop.npz_files import network_arrays  # readers of files load SciPy

    arrays = network_arrays(net)
    layout = [json.loads(arrays["layers"]), [int(size) for size in net.input_shape]]
    digest = hashlib.sha256(json.dumps(layout, sort_keys=True).encode())
    for part in (part for pair in net.parameters for part in pair):
        digest.update(repr(part.shape).encode())
        digest.update(np.ascontiguousarray(part, dtype="<f8").tobytes())
    return digest.hexdigest()


class CertificateFolder:
    """The folder to which `certify` writes a file for each robust point, named by its number.

    Attributes
    ----------
    proofs : dict
        Where a method puts the proof of the only point that it bounds, under 0.
    """

    def __init__(
        self, path: Any, net: Network, method: str, radii: np.ndarray | None,
        scale: np.ndarray | None,
    ) -> None:  # fmt: skip
        if method != "bab":
            raise ValueError(
                f"certificate: expected method='bab', which writes certificates, got {method!r}"
            )
        if radii is None:
            raise ValueError("certificate: expected eps, the radius that is proved, got eps=None")
        if scale is not None:
            raise ValueError("certificate: expected scale=None, got a unit for each coordinate")
        self.path = _files.as_path(path, argument="certificate")
        if self.path.suffix == ".npz" or (self.path.exists() and not self.path.is_dir()):
            raise ValueError(
                "certificate: expected a folder, which gets a file for each robust point, got "
                f"{str(path)!r}"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self.proofs: dict[int, Proof | None] = {}
        self._hash, self._radii = network_hash(net), radii
        self._missing: list[int] = []

    def write(self, i: int, X: np.ndarray, y: np.ndarray, p: float, box: Box | None) -> None:
        """Write the proof of point i of X, (n, *input_shape), if it was proved robust."""
        if 0 not in self.proofs:
            return
        proof = self.proofs.pop(0)
        question = {
            "format": FORMAT, "version": VERSION, "network": self._hash, "x": X[i], "y": int(y[i]),
            "p": float(p), "eps": float(self._radii[i]),
        }  # fmt: skip
        if box is not None:
            lo, hi = (side[i] if _boxes.is_own(box, X) else side for side in box)
            question |= {"lo": lo, "hi": hi}
        arrays = {} if proof is None else question | _arrays(proof)
        if proof is None or sum(np.asarray(part).nbytes for part in arrays.values()) > MAX_BYTES:
            self._missing.append(i)
        else:
            _files.write_npz(self.path / f"{i}.npz", arrays, compress=True)

    def warn(self) -> None:
        """Name the robust points without a certificate."""
        if self._missing:
            warnings.warn(
                f"certificate: points {self._missing} are robust, but their proofs have too many "
                "nodes for a file, or rest on rounding errors: no file was written for them",
                stacklevel=3,
            )


def _arrays(proof):
    """The arrays of a proof by name."""
    arrays = {name: getattr(proof, name) for name in NODES}
    return arrays | {f"slopes{k}": part for k, part in enumerate(proof.slopes)}


def _check_file(net, path):
    """Prove one certificate again."""
    arrays = _files.read_npz(path, FORMAT, VERSION, MAX_BYTES)
    try:
        found = str(_scalar(arrays, "network", "U"))
        if found != (own := network_hash(net)):
            raise ValueError(
                f"a certificate of the network with SHA-256 {own[:16]}..., got one of another "
                f"network, {found[:16]}..."
            )
        x, y, p, eps, box = _question(net, arrays)
        proof = _proof(net, arrays)
    except ValueError as error:
        raise ValueError(f"{path}: expected {error}") from error
    around = ball(x[None], np.full(1, eps), p, box)
    with np.errstate(all="ignore"):  # what overflows proves nothing
        left = book.open_nodes(net, around, y, proof)
    return CheckedCertificate(path, not left, x, y, p, eps, box, len(proof.parent), left)


def _question(net, arrays):
    """The checked question: x, y, p, eps and the box."""
    x = _array(arrays, "x", "f", net.input_shape)
    y, p, eps = (
        _scalar(arrays, name, kind) for name, kind in (("y", "i"), ("p", "f"), ("eps", "f"))
    )
    _require(np.isfinite(x).all(), "finite numbers in x")
    _require(0 <= y < net.n_classes, f"y from 0 to {net.n_classes - 1}, got {y}")
    _require(p in (1, 2, np.inf), f"p of 1, 2 or inf, got {p}")
    _require(0 < eps < np.inf, f"eps > 0, got {eps}")
    box = None
    if "lo" in arrays or "hi" in arrays:
        lo, hi = box = tuple(_array(arrays, name, "f", net.input_shape) for name in ("lo", "hi"))
        _require((lo <= x).all() and (x <= hi).all(), "x in the box")
        _require(np.isfinite(lo).all() and np.isfinite(hi).all(), "a finite box")
    return x, int(y), float(p), float(eps), box


def _proof(net, arrays):
    """The checked nodes."""
    n = len(_array(arrays, "parent", "i", None))
    again = _array(arrays, "again", "i", None)
    shapes = dict.fromkeys(NODES, (n,)) | {"parameters": (n, net.n_hidden), "again": again.shape}
    parts = {name: _array(arrays, name, kind, shapes[name]) for name, kind in NODES.items()}
    sizes = [part.stop - part.start for part in net.unit_slices]
    slopes = [
        _array(arrays, f"slopes{k}", "u", (1 + len(again), 2, size, sum(sizes[:k])))
        for k, size in enumerate(sizes)
    ]
    proof = Proof(**parts, slopes=slopes)
    _require(n > 0, "at least one node")
    older = (proof.parent >= -1) & (proof.parent < np.arange(n))
    _require(older.all(), "parents before their children")
    known = (proof.unit >= -1) & (proof.unit < net.n_hidden)
    _require(known.all(), "units of the network in splits")
    _require(np.isfinite(proof.parameters).all(), "finite numbers in parameters")
    _require(((again >= 0) & (again < n)).all(), "numbers of nodes in again")
    return proof


def _array(arrays: Mapping[str, np.ndarray], name: str, kind: str, shape: Any) -> np.ndarray:
    """An array of a file, of this kind and shape (None: any of one dimension)."""
    _require(name in arrays, f"an array {name}, got none")
    array = arrays[name]
    _require(array.dtype.kind == kind, f"{name} of kind {kind!r}, got {array.dtype}")
    good = array.ndim == 1 if shape is None else array.shape == tuple(shape)
    _require(
        good, f"{name} of shape {'(n,)' if shape is None else tuple(shape)}, got {array.shape}"
    )
    wide = {"f": np.float64, "i": np.int64}
    return array if name == "parameters" or kind == "u" else array.astype(wide[kind])


def _scalar(arrays, name, kind):
    """A number or text of a file."""
    _require(name in arrays, f"an array {name}, got none")
    array = arrays[name]
    _require(
        array.shape == () and array.dtype.kind == kind,
        f"{name} of kind {kind!r} without dimensions, got {array.dtype} of shape {array.shape}",
    )
    return array[()]


def _require(condition, expected):
    if not condition:
        raise ValueError(expected)
