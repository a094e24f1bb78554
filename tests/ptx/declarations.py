"""Declared variables: the addresses of parameters and of shared variables."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod

from .formats import bits_of
from .program import Symbol

_VARIABLE = re.compile(
    r"^[ \t]*(?:\.extern\s+)?\.shared\s+"
    r"(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+(?P<name>[\w$]+)(?P<dims>(?:\[\d*\])*);",
    re.M,
)
_PARAM = re.compile(
    r"\.param\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+(?:\.ptr\b.*?)?(?P<name>[\w$]+)(?:\[(?P<count>\d+)\])?\s*(?:,|$)"
)
_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', re.M)


@dataclass
class Layout:
    """Addresses of the declared variables, each in its state space."""

    symbols: dict[str, Symbol] = field(default_factory=dict)
    shared_static: int = 0
    shared_dynamic: int = 0

    def place(self, match: re.Match[str]) -> None:
        """Assigns an address to a static shared variable."""
        item = bits_of(match["type"]) // 8
        start = _align(self.shared_static, int(match["align"] or item))
        self.symbols[match["name"]] = Symbol(match["name"], start)
        self.shared_static = start + item * prod(int(size) for size in re.findall(r"\[(\d+)\]", match["dims"]))

    def place_dynamic(self, match: re.Match[str]) -> None:
        """extern __shared__ arrays all start at the end of the static variables."""
        self.shared_dynamic = max(self.shared_dynamic, _align(self.shared_static, int(match["align"] or 1)))
        self.symbols[match["name"]] = Symbol(match["name"], self.shared_dynamic)


def _align(address: int, align: int) -> int:
    return -(-address // align) * align


def module_layout(outside: str, body: str) -> Layout:
    """Layout of the shared variables of a kernel and of its module; dynamic shared memory comes last."""
    layout = Layout()
    dynamic = []
    for match in [*_VARIABLE.finditer(outside), *_VARIABLE.finditer(body)]:
        if match["dims"].startswith("[]"):
            dynamic.append(match)
        else:
            layout.place(match)
    layout.shared_dynamic = layout.shared_static
    for match in dynamic:
        layout.place_dynamic(match)
    return layout


def parameters(head: str, layout: Layout) -> int:
    """Adds the kernel's parameters to the layout; returns their size in bytes."""
    end = 0
    for match in _PARAM.finditer(" ".join(head.split())):
        item = bits_of(match["type"]) // 8
        start = _align(end, int(match["align"] or item))
        layout.symbols[match["name"]] = Symbol(match["name"], start)
        end = start + item * int(match["count"] or 1)
    return end


def file_names(ptx: str) -> dict[str, str]:
    """Base name by file number, from the .file directives."""
    return {number: re.split(r"[/\\]", path)[-1] for number, path in _FILE.findall(ptx)}
