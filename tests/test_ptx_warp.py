"""Shuffles, votes and reductions of a warp, also with missing lanes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.ptx import Fault, GlobalMemory, parse, run
from tests.ptx.operations.warp import source_lane
from tests.ptx.snippets import evaluate, module, packed_params

LANES = np.arange(64, dtype=np.uint32)
RNG = np.random.default_rng(22)


def shuffle(mode: str, b: int, c: int) -> NDArray[Any]:
    code = f"shfl.sync.{mode}.b32 %r8|%p1, $0, {b}, {c}, -1; selp.u32 %r9, 1000, 0, %p1; add.u32 $d, %r8, %r9;"
    return evaluate(code, LANES, out=np.uint32)


@pytest.mark.parametrize("width", [2, 4, 8, 16, 32])
def test_shuffles_stay_in_their_segment(width: int) -> None:
    """The clamp and segment bits of __shfl_*_sync(mask, value, by, width); out of range a lane keeps its value."""
    lane, segment = LANES % width, LANES - LANES % width
    mask = (32 - width) << 8
    by = max(width // 2 - 1, 1)
    inside = lane + by < width
    assert np.array_equal(shuffle("down", by, mask | 31), np.where(inside, LANES + by + 1000, LANES))
    inside = lane >= by
    assert np.array_equal(shuffle("up", by, mask), np.where(inside, LANES - by + 1000, LANES))
    assert np.array_equal(shuffle("bfly", width // 2, mask | 31), (LANES ^ width // 2) + 1000)
    assert np.array_equal(shuffle("idx", width - 1, mask | 31), segment + width - 1 + 1000)


def test_source_lane_of_a_butterfly_across_the_clamp() -> None:
    lane = np.arange(32)
    source, inside = source_lane("bfly", lane, np.int64(16), np.int64(15))
    assert not inside[:16].any() and inside[16:].all()
    assert source.tolist() == [*range(16), *range(16)]


def test_votes() -> None:
    wants = (RNG.random(64) < 0.5).astype(np.uint32)
    wants[32:] = 1
    ballots = [sum(int(bit) << i for i, bit in enumerate(wants[warp : warp + 32])) for warp in (0, 32)]
    code = "setp.eq.u32 %p1, $0, 1; vote.sync.ballot.b32 $d, %p1, -1;"
    assert evaluate(code, wants, out=np.uint32).tolist() == np.repeat(ballots, 32).tolist()
    code = "setp.eq.u32 %p1, $0, 1; vote.sync.{}.pred $d, {}%p1, -1;"
    for name, sign, expected in [
        ("any", "", [True, True]),
        ("all", "", [False, True]),
        ("uni", "", [False, True]),
        ("any", "!", [True, False]),
    ]:
        assert evaluate(code.format(name, sign), wants, out=bool).tolist() == np.repeat(expected, 32).tolist()


def test_masks_split_a_warp_into_groups() -> None:
    """Even and odd lanes vote separately."""
    code = """and.b32 %r8, $0, 1; setp.eq.u32 %p1, %r8, 0; selp.b32 %r9, 0x55555555, 0xAAAAAAAA, %p1;
        setp.gt.u32 %p2, $0, 29; vote.sync.ballot.b32 $d, %p2, %r9;"""
    assert evaluate(code, LANES[:32].copy(), out=np.uint32).tolist() == [1 << 30, 1 << 31] * 16


@pytest.mark.parametrize(("opcode", "apply"), [("add.u32", np.sum), ("max.s32", np.max), ("min.s32", np.min)])
def test_redux(opcode: str, apply: Any) -> None:
    values = RNG.integers(-1000, 1000, 64).astype(np.int32)
    found = evaluate(f"redux.sync.{opcode} $d, $0, -1;", values, out=np.int32)
    assert found.tolist() == np.repeat([apply(values[:32]), apply(values[32:])], 32).tolist()
    half = evaluate(
        f"mov.u32 %r8, %tid.x; and.b32 %r8, %r8, 31; setp.lt.u32 %p1, %r8, 16; selp.b32 %r9, 0xFFFF, 0xFFFF0000, %p1;"
        f" redux.sync.{opcode} $d, $0, %r9;",
        values,
        out=np.int32,
    )
    assert half.tolist() == np.repeat([apply(part) for part in values.reshape(4, 16)], 16).tolist()


# ---- missing lanes


def launch(body: str, block: int = 32) -> None:
    """A kernel that computes from %tid.x in %r1 and stores nothing."""
    run(
        parse(module(f"mov.u32 %r1, %tid.x; {body} ret;", params=0)),
        grid=1,
        block=block,
        params=packed_params(),
        memory=GlobalMemory(),
    )


def missing(body: str, block: int = 32) -> str:
    with pytest.raises(Fault) as caught:
        launch(body, block)
    assert caught.value.kind == "missing lane"
    return str(caught.value)


SHUFFLE = "shfl.sync.bfly.b32 %r2, %r1, 1, 31, {};"


def test_a_lane_that_has_exited_is_missing() -> None:
    message = missing("setp.eq.u32 %p1, %r1, 9; @%p1 ret; " + SHUFFLE.format(-1))
    assert "thread 9 of block 0 has exited" in message and "shfl.sync.bfly.b32" in message


def test_a_lane_on_another_path_is_missing() -> None:
    body = f"setp.lt.u32 %p1, %r1, 16; @%p1 bra L; {SHUFFLE.format(-1)} bra E; L: bar.sync 0; E:"
    assert "waits at `bar.sync 0" in missing(body)


def test_a_mask_must_name_its_own_lane() -> None:
    assert "leaves it out" in missing(SHUFFLE.format("0xFFFF"))


def test_a_source_outside_the_mask_is_missing() -> None:
    body = "setp.gt.u32 %p1, %r1, 15; @%p1 ret; shfl.sync.bfly.b32 %r2, %r1, 16, 31, 0xFFFF;"
    assert "lane 16, which is not in its member mask" in missing(body)


def test_a_source_that_the_block_does_not_have_is_missing() -> None:
    """48 threads: the second warp has only 16, and its other lanes do not answer."""
    launch(SHUFFLE.format(-1), block=48)
    assert "thread 32" in missing("shfl.sync.bfly.b32 %r2, %r1, 16, 31, -1;", block=48)


def test_lanes_may_arrive_one_group_after_the_other() -> None:
    """A loop with a different trip count for each lane, and a shuffle placed before the loop's body."""
    launch(
        f"""mov.u32 %r5, 0; bra TEST;
        DONE: {SHUFFLE.format(-1)} bra END;
        TEST: setp.ge.u32 %p1, %r5, %r1; @%p1 bra DONE; add.u32 %r5, %r5, 1; bra TEST;
        END:"""
    )
