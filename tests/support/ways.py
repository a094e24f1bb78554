"""The compiled part and the Python that stands in for it: what is tested of one has to hold for the other."""

import pytest

from softmax_ops import native

only_compiled = pytest.mark.parametrize("way", ["compiled"], indirect=True)
"""Of a test in such a module that has nothing to say of the other way."""


@pytest.fixture(params=["compiled", "python"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Imported by a module, it runs every test there both ways."""
    if request.param == "python":
        monkeypatch.setenv("SOFTMAX_OPS_NATIVE", "never")
    elif native.compiled() is None:
        pytest.skip(f"the compiled part was not built, `make test` builds it where it can: {native.problem}")
    return request.param
