"""The parts of a parsed kernel: operands, instructions, parameter and shared-memory layout."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Register:
    """A virtual register; `bits` is 1 for a predicate. `negated` stands for `!%p` as a source."""

    name: str
    slot: int
    bits: int
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Immediate:
    """A literal: an integer (`real` is None), or a float with the bits of its own width (0f..., 0d...)."""

    value: int
    real: float | None = None


@dataclass(frozen=True, slots=True)
class Special:
    """A read-only register of the machine, such as %tid.x."""

    name: str


@dataclass(frozen=True, slots=True)
class Symbol:
    """A declared variable: its address in its state space."""

    name: str
    address: int


@dataclass(frozen=True, slots=True)
class Vector:
    """{a, b, ...}"""

    parts: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """d|p: two destinations of one instruction."""

    first: Operand
    second: Operand


@dataclass(frozen=True, slots=True)
class Address:
    """[base + offset], offset in bytes"""

    base: Operand
    offset: int


@dataclass(frozen=True, slots=True)
class Name:
    """An identifier that is neither a register nor a variable: a label, a function, or the sink `_`."""

    name: str


Operand = Register | Immediate | Special | Symbol | Vector | Pair | Address | Name


@dataclass(frozen=True, slots=True)
class Source:
    """A source position; `inlined` holds the call sites from inside out, as `file:line`."""

    place: str
    inlined: tuple[str, ...] = ()

    def __str__(self) -> str:
        chain = (self.place, *self.inlined)
        if len(chain) > 4:
            chain = (*chain[:2], "...", *chain[-2:])
        return " <- ".join(chain)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One PTX instruction. `guard` is its predicate; `target` the program counter to which a branch goes (else -1)."""

    opcode: str
    parts: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | None
    text: str
    source: Source | None
    target: int = -1

    def has(self, modifier: str) -> bool:
        return modifier in self.parts[1:]

    @property
    def type(self) -> str:
        return self.parts[-1]

    def __str__(self) -> str:
        return self.text if self.source is None else f"{self.text} at {self.source}"


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """One kernel: instructions and the layout of its parameters and shared memory.

    `shared_static` is the size in bytes of the statically declared shared variables; dynamic shared memory
    starts at `shared_dynamic`. `max_threads` is what .maxntid or .reqntid allows (None: not said).
    """

    entry: str
    param_bytes: int
    shared_static: int
    shared_dynamic: int
    max_threads: int | None
    instructions: tuple[Instruction, ...]
    register_bits: tuple[int, ...]
