import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from refmmr.certify import methods

# Always the same cases: a failure belongs to a change, not to chance.
settings.register_profile("default", deadline=None, max_examples=60, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile("default")


def pytest_collection_modifyitems(config, items):
    """With a backend chosen from outside, leave out tests that choose one themselves.

    They do the same with any, and have run without.
    """
    if "REFMMR_BACKEND" not in os.environ:
        return
    chosen = [i for i in items if hasattr(i, "callspec") and "backend" in i.callspec.params]
    config.hook.pytest_deselected(items=chosen)
    items[:] = [item for item in items if item not in set(chosen)]


@pytest.fixture(scope="session")
def data_folder():
    """The folder of MNIST and Fashion-MNIST; tests that need it are skipped without it."""
    folder = os.environ.get("REFMMR_DATA")
    if not folder:
        pytest.skip("REFMMR_DATA is not set: it names the folder of the data sets")
    if not Path(folder).is_dir():
        pytest.fail(f"REFMMR_DATA: expected a folder, got {folder!r}")
    return Path(folder)


@pytest.fixture
def short_attack(monkeypatch):
    """The attack before a search or a program is short.

    On small networks it takes most of their time, and what it misses is left to the method.
    """
    monkeypatch.setattr(methods, "STEPS", 10)
    monkeypatch.setattr(methods, "RESTARTS", 1)


@pytest.fixture
def ctrl_c():
    """Ctrl-C raises KeyboardInterrupt, here and in processes that the test starts.

    A parent that ignores SIGINT (``nohup make test &``) hands this down, and Python keeps it.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
