"""The notebooks: Markdown and .ipynb say the same, and both run."""

import base64
import json
import os
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.md"))
REASON = 'the tools of the documentation: pip install "refmmr[docs]"'


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_both_forms_say_the_same(path):
    """After an edit of the Markdown: make notebooks."""
    jupytext = pytest.importorskip("jupytext", reason=REASON)
    one, other = (jupytext.read(path.with_suffix(ending)) for ending in (".md", ".ipynb"))
    assert [(c.cell_type, c.source, c.metadata.get("tags")) for c in one.cells] == [
        (c.cell_type, c.source, c.metadata.get("tags")) for c in other.cells
    ]
    # They can be read where they lie: with pictures, and without an error.
    outputs = [output for cell in other.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(
        output.output_type in ("error", "stream") and output.get("name") != "stdout"
        for output in outputs
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_pictures_are_sharp_and_small(path):
    """Two pixels for each of the page, and a palette: as make notebooks writes them."""
    cells = json.loads(path.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    for output in (output for output in outputs if "image/png" in output.get("data", {})):
        header = base64.b64decode(output["data"]["image/png"])[:26]
        width, colour_type = int.from_bytes(header[16:20], "big"), header[25]
        assert width >= 2 * output["metadata"]["image/png"]["width"]
        assert colour_type == 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_exercises_have_folded_solutions(path):
    jupytext = pytest.importorskip("jupytext", reason=REASON)
    cells = jupytext.read(path).cells
    folded = [c for c in cells if "hide-cell" in c.metadata.get("tags", [])]
    assert len(folded) >= 2
    assert all(c.source.startswith("# Solution\n") for c in folded)
    assert "## What to remember" in "\n".join(c.source for c in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_says_what_it_takes_and_what_it_gives(path):
    text = path.read_text(encoding="utf-8")
    top, rest = text.split("```{code-cell}", 1)
    for promise in ("- **You need:** ", "- **Time:** ", "- **Afterwards you can:** "):
        assert promise in top
    questions = rest.split("## Check yourself")[1].split("## What to remember")[0]
    assert questions.count("<summary>Answer</summary>") == questions.count("</details>") >= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_fits_the_column(path):
    """88 characters; a browser measures the pages, outputs too, in test_reading.py."""
    jupytext = pytest.importorskip("jupytext", reason=REASON)
    code = [cell.source for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    assert [line for line in "\n".join(code).splitlines() if len(line) > 88] == []


@pytest.mark.slow
@pytest.mark.skipif("REFMMR_NOTEBOOKS" not in os.environ, reason="REFMMR_NOTEBOOKS is not set")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_in_jupyter(path, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason=REASON)
    nbformat = pytest.importorskip("nbformat", reason=REASON)
    notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    said = [
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream" and output.name == "stderr"
    ]
    assert said == []
