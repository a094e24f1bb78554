"""Test runs: the options that execute more or less, and the lines that say what is executed."""

import gc

import pytest

from tests.support import engines, targets


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-architectures", action="store_true", help="execute every kernel for every architecture")
    parser.addoption("--sample", action="store_true", help="execute only a sample of the kernels for each architecture")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --sample, of the tests that compile kernels only those of a sampled one remain. Tests of one kernel run in
    one process, which then parses its program once."""
    if config.getoption("--sample"):
        kept = {item for item in items if not item.get_closest_marker("kernels") or targets.is_sampled(item)}
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]
    for item in items:
        if (target := targets.target_of(item)) is not None:
            item.add_marker(pytest.mark.xdist_group(str(target)))


def pytest_collection_finish() -> None:
    """The interpreter's programs are many small objects that live long. It takes a sixth less time if Python seldom
    looks for cycles among them."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Printed like a header, but not suppressed by -q."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and "not kernels" not in session.config.option.markexpr:
        for line in targets.summary(session.config, engines.gpu_architecture()):
            reporter.write_line(line)
