"""How the documentation is built: ``sphinx-build -W --keep-going -n docs build/html``.

Nothing is taken from the network, neither while building nor while reading.  Environment variables:
``REFMMR_DOCS_EXECUTE``: "force" (the default) runs all notebooks, "off" shows them without outputs.
``REFMMR_REPOSITORY``: the address where the project is hosted, for links to it; see ``binder/``.
"""

import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

# Notebooks' kernels inherit this: figures in the page, whatever the caller's MPLBACKEND is, with
# two pixels for each of the page, whatever the caller's profile of IPython says.
os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
profile = HERE.parent / "build" / "ipython" / "profile_default"
profile.mkdir(parents=True, exist_ok=True)
shutil.copy(HERE / "_ext" / "ipython_kernel_config.py", profile)
os.environ["IPYTHONDIR"] = str(profile.parent)

import refmmr_docs  # noqa: E402

import refmmr  # noqa: E402

project = "refmmr"
author = "refmmr contributors"
copyright = "refmmr contributors"
version = release = refmmr.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "matplotlib.sphinxext.plot_directive",
    "numpydoc",
    "refmmr_docs",
    "refmmr_playground",
    "refmmr_uses",
]
templates_path = ["_templates"]
exclude_patterns = ["_static", "_figures", "playground/questions", "tutorials/.ipynb_checkpoints"]
nitpicky = True
# Explicit roles must lead somewhere.  Words in single backticks and in the types of docstrings are
# links where they are the full name of something, and code where not.
nitpick_ignore_regex = [
    (r"py:obj", r".*"),
    (r"py:(class|exc|data|meth)", r"(?!refmmr\.).*"),
    (r"py:class", r"refmmr\..*\.(Settled|Walk|Cell|Counterexample|Clause|Preset)"),
]
suppress_warnings = ["ref.python"]

# Docstrings.
default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_docstring_signature = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"ArrayLike": "ArrayLike", "DTypeLike": "DTypeLike"}
python_use_unqualified_type_names = True
autosummary_generate = True
autosummary_imported_members = True
# Some file systems take no difference between capitals and small letters.
autosummary_filename_map = {
    f"refmmr.{name}": f"refmmr.{name}-class" for name in ("Distances", "MMR", "zoo.Card")
}
numpydoc_show_class_members = False
numpydoc_xref_param_type = True
numpydoc_xref_ignore = "all"
numpydoc_xref_aliases = {name: f"refmmr.{name}" for name in refmmr.__all__ if name[0].isupper()}
viewcode_follow_imported_members = True

# Figures of 6 inches have twice the pixels of the column of text.
plot_formats = [("png", 250)]
plot_html_show_formats = False
plot_html_show_source_link = False
plot_include_source = True
plot_rcparams = {"figure.figsize": (6, 4.5), "savefig.bbox": "tight"}
plot_apply_rcparams = True

# MyST and notebooks.
myst_enable_extensions = [
    "amsmath",
    "attrs_block",
    "attrs_inline",
    "colon_fence",
    "deflist",
    "dollarmath",
]
myst_heading_anchors = 4
nb_execution_mode = os.environ.get("REFMMR_DOCS_EXECUTE", "force")
# A fresh checkout compiles its kernels in the first cells that use them.
nb_execution_timeout = 300
nb_execution_raise_on_error = True
if nb_execution_mode == "off":
    # Without a kernel the language of the cells is not known; they are shown as they are.
    suppress_warnings.append("myst-nb.lexer")
nb_merge_streams = True
refmmr_docs.copy_notebooks(HERE.parent / "notebooks", HERE / "tutorials")

# Pages.
html_theme = "furo"
html_title = "refmmr"
html_static_path = ["_static"]
html_css_files = ["refmmr.css"]
html_js_files = ["refmmr.js"]
html_favicon = "_static/logo.svg"
html_copy_source = False
html_show_sphinx = True
html_theme_options = {
    "light_logo": "logo.svg",
    "dark_logo": "logo.svg",
    "light_css_variables": {
        "color-brand-primary": "#00588a",
        "color-brand-content": "#00588a",
        "font-stack--monospace": "ui-monospace, SFMono-Regular, Menlo, Consolas, "
        "'DejaVu Sans Mono', 'Liberation Mono', monospace",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7cc4ee",
        "color-brand-content": "#7cc4ee",
    },
}
if refmmr_docs.REPOSITORY:
    html_theme_options |= {
        "source_repository": refmmr_docs.REPOSITORY,
        "source_branch": "main",
        "source_directory": "docs/",
    }
mathjax_path = "mathjax/tex-svg-full.js"
mathjax3_config = {
    "svg": {"fontCache": "global"},
    # No menu: all that it could load lies elsewhere.
    "options": {"enableMenu": False},
}
