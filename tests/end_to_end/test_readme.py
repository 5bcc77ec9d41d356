"""What the README shows is true."""

import re
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    try:
        exec(compile(code, "README.md", "exec"), names)
    finally:
        plt.close("all")
    assert "robust error, upper bound" in capsys.readouterr().out
    certificates = names["certificates"]
    assert (certificates.lower <= certificates.upper).all()
    # What the page claims of MMR: most radii are far beyond those of plain training (0.02).
    assert certificates.lower.mean() > 0.2
    assert names["regions"].areas.sum() > 0


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_between_files_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text())
    assert all((ROOT / target).exists() for target in targets)
