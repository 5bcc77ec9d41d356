"""Atomic writes and their temporary files; files that are none."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import refmmr as rm
from refmmr import _files

NET = rm.Network.mlp([2, 3, 2], rng=0)

KILLED = """
import os, signal, sys
from pathlib import Path
from refmmr import _files

def write(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

_files.write_atomically(Path(sys.argv[1]), write)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and flock")
def test_the_next_write_removes_what_a_killed_one_left(tmp_path):
    path = tmp_path / "ck.npz"
    _files.write_text(path, "old")
    for other in ("ck.npz.backup_1", "ck.npz2", ".ck.npz.refmmr-tm"):
        (tmp_path / other).write_text("mine")
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", KILLED, str(path)], timeout=60, check=False)
        assert run.returncode == -signal.SIGKILL
        assert len(list(tmp_path.iterdir())) == 5  # the second removes that of the first
        assert path.read_text() == "old"
    _files.write_text(path, "new")
    assert path.read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 4


def test_a_write_in_progress_is_left_alone(tmp_path):
    path = tmp_path / "a.txt"

    def write(file):
        file.write(b"outer")
        _files.write_text(path, "inner")
        assert path.read_text() == "inner"

    _files.write_atomically(path, write)
    assert path.read_text() == "outer"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_without_locks_nothing_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "_lock", lambda descriptor: False)
    left = tmp_path / ".a.txt.12345678.refmmr-tmp"
    left.write_text("of somebody")
    _files.write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert left.exists()


READERS = {
    "m.npz": rm.load,
    "m.onnx": rm.load,
    "m.mat": rm.load,
    "m.safetensors": rm.load,
    "regions.npz": rm.RegionComplex.load,
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_files_that_are_none(tmp_path, name, kind):
    """A pipe blocks its reader, and /dev/zero never ends."""
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=f"{name}: expected a file, got a folder or device"):
        READERS[name](path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_data_sets_and_records_that_are_no_files(tmp_path, kind):
    for name in ("data.npz", "data.csv", "train-images-idx3-ubyte", "points.jsonl"):
        if kind == "pipe":
            os.mkfifo(tmp_path / name)
        else:
            (tmp_path / name).symlink_to("/dev/zero")
    for name in ("data.npz", "data.csv"):
        with pytest.raises(ValueError, match="name: expected one of"):
            rm.datasets.load(tmp_path / name)
    with pytest.raises(ValueError, match="expected a file, got a folder or device"):
        rm.datasets.load(tmp_path)
    X, y = np.zeros((1, 2)), NET.predict(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="expected a file, got a folder or device"):
        rm.robust_error(NET, X, y, eps=0.1, out=tmp_path / "points.jsonl")


def test_text_that_is_called_npz(tmp_path):
    path = tmp_path / "a.npz"
    path.write_text("1, 2, 3")
    for read in (rm.load, rm.datasets.load, rm.RegionComplex.load):
        with pytest.raises(ValueError, match=r"a.npz: expected .*not a zip file.*b'1, 2, 3'"):
            read(path)
