import importlib.util
from pathlib import Path

import pytest

TINY = Path(__file__).with_name("tiny.py")


@pytest.fixture(scope="session")
def tiny():
    """The module tiny.py."""
    spec = importlib.util.spec_from_file_location("tiny", TINY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_source(tiny):
    return tiny.dataset()


@pytest.fixture(scope="session")
def tiny_ladder(tiny, tiny_source, tmp_path_factory):
    """Three rungs that no test may change."""
    return tiny.build(tmp_path_factory.mktemp("ladder"), tiny_source)
