"""The presets of the paper's table can be trained as they are."""

import numpy as np
import pytest

import refmmr as rm

BLOCKS = {"mnist-fc1-l2": (784,), "mnist-cnn-linf": (1, 28, 28), "mnist-cnn": (1, 28, 28)}


@pytest.mark.parametrize(
    ("block", "scheme"),
    [
        *(("mnist-fc1-l2", s) for s in ("plain", "at", "kw", "mmr", "mmr+at")),
        ("mnist-cnn-linf", "at"),
        ("mnist-cnn", "universal"),
    ],
)
def test_every_scheme_trains(block, scheme):
    preset = rm.presets[f"{block}-{scheme}"]
    net = preset.new_network(BLOCKS[block], 10)
    assert net.n_hidden == {"fc1": 1024, "cnn": 4804}[preset.network]
    assert net.dtype == np.float32
    X = np.random.default_rng(0).uniform(0, 1, (2, *net.input_shape)).astype(np.float32)
    options = preset.options() | {"epochs": 1, "pgd_steps": 1}
    trained, history = rm.fit(net, X, [3, 4], **options)
    assert np.isfinite(history["loss"]).all()
    assert not np.array_equal(trained.parameters[0][0], net.parameters[0][0])


def test_regularized_rows_have_their_own_settings():
    mmr = {name: row for name, row in rm.presets.items() if row.scheme in ("mmr", "mmr+at")}
    assert len(mmr) == 28
    assert len({(row.lam, row.gamma, row.lr, row.eps) for row in mmr.values()}) > 20
    assert all(0 < row.gamma < 1 for row in mmr.values())
    with pytest.raises(TypeError):
        rm.presets["mnist-fc1-l2-mmr"] = None


def test_attacks_have_fewer_steps_on_colour_images():
    for name, row in rm.presets.items():
        adversarial = row.scheme in ("at", "mmr+at")
        steps = 40 if row.data in ("mnist", "fashion-mnist") else 7
        assert row.options().get("pgd_steps") == (steps if adversarial else None), name


def test_universal_rows_have_a_pair_for_both_norms():
    for name, lam_inf in (("mnist-cnn-universal", 12), ("fmnist-cnn-universal", 40)):
        row = rm.presets[name]
        assert row.lam == (3, lam_inf)
        assert row.gamma[0] > row.gamma[1]  # an l_1 distance is the larger one
        assert "p" not in row.options()
        assert "eps" not in row.options()
