"""Every environment variable of softmax_ops, in one table. Variables are read on use, never at import.

>>> read("SOFTMAX_OPS_COMPILE")
'auto'
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, overload

Value = Path | int | str | None

_BYTES = re.compile(r"([0-9]+)\s*([a-z]*)", re.IGNORECASE)
_UNITS = {
    **{"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40},
    **{"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12},
}


@dataclass(frozen=True)
class Setting:
    """The current state of one environment variable; `problem` says what is wrong with a value that cannot be used."""

    name: str
    type: str
    default: str
    description: str
    value: Value
    source: str  # "environment" or "default"
    problem: str | None = None


@dataclass(frozen=True)
class _Variable:
    type: str
    default: str  # as shown
    description: str
    parse: Callable[[str], Value]  # raises ValueError that says what is wanted
    fallback: Callable[[], Value] | None = None  # the value when it is unset or empty; None: that of `default`


def _path(text: str) -> Path:
    try:
        return _absolute(Path(text).expanduser())
    except RuntimeError:
        raise ValueError("a path whose ~ leads to a home directory: there is none") from None
    except OSError:
        raise ValueError("an absolute path: the working directory is gone") from None


@cache
def _absolute(path: Path) -> Path:
    """The absolute path as of its first use, so that a later chdir neither moves a cache nor loses a bundle."""
    return Path(os.path.abspath(path))


def _byte_count(text: str) -> int:
    found = _BYTES.fullmatch(text.strip())
    unit = _UNITS.get(found[2].lower()) if found else None
    if not found or unit is None:
        raise ValueError("a whole number of bytes, plain or in KiB, MiB, GiB, TiB, kB, MB, GB or TB, such as 2GiB")
    return int(found[1]) * unit


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return text

    return parse


def _default_cache_directory() -> Path | None:
    """Under XDG_CACHE_HOME, used only if absolute, else under HOME; None if HOME is not a directory."""
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):
        return Path(xdg, "softmax_ops")
    home = os.environ.get("HOME", "")
    if os.path.isabs(home) and os.path.isdir(home):
        return Path(home, ".cache", "softmax_ops")
    return None


_TABLE = {
    "SOFTMAX_OPS_BUNDLE": _Variable(
        type="path",
        default="none",
        description="a bundle of prebuilt kernels, looked into before the one inside the package",
        parse=_path,
        fallback=lambda: None,
    ),
    "SOFTMAX_OPS_CACHE_DIR": _Variable(
        type="path",
        default="$XDG_CACHE_HOME/softmax_ops or ~/.cache/softmax_ops",
        description="directory of kernels compiled on this machine; nothing is kept where there is no home directory",
        parse=_path,
        fallback=_default_cache_directory,
    ),
    "SOFTMAX_OPS_CACHE_MAX_BYTES": _Variable(
        type="bytes",
        default="2GiB",
        description="size the cache is kept under, the least recently used kernels going first; 0 keeps nothing",
        parse=_byte_count,
    ),
    "SOFTMAX_OPS_COMPILE": _Variable(
        type="choice",
        default="auto",
        description="auto: compile a missing kernel if the compiler is there; never: a missing kernel is an error",
        parse=_one_of("auto", "never"),
    ),
    "SOFTMAX_OPS_NATIVE": _Variable(
        type="choice",
        default="auto",
        description="auto: use the compiled part of the package if it was built; never: launch through Python",
        parse=_one_of("auto", "never"),
    ),
    "SOFTMAX_OPS_PUBLIC_KEY": _Variable(
        type="path",
        default="none",
        description="an Ed25519 public key (PEM): only kernels of a bundle signed with its private half are loaded",
        parse=_path,
        fallback=lambda: None,
    ),
}


@overload
def read(name: Literal["SOFTMAX_OPS_BUNDLE", "SOFTMAX_OPS_CACHE_DIR", "SOFTMAX_OPS_PUBLIC_KEY"]) -> Path | None: ...
@overload
def read(name: Literal["SOFTMAX_OPS_CACHE_MAX_BYTES"]) -> int: ...
@overload
def read(name: Literal["SOFTMAX_OPS_COMPILE", "SOFTMAX_OPS_NATIVE"]) -> Literal["auto", "never"]: ...
@overload
def read(name: str) -> Value: ...
def read(name: str) -> Value:
    """The current value of one variable; unset and empty both mean the default. ValueError if it cannot be used."""
    if name not in _TABLE:
        raise ValueError(f"{name} is no setting of softmax_ops; there are {', '.join(_TABLE)}")
    variable, text = _TABLE[name], os.environ.get(name, "")
    if not text:
        return variable.fallback() if variable.fallback else variable.parse(variable.default)
    try:
        return variable.parse(text)
    except ValueError as wanted:
        raise ValueError(f"environment variable {name} is {text!r}; wanted {wanted}") from None


def table() -> list[Setting]:
    """Every variable with its value and the source of that value. Never raises: a bad value is its row's `problem`."""
    return [_row(name, variable) for name, variable in _TABLE.items()]


def _row(name: str, variable: _Variable) -> Setting:
    source = "environment" if os.environ.get(name) else "default"
    value, problem = None, None
    try:
        value = read(name)
    except ValueError as error:
        problem = str(error)
    return Setting(name, variable.type, variable.default, variable.description, value, source, problem)
