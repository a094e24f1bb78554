"""Conversions, comparisons and register moves of the PTX interpreter."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.ptx.formats import bf16_to_f32, f32_to_bf16
from tests.ptx.snippets import evaluate

NAN, INF = np.nan, np.inf
RNG = np.random.default_rng(21)


def test_integer_widths() -> None:
    a = np.array([0x80, 0x7F, 0xFF80, 0x12345678, 0xFFFFFFFF], np.uint32)
    assert evaluate("cvt.s32.s8 $d, $0;", a, out=np.int32).tolist() == [-128, 127, -128, 0x78, -1]
    assert evaluate("cvt.u32.u8 $d, $0;", a, out=np.uint32).tolist() == [0x80, 0x7F, 0x80, 0x78, 0xFF]
    assert evaluate("cvt.s64.s32 $d, $0;", a, out=np.int64).tolist() == [0x80, 0x7F, 0xFF80, 0x12345678, -1]
    assert evaluate("cvt.u64.u32 $d, $0;", a, out=np.uint64)[-1] == 2**32 - 1


def test_integer_to_float() -> None:
    a = np.array([0, 1, -1, 2**24 + 1, -(2**31), 2**31 - 1], np.int32)
    assert np.array_equal(evaluate("cvt.rn.f32.s32 $d, $0;", a, out=np.float32), a.astype(np.float32))
    wide = np.array([2**63 - 1, 2**53 + 1, -5], np.int64)
    assert np.array_equal(evaluate("cvt.rn.f64.s64 $d, $0;", wide, out=np.float64), wide.astype(np.float64))


EDGES = np.array(
    [0.0, -0.0, 1, 65504, 65519.9, 65520, 1e9, 2.0**-24, 2.0**-25, 2.0**-25 * 1.001, 6e-8, -3.14159, INF, -INF, NAN],
    np.float32,
)


def test_f16_and_back() -> None:
    found = evaluate("cvt.rn.f16.f32 $d, $0;", EDGES, out=np.uint16)
    with np.errstate(over="ignore"):
        expected = EDGES.astype(np.float16).view(np.uint16)
    assert found[:-1].tolist() == expected[:-1].tolist() and found[-1] == 0x7FFF
    every = np.arange(2**16, dtype=np.uint16)
    wide = evaluate("cvt.f32.f16 $d, $0;", every, out=np.float32)
    assert np.array_equal(wide, every.view(np.float16).astype(np.float32), equal_nan=True)


def bf16_nearest(value: float) -> int:
    """Bits of the nearest bfloat16, ties to even, by comparing the two neighbours."""
    bits: int = struct.unpack("<I", struct.pack("<f", value))[0]
    low, high = bits >> 16, (bits >> 16) + 1
    if low & 0x7FFF >= 0x7F80:
        return low if bits & 0x7FFFFF == 0 else 0x7FFF
    middle = (low << 16) + 0x8000
    return low if bits < middle or (bits == middle and low % 2 == 0) else high


def test_bf16_and_back() -> None:
    some = RNG.integers(0, 2**32, 500, dtype=np.uint32).view(np.float32)
    ties = (RNG.integers(0, 2**15, 100, dtype=np.uint32) << np.uint32(16) | np.uint32(0x8000)).view(np.float32)
    a = np.concatenate([EDGES, some, ties, np.array([3.4e38], np.float32)])
    found = evaluate("cvt.rn.bf16.f32 $d, $0;", a, out=np.uint16)
    assert found.tolist() == [bf16_nearest(float(value)) for value in a]
    every = np.arange(2**16, dtype=np.uint16)
    wide = evaluate("cvt.f32.bf16 $d, $0;", every, out=np.uint32)
    assert np.array_equal(wide, every.astype(np.uint32) << np.uint32(16))


def test_packed_conversions_put_the_first_source_on_top() -> None:
    a, b = np.array([1.0, 2.5], np.float32), np.array([-3.0, 0.1], np.float32)
    found = evaluate("cvt.rn.f16x2.f32 $d, $0, $1;", a, b, out=np.uint32).view(np.float16).reshape(-1, 2)
    assert np.array_equal(found, np.stack([b, a], axis=1).astype(np.float16))
    brain = evaluate("cvt.rn.bf16x2.f32 $d, $0, $1;", a, b, out=np.uint32).view(np.uint16).reshape(-1, 2)
    assert bf16_to_f32(brain[:, 1]).tolist() == [1.0, 2.5]


def test_f64_to_narrower() -> None:
    a = np.array([1 + 2.0**-24 + 2.0**-50, 1e300, 1e-46, -0.1, NAN], np.float64)
    with np.errstate(over="ignore"):
        assert np.array_equal(
            evaluate("cvt.rn.f32.f64 $d, $0;", a, out=np.float32), a.astype(np.float32), equal_nan=True
        )
    tie = np.array([1 + 2.0**-8 + 2.0**-40], np.float64)  # via float32 it would be a tie, and round down
    assert bf16_to_f32(evaluate("cvt.rn.bf16.f64 $d, $0;", tie, out=np.uint16))[0] == 1 + 2.0**-7


def test_saturation() -> None:
    a = np.array([0.5, 1.5, -0.5, 1e-40, -2, NAN], np.float32)
    assert evaluate("cvt.sat.f32.f32 $d, $0;", a, out=np.float32).tolist() == [0.5, 1, 0, a[3], 0, 0]


@pytest.mark.parametrize("kind", ["f32", "f64", "f16"])
def test_comparisons_with_nan(kind: str) -> None:
    dtype = {"f32": np.float32, "f64": np.float64, "f16": np.float16}[kind]
    a = np.array([1, 2, 2, NAN, 1, NAN], dtype)
    b = np.array([2, 1, 2, 1, NAN, NAN], dtype)
    for name, ordered in {
        "eq": [0, 0, 1],
        "ne": [1, 1, 0],
        "lt": [1, 0, 0],
        "le": [1, 0, 1],
        "gt": [0, 1, 0],
        "ge": [0, 1, 1],
    }.items():
        plain = evaluate(f"setp.{name}.{kind} $d, $0, $1;", a, b, out=bool)
        unordered = evaluate(f"setp.{name}u.{kind} $d, $0, $1;", a, b, out=bool)
        assert plain.tolist() == [bool(each) for each in [*ordered, 0, 0, 0]]
        assert unordered.tolist() == [bool(each) for each in [*ordered, 1, 1, 1]]
    assert evaluate(f"setp.num.{kind} $d, $0, $1;", a, b, out=bool).tolist() == [True] * 3 + [False] * 3
    assert evaluate(f"setp.nan.{kind} $d, $0, $1;", a, b, out=bool).tolist() == [False] * 3 + [True] * 3


def test_integer_comparisons_have_a_sign() -> None:
    a, b = np.array([0xFFFFFFFF, 1], np.uint32), np.array([1, 0xFFFFFFFF], np.uint32)
    assert evaluate("setp.lt.s32 $d, $0, $1;", a, b, out=bool).tolist() == [True, False]
    assert evaluate("setp.lt.u32 $d, $0, $1;", a, b, out=bool).tolist() == [False, True]


def test_packed_comparisons() -> None:
    a = np.array([1, 5, NAN, 2], np.float16).view(np.uint32)
    b = np.array([2, 2, 2, 2], np.float16).view(np.uint32)
    code = "setp.gt.f16x2 %p1|%p2, $0, $1; selp.u32 %r8, 1, 0, %p1; selp.u32 %r9, 2, 0, %p2; or.b32 $d, %r8, %r9;"
    assert evaluate(code, a, b, out=np.uint32).tolist() == [2, 0]
    code = code.replace("f16x2", "bf16x2")
    a, b = (f32_to_bf16(each.view(np.float16).astype(np.float32)).view(np.uint32) for each in (a, b))
    assert evaluate(code, a, b, out=np.uint32).tolist() == [2, 0]


def test_vectors_pack_and_unpack() -> None:
    a = np.array([0x0011223344556677], np.uint64)
    code = "mov.b64 {%r8, %r9}, $0; mov.b32 {%rs1, %rs2}, %r9; mov.b32 %r10, {%rs2, %rs1}; mov.b64 $d, {%r10, %r8};"
    assert evaluate(code, a, out=np.uint64)[0] == 0x4455667722330011


def test_literals() -> None:
    a = np.zeros(1, np.uint32)
    for literal, expected in {"0x1F": 31, "0": 0, "17": 17, "-1": 2**32 - 1}.items():
        assert evaluate(f"mov.u32 $d, {literal};", a, out=np.uint32)[0] == expected
    assert evaluate("mov.f32 $d, 0f3FC00000;", a, out=np.float32)[0] == 1.5
    assert evaluate("mov.f64 $d, 0d3FF8000000000000;", a, out=np.float64)[0] == 1.5


def test_scopes_of_inline_assembly() -> None:
    """Each pair of braces has its own names."""
    a = np.array([1, 2], np.uint32)
    code = "mov.u32 %r8, 0; "
    for _ in range(2):
        code += "{ .reg .u32 t; .reg .pred p; setp.eq.u32 p, $0, 1; mov.u32 t, 5; @p bra SKIP; add.u32 t, t, 1; "
        code += "SKIP: add.u32 %r8, %r8, t; } "
    assert evaluate(code + "mov.u32 $d, %r8;", a, out=np.uint32).tolist() == [10, 12]


def test_an_unwritten_register_is_poisoned() -> None:
    """Even for lanes that did not write it while others did."""
    a = np.array([0, 1], np.uint32)
    assert np.isnan(evaluate("add.f32 $d, %f40, 0f3F800000;", a, out=np.float32)).all()
    found = evaluate("setp.eq.u32 %p1, $0, 1; @%p1 mov.u32 %r40, 5; mov.u32 $d, %r40;", a, out=np.uint32)
    assert found.tolist() == [2**32 - 1, 5]
