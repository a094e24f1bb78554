"""Barriers of block and cluster: divergence, early exits, deadlocks, distributed shared memory."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptx import Fault, GlobalMemory, parse, run
from tests.ptx import schedule as scheduling
from tests.ptx.snippets import module, packed_params

SHARED = ".shared .align 16 .b8 buf[512];\n"
SETUP = "mov.u32 %r1, %tid.x; mov.u32 %r2, buf; mov.u32 %r3, %ctaid.x; mov.u32 %r4, %cluster_ctarank;"


def launch(body: str, grid: int = 1, block: int = 64, cluster: int = 1) -> list[int]:
    """Thread 0 of each block stores %r9, if it reaches the end of the body."""
    memory = GlobalMemory()
    y = memory.add("y", 4 * grid, access="write")
    store = """setp.ne.u32 %p9, %r1, 0; @%p9 ret; ld.param.u64 %rd1, [k_param_0]; mul.wide.u32 %rd2, %r3, 4;
        add.u64 %rd1, %rd1, %rd2; st.global.u32 [%rd1], %r9; ret;"""
    program = parse(module(f"{SETUP} mov.u32 %r9, 0; {body} {store}", 1, SHARED))
    run(program, grid=grid, block=block, cluster=cluster, params=packed_params(y), memory=memory)
    result: list[int] = memory.read("y").view(np.uint32).tolist()
    return result


def fault(kind: str, body: str, **arguments: int) -> str:
    with pytest.raises(Fault) as caught:
        launch(body, **arguments)
    assert caught.value.kind == kind, str(caught.value)
    return str(caught.value)


def test_a_thread_that_returned_is_missing_at_a_barrier() -> None:
    message = fault("divergent barrier", "setp.eq.u32 %p1, %r1, 33; @%p1 ret; bar.sync 0;")
    assert "1 threads that are not here: thread 33 of block 0 has exited" in message


def test_a_whole_block_may_return_early() -> None:
    assert launch("setp.eq.u32 %p1, %r3, 1; @%p1 bra OUT; bar.sync 0; OUT: mov.u32 %r9, %r3;", grid=3) == [0, 1, 2]


def test_threads_at_different_barriers() -> None:
    body = "setp.lt.u32 %p1, %r1, 32; @%p1 bra L; bar.sync 0; bra E; L: bar.sync 0; E:"
    assert "waits at `bar.sync 0" in fault("divergent barrier", body)


def test_barrier_in_a_loop_with_different_trip_counts() -> None:
    body = "mov.u32 %r5, 0; L: bar.sync 0; add.u32 %r5, %r5, 1; setp.lt.u32 %p1, %r5, {}; @%p1 bra L;"
    launch(body.format(3))
    launch("add.u32 %r6, %r3, 1;" + body.format("%r6"), grid=4)
    fault("divergent barrier", "shr.u32 %r6, %r1, 5; add.u32 %r6, %r6, 1;" + body.format("%r6"))


def test_a_barrier_for_part_of_the_block_is_not_supported() -> None:
    launch("bar.sync 1, 64;")
    assert "a barrier of 32 threads in a block of 64" in fault("unsupported", "bar.sync 1, 32;")


def test_a_loop_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "STEP_LIMIT", 1000)
    assert "still running after 1000 instructions" in fault("deadlock", "L: bra L;")


def test_a_kernel_may_end_without_ret() -> None:
    run(parse(module("mov.u32 %r1, 1;", 0)), grid=1, block=32, params=b"", memory=GlobalMemory())


# ---- clusters

ARRIVE, WAIT = "barrier.cluster.arrive.aligned;", "barrier.cluster.wait.aligned;"
CLUSTER = ARRIVE + WAIT
OWN = "setp.eq.u32 %p1, %r1, 0; add.u32 %r8, %r3, 100; @%p1 st.shared.u32 [%r2], %r8;"
REMOTE = "xor.b32 %r5, %r4, 1; mapa.shared::cluster.u32 %r6, %r2, %r5; ld.shared::cluster.u32 %r9, [%r6];"


def test_distributed_shared_memory() -> None:
    assert launch(OWN + CLUSTER + REMOTE + CLUSTER, grid=4, cluster=2) == [101, 100, 103, 102]


def test_a_block_barrier_does_not_order_the_cluster() -> None:
    message = fault("race", OWN + "bar.sync 0;" + REMOTE + CLUSTER, grid=2, cluster=2)
    assert "read races with a write by thread 0 of block 1" in message


def test_a_cluster_barrier_does_not_order_other_clusters() -> None:
    body = f"""ld.param.u64 %rd1, [k_param_0]; setp.eq.u32 %p1, %r1, 0; setp.eq.u32 %p2, %r3, {{}};
        setp.eq.u32 %p3, %r3, 0; and.pred %p2, %p2, %p1; and.pred %p3, %p3, %p1;
        @%p2 st.global.u32 [%rd1], %r3; {CLUSTER} @%p3 ld.global.u32 %r9, [%rd1]; {CLUSTER} ret;"""
    with pytest.raises(Fault, match="race"):
        launch(body.format(2), grid=4, cluster=2)
    assert launch(body.format(1), grid=4, cluster=2)[0] == 1


def test_a_block_must_outlive_its_readers() -> None:
    message = fault("race", OWN + CLUSTER + REMOTE, grid=2, cluster=2)
    assert "block exits while thread 63 of block 1 may still use its shared memory" in message
    gone = f"{OWN} {CLUSTER} setp.eq.u32 %p2, %r4, 0; @%p2 bra E; bra LATE; E: ret; LATE: {REMOTE}"
    assert "exited" in fault("race", gone, grid=2, cluster=2)


def test_what_follows_the_arrival_is_not_ordered_by_it() -> None:
    launch(OWN + ARRIVE + "mov.u32 %r7, 1;" + WAIT + REMOTE + CLUSTER, grid=2, cluster=2)
    fault("race", ARRIVE + OWN + WAIT + REMOTE + CLUSTER, grid=2, cluster=2)


def test_a_relaxed_arrival_needs_a_fence() -> None:
    relaxed = "barrier.cluster.arrive.relaxed.aligned;" + WAIT
    fault("race", OWN + relaxed + REMOTE + CLUSTER, grid=2, cluster=2)
    launch(OWN + "fence.acq_rel.cluster;" + relaxed + REMOTE + CLUSTER, grid=2, cluster=2)


def test_writes_after_remote_reads_need_a_cluster_barrier() -> None:
    again = "@%p1 st.shared.u32 [%r2], 5;"
    launch(OWN + CLUSTER + REMOTE + CLUSTER + again, grid=2, cluster=2)
    fault("race", OWN + CLUSTER + REMOTE + "bar.sync 0;" + again + CLUSTER, grid=2, cluster=2)


def test_ranks_outside_the_cluster() -> None:
    beyond = "mapa.shared::cluster.u32 %r6, %r2, 2; ld.shared::cluster.u32 %r9, [%r6];"
    assert "cluster of 2" in fault("bounds", OWN + CLUSTER + beyond, grid=4, cluster=2)


def test_cluster_barriers_diverge_too() -> None:
    fault("divergent barrier", f"setp.eq.u32 %p1, %r4, 1; @%p1 ret; {CLUSTER}", grid=2, cluster=2)
    fault("divergent barrier", WAIT, grid=2, cluster=2)
    fault("divergent barrier", ARRIVE + CLUSTER, grid=2, cluster=2)


def test_a_block_barrier_across_a_cluster_barrier_hangs() -> None:
    """Half of the block waits at the block's barrier, half at the cluster's."""
    body = f"setp.lt.u32 %p1, %r1, 32; @%p1 bra L; bar.sync 0; {CLUSTER} bra E; L: {CLUSTER} bar.sync 0; E:"
    fault("divergent barrier", body, grid=2, cluster=2)


# ---- mbarriers

BOX = "add.u32 %r20, %r2, 64;"  # the mbarrier, after the bytes that it counts
EXPECT = "@%p1 mbarrier.arrive.expect_tx.relaxed.cluster.shared::cta.b64 _, [%r20], 8;"
FENCE = "@%p1 fence.mbarrier_init.release.cluster;"
RELAXED = "barrier.cluster.arrive.relaxed.aligned;" + WAIT
OPEN = f"{BOX} setp.eq.u32 %p1, %r1, 0; @%p1 mbarrier.init.shared::cta.b64 [%r20], 1; {FENCE} {EXPECT}"
SEND = """xor.b32 %r5, %r4, 1; mapa.shared::cluster.u32 %r6, %r2, %r5; mapa.shared::cluster.u32 %r21, %r20, %r5;
    add.u32 %r8, %r3, 100;
    @%p1 st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%r6], {%r8, %r8}, [%r21];"""
AWAIT = """AGAIN: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p4, [%r20], 0; @!%p4 bra AGAIN;"""
GET = "ld.shared.u32 %r9, [%r2];"


def exchange(*body: str) -> list[int]:
    return launch("".join(body), grid=4, cluster=2)


def exchange_fault(kind: str, *body: str) -> str:
    return fault(kind, "".join(body), grid=4, cluster=2)


def test_asynchronous_stores_are_known_to_who_waits_for_them() -> None:
    assert exchange(OPEN, RELAXED, SEND, AWAIT, GET) == [101, 100, 103, 102]


def test_asynchronous_stores_land_at_an_unknown_time() -> None:
    own = "@%p1 st.shared.u32 [%r2], 7;"
    assert "an asynchronous store" in exchange_fault("race", OPEN, own, CLUSTER, SEND, GET, AWAIT)
    exchange_fault("race", OPEN, RELAXED, SEND, GET, AWAIT)
    exchange_fault("race", OPEN, RELAXED, own, SEND, AWAIT, GET)
    exchange_fault("race", OPEN, RELAXED, SEND, SEND, AWAIT, GET)


def test_a_barrier_does_not_wait_for_asynchronous_stores() -> None:
    exchange_fault("race", OPEN, RELAXED, SEND, CLUSTER, GET, AWAIT)


def test_only_lanes_that_wait_know_what_landed() -> None:
    some = AWAIT.replace("AGAIN: mbarrier", "@!%p1 bra PAST; AGAIN: mbarrier") + "PAST:"
    assert exchange(OPEN, RELAXED, SEND, some, "@%p1 " + GET) == [101, 100, 103, 102]
    exchange_fault("race", OPEN, RELAXED, SEND, some, GET)


def test_an_mbarrier_is_initialised_before_it_is_used() -> None:
    exchange_fault("race", OPEN, SEND, AWAIT, GET)
    exchange_fault("race", OPEN.replace(FENCE, ""), RELAXED, SEND, AWAIT, GET)
    exchange_fault("uninitialised", BOX, "setp.eq.u32 %p1, %r1, 0;", CLUSTER, SEND, AWAIT, GET)


def test_an_mbarrier_that_never_completes() -> None:
    message = exchange_fault("deadlock", OPEN.replace("], 8;", "], 16;"), RELAXED, SEND, AWAIT, GET)
    assert "0 arrivals and 8 bytes are missing" in message


def test_a_block_waits_for_what_is_stored_to_it() -> None:
    message = exchange_fault("race", OPEN.replace("], 8;", "], 16;"), RELAXED, SEND)
    assert "exits while asynchronous stores" in message


def test_bytes_are_counted_where_they_go() -> None:
    exchange_fault("bounds", OPEN, RELAXED, SEND.replace("[%r21]", "[%r20]"), AWAIT, GET)
