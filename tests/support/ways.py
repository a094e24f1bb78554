"""Tests that run in more than one way, with the same results: launches in C and in Python, and known calls however the
compiled part asks for addresses.
"""

import pytest
from torch import Tensor

from softmax_ops import native

only_by_exchange = pytest.mark.parametrize("asking", ["exchange"], indirect=True)
"""Marks a test in a module that imports `asking` for which the way does not matter."""


@pytest.fixture(params=["compiled", "python"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that imports this runs all its tests with launches in C, and in Python."""
    if request.param == "python":
        monkeypatch.setenv("SOFTMAX_OPS_NATIVE", "never")
    else:
        _need_compiled()
    return request.param


@pytest.fixture(params=["exchange", "methods"], autouse=True)
def asking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that imports this runs all its tests with DLPack's exchange, and without it, as before torch 2.10."""
    _need_compiled()
    if request.param == "methods":
        monkeypatch.setattr(Tensor, "__dlpack_c_exchange_api__", None, raising=False)
    return request.param


def _need_compiled() -> None:
    if native.compiled() is None:
        pytest.skip(f"the compiled part was not built, `make test` builds it where it can: {native.problem}")
