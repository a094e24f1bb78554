"""Integer arithmetic of the PTX interpreter, against Python's exact integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.ptx import Fault
from tests.ptx.snippets import evaluate

CORNERS = np.array([0, 1, 2, 3, 7, 31, 32, 33, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 5, 0xDEADBEEF], np.uint64)
RNG = np.random.default_rng(20)


def pairs(bits: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Corner cases and random values, in all combinations."""
    dtype = np.dtype(f"u{bits // 8}").type
    some = RNG.integers(0, 2**bits, 6, dtype=np.uint64)
    top = np.array([2 ** (bits - 1), 2**bits - 1, 2 ** (bits - 1) - 1], np.uint64)
    values = (np.concatenate([CORNERS, some, top]) & np.uint64(2**bits - 1)).astype(dtype)
    a, b = np.meshgrid(values, values)
    return a.ravel(), b.ravel()


def signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def truncated(a: int, b: int) -> int:
    """Division as in C."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


INTEGER_CASES: list[tuple[str, str, Callable[[int, int], int]]] = [
    ("add.s32", "s32", lambda a, b: a + b),
    ("sub.u64", "u64", lambda a, b: a - b),
    ("mul.lo.s64", "s64", lambda a, b: a * b),
    ("mul.hi.u32", "u32", lambda a, b: a * b >> 32),
    ("mul.hi.s32", "s32", lambda a, b: a * b >> 32),
    ("min.s32", "s32", min),
    ("max.u32", "u32", max),
    ("min.u64", "u64", min),
    ("max.s16", "s16", max),
    ("and.b32", "u32", lambda a, b: a & b),
    ("xor.b64", "u64", lambda a, b: a ^ b),
    ("div.s32", "s32", lambda a, b: truncated(a, b) if b else -1),
    ("div.u64", "u64", lambda a, b: a // b if b else -1),
]


@pytest.mark.parametrize(("opcode", "kind", "exact"), INTEGER_CASES, ids=[case[0] for case in INTEGER_CASES])
def test_integer_arithmetic(opcode: str, kind: str, exact: Callable[[int, int], int]) -> None:
    bits = int(kind[1:])
    a, b = pairs(bits)
    found = evaluate(f"{opcode} $d, $0, $1;", a, b, out=a.dtype)
    read = (lambda value: signed(value, bits)) if kind[0] == "s" else (lambda value: value)
    expected = [exact(read(int(x)), read(int(y))) & (2**bits - 1) for x, y in zip(a, b, strict=True)]
    assert found.tolist() == expected


@pytest.mark.parametrize("kind", ["u32", "s32", "u16", "s16"])
def test_wide_products_have_twice_the_bits(kind: str) -> None:
    bits = int(kind[1:])
    a, b = pairs(bits)
    wide = np.dtype(f"u{bits // 4}")
    found = evaluate(f"mul.wide.{kind} $d, $0, $1;", a, b, out=wide)
    fused = evaluate(f"mad.wide.{kind} $d, $0, $1, 5;", a, b, out=wide)
    read = (lambda value: signed(value, bits)) if kind[0] == "s" else (lambda value: value)
    exact = [read(int(x)) * read(int(y)) for x, y in zip(a, b, strict=True)]
    mask = 2 ** (2 * bits) - 1
    assert found.tolist() == [value & mask for value in exact]
    assert fused.tolist() == [value + 5 & mask for value in exact]


@pytest.mark.parametrize(
    ("kind", "left"), [("b32", True), ("u32", False), ("s32", False), ("b64", True), ("s64", False)]
)
def test_shift_amounts_are_clamped(kind: str, left: bool) -> None:
    bits = int(kind[1:])
    a, _ = pairs(bits)
    amount = np.resize(np.array([0, 1, 31, 32, 33, 63, 64, 200, 2**32 - 1], np.uint32), a.size)
    found = evaluate(f"{'shl' if left else 'shr'}.{kind} $d, $0, $1;", a, amount, out=a.dtype)
    for value, by, result in zip(a.tolist(), amount.tolist(), found.tolist(), strict=True):
        number = signed(value, bits) if kind[0] == "s" else value
        by = min(by, 2 * bits)
        assert result == (number << by if left else number >> by) & (2**bits - 1)


def test_bit_fields() -> None:
    a, b = pairs(32)
    start = np.resize(np.arange(40, dtype=np.uint32), a.size)
    length = np.resize(np.arange(37, dtype=np.uint32), a.size)
    inserted = evaluate("bfi.b32 $d, $0, $1, $2, $3;", a, b, start, length, out=np.uint32)
    columns = zip(*[each.tolist() for each in (a, b, start, length, inserted)], strict=True)
    for x, y, first, count, new in columns:
        mask = (1 << count) - 1
        assert new == (y & ~(mask << first) | (x & mask) << first) & 0xFFFFFFFF


def test_counting_bits() -> None:
    a, _ = pairs(64)
    assert evaluate("popc.b64 $d, $0;", a, out=np.uint32).tolist() == [int(x).bit_count() for x in a]


def test_prmt_picks_bytes_and_signs() -> None:
    a, b = pairs(32)
    selector = RNG.integers(0, 2**16, a.size).astype(np.uint32)
    found = evaluate("prmt.b32 $d, $0, $1, $2;", a, b, selector, out=np.uint32)
    for x, y, chosen, result in zip(a.tolist(), b.tolist(), selector.tolist(), found.tolist(), strict=True):
        both = (y << 32 | x).to_bytes(8, "little")
        nibbles = [chosen >> 4 * i & 15 for i in range(4)]
        expected = [(255 if both[n & 7] & 128 else 0) if n & 8 else both[n] for n in nibbles]
        assert result == int.from_bytes(bytes(expected), "little")


def test_what_is_not_known_is_named() -> None:
    a = np.ones(4, np.uint32)
    with pytest.raises(Fault, match=r"(?s)unknown instruction dp4a.*dp4a.u32") as caught:
        evaluate("dp4a.u32.u32 $d, $0, $0, $0;", a, out=np.uint32)
    assert caught.value.kind == "unsupported"
    with pytest.raises(Fault, match=r"modifier \.cc"):
        evaluate("add.cc.u32 $d, $0, $0;", a, out=np.uint32)
    with pytest.raises(Fault, match=r"an access to a generic address"):
        evaluate("ld.u32 $d, [%rd0];", a, out=np.uint32)
    with pytest.raises(Fault, match=r"machine register %laneid"):
        evaluate("mov.u32 $d, %laneid;", a, out=np.uint32)
    with pytest.raises(Fault, match=r"call of a function that was not inlined.*helper"):
        evaluate("call.uni (%r9), helper, (%r8);", a, out=np.uint32)
