"""Where trained networks are looked for, what their cards say, and what damaged files give."""

import hashlib
import json
import sys

import helpers
import numpy as np
import pytest

import refmmr as rm
from refmmr import zoo
from refmmr.datasets import downloads

NAME = "mnist-cnn-linf-mmr+at"
CARD = {
    "name": NAME, "seed": 3, "commit": "abc", "test_error": 0.25, "seconds": 1.0,
    "machine": {"cores": 2}, "licence": "MIT", "history": [{"epoch": 1}],
    "preset": rm.presets[NAME]._asdict() | {"p": "inf"},
}  # fmt: skip


@pytest.fixture
def net():
    return rm.Network.mlp([3, 2, 2], rng=0).astype(np.float32)


@pytest.fixture
def away(tmp_path, monkeypatch):
    """No network on this computer, and a cache that is empty."""
    monkeypatch.delenv("REFMMR_ZOO", raising=False)
    monkeypatch.setenv("REFMMR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(zoo, "CLONE", tmp_path)


def write(folder, net, **entries):
    """Both files of `NAME`."""
    folder.mkdir(exist_ok=True)
    rm.save(net, folder / f"{NAME}.npz")
    sha256 = hashlib.sha256((folder / f"{NAME}.npz").read_bytes()).hexdigest()
    (folder / f"{NAME}.json").write_text(json.dumps(CARD | {"sha256": sha256} | entries))


def check(net):
    assert zoo.names() == [NAME]
    loaded = zoo.load(NAME)
    assert loaded.dtype == np.float32
    for pair, expected in zip(loaded.parameters, net.parameters, strict=True):
        np.testing.assert_array_equal(pair[0], expected[0])


def test_a_folder_of_ones_own(away, net, tmp_path, monkeypatch):
    write(tmp_path / "mine", net)
    assert zoo.names() == []
    monkeypatch.setenv("REFMMR_ZOO", str(tmp_path / "mine"))
    check(net)


def test_a_clone(away, net, tmp_path, monkeypatch):
    write(tmp_path / "zoo", net)
    assert zoo.names() == []  # such a folder beside installed packages is another's
    (tmp_path / "pyproject.toml").touch()
    check(net)
    # A folder that lacks the network does not hide it.
    monkeypatch.setenv("REFMMR_ZOO", str(tmp_path / "nowhere"))
    check(net)


def test_card(away, net, tmp_path, monkeypatch):
    monkeypatch.setenv("REFMMR_ZOO", str(tmp_path / "mine"))
    write(tmp_path / "mine", net)
    card = zoo.card(NAME)
    assert card.preset == rm.presets[NAME]
    assert (card.seed, card.commit, card.test_error, card.licence) == (3, "abc", 0.25, "MIT")
    assert card.lower_bound is card.upper_bound is None
    assert "test error    25.00 %" in str(card)
    assert "robust error" not in str(card)
    found = {"lower_bound": 0.3, "upper_bound": 0.5, "points": 10}
    write(tmp_path / "mine", net, evaluation=found)
    card = zoo.card(NAME)
    assert (card.lower_bound, card.upper_bound) == (0.3, 0.5)
    assert "robust error  30.00 to 50.00 %, 10 points" in str(card)


def test_the_norm_of_universal_training(away, net, tmp_path, monkeypatch):
    monkeypatch.setenv("REFMMR_ZOO", str(tmp_path))
    name = "mnist-cnn-universal"
    preset = rm.presets[name]._asdict() | {"p": "None"}
    card = CARD | {"name": name, "preset": preset, "sha256": "0" * 64}
    (tmp_path / f"{name}.json").write_text(json.dumps(card))
    (tmp_path / f"{name}.npz").touch()
    assert zoo.card(name).preset == rm.presets[name]


OTHER = "mnist-cnn-l2-mmr+at"


def write_alias(folder, **entries):
    """The card of `OTHER`, whose weights are those of `NAME`."""
    card = json.loads((folder / f"{NAME}.json").read_text())
    changes = {"name": OTHER, "weights": NAME, "preset": card["preset"] | {"p": "2"}}
    (folder / f"{OTHER}.json").write_text(json.dumps(card | changes | entries))


def test_weights_that_two_cards_share(away, net, tmp_path, monkeypatch):
    monkeypatch.setenv("REFMMR_ZOO", str(tmp_path / "mine"))
    write(tmp_path / "mine", net)
    write_alias(tmp_path / "mine")
    assert zoo.names() == [NAME, OTHER]
    assert (zoo.card(NAME).weights, zoo.card(OTHER).weights) == (NAME, NAME)
    assert f"weights       {NAME}.npz" in str(zoo.card(OTHER))
    np.testing.assert_array_equal(zoo.load(OTHER).parameters[0][0], net.parameters[0][0])
    write_alias(tmp_path / "mine", sha256="0" * 64)
    with pytest.raises(ValueError, match=rf"{OTHER[:5]}.*SHA-256 sum 000.*got [0-9a-f]"):
        zoo.load(OTHER)
    (tmp_path / "mine" / f"{NAME}.npz").unlink()
    assert zoo.names() == []
    with pytest.raises(FileNotFoundError, match=f"{OTHER[:5]}.*expected the files"):
        zoo.load(OTHER)
    write_alias(tmp_path / "mine", weights="../x")
    with pytest.raises(ValueError, match=r"weights of '../x'"):
        zoo.card(OTHER)


def test_repeated_trainings(away, net, tmp_path, monkeypatch):
    monkeypatch.setenv("REFMMR_ZOO", str(tmp_path / "mine"))
    write(tmp_path / "mine", net)
    name = f"{NAME}-nostart-seed7"
    card = json.loads((tmp_path / "mine" / f"{NAME}.json").read_text())
    changes = {"name": name, "changes": {"random_start": False}, "seed": 7}
    (tmp_path / "mine" / f"{name}.json").write_text(json.dumps(card | changes))
    assert zoo.names() == [NAME]
    assert "changes       random_start False\n" in str(zoo.card(name))
    with pytest.raises(FileNotFoundError, match="expected the files"):
        zoo.load(name)
    (tmp_path / "mine" / f"{NAME}.npz").rename(tmp_path / "mine" / f"{name}.npz")
    assert zoo.load(name).n_hidden == net.n_hidden


def test_export(away, net, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.setenv("REFMMR_ZOO", str(tmp_path / "mine"))
    write(tmp_path / "mine", net)
    rm.save(zoo.load(NAME), tmp_path / "net.onnx")
    again = rm.load(tmp_path / "net.onnx")
    np.testing.assert_array_equal(again.parameters[0][0], net.parameters[0][0])


@pytest.mark.parametrize("name", ["mnist", "../x", f"{NAME}/../x", f"{NAME}-", None, ["a"]])
def test_unknown_name(name):
    with pytest.raises(ValueError, match=r"name: expected one of rm.presets.*, got "):
        zoo.load(name)


def test_other_weights(away, net, tmp_path, monkeypatch):
    monkeypatch.setenv("REFMMR_ZOO", str(tmp_path))
    write(tmp_path, net, sha256="0" * 64)
    with pytest.raises(ValueError, match=r"weights with the SHA-256 sum 000.*, got [0-9a-f]"):
        zoo.load(NAME)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "Expecting"),
        ("[]", "list indices"),
        ("{}", "'preset'"),
        (json.dumps({"preset": CARD["preset"]}), "missing"),
        (json.dumps(CARD | {"sha256": "short"}), "SHA-256 sum 'short'"),
        (json.dumps(CARD | {"sha256": "0" * 64, "name": "other"}), "that of 'other'"),
        (json.dumps(CARD | {"sha256": "0" * 64, "preset": {}}), "'p'"),
        (json.dumps(CARD | {"sha256": "0" * 64, "preset": {"p": "2", "q": 1}}), "unexpected"),
        (json.dumps(CARD | {"sha256": "0" * 64, "evaluation": {"points": 1}}), "an evaluation of"),
    ],
)
def test_damaged_card(away, net, tmp_path, monkeypatch, text, match):
    monkeypatch.setenv("REFMMR_ZOO", str(tmp_path))
    write(tmp_path, net)
    (tmp_path / f"{NAME}.json").write_text(text)
    with pytest.raises(ValueError, match=rf"at.json: expected the card of {NAME[:5]}.*{match}"):
        zoo.card(NAME)


