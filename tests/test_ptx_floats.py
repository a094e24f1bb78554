"""Floating-point arithmetic of the PTX interpreter, against exact fractions and numpy."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.ptx.formats import bf16_to_f32, f32_to_bf16
from tests.ptx.snippets import evaluate

RNG = np.random.default_rng(24)


def floats(count: int, dtype: Any = np.float32, spread: int = 40) -> NDArray[Any]:
    value = RNG.standard_normal(count) * 2.0 ** RNG.integers(-spread, spread, count)
    return value.astype(dtype)


def nearest(value: Fraction, dtype: Any) -> float:
    """The value of `dtype` nearest to a fraction, ties to even: the reference for a single rounding."""
    guess = dtype(float(value)) if dtype is not np.float64 else float(value)
    around = [float(np.nextafter(guess, dtype(-np.inf))), float(guess), float(np.nextafter(guess, dtype(np.inf)))]
    bits = {4: np.uint32, 8: np.uint64, 2: np.uint16}[np.dtype(dtype).itemsize]
    return min(around, key=lambda each: (abs(Fraction(each) - value), int(dtype(each).view(bits)) & 1))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_fma_rounds_once(dtype: Any) -> None:
    spread = 3 if dtype == np.float16 else 20
    a, b = floats(400, dtype, spread), floats(400, dtype, spread)
    c = -(a * b) * dtype(1 + np.finfo(dtype).eps) + floats(400, dtype, 2) * np.finfo(dtype).eps * (a * b)
    bits = np.dtype(dtype).itemsize * 8
    found = evaluate(f"fma.rn.f{bits} $d, $0, $1, $2;", a, b, c, out=dtype)
    exact = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c, strict=True)]
    assert found.tolist() == [nearest(value, dtype) for value in exact]
    assert (found != (a * b + c)).any()  # two roundings would give other results


def test_fma_f32_is_not_rounded_to_f64_first() -> None:
    """a * b + c is 2**-70 below the midpoint of two float32; float64 rounds it to the midpoint, and that up to even."""
    a = np.array([2.0**-12 * (1 + 2.0**-23)], np.float32)
    b = np.array([2.0**-12 * (1 - 2.0**-23)], np.float32)
    c = np.array([1 + 2.0**-23], np.float32)
    twice = (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(np.float32)
    assert evaluate("fma.rn.f32 $d, $0, $1, $2;", a, b, c, out=np.float32)[0] == c[0] < twice[0]


def test_fma_f64_is_not_rounded_through_its_parts() -> None:
    """a * b + c is 2**-111 below the midpoint of two float64, less than its lower part alone can represent."""
    a, b = np.array([2.0**-53 * (1 + 2.0**-29)]), np.array([1 - 2.0**-29])
    c = np.array([1 + 2.0**-52])
    assert evaluate("fma.rn.f64 $d, $0, $1, $2;", a, b, c, out=np.float64)[0] == c[0]
    assert evaluate("fma.rn.f64 $d, $0, $1, $2;", -a, b, -c, out=np.float64)[0] == -c[0]


def test_rounding_down() -> None:
    a, b, c = floats(300), floats(300), floats(300)
    found = evaluate("fma.rm.f32 $d, $0, $1, $2;", a, b, c, out=np.float32)
    for x, y, z, result in zip(a, b, c, found, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        assert Fraction(float(result)) <= exact < Fraction(float(np.nextafter(result, np.float32(np.inf))))


NAN, INF = np.nan, np.inf


def test_maximum_drops_nan_unless_asked() -> None:
    a = np.array([1, NAN, NAN, -0.0, 0.0, -INF], np.float32)
    b = np.array([2, 3, NAN, 0.0, -0.0, NAN], np.float32)
    assert np.array_equal(
        evaluate("max.f32 $d, $0, $1;", a, b, out=np.float32), [2, 3, NAN, 0, 0, -INF], equal_nan=True
    )
    largest = evaluate("max.f32 $d, $0, $1;", a, b, out=np.float32)
    smallest = evaluate("min.f32 $d, $0, $1;", a, b, out=np.float32)
    assert not np.signbit(largest[3:5]).any() and np.signbit(smallest[3:5]).all()
    strict = evaluate("max.NaN.f32 $d, $0, $1;", a, b, out=np.uint32)
    assert strict.tolist()[1:3] == [0x7FFFFFFF] * 2 and strict[5] == 0x7FFFFFFF


def test_ftz_flushes_sources_and_results() -> None:
    tiny = np.array([1e-40, -1e-40, 1e-30, 2e-38], np.float32)
    factor = np.array([1, 1, 1e-10, 0.5], np.float32)
    kept = evaluate("mul.f32 $d, $0, $1;", tiny, factor, out=np.float32)
    flushed = evaluate("mul.ftz.f32 $d, $0, $1;", tiny, factor, out=np.float32)
    assert (kept != 0).all() and (flushed == 0).all()
    assert np.signbit(flushed).tolist() == [False, True, False, False]


UNARY: list[tuple[str, Callable[[Any], Any]]] = [
    ("ex2.approx.f32", np.exp2),
    ("lg2.approx.f32", np.log2),
    ("rcp.rn.f32", lambda a: 1 / a),
    ("rcp.approx.f32", lambda a: 1 / a),
    ("neg.f32", lambda a: -a),
    ("abs.f32", np.abs),
]


@pytest.mark.parametrize(("opcode", "exact"), UNARY, ids=[case[0] for case in UNARY])
def test_functions_of_one_value(opcode: str, exact: Callable[[Any], Any]) -> None:
    a = np.concatenate(
        [floats(200, spread=6), np.array([0.0, -0.0, INF, -INF, 126.5, -140, -149, 200, -1], np.float32)]
    )
    found = evaluate(f"{opcode} $d, $0;", a, out=np.float32)
    with np.errstate(all="ignore"):
        expected = exact(a.astype(np.float64)).astype(np.float32)
    assert np.array_equal(found, expected, equal_nan=True)


def test_ex2_keeps_subnormal_results_unless_ftz() -> None:
    a = np.array([-130.0, -149.0, -151.0], np.float32)
    assert evaluate("ex2.approx.f32 $d, $0;", a, out=np.float32).tolist() == [2.0**-130, 2.0**-149, 0]
    assert evaluate("ex2.approx.ftz.f32 $d, $0;", a, out=np.float32).tolist() == [0, 0, 0]


def test_gross_reciprocals_have_twenty_bits_and_no_subnormals() -> None:
    a = np.array([3.0, -1.5, 2.0**-1030, 2.0**1023, INF, NAN], np.float64)
    found = evaluate("rcp.approx.ftz.f64 $d, $0;", a, out=np.float64)
    assert np.allclose(found[:2], 1 / a[:2], rtol=2.0**-20) and not (found.view(np.uint64) & 0xFFFFFFFF).any()
    assert found[2:5].tolist() == [INF, 0, 0] and np.isnan(found[5])


def test_double_precision() -> None:
    a, b = floats(200, np.float64), floats(200, np.float64)
    assert np.array_equal(evaluate("div.rn.f64 $d, $0, $1;", a, b, out=np.float64), a / b)
    assert np.array_equal(evaluate("add.f64 $d, $0, $1;", a, b, out=np.float64), a + b)
    assert np.array_equal(evaluate("max.f64 $d, $0, $1;", a, b, out=np.float64), np.maximum(a, b))
    assert np.array_equal(evaluate("rcp.rn.f64 $d, $0;", a, out=np.float64), 1 / a)


def halves(count: int) -> NDArray[Any]:
    return floats(2 * count, np.float16, spread=4)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "max", "min"])
def test_packed_halves(name: str) -> None:
    a, b = halves(100), halves(100)
    found = evaluate(f"{name}.f16x2 $d, $0, $1;", a.view(np.uint32), b.view(np.uint32), out=np.uint32).view(np.float16)
    apply = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.maximum, "min": np.minimum}[name]
    assert np.array_equal(found, apply(a, b))


@pytest.mark.parametrize("name", ["add", "mul", "max"])
def test_packed_bf16(name: str) -> None:
    a, b = f32_to_bf16(floats(200)), f32_to_bf16(floats(200))
    found = evaluate(f"{name}.bf16x2 $d, $0, $1;", a.view(np.uint32), b.view(np.uint32), out=np.uint32).view(np.uint16)
    apply = {"add": np.add, "mul": np.multiply, "max": np.maximum}[name]
    assert np.array_equal(found, f32_to_bf16(apply(bf16_to_f32(a), bf16_to_f32(b))))


def test_packed_fma() -> None:
    a, b, c = halves(100), halves(100), halves(100)
    words = [each.view(np.uint32) for each in (a, b, c)]
    found = evaluate("fma.rn.f16x2 $d, $0, $1, $2;", *words, out=np.uint32).view(np.float16)
    exact = (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(np.float16)
    assert np.array_equal(found, exact)


def test_packed_singles() -> None:
    a, b = floats(64), floats(64)
    found = evaluate("mul.rn.f32x2 $d, $0, $1;", a.view(np.uint64), b.view(np.uint64), out=np.uint64).view(np.float32)
    assert np.array_equal(found, a * b)


def test_bf16_fma_rounds_once() -> None:
    a, b, c = (f32_to_bf16(floats(300, spread=4)) for _ in range(3))
    found = bf16_to_f32(evaluate("fma.rn.bf16 $d, $0, $1, $2;", a, b, c, out=np.uint16))
    for x, y, z, result in zip(bf16_to_f32(a), bf16_to_f32(b), bf16_to_f32(c), found, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        ulp = Fraction(float(np.spacing(np.float32(abs(result))))) * 2**16
        assert abs(Fraction(float(result)) - exact) <= ulp / 2
