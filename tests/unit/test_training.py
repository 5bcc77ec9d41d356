"""Training: the schemes, the schedules, and checkpoints of trainings that were killed."""

import gc
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import refmmr as rm
from refmmr import _backend
from refmmr.reference import loss, network, pgd, wong_kolter
from refmmr.reference.adam import Adam
from refmmr.reference.objective import objective_gradient

SCHEMES = {
    "plain": {},
    "at": {"eps": 0.05, "pgd_steps": 3},
    "mmr": {"lam": 0.5, "gamma": (0.2, 0.1)},
    "mmr+at": {"eps": 0.05, "pgd_steps": 3, "lam": 0.5, "gamma": 0.2},
    "mmr-universal": {"lam": (0.3, 0.6), "gamma": (0.2, 0.1)},
    "kw": {"eps": 0.05},
}


def problem(n=64):
    """Two classes in the unit square, divided by a parabola."""
    X = np.random.default_rng(0).uniform(0, 1, (n, 2))
    return X, (X[:, 1] > (2 * X[:, 0] - 1) ** 2).astype(int)


def start():
    return rm.Network.mlp([2, 10, 6, 2], rng=0)


def train(scheme="plain", net=None, **options):
    """A short training: four batches an epoch."""
    X, y = problem()
    options = {"epochs": 3, "batch_size": 16, **SCHEMES[scheme], **options}
    return rm.fit(start() if net is None else net, X, y, scheme, **options)


def bits(net):
    return [array.tobytes() for pair in net.parameters for array in pair]


def records(history):
    """All but the time it took."""
    return [{k: v for k, v in r.items() if k != "seconds"} for r in history.records]


@pytest.fixture
def after(monkeypatch):
    """Call something at the n-th batch from now on, of trainings on the reference."""
    monkeypatch.setattr(_backend, "_twins", {name: dict(t) for name, t in _backend._twins.items()})

    def set_trap(batches, action):
        calls = []

        def trap(gradient):
            @_backend.implements("numpy", gradient)
            def trapped(*args):
                calls.append(1)
                if len(calls) == batches:
                    action()
                return gradient(*args)

        trap(objective_gradient)
        trap(wong_kolter.robust_loss_gradient)

    with rm.use_backend("numpy"):
        yield set_trap


def stop(error):
    def action():
        raise error

    return action


# ---- The schemes.


def objective(net, scheme, X, y):
    """What the scheme minimises, without any of the training's code."""
    options = {"p": 2, **SCHEMES[scheme]}
    if scheme == "kw":
        margins = wong_kolter.robust_margins(net, X, y, 2, options["eps"])
        return loss.cross_entropy(-margins, y).mean()
    if "at" in scheme:
        X = rm.pgd(net, X, y, 2, eps=options["eps"], steps=10)
    value = loss.cross_entropy(net(X), y).mean()
    if scheme == "mmr-universal":
        for p, lam, gamma in zip((1, np.inf), options["lam"], options["gamma"], strict=True):
            value += lam * rm.mmr(net, X, y, p, gamma=gamma, k_b=1).value.mean()
    elif "mmr" in scheme:
        gamma = np.broadcast_to(options["gamma"], 2)
        mmr = rm.mmr(net, X, y, gamma_b=gamma[0], gamma_d=gamma[1], k_b=1)
        value += options["lam"] * mmr.value.mean()
    return value


@pytest.mark.parametrize("scheme", SCHEMES)
def test_lowers_its_objective(scheme):
    X, y = problem()
    net, history = train(scheme, epochs=40, lr=0.01)
    assert objective(net, scheme, X, y) < 0.8 * objective(start(), scheme, X, y)
    assert history["cross_entropy"][-1] < history["cross_entropy"][0]
    assert (history["mmr"] > 0).all() == ("mmr" in scheme)


