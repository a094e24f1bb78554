"""Races: each kernel here gives the right numbers on the interpreter, but not always on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptx import Fault, GlobalMemory, Report, parse, run
from tests.ptx.snippets import module, packed_params

SHARED = ".shared .align 16 .b8 buf[512];\n"
SETUP = """
    mov.u32 %r1, %tid.x; mov.u32 %r2, buf; shl.b32 %r3, %r1, 2; add.u32 %r4, %r2, %r3;
    xor.b32 %r5, %r3, 4; add.u32 %r5, %r5, %r2;
"""  # %r4: this thread's word, %r5: its neighbour's


def launch(
    body: str, grid: int = 1, block: int = 64, cluster: int = 1, memory: GlobalMemory | None = None, *addresses: int
) -> Report:
    program = parse(module(SETUP + body + " ret;", len(addresses), SHARED))
    params = packed_params(*addresses)
    return run(program, grid=grid, block=block, cluster=cluster, params=params, memory=memory or GlobalMemory())


def race(body: str, kind: str = "race", block: int = 64) -> str:
    with pytest.raises(Fault) as caught:
        launch(body, block=block)
    assert caught.value.kind == kind
    return str(caught.value)


WRITE, READ, AGAIN = "st.shared.u32 [%r4], %r1;", "ld.shared.u32 %r6, [%r5];", "st.shared.u32 [%r4], %r1;"
BLOCK, WARP, SHUFFLE = "bar.sync 0;", "bar.warp.sync -1;", "shfl.sync.bfly.b32 %r7, %r1, 1, 31, -1;"


@pytest.mark.parametrize("barrier", [BLOCK, WARP, "barrier.sync.aligned 0;", "barrier.cta.sync.aligned 0;"])
def test_read_after_write_needs_a_barrier(barrier: str) -> None:
    launch(WRITE + barrier + READ)
    message = race(WRITE + READ)
    assert "read races with a write by thread 1 of block 0: shared[4:8]" in message


@pytest.mark.parametrize("barrier", [BLOCK, WARP])
def test_write_after_read_needs_a_second_barrier(barrier: str) -> None:
    launch(WRITE + barrier + READ + barrier + AGAIN)
    assert "write races with a read by thread 1" in race(WRITE + barrier + READ + AGAIN)


def test_write_after_write_needs_a_barrier() -> None:
    neighbour = "st.shared.u32 [%r5], %r1;"
    launch(WRITE + BLOCK + neighbour)
    assert "write races with a write" in race(WRITE + neighbour)


@pytest.mark.parametrize(
    "nothing", [SHUFFLE, "vote.sync.ballot.b32 %r7, %p1, -1;", "fence.acq_rel.cta;", "fence.acq_rel.gpu;"]
)
def test_what_orders_nothing(nothing: str) -> None:
    race("setp.eq.u32 %p1, %r1, 0;" + WRITE + nothing + READ)


def test_a_warp_barrier_orders_its_warp_only() -> None:
    other_warp = "xor.b32 %r5, %r3, 128; add.u32 %r5, %r5, %r2;"
    launch(other_warp + WRITE + BLOCK + READ)
    race(other_warp + WRITE + WARP + READ)


def test_a_warp_barrier_orders_its_members_only() -> None:
    half = "setp.lt.u32 %p1, %r1, 16; selp.b32 %r8, 0xFFFF, 0xFFFF0000, %p1; bar.warp.sync %r8;"
    launch(WRITE + half + READ, block=32)
    other_half = "xor.b32 %r5, %r3, 64; add.u32 %r5, %r5, %r2;"
    race(other_half + WRITE + half + READ, block=32)
    launch(other_half + WRITE + WARP + half + READ, block=32)


def test_all_readers_count_not_only_the_last() -> None:
    """All threads read word 0; thread 0 waits only for its own warp, then writes it."""
    broadcast = "setp.ne.u32 %p1, %r1, 0; @!%p1 st.shared.u32 [%r2], %r1; bar.sync 0; ld.shared.u32 %r6, [%r2];"
    launch(broadcast + BLOCK + "@!%p1 st.shared.u32 [%r2], %r1;")
    message = race(broadcast + WARP + "@!%p1 st.shared.u32 [%r2], %r1;")
    assert "and others" in message
    launch(broadcast + WARP + "@!%p1 st.shared.u32 [%r2], %r1;", block=32)
    race(broadcast + "@!%p1 st.shared.u32 [%r2], %r1;", block=32)


def test_a_warp_barrier_does_not_order_the_readers_of_other_warps() -> None:
    """All threads read word 0; a thread of the last warp writes it."""
    broadcast = "setp.eq.u32 %p1, %r1, 63; @%p1 st.shared.u32 [%r2], %r1; bar.sync 0; ld.shared.u32 %r6, [%r2];"
    launch(broadcast + BLOCK + "@%p1 st.shared.u32 [%r2], %r1;")
    race(broadcast + WARP + "@%p1 st.shared.u32 [%r2], %r1;")


def test_order_is_transitive() -> None:
    """Thread 0 reads, then 1 writes, then 2 writes, which never meets thread 0 after its read."""
    only = "setp.eq.u32 %p1, %r1, {}; @%p1 {} [%r2]{};"
    meet = "shl.b32 %r8, 1, %r1; and.b32 %r8, %r8, {0}; setp.ne.u32 %p2, %r8, 0; @%p2 bar.warp.sync {0};"
    write, read = "st.shared.u32", "ld.shared.u32 %r6,"
    first = only.format(0, write, ", %r1") + WARP + only.format(0, read, "") + meet.format(0b011)
    body = first + only.format(1, write, ", %r1")
    launch(body + meet.format(0b110) + only.format(2, write, ", %r1"), block=32)
    race(body + only.format(2, write, ", %r1"), block=32)
    race(first + meet.format(0b110) + only.format(2, write, ", %r1"), block=32)


def test_earlier_readers_still_count() -> None:
    """Thread 40 reads, thread 0 reads, thread 0 writes: only thread 0 is ordered before itself."""
    body = """setp.eq.u32 %p1, %r1, 0; setp.eq.u32 %p2, %r1, 40; @%p1 st.shared.u32 [%r2], %r1; bar.sync 0;
        @%p2 ld.shared.u32 %r6, [%r2]; {} @%p1 ld.shared.u32 %r6, [%r2]; @%p1 st.shared.u32 [%r2], %r1;"""
    launch(body.format(BLOCK))
    race(body.format(""))


def test_neighbouring_bytes_do_not_race() -> None:
    body = "add.u32 %r4, %r2, %r1; cvt.u16.u32 %rs1, %r1; st.shared.u8 [%r4], %rs1; ld.shared.u8 %rs2, [%r4];"
    launch("mov.u32 %r9, 0; setp.eq.u32 %p1, %r1, 63; @%p1 st.shared.u64 [%r2+256], 0;" + body)
    race(body + "xor.b32 %r6, %r1, 1; add.u32 %r6, %r6, %r2; ld.shared.u8 %rs2, [%r6];")


def test_wide_and_narrow_accesses_meet() -> None:
    wide = "setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.v4.u32 [%r2], {%r1, %r1, %r1, %r1};"
    narrow = "setp.eq.u32 %p2, %r1, 5; @%p2 ld.shared.u8 %rs1, [%r2+15];"
    launch(wide + BLOCK + narrow)
    race(wide + narrow)
    beyond = "setp.eq.u32 %p2, %r1, 5; @%p2 st.shared.u32 [%r2+16], %r1;"
    launch(wide + beyond)


def test_two_threads_store_to_one_address() -> None:
    assert "shared[0:4]" in race("st.shared.u32 [%r2], %r1;", kind="same-address")
    race(
        "shr.u32 %r3, %r3, 3; shl.b32 %r3, %r3, 2; add.u32 %r4, %r2, %r3; st.shared.u32 [%r4], 0;", kind="same-address"
    )


def test_a_block_barrier_does_not_order_other_blocks() -> None:
    memory = GlobalMemory()
    y = memory.add("y", 4, access="write")
    body = "ld.param.u64 %rd1, [k_param_0]; mov.u32 %r8, %ctaid.x; setp.eq.u32 %p1, %r1, 0; "
    body += "@%p1 st.global.u32 [%rd1], %r8;"
    launch(body, 1, 64, 1, memory, y)
    with pytest.raises(Fault, match="two threads store to one address"):
        launch(body, 2, 64, 1, memory, y)
    apart = body.replace("@%p1", "setp.lt.u32 %p2, %r8, 1; and.pred %p1, %p1, %p2; @%p1")  # block 0, then block 1
    apart += "bar.sync 0; setp.eq.u32 %p1, %r1, 0; setp.eq.u32 %p2, %r8, 1; and.pred %p1, %p1, %p2;"
    apart += "@%p1 st.global.u32 [%rd1], %r8;"
    with pytest.raises(Fault, match=r"race: .*write races with a write by thread 0 of block 0: y"):
        launch(apart, 2, 64, 1, memory, y)


@pytest.mark.parametrize("blocks", [2, 600])
def test_blocks_of_different_waves_race_too(blocks: int) -> None:
    """The last block reads what the first one wrote, with or without thousands of lanes in between."""
    memory = GlobalMemory()
    y = memory.add("y", 4 * blocks, access="write")
    body = f"""ld.param.u64 %rd1, [k_param_0]; mov.u32 %r8, %ctaid.x;
        mul.wide.u32 %rd2, %r8, 4; add.u64 %rd2, %rd2, %rd1;
        setp.eq.u32 %p1, %r1, 0; @%p1 st.global.u32 [%rd2], %r8; bar.sync 0;
        setp.eq.u32 %p2, %r8, {blocks - 1}; @%p2 ld.global.u32 %r9, [%rd1];"""
    with pytest.raises(Fault, match="read races with a write by thread 0 of block 0"):
        launch(body, blocks, 64, 1, memory, y)


# ---- cp.async

COPY = """
    ld.param.u64 %rd1, [k_param_0]; mul.wide.u32 %rd2, %r1, 4; add.u64 %rd1, %rd1, %rd2;
    cp.async.ca.shared.global [%r4], [%rd1], 4{size}; cp.async.commit_group;
    cp.async.ca.shared.global [%r4+256], [%rd1], 4; cp.async.commit_group;
    {wait}
    ld.param.u64 %rd3, [k_param_1]; add.u64 %rd3, %rd3, %rd2; {read} st.global.u32 [%rd3], %r6;