# ---- downloads


@pytest.fixture
def server(away, tmp_path, monkeypatch):
    """The folder of a server that the library knows, and what was asked for."""
    pytest.importorskip("pooch")
    folder = tmp_path / "server"
    folder.mkdir()
    with helpers.file_server(folder) as (address, asked):
        monkeypatch.setattr(zoo, "ADDRESS", address)
        monkeypatch.setattr(zoo, "CHECKSUMS", tmp_path / "sums.txt")
        yield folder, asked


def publish(folder, **sums):
    known = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()
    } | {f"{NAME}.{ending}": sha256 for ending, sha256 in sums.items()}
    zoo.CHECKSUMS.write_text("".join(f"{name} {sha256}\n" for name, sha256 in known.items()))


def test_download(server, net):
    folder, asked = server
    write(folder, net)
    publish(folder)
    check(net)
    assert len(asked) == 2
    check(net)
    assert zoo.card(NAME).seed == 3
    assert len(asked) == 2  # from the cache


def test_download_of_weights_that_two_cards_share(server, net):
    folder, asked = server
    write(folder, net)
    write_alias(folder)
    (folder / f"{NAME}.json").unlink()
    publish(folder)
    assert zoo.names() == [OTHER]
    assert zoo.card(OTHER).weights == NAME
    assert len(asked) == 1
    assert zoo.load(OTHER).n_classes == net.n_classes
    assert len(asked) == 2