@pytest.mark.parametrize("p", [1, 2, np.inf])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_first_step(scheme, p):
    """One batch of everything: a step of Adam along the gradient of the paper's objective."""
    X, y = problem(9)
    options = SCHEMES[scheme]
    net, history = rm.fit(start(), X, y, scheme, p=p, epochs=1, rng=3, **options)
    order = np.random.default_rng([3, 0]).permutation(9)
    X, y = X[order], y[order]
    expected = start()
    if "at" in scheme:  # half of the batch
        eps, steps, box = options["eps"], options["pgd_steps"], (np.zeros(2), np.ones(2))
        begin = pgd.random_start(X[:5], p, eps, box, np.random.default_rng([3, 0, 0]))
        assert (begin != X[:5]).any()
        X[:5] = pgd.pgd(
            expected, X[:5], y[:5], p, eps, steps, 2 * eps / steps, box, begin, keep_last=True
        )
    if scheme == "kw":  # on a tenth of the radius
        total, error, gradients = wong_kolter.robust_loss_gradient(expected, X, y, p, 0.005)
        assert history["robust_error"] == error
    else:
        total, gradients = loss.loss_gradient(expected, X, y)
    if scheme in ("mmr", "mmr+at"):
        gamma_b, gamma_d = np.broadcast_to(options["gamma"], 2)
        # The only epoch is the last: all of lambda, 2% of 16 hidden units but one at least.
        value, more = rm.mmr_gradient(expected, X, y, p, gamma_b=gamma_b, gamma_d=gamma_d, k_b=1)
        total += 0.5 * value
        gradients = [
            (dW + 0.5 * eW, db + 0.5 * eb)
            for (dW, db), (eW, eb) in zip(gradients, more, strict=True)
        ]
    if scheme == "mmr-universal":
        for norm, lam, gamma in zip((1, np.inf), options["lam"], options["gamma"], strict=True):
            value, more = rm.mmr_gradient(expected, X, y, norm, gamma=gamma, k_b=1)
            total += lam * value
            gradients = [
                (dW + lam * eW, db + lam * eb)
                for (dW, db), (eW, eb) in zip(gradients, more, strict=True)
            ]
    Adam(expected.parameters).step(gradients, 1e-4)
    for found, wanted in zip(net.parameters, expected.parameters, strict=True):
        np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(found[1], wanted[1], rtol=0, atol=1e-12)
    assert history["loss"] == pytest.approx([total])
    assert history["train_error"] == (start().predict(X) != y).mean()


def test_adam_by_hand():
    W, b = np.array([[1.0, -2.0]]), np.array([3.0])
    adam = Adam([(W, b)])
    m, v, expected = np.zeros(3), np.zeros(3), np.array([1.0, -2.0, 3.0])
    for t, gradient in enumerate(([0.5, -4.0, 0.0], [-1.0, -4.0, 1e-3], [0.25, 1.0, 0.0]), 1):
        g = np.array(gradient)
        adam.step([(g[None, :2], g[2:])], lr=0.1)
        # Kingma and Ba's algorithm 1, with epsilon as at the end of their section 2.
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        rate = 0.1 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        expected -= rate * m / (np.sqrt(v) + 1e-8)
        np.testing.assert_allclose([*W[0], *b], expected, rtol=1e-12)
        if t == 1:  # the first step is lr long for any size of the gradient
            np.testing.assert_allclose([*W[0], *b], [0.9, -1.9, 3], rtol=1e-5)


# ---- The same again.


@pytest.mark.parametrize("scheme", SCHEMES)
def test_deterministic(scheme):
    runs = [train(scheme, rng=seed) for seed in (0, 0, 1)]
    assert bits(runs[0][0]) == bits(runs[1][0])
    assert records(runs[0][1]) == records(runs[1][1])
    assert bits(runs[0][0]) != bits(runs[2][0])


def test_arguments_stay_as_they_are():
    net, (X, y) = start(), problem()
    before = X.copy(), y.copy()
    rm.fit(net, X, y, "mmr+at", epochs=2, batch_size=16, **SCHEMES["mmr+at"])
    assert bits(net) == bits(start())
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(y, before[1])


@pytest.mark.parametrize("p", [1, 2, np.inf])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_float32_stays_float32(scheme, p):
    net, _ = train(scheme, start().astype(np.float32), p=p, epochs=1)
    assert net.dtype == np.float32
    assert all(array.dtype == np.float32 for pair in net.parameters for array in pair)
    double, _ = train(scheme, p=p, epochs=1)
    for found, wanted in zip(net.parameters, double.parameters, strict=True):
        np.testing.assert_allclose(found[0], wanted[0], atol=2e-3)


def test_images():
    X = np.random.default_rng(0).uniform(0, 1, (12, 1, 6, 6))
    net = rm.Network.lenet_small((1, 6, 6), 2, rng=0)
    trained, history = rm.fit(
        net, X, np.arange(12) % 2, "mmr+at", epochs=2, batch_size=6, **SCHEMES["mmr+at"]
    )
    assert len(history) == 2
    assert bits(trained) != bits(net)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_hidden_layer(scheme):
    net, history = train(scheme, rm.Network.mlp([2, 2], rng=0))
    assert len(history) == 3
    assert np.isfinite(net.parameters[0][0]).all()


# ---- The schedules of the authors.


