"""Draw the architecture, ``docs/_static/architecture.svg``: the packages, and their calls."""

from pathlib import Path

PLACE = Path(__file__).parents[1] / "_static" / "architecture.svg"
WIDTH, HEIGHT = 760, 430
STYLE = """
text { font: 14px system-ui, sans-serif; fill: #1a1a1a; text-anchor: middle; }
.small { font-size: 12px; }
rect { fill: #fff; stroke: #444; rx: 6px; }
.book { fill: #cfe6f5; } .user { fill: #fdeccd; } .fast { fill: #d3efe5; }
.ground { fill: #fafafa; stroke: none; }
path { stroke: #444; fill: none; marker-end: url(#arrow); }
"""
# x, y, width, height, class, title, line below
BOXES = [
    (20, 20, 220, 58, "user", "Jupyter, Python", "import refmmr as rm"),
    (270, 20, 220, 58, "user", "command line", "cli/"),
    (520, 20, 220, 58, "user", "scikit-learn", "estimator.py"),
    (20, 120, 470, 62, "", "calls: arguments are checked",
     "network, geometry, attacks, training/, io"),
    (520, 120, 220, 62, "", "in and out", "interop/, datasets/, display/"),
    (20, 224, 220, 62, "", "certify/", "bounds/, evaluation/"),
    (270, 224, 220, 62, "", "regions/", "all regions, exactly"),
    (520, 224, 220, 62, "", "_kernels.py, _backend.py", "functions with twins; the switch"),
    (20, 338, 470, 70, "book", "reference/: the book",
     "plain NumPy, one idea a file, no checks, no switch"),
    (520, 338, 220, 70, "fast", "backends/", "_numba, _cupy: faster twins"),
]  # fmt: skip
ARROWS = [
    "M130 78 V116", "M380 78 V116", "M630 78 V98 H440 V116",
    "M130 182 V220", "M380 182 V220", "M490 140 H516", "M490 160 H505 V240 H516",
    "M490 265 H516", "M130 286 V334", "M380 286 V334", "M560 286 V312 H450 V334", "M660 286 V334",
]  # fmt: skip


def main() -> None:
    """Write the picture."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>The architecture of refmmr</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0 L8 4 L0 8 z" '
        'style="fill: #444; stroke: none"/></marker></defs>',
        f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}"/>',
    ]
    for x, y, width, height, kind, title, below in BOXES:
        middle = x + width / 2
        parts += [
            f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}"/>',
            f'<text x="{middle}" y="{y + height / 2 - 5}" font-weight="bold">{title}</text>',
            f'<text class="small" x="{middle}" y="{y + height / 2 + 15}">{below}</text>',
        ]
    parts += [f'<path d="{arrow}"/>' for arrow in ARROWS]
    PLACE.write_text("\n".join([*parts, "</svg>", ""]))


if __name__ == "__main__":
    main()
