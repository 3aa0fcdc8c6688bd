"""These tests compile hundreds of small programs and compute little."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def compile_quickly(quick_compilation):
    """Compile every program of a file without optimisation."""