def test_schedules_of_100_epochs():
    X, y = problem(4)
    net = rm.Network.mlp([2, 1024, 2], rng=0)
    _, history = rm.fit(net, X, y, "mmr", lam=2.0, gamma=0.1)
    epochs = np.arange(1, 101)
    np.testing.assert_array_equal(history["epoch"], epochs)
    np.testing.assert_allclose(history["lr"], np.where(epochs < 90, 1e-3, 1e-4))
    np.testing.assert_allclose(history["lam"], np.minimum(0.2 * epochs, 2))
    assert (history["k_b"][0], history["k_b"][49], history["k_b"][-1]) == (101, 61, 20)
    shares = 0.1 - 0.0008 * epochs
    assert (history["k_b"] <= 1024 * shares + 1e-9).all()
    assert (history["k_b"] > 1024 * shares - 1).all()
    np.testing.assert_allclose(
        history["loss"], history["cross_entropy"] + history["lam"] * history["mmr"]
    )


def test_schedules_of_a_short_training():
    _, history = train("mmr", epochs=10, lr=0.01, lam=1.0)
    np.testing.assert_allclose(history["lam"], [1.0] * 10)
    np.testing.assert_allclose(history["lr"], [*[0.01] * 8, 0.001, 0.001])
    assert (history["k_b"] == 1).all()  # 10% of 16 units
    _, history = train("mmr", epochs=4, k_b_shares=np.array([1, 0.5]), k_d=1)
    assert history["k_b"].tolist() == [14, 12, 10, 8]


def test_schedules_of_universal_mmr():
    """k_B falls from 20% to 5%, both lambdas grow alike."""
    X, y = problem(4)
    net = rm.Network.mlp([2, 1000, 2], rng=0)
    given = {"lam": (0.3, 0.6), "gamma": (0.2, 0.1), "epochs": 20}
    _, history = rm.fit(net, X, y, "mmr-universal", **given)
    assert (history["k_b"][9], history["k_b"][-1]) == (125, 50)
    np.testing.assert_allclose(history["lam"], [0.5, *[1.0] * 19])
    np.testing.assert_allclose(
        history["loss"], history["cross_entropy"] + history["lam"] * history["mmr"]
    )
    first = net.with_parameters(net.parameters)
    values = [
        rm.mmr(first, X, y, p, gamma=gamma, k_b=192).value.mean()
        for p, gamma in ((1, 0.2), (np.inf, 0.1))
    ]
    np.testing.assert_allclose(history["mmr"][0], 0.3 * values[0] + 0.6 * values[1])


@pytest.mark.parametrize("change", [{"nearest": "union"}, {"border": "full-filter"}])
def test_options_of_the_authors_code(change, tmp_path):
    """They change the regularizer; a checkpoint knows them."""
    X = np.random.default_rng(0).uniform(0, 1, (12, 1, 6, 6))
    net = rm.Network.lenet_small((1, 6, 6), 2, rng=0)
    given = {"lam": (1, 2), "gamma": (1.0, 0.2), "epochs": 1, "checkpoint": tmp_path / "run.npz"}
    y = np.arange(12) % 2
    _, usual = rm.fit(net, X, y, "mmr-universal", **given)
    with pytest.raises(ValueError, match="checkpoint: expected a training with the same"):
        rm.fit(net, X, y, "mmr-universal", **given, **change)
    _, other = rm.fit(net, X, y, "mmr-universal", **given | {"checkpoint": None}, **change)
    assert other["mmr"] > usual["mmr"]


def test_radius_of_the_wong_kolter_bound():
    """From a tenth of it to all of it over the first third."""
    _, history = train("kw", epochs=10, eps=0.5)
    np.testing.assert_allclose(history["eps"], [0.05, 0.185, 0.32, 0.455, *[0.5] * 6])
    assert ((history["robust_error"] >= 0) & (history["robust_error"] <= 1)).all()
    with pytest.raises(KeyError):
        train("plain")[1]["eps"]


def test_wong_kolter_lowers_the_robust_error():
    X, y = problem()
    errors = [
        wong_kolter.robust_loss_gradient(net, X, y, 2, 0.05)[1]
        for net in (train(scheme, epochs=60, lr=0.01)[0] for scheme in ("plain", "kw"))
    ]
    assert errors[1] < errors[0]


@pytest.fixture
def seen(monkeypatch):
    """The inputs of all batches from now on."""
    monkeypatch.setattr(_backend, "_twins", {"numpy": dict(_backend._twins["numpy"])})
    batches = []

    @_backend.implements("numpy", objective_gradient)
    def watched(net, X, *args):
        batches.append(X.copy())
        return objective_gradient(net, X, *args)

    with rm.use_backend("numpy"):
        yield batches


