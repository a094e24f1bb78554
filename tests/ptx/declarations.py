"""Declared variables: the addresses of parameters and of shared, local and module variables."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod

import numpy as np

from .formats import DTYPE, bits_of
from .literals import immediate
from .program import Symbol, Variable

MODULE_BASE = 1 << 44  # module variables are in global memory, far above every buffer

_VARIABLE = re.compile(
    r"^[ \t]*(?:\.(?:visible|extern|weak|common)\s+)*\.(?P<space>shared|local|global|const)\s+"
    r"(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+(?P<name>[\w$]+)(?P<dims>(?:\[\d*\])*)"
    r"(?:\s*=\s*(?P<value>[^;]*))?;",
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
    variables: list[Variable] = field(default_factory=list)
    shared_static: int = 0
    shared_dynamic: int = 0
    local_bytes: int = 0

    def place(self, match: re.Match[str]) -> None:
        """Assigns an address to one declaration."""
        item = bits_of(match["type"]) // 8
        align = int(match["align"] or item)
        sizes = [int(size) if size else 0 for size in re.findall(r"\[(\d*)\]", match["dims"])]
        nbytes = item * prod(sizes)
        name, space = match["name"], match["space"]
        if space == "shared" and nbytes:
            self.symbols[name] = Symbol(name, space, _align(self.shared_static, align))
            self.shared_static = self.symbols[name].address + nbytes
        elif space == "local":
            self.symbols[name] = Symbol(name, space, _align(self.local_bytes, align))
            self.local_bytes = self.symbols[name].address + nbytes
        elif space in ("global", "const"):
            self.module_variable(match, nbytes)

    def module_variable(self, match: re.Match[str], nbytes: int) -> None:
        address = MODULE_BASE + (len(self.variables) << 32)
        symbol = Symbol(match["name"], match["space"], address)
        self.symbols[symbol.name] = symbol
        initial = _initial(match["value"], match["type"], nbytes)
        self.variables.append(Variable(symbol, nbytes, initial))

    def place_dynamic(self, match: re.Match[str]) -> None:
        """extern __shared__ arrays all start at the end of the static variables."""
        self.shared_dynamic = max(self.shared_dynamic, _align(self.shared_static, int(match["align"] or 1)))
        self.symbols[match["name"]] = Symbol(match["name"], "shared", self.shared_dynamic)


def _align(address: int, align: int) -> int:
    return -(-address // align) * align


def _initial(value: str | None, kind: str, nbytes: int) -> bytes:
    """Bytes of an initialiser; elements that it omits are zero, as PTX specifies."""
    literals = [immediate(item.strip()) for item in (value or "").strip("{} \n").split(",") if item.strip()]
    if None in literals:
        raise ValueError(f"cannot read initialiser {value!r}")
    numbers = [item.value for item in literals if item is not None]
    mask = (1 << bits_of(kind)) - 1
    data = np.array([number & mask for number in numbers], np.uint64).astype(DTYPE["u" + str(bits_of(kind))])
    return data.tobytes().ljust(nbytes, b"\0")


def module_layout(outside: str, body: str) -> Layout:
    """Layout of a kernel's own variables and those of its module; dynamic shared memory comes last."""
    layout = Layout()
    dynamic = []
    for match in [*_VARIABLE.finditer(outside), *_VARIABLE.finditer(body)]:
        if match["space"] == "shared" and match["dims"].startswith("[]"):
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
        layout.symbols[match["name"]] = Symbol(match["name"], "param", start)
        end = start + item * int(match["count"] or 1)
    return end


def file_names(ptx: str) -> dict[str, str]:
    """Base name by file number, from the .file directives."""
    return {number: re.split(r"[/\\]", path)[-1] for number, path in _FILE.findall(ptx)}
