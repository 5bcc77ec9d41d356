"""What notebooks show: well-formed pages with the right numbers, and nothing from elsewhere."""

import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

import refmmr as rm
from refmmr.certify import Certificates
from refmmr.display import html

VOID = {"img"}


class Page(HTMLParser):
    """Checks that tags close in order, and collects the cells of the tables."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.sources = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        names = dict(attributes)
        self.sources += [names[key] for key in ("src", "href") if key in names]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def net():
    return rm.Network.mlp([2, 6, 3], rng=3)


@pytest.fixture(scope="module")
def points(net):
    X = np.random.default_rng(0).random((15, 2))
    y = net.predict(X)
    y[0] = (y[0] + 1) % 3
    return X, y


def test_network_counts_its_weights():
    net = rm.Network.lenet_small((1, 8, 8), 3, rng=0)
    rows = Page(net._repr_html_()).rows
    assert rows[0] == ["layer", "output", "hidden units", "weights"]
    assert rows[1] == ["input", "1 × 8 × 8", "", ""]
    assert rows[2][1:] == ["16 × 4 × 4", "256", f"{16 * 16 + 16}"]
    assert rows[-2] == ["Linear(100 -> 3)", "3", "", "303"]
    total = sum(W.size + b.size for W, b in net.parameters)
    assert rows[-1] == ["in all", "", f"{net.n_hidden}", f"{total:,}"]


def test_certificates(net, points):
    found = rm.certify(net, *points, p=2)
    text = found._repr_html_()
    rows = Page(text).rows
    assert ["mean certified radius", f"{found.lower.mean():.4g}"] in rows
    assert ["0", "0", "0", "yes"] in rows
    assert "and 5 more" in text
    counts = [int(count) for count in re.findall(r"<title>(\d+) from", text)]
    assert sum(counts) == np.isfinite(found.lower).sum() > 0


def test_certificates_at_a_radius(net, points):
    found = rm.certify(net, *points, p=2, eps=0.05)
    assert found.robust is not None
    rows = Page(found._repr_html_()).rows
    assert ["robust at eps", f"{100 * found.robust.mean():.1f} %"] in rows


def test_certificates_without_any_bound():
    nothing = np.array([np.inf, np.inf])
    found = Certificates(
        np.zeros(2), nothing, np.zeros(2, bool), np.full((2, 1), np.nan), 2, "crown"
    )
    assert ["1", "0", "none found", "no"] in Page(found._repr_html_()).rows
    assert "<svg" in found._repr_html_()
    whole = Certificates(nothing, nothing, np.ones(2, bool), np.full((2, 1), np.nan), 2, "crown")
    assert "<svg" not in whole._repr_html_()


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (rm.robust_error, {"eps": 0.05}),
        (rm.robustness_curve, {"radii": [0.01, 0.05]}),
        (rm.minimal_perturbations, {"methods": ["region"]}),
    ],
)
def test_evaluations(net, points, function, options):
    result = function(net, *points, p=2, **options)
    text = result._repr_html_()
    rows = Page(text).rows
    for row in result.rows():
        assert list(row) in rows
    left = len(result) - sum(row.points for row in result.settled.values())
    assert rows[-1][:2] == ["undecided", f"{left}"]
    assert result.head() in text


def test_history(net, points):
    _, history = rm.fit(net, *points, epochs=12)
    rows = Page(history._repr_html_()).rows
    assert rows[0][0] == "epoch"
    assert [row[0] for row in rows[1:]] == [str(epoch) for epoch in range(3, 13)]
    assert "Training without an epoch" in rm.History()._repr_html_()


def test_complex_is_drawn_in_the_plane(net):
    cx = rm.enumerate_regions(net, rm.Box([-1, -1], [1, 1]))
    page = Page(cx._repr_html_())
    assert ["regions", f"{len(cx)}"] in page.rows
    assert [source[:26] for source in page.sources] == ["data:image/svg+xml;base64,"]


def test_complex_of_three_dimensions_is_told():
    net = rm.Network.mlp([3, 4, 2], rng=0)
    page = Page(rm.enumerate_regions(net, rm.Box([-1] * 3, [1] * 3))._repr_html_())
    assert ["dimensions", "3"] in page.rows
    assert page.sources == []


def test_text_is_escaped():
    assert "&lt;b&gt;" in html.table(["<b>"], [])
    assert Page(html.table(["a"], [["<i>"]])).rows == [["a"], ["<i>"]]


def test_frames(net, points):
    pytest.importorskip("pandas")
    found = rm.certify(net, *points, p=2, eps=0.05)
    frame = found.to_frame()
    assert list(frame.columns) == ["lower", "upper", "exact", "eps", "status", "seconds"]
    assert (frame["lower"] == found.lower).all()
    assert frame.index.name == "point"
    assert "eps" not in rm.certify(net, *points, p=2).to_frame()
    _, history = rm.fit(net, *points, epochs=2)
    assert history.to_frame().index.tolist() == [1, 2]
    assert (history.to_frame()["loss"] == history["loss"]).all()


def test_frames_without_pandas(net, points, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r'to_frame: needs .* pandas: .*"refmmr\[interop\]"'):
        rm.certify(net, *points, p=2).to_frame()


def test_latex(net, points):
    result = rm.robust_error(net, *points, p=2, eps=0.05)
    text = result.to_latex("MMR_50%")
    te, lb, ub = (
        f"{100 * s:.2f}" for s in (result.test_error, result.lower_bound, result.upper_bound)
    )
    assert text.splitlines() == [
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r" & TE & LB & UB \\",
        r"\midrule",
        rf"MMR\_50\% & {te} & {lb} & {ub} \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    both = rm.latex_table({"a": result, "b": result}).splitlines()
    assert len(both) == 8
    assert both[4][1:] == both[5][1:]


def test_latex_of_curves_and_perturbations(net, points):
    curve = rm.robustness_curve(net, *points, radii=[0.01, 0.05]).to_latex().splitlines()
    assert curve[2] == r"robust accuracy & at least & at most \\"
    assert curve[3] == r"\midrule"
    assert curve[4].startswith("eps = 0.01 & ")
    minimal = rm.minimal_perturbations(net, *points, methods=["region"]).to_latex()
    assert r"test error & 6.67 \% \\" in minimal


@pytest.mark.parametrize("results", [{}, None, [1]])
def test_latex_table_of_nothing(results):
    with pytest.raises(ValueError, match="results: expected a mapping"):
        rm.latex_table(results)


def test_latex_table_of_something_else():
    with pytest.raises(TypeError, match=r"results\['a'\]: expected a RobustError, got int"):
        rm.latex_table({"a": 1})