def test_batches(seen):
    """An epoch is as many full batches as there are; one batch if there are too few samples."""
    for size, steps in ((16, 4), (30, 2), (64, 1), (1000, 1)):
        seen.clear()
        rm.fit(start(), *problem(), epochs=1, batch_size=size)
        assert [len(X) for X in seen] == steps * [min(size, 64)]


def test_the_last_samples_may_be_trained_on(seen):
    X, y = problem()
    rm.fit(start(), X, y, epochs=2, batch_size=30, drop_last=False)
    assert [len(batch) for batch in seen] == [30, 30, 4] * 2
    for epoch in (seen[:3], seen[3:]):
        np.testing.assert_array_equal(np.sort(np.concatenate(epoch), axis=0), np.sort(X, axis=0))
    # Nothing else changes, and the columns are means over all samples.
    _, whole = rm.fit(start(), X, y, epochs=1, batch_size=16, drop_last=False)
    assert records(whole) == records(rm.fit(start(), X, y, epochs=1, batch_size=16)[1])
    _, still = rm.fit(start(), X, y, epochs=1, batch_size=30, drop_last=False, lr=1e-30)
    np.testing.assert_allclose(still["train_error"], (start().predict(X) != y).mean())
    np.testing.assert_allclose(still["loss"], loss.cross_entropy(start()(X), y).mean())


def test_many_samples_left_out_are_a_warning():
    X, y = problem()
    message = "batch_size: 24 of 64 samples fill no batch of 40, .*drop_last=False"
    with pytest.warns(UserWarning, match=message) as caught:
        rm.fit(start(), X, y, epochs=3, batch_size=40)
    assert len(caught) == 1
    for options in ({"batch_size": 40, "drop_last": False}, {"batch_size": 19}):  # 7 of 64
        rm.fit(start(), X, y, epochs=1, **options)  # warnings are errors


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_class_is_nothing_to_learn(scheme):
    X, _ = problem()
    with pytest.warns(UserWarning, match="y: expected samples of two .* got 64 of class 1 alone"):
        rm.fit(start(), X, np.ones(64, int), scheme, epochs=1, **SCHEMES[scheme])
    one = rm.Network.mlp([2, 4, 1], rng=0)
    with pytest.raises(ValueError, match="net: expected at least two classes, got 1"):
        rm.fit(one, X, np.zeros(64, int), scheme, epochs=1, **SCHEMES[scheme])


def test_every_epoch_has_its_own_order(seen):
    train(epochs=2)
    first, second = np.concatenate(seen[:4]), np.concatenate(seen[4:])
    assert not np.array_equal(first, second)
    for X in (first, second):  # all samples, once each
        np.testing.assert_array_equal(np.sort(X, axis=0), np.sort(problem()[0], axis=0))


# ---- History.


def test_history():
    _, history = train(epochs=2)
    assert len(history) == 2
    assert not history.interrupted
    assert (history["seconds"] > 0).all()
    assert repr(history).startswith("History(2 epochs; last: epoch=2, loss=")
    assert repr(rm.History()) == "History(no epochs)"
    with pytest.raises(KeyError):
        history["validation_error"]


def test_validation_error():
    X, y = problem(200)
    net, history = train(epochs=5, lr=0.01, validation=(X[64:], y[64:]))
    assert history["validation_error"].shape == (5,)
    assert history["validation_error"][-1] == (net.predict(X[64:]) != y[64:]).mean()
    assert bits(net) == bits(train(epochs=5, lr=0.01)[0])


def test_quiet_when_not_on_a_terminal(capfd):
    train(epochs=1)
    assert capfd.readouterr() == ("", "")
    train(epochs=1, progress=False)
    assert capfd.readouterr() == ("", "")
    train(epochs=1, progress=True)
    assert "plain" in capfd.readouterr().err


# ---- Interruptions.


