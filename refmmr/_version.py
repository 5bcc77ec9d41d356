"""The version of this package, read by its build and written into its files."""

__version__ = "0.1.0"
