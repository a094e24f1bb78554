"""Test runs: the option that executes more, and the lines that say what is executed."""

import pytest

from tests.support import engines, targets


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-architectures", action="store_true", help="execute every kernel for every architecture")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Printed like a header, but not suppressed by -q."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and "not kernels" not in session.config.option.markexpr:
        everything = session.config.getoption("--all-architectures")
        for line in targets.summary(everything, engines.gpu_architecture()):
            reporter.write_line(line)
