"""The version of this package, which its build and the files it writes read."""

__version__ = "0.1.0"
