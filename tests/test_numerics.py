"""What docs/numerics.md says about the general kind matches what its kernels do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import softmax_ops
from codegen import toolchain, variants
from codegen.axes import Direction, DType
from codegen.features import Mask
from tests.support import interpreted, numerics, numerics_general, targets
from tests.support.numerics_general import RESULTS, Seen
from tests.support.targets import Target

MEASURED = [(way, dtype) for way in Direction for dtype in numerics_general.dtypes(way)]

STALE = f"{numerics_general.COMMAND} brings it up to date"


def on_the_page() -> list[list[str]]:
    """The cells of every line in the tables of the general kind, headers included."""
    _, _, after = numerics.PAGE.read_text().partition(f"<!-- begin: {numerics_general.COMMAND} -->")
    block, _, _ = after.partition("<!-- end -->")
    lines = [line for line in block.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_page_has_every_result_of_every_type_and_all_that_may_be_asked_for() -> None:
    found = on_the_page()
    heads = [line for line in found if line[0] == "dtype"]
    assert [head[2:-1] for head in heads] == [list(asked) for asked in numerics_general.ASKED.values()], STALE
    wanted = [[dtype.value, result] for way, dtype in MEASURED for result in RESULTS[way]]
    assert [line[:2] for line in found if line not in heads] == wanted, STALE


def test_page_shows_nothing_beyond_the_tolerance() -> None:
    assert all(float(line[-1]) <= 1 for line in on_the_page() if line[0] != "dtype")


@pytest.mark.kernels
@pytest.mark.skipif("sm_70" in toolchain.supported_architectures(), reason="the page is of CUDA 13.0")
@pytest.mark.skipif(np.finfo(np.longdouble).nmant != 63, reason="f64 is measured against a long double of 64 bits")
@pytest.mark.parametrize(("direction", "dtype"), MEASURED, ids=lambda each: getattr(each, "label", None) or each.value)
def test_page_says_what_the_kernels_do(
    direction: Direction, dtype: DType, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same lines, measured now. Errors of f64 differ by some percent between CPUs, whose mathematical functions
    differ.
    """
    torch.set_num_threads(1)
    chosen = {Target(targets.WHOLE, spec) for spec in numerics_general.kernels(direction, dtype)}
    images = targets.images(chosen, "ptx", tmp_path_factory.getbasetemp().parent)[targets.WHOLE]
    ours = [line for line in on_the_page() if line[0] == dtype.value and line[1] in RESULTS[direction]]
    measured = numerics_general.lines(direction, dtype, images)
    assert [line[:2] for line in measured] == [line[:2] for line in ours], STALE
    assert numbers(measured) == pytest.approx(numbers(ours), rel=0.1), STALE


def numbers(lines: list[list[str]]) -> list[float]:
    """The numbers in the cells, which are such as "3.2 of 28.1", in order."""
    return [float(number) for line in lines for cell in line[2:] for number in cell.split(" of ")]


def test_the_largest_error_stands_beside_what_is_allowed_there() -> None:
    """The largest part of what is allowed may occur elsewhere."""
    error, allowed, unit = np.array([[3.0, 1.0], [8.0, 1.25], [2.0, 2.0]])
    seen = Seen.of(error, allowed, unit)
    assert (seen.error, seen.allowed, seen.part) == (1.5, 4.0, 0.8)
    joined = Seen(2.0, 9.0, 0.1) | seen
    assert (joined.error, joined.allowed, joined.part) == (2.0, 9.0, 0.8) and str(joined) == "2 of 9"


@pytest.mark.kernels
@pytest.mark.parametrize("k", [8192, 32768], ids=["block", "cluster"])
def test_large_scores_of_several_warps_keep_their_ratio(
    k: int, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The exponentials of each warp have a factor from the rounding of m log2(e), which must not survive in the result:
    at m = 6000 it is half of f16's spacing.
    """
    chosen = {
        Target(targets.WHOLE, spec)
        for spec in variants.shipped()
        if (spec.direction, spec.dtype, spec.mask) == (Direction.FORWARD, DType.F16, Mask.NONE) and spec.max_k >= k
    }
    images = targets.images(chosen, "ptx", tmp_path_factory.getbasetemp().parent)[targets.WHOLE]
    interpreted.install(monkeypatch.setattr, images)
    generator = torch.Generator().manual_seed(0)
    for largest, scale in (20224.0, 0.3), (60000.0, 0.1), (-30000.0, 0.3), (30000.0, 1.0):
        x = torch.full((2, k), largest - 2000.0)
        places = torch.randint(0, k, (2, 40), generator=generator)
        x.scatter_(1, places, largest - 32.0 * torch.randint(0, 8, (2, 40), generator=generator))
        y = softmax_ops.softmax(x.half(), scale=scale)
        expected = (x.half().float() * scale).double().softmax(-1)
        exponent = expected.clamp_min(2.0**-14).log2().floor()
        assert ((y - expected).abs() / (exponent - 10).exp2()).max() <= 0.51