@pytest.mark.parametrize("batches", [1, 5, 8, 9])
def test_ctrl_c_keeps_the_last_full_epoch(after, batches):
    after(batches, stop(KeyboardInterrupt))
    full = (batches - 1) // 4
    with pytest.warns(UserWarning, match=f"stopped by hand after {full} of 5 epochs"):
        net, history = train("mmr", epochs=5)
    assert history.interrupted
    assert len(history) == full
    # The same as after that epoch of a training that goes on.
    _, whole = train("mmr", epochs=5)
    assert records(history) == records(whole)[:full]
    if full == 0:
        assert bits(net) == bits(start())
    else:
        assert bits(net) != bits(start())


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
@pytest.mark.filterwarnings("ignore:training stopped")
def test_ctrl_c_twice_leaves_a_checkpoint_of_a_full_epoch(tmp_path, monkeypatch):
    """The second interrupts what the first began, at any point: 0.1 to 3 ms later."""
    # Files whose closing was interrupted fail to close once more, when they are collected: at the
    # latest before the end of this test.  Pytest's own hook might be interrupted in turn.
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    whole = bits(train(epochs=30)[0])

    def interrupt(number, frame):
        if gaps:
            signal.setitimer(signal.ITIMER_REAL, gaps.pop())
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    stopped = 0
    try:
        for attempt in range(25):
            path, gaps = tmp_path / f"{attempt}.npz", [1e-4 * 1.15**attempt]
            signal.setitimer(signal.ITIMER_REAL, 0.01 + 0.0007 * attempt)
            try:
                net, history = train(epochs=30, checkpoint=path)
                stopped += history.interrupted
                if len(history):
                    with np.load(path) as archive:
                        assert len(json.loads(str(archive["history"]))) == len(history)
                        np.testing.assert_array_equal(archive["array0"], net.parameters[0][0])
            except KeyboardInterrupt:
                stopped += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert bits(train(epochs=30, checkpoint=path)[0]) == whole
    finally:
        signal.signal(signal.SIGALRM, before)
        gc.collect()
    assert stopped > 5


@pytest.mark.filterwarnings("ignore:training stopped")
@pytest.mark.parametrize("full", [0, 1])
def test_ctrl_c_during_validation(after, full):
    """The weights returned are those after the epochs that the history knows."""
    after(4 * full + 1, stop(KeyboardInterrupt))
    expected, _ = train()
    validations = []

    @_backend.implements("numpy", network.logits)
    def trapped(net, X):
        validations.append(len(X) == 200)  # a batch has 16
        if sum(validations) == full + 1:
            raise KeyboardInterrupt
        return network.logits(net, X)

    net, history = train(validation=problem(200))
    assert validations[-1]
    assert history.interrupted
    assert len(history) == full
    assert bits(net) == bits(expected)


@pytest.mark.filterwarnings("ignore:training stopped")
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_resumes_bitwise(tmp_path, scheme, error, after):
    path = tmp_path / "run.npz"
    whole = train(scheme, epochs=5)
    after(11, stop(error))  # in the third epoch
    if error is KeyboardInterrupt:
        assert len(train(scheme, epochs=5, checkpoint=path)[1]) == 2
    else:
        with pytest.raises(error):
            train(scheme, epochs=5, checkpoint=path)
    resumed = train(scheme, epochs=5, checkpoint=str(path))
    assert bits(resumed[0]) == bits(whole[0])
    assert records(resumed[1]) == records(whole[1])
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