"""


REISSUE = "cp.async.ca.shared.global [%r4], [%rd1], 4; cp.async.wait_all;"  # into bytes that a neighbour has just read


def copied(wait: str, read: str = "ld.shared.u32 %r6, [%r4];", size: str = "") -> list[int]:
    memory = GlobalMemory()
    x, y = memory.add("x", np.arange(1, 65, dtype=np.uint32)), memory.add("y", 256, access="write")
    report = launch(COPY.format(wait=wait, read=read, size=size), 1, 64, 1, memory, x, y)
    assert report.traffic["x"].reads.total() in (64, 128)  # each copy that was waited for is counted once
    result: list[int] = memory.read("y").view(np.uint32).tolist()
    return result


def test_async_copies_arrive_when_waited_for() -> None:
    assert copied("cp.async.wait_group 1;") == list(range(1, 65))
    assert copied("cp.async.wait_all;", "ld.shared.u32 %r6, [%r4+256];") == list(range(1, 65))
    assert copied("cp.async.wait_group 0; bar.sync 0;", READ) == [(i ^ 1) + 1 for i in range(64)]


def test_async_copies_fill_with_zeros() -> None:
    assert copied("cp.async.wait_all;", size=", 0") == [0] * 64
    assert copied("cp.async.wait_all;", size=", 2") == list(range(1, 65))


@pytest.mark.parametrize(
    ("wait", "read", "kind"),
    [
        ("", "ld.shared.u32 %r6, [%r4];", "uninitialised"),
        ("cp.async.wait_group 2;", "ld.shared.u32 %r6, [%r4];", "uninitialised"),
        ("cp.async.wait_group 1;", "ld.shared.u32 %r6, [%r4+256];", "uninitialised"),
        ("cp.async.wait_all;", READ, "race"),
        ("cp.async.wait_all; bar.sync 0;" + READ + REISSUE, "", "race"),
    ],
)
def test_async_copies_without_wait_or_barrier(wait: str, read: str, kind: str) -> None:
    with pytest.raises(Fault) as caught:
        copied(wait, read)
    assert caught.value.kind == kind
