"""The commands that a user types."""

import base64
import json
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner

import refmmr as rm
from refmmr.cli import main


@pytest.fixture(autouse=True)
def no_backend_chosen(monkeypatch):
    """Each command starts like a fresh process."""
    monkeypatch.setattr("refmmr._backend._process", None)


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def command(*words):
    return [sys.executable, "-c", "from refmmr.cli import main; main()", *map(str, words)]


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    """A small network trained on moons by the command line."""
    path = tmp_path_factory.mktemp("cli") / "moons.npz"
    result = run("train", "--data", "moons", "--hidden", "16", "--gamma", 0.1, "--epochs", 4,
                 "--out", path)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "test error" in result.output
    return path


@pytest.mark.parametrize("name", ["demo", "train", "certify", "check", "verify", "regions", "info"])
def test_help_tells_what_a_command_does(name):
    result = run(name, "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: main {name}")


def test_info_names_versions_and_backend():
    result = run("info")
    assert result.exit_code == 0
    assert f"refmmr {rm.__version__}" in result.output
    assert f"numpy {np.__version__}" in result.output
    assert "backend numpy" in result.output


def test_info_describes_a_network(moons):
    net = rm.load(moons)
    *layers, size = run("info", moons).output.splitlines()
    assert len(layers) == 1 + len(net.layers)
    assert [line.endswith("ReLU") for line in layers].count(True) == len(net.unit_shapes)
    assert f"{net.n_hidden} hidden units" in size
    assert f"{net.n_classes} classes" in size
    assert run("info", moons.with_name("none.npz")).exit_code == 1


@pytest.mark.parametrize("ending", ["png", "pdf", "txt"])
def test_pictures_of_regions(moons, tmp_path, ending):
    out = tmp_path / f"regions.{ending}"
    result = run("regions", moons, "--out", out)
    if ending == "txt":
        assert "out: expected a file ending in .png or .pdf" in result.output
    else:
        assert out.read_bytes()[:5].strip(b"\x89") in (b"PNG\r", b"%PDF-")


def test_training_leaves_the_network_and_no_checkpoint(moons):
    assert rm.load(moons).input_shape == (2,)
    assert [path.name for path in moons.parent.iterdir()] == ["moons.npz"]


def test_options_beside_a_preset_replace_its_own(tmp_path):
    out = tmp_path / "net.npz"
    result = run("train", "--preset", "MNIST-fc1-linf-mmr", "--data", "moons", "--hidden", "8,4",
                 "--epochs", 1, "--gamma", "0.1,0.2", "--k-d", 1, "--validate",
                 "--out", out)  # fmt: skip
    assert result.exit_code == 0, result.output
    net = rm.load(out)
    assert (net.n_hidden, net.dtype) == (12, np.float32)
    points = rm.datasets.load("moons", dtype=np.float32)
    start = rm.Network.mlp([2, 8, 4, 2], rng=0).astype(np.float32)
    expected, _ = rm.fit(start, points.X_train, points.y_train, "mmr", p=np.inf, lam=2,
                         gamma=(0.1, 0.2), k_d=1, epochs=1)  # fmt: skip
    for pair, other in zip(net.parameters, expected.parameters, strict=True):
        np.testing.assert_array_equal(pair[0], other[0])


def test_mmr_universal_takes_pairs(tmp_path):
    out = tmp_path / "net.npz"
    given = ("train", "--data", "moons", "--scheme", "mmr-universal", "--hidden", 8, "--epochs", 1,
             "--nearest", "union", "--border", "full-filter", "--out", out)  # fmt: skip
    result = run(*given, "--lam", "0.5,1", "--gamma", "0.2,0.1")
    assert result.exit_code == 0, result.output
    points = rm.datasets.load("moons")
    expected, _ = rm.fit(
        rm.Network.mlp([2, 8, 2], rng=0), points.X_train, points.y_train, "mmr-universal",
        lam=(0.5, 1), gamma=(0.2, 0.1), epochs=1, nearest="union",
    )  # fmt: skip
    for pair, other in zip(rm.load(out).parameters, expected.parameters, strict=True):
        np.testing.assert_array_equal(pair[0], other[0])
    result = run(*given, "--lam", "0.5", "--gamma", "0.2,0.1")
    assert result.exit_code == 1
    assert "lam: expected a pair" in result.output


def test_gammas_that_are_none(tmp_path):
    result = run("train", "--gamma", "0.1,0.2,0.3", "--out", tmp_path / "net.npz")
    assert result.exit_code == 2
    assert "expected one number or two, got '0.1,0.2,0.3'" in result.output


