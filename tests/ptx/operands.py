"""Operands compiled once into closures that read a source or write a destination."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .fault import Fault
from .formats import DTYPE, FLOATS, SIGNED, UNSIGNED, f32_to_bf16
from .lanes import Active
from .program import Address, Immediate, Name, Operand, Register, Special, Symbol
from .spaces import State

Step = Callable[[State, Active], None]
Reader = Callable[[State, Active], Any]  # an array [active lanes], or a numpy scalar for all of them
Writer = Callable[[State, Active, Any], None]


def unsupported(what: str) -> Fault:
    return Fault("unsupported", what)


def reader(operand: Operand, kind: str) -> Reader:
    """Reads an operand as values of the PTX type `kind` (bf16 and packed types as their bits)."""
    if isinstance(operand, Register):
        return _predicate(operand) if operand.bits == 1 else _register(operand, DTYPE[kind])
    if isinstance(operand, Special):
        return _special(operand.name, DTYPE[kind])
    if isinstance(operand, Immediate):
        value = _literal(operand, kind)
    elif isinstance(operand, Symbol):
        value = DTYPE[kind](operand.address)
    else:
        raise unsupported(f"operand {operand}")
    return lambda state, active: value


def _register(operand: Register, dtype: Any) -> Reader:
    slot, bits = operand.slot, operand.bits
    narrow = UNSIGNED[np.dtype(dtype).itemsize]
    if bits != 8 * np.dtype(dtype).itemsize:
        return lambda state, active: state.lanes.register(slot, bits)[active.select].astype(narrow).view(dtype)
    if narrow is dtype:
        return lambda state, active: state.lanes.register(slot, bits)[active.select]
    return lambda state, active: state.lanes.register(slot, bits)[active.select].view(dtype)


def _predicate(operand: Register) -> Reader:
    slot = operand.slot
    if operand.negated:
        return lambda state, active: ~state.lanes.register(slot, 1)[active.select]
    return lambda state, active: state.lanes.register(slot, 1)[active.select]


def _special(name: str, dtype: Any) -> Reader:
    return lambda state, active: state.lanes.special(name, active).astype(dtype)


def _literal(operand: Immediate, kind: str) -> Any:
    if kind == "pred":
        return np.bool_(operand.value != 0)
    if operand.real is not None and kind in FLOATS:
        value = np.float32(operand.real) if kind in ("f32", "bf16") else DTYPE[kind](operand.real)
        return f32_to_bf16(np.asarray(value))[()] if kind == "bf16" else value
    dtype = np.dtype(DTYPE[kind])
    unsigned = UNSIGNED[dtype.itemsize]
    return unsigned(operand.value & (1 << 8 * dtype.itemsize) - 1).view(dtype)


def writer(operand: Operand) -> Writer:
    """Writes values of any type; a value narrower than the register is sign-extended if it is signed."""
    if isinstance(operand, Name) and operand.name == "_":
        return lambda state, active, value: None
    if not isinstance(operand, Register):
        raise unsupported(f"destination {operand}")
    slot, bits = operand.slot, operand.bits
    unsigned, signed = UNSIGNED[max(bits // 8, 1)], SIGNED[max(bits // 8, 1)]

    def write(state: State, active: Active, value: Any) -> None:
        register = state.lanes.register(slot, bits)
        if bits > 1 and value.dtype != unsigned:
            if value.dtype.itemsize * 8 == bits:
                value = value.view(unsigned)
            elif value.dtype.kind == "i":
                value = value.astype(signed).view(unsigned)
            else:
                value = value.view(UNSIGNED[value.dtype.itemsize]).astype(unsigned)
        register[active.select] = value

    return write


def address(operand: Operand) -> Reader:
    """Reads [base + offset] as 64-bit integers, one per active lane."""
    if not isinstance(operand, Address):
        raise unsupported(f"address {operand}")
    offset = np.int64(operand.offset)
    if not isinstance(operand.base, Register):
        constant = reader(operand.base, "s64")
        return lambda state, active: np.full(active.size, constant(state, active) + offset)
    base = reader(operand.base, "u32" if operand.base.bits == 32 else "s64")
    return lambda state, active: base(state, active).astype(np.int64, copy=False) + offset
