"""Warnings that a process gives once."""

import logging
from collections.abc import Hashable

_already_said: dict[Hashable, object] = {}


def warn_once(log: logging.Logger, place: Hashable, cause: Hashable, message: str) -> None:
    """Warn once per process, place and cause. setdefault decides atomically; a lock could be held during a fork."""
    ours = object()
    if _already_said.setdefault((place, cause), ours) is ours:
        log.warning("%s", message)
