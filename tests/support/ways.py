"""The compiled part and its Python replacement: tests of one must hold for the other too."""

import pytest

from softmax_ops import native

only_compiled = pytest.mark.parametrize("way", ["compiled"], indirect=True)
"""Marks a test in such a module that only concerns the compiled way."""


@pytest.fixture(params=["compiled", "python"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that imports this runs all its tests both ways."""
    if request.param == "python":
        monkeypatch.setenv("SOFTMAX_OPS_NATIVE", "never")
    elif native.compiled() is None:
        pytest.skip(f"the compiled part was not built, `make test` builds it where it can: {native.problem}")
    return request.param