def test_certify_prints_the_table_and_writes_one_line_a_point(moons, tmp_path):
    out = tmp_path / "points.csv"
    result = run("certify", moons, "--data", "moons", "--eps", 0.05, "--n", 50, "--out", out)
    assert result.exit_code == 0, result.output
    data = rm.datasets.load("moons")
    X, y = data.X_test[:50], data.y_test[:50]
    expected = rm.robust_error(rm.load(moons), X, y, p=2, eps=0.05)
    shares = expected.table().split("\n\n")[0]  # below are times
    assert shares in result.output
    points = np.genfromtxt(out, delimiter=",", names=True)
    np.testing.assert_array_equal(points["lower"], expected.certificates.lower)
    np.testing.assert_array_equal(points["certified"], expected.certified)


def test_certify_a_curve(moons, tmp_path):
    out, picture = tmp_path / "points.csv", tmp_path / "curve.png"
    result = run("certify", moons, "--data", "moons", "--p", "linf", "--eps", "0.01,0.05,0.1",
                 "--start", 10, "--n", 20, "--methods", "region,attack,crown", "--plot", picture,
                 "--out", out)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "robust accuracy" in result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    points = np.genfromtxt(out, delimiter=",", names=True, dtype=None, encoding=None)
    assert points["point"].tolist() == list(range(10, 30))
    data = rm.datasets.load("moons")
    X, y = data.X_test[10:30], data.y_test[10:30]
    curve = rm.robustness_curve(rm.load(moons), X, y, p="linf", radii=[0.01, 0.05, 0.1])
    text = out.read_text().splitlines()[0]
    assert "attacked_0.05,certified_0.05" in text
    column = text.split(",").index("certified_0.05")
    rows = [line.split(",")[column] for line in out.read_text().splitlines()[1:]]
    assert rows == [str(int(certified)) for certified in curve.certified[:, 1]]


def test_certify_a_row_of_the_papers_table(moons, monkeypatch, tmp_path):
    row = ("--preset", "mnist-fc1-linf-mmr", "--n", 3)
    result = run("certify", moons, *row, "--data", "moons")
    assert result.output.startswith("3 points, l_inf, eps = 0.1\n")
    assert run("certify", moons, *row, "--data", "moons", "--eps", 0.2, "--p", 2).output.startswith(
        "3 points, l_2, eps = 0.2\n"
    )
    monkeypatch.setenv("REFMMR_ZOO", str(tmp_path))
    monkeypatch.setattr(rm.zoo, "CLONE", tmp_path)
    result = run("certify", *row)
    assert result.exit_code == 1
    assert "Error: mnist-fc1-linf-mmr: expected the files" in result.output
    result = run("certify", moons, "--preset", "mnist-cnn-universal")
    assert "preset: expected --p and --eps beside mnist-cnn-universal" in result.output
    row = ("--preset", "mnist-cnn-universal", "--n", 3, "--p", 1, "--eps", 0.1)
    result = run("certify", moons, *row, "--data", "moons")
    assert result.output.startswith("3 points, l_1, eps = 0.1\n")
    result = run("certify", moons, "--preset", "mnist-cnn-lin-mmr")
    assert "got 'mnist-cnn-lin-mmr'; near to it: mnist-cnn-linf-mmr" in result.output
    assert "gts-fc1" not in result.output
    assert "Missing argument 'MODEL', or --preset" in run("certify").output


def test_certificates_are_checked(moons, tmp_path):
    words = ["--data", "moons", "--start", 3, "--n", 6, "--certificate", tmp_path / "proofs"]
    result = run("certify", moons, *words, "--eps", 0.02)
    assert result.exit_code == 0, result.output
    names = [path.name for path in (tmp_path / "proofs").iterdir()]
    assert f"{len(names)} certificates of {len(names)} certified points in" in result.output
    assert names
    assert {int(name.removesuffix(".npz")) for name in names} <= set(range(3, 9))
    result = run("check", moons, tmp_path / "proofs")
    assert result.exit_code == 0, result.output
    assert result.output.count(": proved, class") == len(names)
    one = tmp_path / "proofs" / names[0]
    with np.load(one) as file:
        arrays = dict(file)
    np.savez(one, **{**arrays, "eps": np.array(5.0)})
    result = run("check", moons, one)
    assert result.exit_code == 1
    assert "NOT proved" in result.output
    np.savez(one, **{**arrays, "network": np.array("0" * 64)})
    assert "of another network" in run("check", moons, one).output


def test_certify_minimal_perturbations(moons, tmp_path):
    out = tmp_path / "points.csv"
    result = run("certify", moons, "--data", "moons", "--eps", "none", "--n", 5, "--out", out)
    assert result.exit_code == 0, result.output
    assert "5 points, l_2, minimal perturbations" in result.output
    points = np.genfromtxt(out, delimiter=",", names=True)
    assert (points["lower"] <= points["upper"]).all()