def test_download_of_other_bytes(server, net, tmp_path):
    folder, _ = server
    write(folder, net)
    publish(folder, npz="0" * 64)
    with pytest.raises(ValueError, match=r"expected a file with SHA-256 sum 000.*npz, got another"):
        zoo.load(NAME)
    assert not list((tmp_path / "cache").rglob("*.npz"))


def test_download_fails(server, net):
    folder, _ = server
    write(folder, net)
    publish(folder)
    (folder / f"{NAME}.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"the download of http.*npz failed: 404"):
        zoo.load(NAME)


def test_what_is_not_published(server):
    publish(server[0])
    with pytest.raises(FileNotFoundError, match="they are not at http"):
        zoo.load(NAME)


def test_without_pooch(server, net, monkeypatch):
    write(server[0], net)
    publish(server[0])
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'refmmr\[interop\]'"):
        zoo.load(NAME)


def test_nowhere(away):
    with pytest.raises(FileNotFoundError) as caught:
        zoo.load(NAME)
    text = str(caught.value)
    for part in (f"{NAME}.npz", f"{NAME}.json", "REFMMR_ZOO", "zoo/ of a clone", "no address"):
        assert part in text
    assert "\n" not in text


def test_checksums_are_those_of_the_clone():
    """Where this fails: ``benchmarks/table1.py table`` writes them."""
    sums, folder = zoo._checksums(), zoo.CLONE / "zoo"
    if not folder.is_dir():
        pytest.skip("no clone")
    assert {file.rpartition(".")[0] for file in sums} <= set(rm.presets)
    sizes = [path.stat().st_size for path in folder.iterdir()]
    assert max(sizes) < downloads.MAX_DOWNLOAD_BYTES
    found = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in sums}
    assert found == sums
