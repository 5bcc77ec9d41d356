"""The code of how-to pages runs, and says what the pages say."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import refmmr as rm

FOLDER = Path(__file__).parents[2] / "docs" / "howto"
FENCE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def run(page):
    """Execute the blocks of a page; the names they leave."""
    names = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Stochastic Optimizer", module="sklearn")
        for code in FENCE.findall((FOLDER / page).read_text()):
            exec(compile(code, page, "exec"), names)
    return names


def test_what_may_change():
    pytest.importorskip("sklearn")
    names = run("what-may-change.md")
    net, denied, changes = names["net"], names["denied"], names["changes"]
    assert np.isfinite(changes).any(axis=0)[1:3].all()
    # A feature that moves alone by less changes nothing; one that moves as far as it must does.
    for j in range(4):
        for sign in (-1, 1):
            Z = denied.copy()
            step = np.where(np.isfinite(changes[:, j]), changes[:, j], 1e3) * (1 - 1e-6)
            Z[:, j] = np.clip(Z[:, j] + sign * step, names["lo"][j], names["hi"][j])
            assert (net.predict(Z) == 0).all()
    advice, box = names["advice"], names["box"]
    assert (advice[:, 0] == 0).all()
    assert (advice[:, 2] <= 0).all()
    assert (advice[:, 3] >= 0).all()
    assert (net.predict(denied + advice) == 1).all()
    outputs = net(denied)
    assert (names["found"].lower <= outputs).all()
    assert (outputs <= names["found"].upper).all()
    exact = rm.certify(net, denied, None, np.inf, box, method="bab", scale=names["scale"])
    assert exact.exact.all()
    np.testing.assert_allclose(np.abs(advice / names["scale"]).max(axis=1), exact.upper, rtol=1e-9)


def test_verify_a_property(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("verify-a-property.md")["found"].status == "holds"