KILLED = """
import os, signal, sys
import numpy as np
import refmmr as rm
from refmmr import _backend
from refmmr.reference import network
from refmmr.reference.objective import objective_gradient

calls = []

@_backend.implements("numpy", objective_gradient)
def trapped(*args):
    calls.append(1)
    if len(calls) == 11:
        os.kill(os.getpid(), signal.SIGKILL)
    return objective_gradient(*args)

X = np.random.default_rng(0).uniform(0, 1, (64, 2))
y = (X[:, 1] > (2 * X[:, 0] - 1) ** 2).astype(int)
net = rm.Network.mlp([2, 10, 6, 2], rng=0)
rm.fit(net, X, y, "mmr", lam=0.5, gamma=(0.2, 0.1), epochs=5, batch_size=16,
       checkpoint=sys.argv[1])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_resumes_after_being_killed(tmp_path):
    path = tmp_path / "run.npz"
    environment = {**os.environ, "REFMMR_BACKEND": "numpy"}
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], env=environment, timeout=60, check=False
    )
    assert run.returncode == -signal.SIGKILL
    with np.load(path) as archive:
        assert len(json.loads(str(archive["history"]))) == 2
    with rm.use_backend("numpy"):
        resumed, whole = train("mmr", epochs=5, checkpoint=path), train("mmr", epochs=5)
    assert bits(resumed[0]) == bits(whole[0])
    assert records(resumed[1]) == records(whole[1])


@pytest.mark.parametrize("fresh", [lambda: np.random.default_rng(5), lambda: None])
def test_a_drawn_seed_is_kept_in_the_checkpoint(tmp_path, after, fresh):
    path = tmp_path / "run.npz"
    after(6, stop(MemoryError))
    with pytest.raises(MemoryError):
        train("mmr", epochs=4, checkpoint=path, rng=fresh())
    with np.load(path) as archive:
        seed = int(archive["seed"])
    resumed = train("mmr", epochs=4, checkpoint=path, rng=np.random.default_rng(6))
    whole = train("mmr", epochs=4, rng=seed)
    assert bits(resumed[0]) == bits(whole[0])
    assert records(resumed[1]) == records(whole[1])
    with pytest.raises(ValueError, match="checkpoint: expected a training with the same"):
        train("mmr", epochs=4, checkpoint=path, rng=seed)


def test_generators_give_other_orders():
    rng = np.random.default_rng(0)
    first, second, again = (train(rng=r)[0] for r in (rng, rng, np.random.default_rng(0)))
    assert bits(first) != bits(second)
    assert bits(first) == bits(again)
    assert bits(train(rng=np.int64(3))[0]) == bits(train(rng=3)[0])


def test_checkpoints_of_other_schedules_are_refused(tmp_path):
    """Version 1 counted epochs from 0 and had no random starts: no way to the same weights."""
    path = tmp_path / "run.npz"
    train(epochs=2, checkpoint=path)
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **{**arrays, "version": np.array(1)})
    with pytest.raises(ValueError, match="expected version 2 of refmmr-checkpoint, got 1"):
        train(epochs=2, checkpoint=path)


def test_random_starts_can_be_left_out():
    given = {"scheme": "at", "epochs": 1}
    assert bits(train(**given)[0]) == bits(train(**given)[0])
    assert bits(train(**given)[0]) != bits(train(**given, random_start=False)[0])


def test_finished_checkpoint(tmp_path, after):
    """Nothing is left to do; the result comes from the file."""
    path = tmp_path / "run.npz"
    first = train(epochs=2, checkpoint=path)
    after(1, stop(AssertionError("trained again")))
    again = train(epochs=2, checkpoint=path)
    assert bits(again[0]) == bits(first[0])
    assert records(again[1]) == records(first[1])


def test_float32_checkpoint(tmp_path, after):
    path = tmp_path / "run.npz"
    net = start().astype(np.float32)
    whole = train("mmr", net, epochs=4)
    after(6, stop(MemoryError))
    with pytest.raises(MemoryError):
        train("mmr", net, epochs=4, checkpoint=path)
    resumed = train("mmr", net, epochs=4, checkpoint=path)
    assert bits(resumed[0]) == bits(whole[0])
    assert resumed[0].dtype == np.float32


OTHERS = {
    "scheme": {"scheme": "plain"},
    "p": {"p": 1},
    "lam": {"lam": 0.6},
    "gamma": {"gamma": 0.2},
    "epochs": {"epochs": 4},
    "batch_size": {"batch_size": 8},
    "lr": {"lr": 2e-3},
    "rng": {"rng": 1},
    "k_b_shares": {"k_b_shares": (0.2, 0.02)},
    "k_d": {"k_d": 1},
    "drop_last": {"drop_last": False},
    "weights": {"net": rm.Network.mlp([2, 10, 6, 2], rng=1)},
    "sizes": {"net": rm.Network.mlp([2, 10, 2], rng=0)},
    "dtype": {"net": start().astype(np.float32)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_checkpoint_of_another_training(tmp_path, name):
    path = tmp_path / "run.npz"
    train("mmr", checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="checkpoint: expected a training with the same") as caught:
        train(**{"scheme": "mmr", "checkpoint": path, **OTHERS[name]})
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


def test_checkpoint_of_other_data(tmp_path):
    path = tmp_path / "run.npz"
    train(checkpoint=path)
    X, y = problem()
    for change in ((X + 1e-9, y), (X, 1 - y), (X[:-1], y[:-1])):
        with pytest.raises(ValueError, match="checkpoint: expected a training with the same"):
            rm.fit(start(), *change, epochs=3, batch_size=16, checkpoint=path)


def test_checkpoint_of_a_training_without_validation(tmp_path):
    path = tmp_path / "run.npz"
    train(checkpoint=path)
    with pytest.raises(ValueError, match="checkpoint: expected a training with the same"):
        train(checkpoint=path, validation=problem())


def test_checkpoint_of_another_attack(tmp_path):
    path = tmp_path / "run.npz"
    train("at", checkpoint=path)
    for change in ({"eps": 0.06}, {"pgd_steps": 4}, {"box": (0, 2)}, {"box": None}):
        with pytest.raises(ValueError, match="checkpoint: expected a training with the same"):
            train("at", checkpoint=path, **change)


def test_checkpoint_of_another_ball(tmp_path):
    path = tmp_path / "run.npz"
    train("kw", checkpoint=path)
    for change in ({"eps": 0.06}, {"p": np.inf}):
        with pytest.raises(ValueError, match="checkpoint: expected a training with the same"):
            train("kw", checkpoint=path, **change)


def damaged(path, name):
    """Damage a checkpoint in place."""
    with np.load(path) as archive:
        arrays = dict(archive)
    if name == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "network":
        rm.save(start(), path)
    elif name == "version":
        np.savez(path, **{**arrays, "version": 99})
    elif name == "byte":
        content = bytearray(path.read_bytes())
        content[content.index(arrays["array0"].tobytes()) + 5] ^= 1
        path.write_bytes(content)
    elif name.startswith("no "):
        del arrays[name[3:]]
        np.savez(path, **arrays)
    else:
        key, value = {
            "shape": ("array0", np.ones((3, 3, 3))),
            "history": ("history", "[{"),
            "history number": ("history", "5"),
            "steps": ("steps", "many"),
            "steps list": ("steps", np.array([1, 2])),
            "pickle": ("array0", np.array([None])),
        }[name]
        np.savez(path, **{**arrays, key: value})


DAMAGES = [
    "truncated",
    "empty",
    "network",
    "version",
    "byte",
    "no array3",
    "no history",
    "no steps",
]
DAMAGES += ["no fingerprint", "shape", "history", "history number", "steps", "steps list", "pickle"]


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_checkpoint(tmp_path, name):
    path = tmp_path / "run.npz"
    train(checkpoint=path)
    damaged(path, name)
    with pytest.raises(ValueError, match=r"run\.npz"):
        train(checkpoint=path)


def test_checkpoint_name(tmp_path):
    with pytest.raises(ValueError, match=r"path: expected a file ending in \.npz"):
        train(checkpoint=tmp_path / "run.pt")


# ---- Errors.


@pytest.mark.parametrize("scheme", ["plain", "mmr", "kw"])
def test_divergence(scheme):
    with (
        np.errstate(all="ignore"),
        pytest.raises(FloatingPointError, match=r"training diverged in epoch [12].*smaller lr"),
    ):
        train(scheme, lr=1e200)


X, Y = problem(8)
OUTSIDE = X + 0.5
NAN = np.where(np.arange(16).reshape(8, 2) == 5, np.nan, X)

BAD = {
    "scheme": (
        {"scheme": "free"},
        "scheme: expected one of 'plain', 'at', 'mmr', 'mmr.at', 'mmr-universal', 'kw', got 'free'",
    ),
    "eps missing": ({"scheme": "at"}, "eps: expected a number for scheme 'at', got None"),
    "eps 0": ({"scheme": "at", "eps": 0}, "eps: expected a finite number > 0, got 0"),
    "eps missing for kw": ({"scheme": "kw"}, "eps: expected a number for scheme 'kw', got None"),
    "eps negative for kw": ({"scheme": "kw", "eps": -1}, "eps: expected a finite number > 0"),
    "lam missing": ({"scheme": "mmr", "gamma": 1}, "lam: expected a number for scheme 'mmr'"),
    "lam nan": ({"scheme": "mmr", "lam": np.nan, "gamma": 1}, "lam: expected a finite number"),
    "gamma missing": ({"scheme": "mmr", "lam": 1}, "gamma: expected a number for scheme 'mmr'"),
    "gamma half": ({"scheme": "mmr", "lam": 1, "gamma": (1, None)}, "gamma: expected a number"),
    "gamma three": ({"scheme": "mmr", "lam": 1, "gamma": (1, 1, 1)}, r"gamma: .*\(1, 1, 1\)"),
    "gamma negative": ({"scheme": "mmr", "lam": 1, "gamma": -1}, "gamma: .* > 0, got -1"),
    "lam for one norm": (
        {"scheme": "mmr-universal", "lam": 1, "gamma": (1, 0.1)},
        "lam: expected a pair, for l_1 and for l_inf, for scheme 'mmr-universal', got 1",
    ),
    "gamma for one norm": (
        {"scheme": "mmr-universal", "lam": (1, 1), "gamma": 0.1},
        "gamma: expected a pair, for l_1 and for l_inf, for scheme 'mmr-universal', got 0.1",
    ),
    "lam for three norms": (
        {"scheme": "mmr-universal", "lam": (1, 1, 1), "gamma": (1, 0.1)},
        r"lam: expected a pair.*got \(1, 1, 1\)",
    ),
    "gamma 0 in l_inf": (
        {"scheme": "mmr-universal", "lam": (1, 1), "gamma": (1, 0)},
        "gamma: expected a finite number > 0, got 0",
    ),
    "border": ({"border": "full"}, "border: expected one of 'exact', 'full-filter', got 'full'"),
    "nearest": ({"nearest": "both"}, "nearest: expected one of 'each', 'union', got 'both'"),
    "epochs 0": ({"epochs": 0}, "epochs: expected an integer of at least 1, got 0"),
    "epochs float": ({"epochs": 1.5}, "epochs: expected an integer of at least 1, got 1.5"),
    "batch_size": ({"batch_size": 0}, "batch_size: expected an integer of at least 1, got 0"),
    "lr 0": ({"lr": 0}, "lr: expected a finite number > 0, got 0"),
    "lr nan": ({"lr": np.nan}, "lr: expected a finite number > 0, got nan"),
    "rng": ({"rng": -1}, "rng: expected a seed, a numpy Generator or None, got -1"),
    "rng text": ({"rng": "a"}, "rng: expected a seed, a numpy Generator or None, got 'a'"),
    "rng float": ({"rng": 0.5}, "rng: expected a seed, a numpy Generator or None, got 0.5"),
    "pgd_steps": ({"pgd_steps": 0}, "pgd_steps: expected an integer of at least 1, got 0"),
    "random_start": ({"random_start": "no"}, "random_start: expected True or False, got 'no'"),
    "p": ({"p": 3}, "p: expected 1, 2 or inf, got 3"),
    "k_b large": ({"k_b_shares": (2, 0.1)}, r"k_b_shares: expected two shares .* got \(2, 0.1\)"),
    "k_b one": ({"k_b_shares": 0.1}, "k_b_shares: expected two shares .* got 0.1"),
    "k_b zero": ({"k_b_shares": (0.1, 0)}, "k_b_shares: expected a finite number > 0, got 0"),
    "k_b none": ({"k_b_shares": (0.1, None)}, "k_b_shares: expected"),
    "k_d": ({"k_d": 3}, "k_d: expected an integer from 1 to 2, got 3"),
    "X outside": (
        {"scheme": "at", "eps": 0.1, "X": OUTSIDE},
        "X: expected points inside the box.*box=None",
    ),
    "X nan": ({"X": NAN}, r"X: expected finite numbers, got nan at index \(2, 1\)"),
    "X shape": ({"X": X[:, :1]}, r"X: expected shape \(n, 2\), got \(8, 1\)"),
    "X empty": ({"X": X[:0], "y": Y[:0]}, "X: expected at least one sample"),
    "y large": ({"y": Y + 1}, "y: expected classes 0 to 1, got 2"),
    "y negative": ({"y": Y - 1}, "y: expected classes 0 to 1, got -1"),
    "y float": ({"y": Y * 1.0}, "y: expected integer class indices, got dtype float64"),
    "y count": ({"y": Y[:-1]}, r"y: expected shape \(8,\)"),
    "validation X": ({"validation": (NAN, Y)}, "validation X: expected finite numbers, got nan"),
    "validation y": ({"validation": (X, Y + 5)}, "validation y: expected classes 0 to 1, got"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    changed, message = BAD[name]
    arguments = {"net": start(), "X": X, "y": Y, "epochs": 1, **changed}
    with pytest.raises((ValueError, TypeError), match=message):
        rm.fit(**arguments)


def test_points_outside_the_box_may_be_trained_on_without_attack():
    for scheme, options in (
        ("plain", {}),
        ("kw", {"eps": 0.1}),
        ("at", {"eps": 0.1, "box": None}),
        ("at", {"eps": 0.1, "box": (0, 2)}),
    ):
        net, history = rm.fit(start(), OUTSIDE, Y, scheme, epochs=1, **options)
        assert bits(net) != bits(start())
        assert np.isfinite(history["loss"]).all()


def test_a_callback_sees_every_epoch_and_changes_nothing():
    seen = []

    def spoil(net, record):
        seen.append((bits(net), dict(record)))
        for W, b in net.parameters:
            if W.flags.writeable:
                W[:] = 0
                b[:] = 0
        record.clear()

    trained, history = train("mmr", callback=spoil)
    assert bits(trained) == bits(train("mmr")[0]) == seen[-1][0]
    assert [record for _, record in seen] == history.records
    assert len({b"".join(arrays) for arrays, _ in seen}) == 3


def test_a_callback_can_stop_the_training():
    def stop(net, record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="after 2 of 3 epochs"):
        _, history = train("plain", callback=stop)
    assert len(history) == 2
    assert history.interrupted
    with pytest.raises(TypeError, match="callback: expected a function"):
        train("plain", callback=3)