def test_certify_streams_records_and_goes_on(moons, tmp_path):
    out = tmp_path / "points.jsonl"
    words = ["certify", moons, "--data", "moons", "--eps", 0.05, "--n", 40, "--out", out]
    first = run(*words)
    assert first.exit_code == 0, first.output
    lines = out.read_text().splitlines(keepends=True)
    assert len(lines) == 41
    out.write_text("".join(lines[:20]))
    again = run(*words, "--jobs", 2)
    assert again.exit_code == 0, again.output
    assert again.output.split("\n\n")[0] == first.output.split("\n\n")[0]
    assert len(out.read_text().splitlines()) == 41
    other = run(*words[:4], "--eps", 0.1, *words[6:])
    assert other.exit_code == 1
    assert "another eps (0.05 there, 0.1 here)" in other.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--eps", "wide"], "eps: expected numbers such as 0.1,0.2, or none, got 'wide'"),
        (["--eps", "0.1,-1"], "eps: expected a finite number > 0, got -1.0"),
        (["--methods", "region,magic"], "methods: expected one of 'attack', 'region',"),
        (["--methods", "mip"], "methods: expected one that supports p = 2, got 'mip'"),
        (["--plot", "curve.png"], "plot: expected --eps with several radii, for a curve"),
        (["--eps", "0.1,0.2", "--plot", "curve.gif"], "plot: expected a file ending in .png"),
        (["--eps", "none", "--certificate", "a"], "certificate: expected --eps with one radius"),
        (["--start", 10**6], "start: expected less than"),
        (["--out", "points.txt"], "out: expected a folder or a file ending in .jsonl"),
        (["--jobs", 0], "n_jobs: expected an integer of at least 1"),
    ],
)
def test_certify_errors(moons, words, message):
    result = run("certify", moons, "--data", "moons", *words)
    assert result.exit_code == 1
    assert f"Error: {message}" in result.output


@pytest.mark.parametrize("color", ["lines", "region", "class"])
def test_regions_draws_a_picture(moons, tmp_path, color):
    out = tmp_path / "regions.png"
    result = run("regions", moons, "--color", color, "--out", out)
    assert result.exit_code == 0, result.output
    cx = rm.enumerate_regions(rm.load(moons), rm.Box([0, 0], [1, 1]))
    assert f"{len(cx)} linear regions" in result.output
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("ending", ["html", "svg", "geojson", "npz"])
def test_regions_in_other_forms(moons, tmp_path, ending):
    out = tmp_path / f"regions.{ending}"
    result = run("regions", moons, "--out", out)
    assert result.exit_code == 0, result.output
    assert f"written to {out}" in result.output
    assert out.stat().st_size > 1000
    if ending == "npz":
        assert rm.RegionComplex.load(out).verify().ok


