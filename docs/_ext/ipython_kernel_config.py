"""IPython's configuration for the tutorials: figures have two pixels for each of the page."""

get_config().InlineBackend.figure_formats = {"retina"}  # noqa: F821