def test_regions_of_an_image_network_in_the_plane_of_three_test_points(tmp_path):
    rm.save(rm.Network.mlp([64, 8, 10], rng=0), tmp_path / "net.npz")
    out = tmp_path / "regions.png"
    result = run("regions", tmp_path / "net.npz", "--points", 3, 4, 5, "--out", out)
    assert result.exit_code == 0, result.output
    result = run("regions", tmp_path / "net.npz", "--points", 0, 1, 10**6, "--out", out)
    assert result.exit_code == 1
    assert "points: expected numbers of test points, 0 to 359" in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["certify", "nowhere.npz"], "No such file or directory: nowhere.npz"),
        (["certify", "net.pkl"], "path: expected a file ending in .npz"),
        (["train", "--data", "cifar", "--out", "net.npz"], "name: expected one of 'digits'"),
        (["train", "--hidden", "ten", "--out", "net.npz"], "hidden: expected numbers of units"),
        (["train", "--data", "moons", "--hidden", "lenet", "--out", "net.npz"], "images: expected"),
        (["train", "--lr", "-1", "--out", "net.npz"], "lr: expected a finite number > 0"),
        (["--backend", "abacus", "info"], "backend: expected one of numpy"),
        (["demo", "--backend", "abacus"], "backend: expected one of numpy"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    result = run(*words)
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {message}")
    assert result.output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_network_of_other_inputs_than_the_data(moons):
    result = run("certify", moons)
    assert result.exit_code == 1
    assert "data: expected inputs of shape (2,) for this network" in result.output
    assert "name another data set with --data" in result.output


@pytest.mark.parametrize("words", [["--backend", "numpy", "info"], ["info", "--backend", "numpy"]])
def test_backend_may_stand_before_or_behind_the_command(words):
    assert run(*words).exit_code == 0


def test_convert_keeps_the_network(tmp_path):
    net = rm.Network.lenet_small((1, 8, 8), 3, rng=0).astype(np.float32)
    rm.save(net, tmp_path / "net.npz")
    result = run("convert", tmp_path / "net.npz", tmp_path / "net.safetensors")
    assert result.exit_code == 0, result.output
    assert "Conv2d(1 -> 16, 4x4" in result.output
    result = run("convert", tmp_path / "net.safetensors", tmp_path / "again.npz")
    assert result.exit_code == 0, result.output
    again = rm.load(tmp_path / "again.npz")
    assert repr(again) == repr(net)
    for one, other in zip(again.parameters, net.parameters, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.dtype == b.dtype
            assert (a == b).all()


def test_a_state_dict_with_its_geometry_from_the_options(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "0.weight": rng.normal(size=(4, 1, 3, 3)), "0.bias": rng.normal(size=4),
        "3.weight": rng.normal(size=(10, 64)), "3.bias": rng.normal(size=10),
    }  # fmt: skip
    np.savez(tmp_path / "state.npz", **arrays)
    options = ("--input-shape", "1,8,8", "--stride", "2", "--padding", "1")
    result = run("convert", tmp_path / "state.npz", tmp_path / "net.npz", *options)
    assert result.exit_code == 0, result.output
    net = rm.load(tmp_path / "net.npz")
    assert net.layers[0].stride == (2, 2)
    assert (arrays["0.weight"] == net.layers[0].W).all()
    result = run("convert", tmp_path / "net.npz", tmp_path / "again.npz", *options)
    assert result.exit_code == 1
    assert result.output.startswith("Error: input_shape: expected none")
    result = run("convert", tmp_path / "net.npz", tmp_path / "x.npz", "--stride", "two")
    assert result.exit_code == 2
    assert "expected integers such as 1,28,28, got 'two'" in result.output


def test_misspelt_options_are_exit_code_2():
    assert run("train", "--no-such-option").exit_code == 2
    assert run("no-such-command").exit_code == 2


def test_backend_from_the_environment_is_checked(monkeypatch):
    monkeypatch.setenv("REFMMR_BACKEND", "abacus")
    result = run("info")
    assert result.exit_code == 1
    assert "REFMMR_BACKEND: expected one of" in result.output


@pytest.mark.usefixtures("ctrl_c")
def test_a_stopped_training_keeps_its_epochs_and_goes_on(tmp_path):
    words = ["train", "--data", "moons", "--scheme", "plain", "--epochs", 400, "--seed", 3]
    straight, resumed = tmp_path / "straight.npz", tmp_path / "resumed.npz"
    assert run(*words, "--out", straight).exit_code == 0
    process = subprocess.Popen(command(*words, "--out", resumed), stderr=subprocess.PIPE, text=True)
    checkpoint = tmp_path / "resumed.checkpoint.npz"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    errors = process.communicate()[1]
    assert process.returncode == 130, errors
    assert "epochs are kept" in errors
    assert "Traceback" not in errors
    assert checkpoint.exists()
    assert not resumed.exists()
    assert run(*words, "--out", resumed).exit_code == 0
    for (W, b), (W2, b2) in zip(
        rm.load(straight).parameters, rm.load(resumed).parameters, strict=True
    ):
        np.testing.assert_array_equal(W, W2)
        np.testing.assert_array_equal(b, b2)


class _Page(HTMLParser):
    """Collects the images and everything the page refers to."""

    def __init__(self):
        super().__init__()
        self.images, self.references = [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "img":
            self.images.append(attributes)
        self.references += [v for k, v in attributes.items() if k in ("src", "href")]


def test_demo_writes_everything_and_the_table_is_the_json(tmp_path):
    result = run("demo", "--epochs", 8, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    names = {path.name for path in tmp_path.iterdir()}
    pictures = {"regions.png", "classes.png", "radii.png", "adversarial.png"}
    networks = {"plain.npz", "at.npz", "mmr.npz", "mmr+at.npz"}
    assert names == pictures | networks | {"results.json", "report.html"}
    report = json.loads((tmp_path / "results.json").read_text())
    for row in report["rows"]:
        line = next(
            x for x in result.output.splitlines() if re.match(rf"{re.escape(row['scheme'])}\s", x)
        )
        figures = [float(number) for number in re.findall(r"\d+\.\d+", line)]
        bounds = (row["robust_error_lower_bound"], row["robust_error_upper_bound"])
        expected = [
            100 * row["test_error"],
            *(100 * bound for bound in dict.fromkeys(bounds)),
            *(100 * share for share in row["not_certified"].values()),
            *row["mean_certified_radius"].values(),
            100 * row["exact_share"],
        ]
        np.testing.assert_allclose(figures, expected, atol=0.051)
    page = _Page()
    page.feed((tmp_path / "report.html").read_text())
    assert len(page.images) == len(pictures)
    assert all(image["alt"] for image in page.images)
    for reference in page.references:  # the page asks for nothing outside itself
        head, data = reference.split(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
