"""The launcher on a stub of the CUDA driver: what is called when, with which bytes, and how failures read.

Each test runs in a separate Python process, because loading and initialising happen once per process.
"""

import struct
import subprocess
import sys
import threading
from collections import defaultdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from cuda.bindings import driver as cuda

from softmax_ops import driver, launcher
from softmax_ops.artifacts import catalog
from softmax_ops.driver import DriverError
from softmax_ops.explanation import explain_geometry
from softmax_ops.launcher import NotLoaded
from softmax_ops.planning.geometry import Geometry
from softmax_ops.planning.launch_plan import LaunchPlan
from softmax_ops.resolve import KernelNotFound
from tests.support import stub_driver
from tests.support.geometries import geometry
from tests.support.launches import (
    CALL,
    ROWS,
    STREAM,
    Serve,
    changed,
    expected,
    in_child,
    in_thread,
    launch,
    names,
    plan_for,
    planned,
    serve,
    serve_all,
)
from tests.support.stub_driver import isolated
from tests.support.ways import way

__all__ = ["serve", "way"]  # fixtures, the second for every test

# Launches


@isolated
def test_every_argument_layout_is_passed_as_planned(serve: Serve) -> None:
    """In both directions, by every plan, including those with several CTAs per row or several launches."""
    plans: dict[str, LaunchPlan] = {}
    for direction, dtype, mask_kind in sorted(catalog.load().tables):
        for k in (7, 100, 1000, 3000, 20000, 300000):
            found = plan_for(geometry((3, 5, k), dtype, mask_kind, direction=direction, alignment=4))
            plans[found.variant.layout] = found
    assert set(plans) == set(catalog.load().layouts)
    serve(*{found.variant.name: found.variant for found in plans.values()}.values())
    assert any(found.launches[0].threads < found.variant.threads for found in plans.values())
    for found in plans.values():
        stub_driver.forget()
        launch(found)
        recorded = stub_driver.launches()
        assert [call.parameters for call in recorded] == expected(found), found.variant.layout
        for call, part in zip(recorded, found.launches, strict=True):
            assert call.kernel.decode() == found.variant.name
            assert call.grid == (part.grid, 1, 1)
            assert call.block == (part.threads, 1, 1)
            assert call.cluster == ((0, 0, 0) if part.cluster == 1 else (part.cluster, 1, 1))
            assert call.shared_bytes == found.variant.shared_bytes
            assert (call.stream, call.arguments[1]) == (STREAM, 0)  # and no `extra`


CALLED = {
    "masked": geometry((3, 5, 1000), mask_kind="boolcausal"),
    "backward": geometry((3, 5, 1000), direction="bwd"),
    "bias": geometry((3, 5, 1000), mask_kind="bias"),
    "split": geometry((3, 300000), mask_kind="boolcausal"),
    "backward split": geometry((3, 300000), "f64", direction="bwd"),
}
every_call = pytest.mark.parametrize("of", CALLED.values(), ids=list(CALLED))


@isolated
@every_call
def test_arguments_do_not_linger_from_call_to_call(serve: Serve, of: Geometry) -> None:
    found = planned(serve, of)
    for number in (7, 1, 2**40, 2**40):
        stub_driver.forget()
        launch(found, values=numbered(number))
        assert [call.parameters for call in stub_driver.launches()] == expected(found, numbered(number))


@isolated
@every_call
def test_what_stands_in_the_parameters_is_replaced(serve: Serve, of: Geometry) -> None:
    """Any of them, after a launch with other values; each thread replaces its own."""
    found = planned(serve, of)
    varied = [{**CALL, name: value + 16} for name, value in CALL.items()]

    def launched() -> list[list[bytes]]:
        made = []
        for values in (CALL, *varied, CALL, CALL):
            stub_driver.forget()
            launch(found, values=values)
            made.append([call.parameters for call in stub_driver.launches()])
        return made

    wanted = [expected(found, values) for values in (CALL, *varied, CALL, CALL)]
    assert launched() == wanted
    from_another: list[list[list[bytes]]] = []
    thread = threading.Thread(target=lambda: from_another.append(launched()))
    thread.start()
    thread.join()
    assert from_another == [wanted]


@isolated
@pytest.mark.parametrize(("direction", "mask_kind", "first"), [("fwd", "bool", "x"), ("bwd", "none", "dy")])
def test_rows_beyond_one_launch(serve: Serve, direction: str, mask_kind: str, first: str) -> None:
    """2^33 rows: each launch starts where the previous one ends, with its own addresses, computed in every call."""
    found = planned(serve, geometry((2**20, 2**13, 8), mask_kind=mask_kind, direction=direction))
    assert len(found.launches) == 5
    for _ in range(2):
        stub_driver.forget()
        launch(found)
        recorded = stub_driver.launches()
        assert [call.parameters for call in recorded] == expected(found)
        first_rows = [struct.unpack_from("P", call.parameters)[0] - CALL[f"{first}.address"] for call in recorded]
        assert first_rows == [sum(part.rows for part in found.launches[:i]) * 16 for i in range(5)]


@isolated
@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_a_split_row_is_launched_twice(serve: Serve, direction: str) -> None:
    """With the same workspace and on the same stream."""
    found = planned(serve, geometry((3, 300000), direction=direction))
    assert found.workspace_bytes > 0
    launch(found)
    first, second = stub_driver.launches()
    assert (first.grid, first.block, first.stream) == (second.grid, second.block, second.stream)
    assert first.grid == (3 * -(-300000 // found.variant.piece), 1, 1)
    address = struct.pack("P", CALL["workspace.address"])
    assert address in first.parameters and address in second.parameters


def test_plans_are_of_an_architecture() -> None:
    """Equal geometries share a plan only on the same architecture."""
    on = {arch: plan_for(geometry((3, 20000)), arch) for arch in ("sm_80", "sm_90", "sm_120")}
    assert {arch: found.variant.plan for arch, found in on.items()} == {
        "sm_80": "split",
        "sm_90": "cluster",
        "sm_120": "cluster",
    }
    assert plan_for(geometry((3, 20000)), "sm_90") is on["sm_90"]


@isolated
def test_the_stream_is_passed_through(serve: Serve) -> None:
    found = planned(serve)
    streams = [0x70, 0x80, 0x80, 0, 0x70, 2**63 + 1, 0]
    for stream in streams:
        launch(found, stream=stream)
    legacy = 1  # CU_STREAM_LEGACY: to a driver with per-thread default streams 0 is another than torch's
    assert [call.stream for call in stub_driver.launches()] == [stream or legacy for stream in streams]


@isolated
@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_a_cluster_is_an_attribute(serve: Serve, direction: str) -> None:
    """Of as many CTAs as the plan has for this row length, whatever the kernel's largest cluster."""
    for k, ctas in [(16400, 4), (32768, 4), (50000, 8), (65544, 16)]:
        launch(planned(serve, geometry((3, k), direction=direction)))
        call = stub_driver.launches()[-1]
        assert (call.cluster, call.arguments[2], call.grid) == ((ctas, 1, 1), 1, (3 * ctas, 1, 1))
    launch(planned(serve, geometry((3, 5, 7), direction=direction)))
    assert stub_driver.launches()[-1].arguments[2] == 0


# Once per process, once per device


@isolated
def test_a_kernel_is_loaded_once(serve: Serve) -> None:
    """However many plans use it."""
    first, second = planned(serve), plan_for(geometry((9, 1000)))
    assert first.variant == second.variant
    for found in (first, second, first, second):
        launch(found)
    assert names().count("cuLibraryLoadData") == names().count("cuKernelGetFunction") == 1
    assert names()[-3:] == ["cuLaunchKernelEx"] * 3
    stub_driver.forget()
    launch(first)
    assert names() == ["cuLaunchKernelEx"]


@isolated
def test_a_function_is_loaded_before_its_first_launch(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """On each device; by a question about it where a driver or its bindings cannot do more."""
    stub_driver.devices("sm_90", "sm_90", "sm_90")
    found = planned(serve)
    launch(found)
    assert names().index("cuKernelGetFunction") < names().index("cuFuncLoad") < names().index("cuLaunchKernelEx")
    monkeypatch.setattr(cuda, "cuFuncLoad", Mock(side_effect=RuntimeError('Function "cuFuncLoad" not found')))
    launch(found, 1)
    monkeypatch.delattr(cuda, "cuFuncLoad")
    launch(found, 2)
    assert [call.device for call in stub_driver.calls("cuFuncLoad")] == [0]
    assert [call.device for call in stub_driver.calls("cuFuncGetAttribute")] == [1, 2]
    assert len(stub_driver.calls("cuLaunchKernelEx")) == 3


@isolated
def test_two_devices_of_one_architecture_share_a_kernel(serve: Serve) -> None:
    stub_driver.devices("sm_90", "sm_90")
    found = planned(serve)
    for device in (0, 1, 0, 1):
        launch(found, device)
    assert len(stub_driver.calls("cuLibraryLoadData")) == 1
    assert [call.device for call in stub_driver.calls("cuKernelGetFunction")] == [0, 1]


@isolated
def test_two_architectures_load_a_kernel_each(serve: Serve) -> None:
    stub_driver.devices("sm_90", "sm_86", "sm_90")
    planned(serve, held=("sm_80", "sm_86", "sm_90"))
    plans = [plan_for(ROWS, arch) for arch in ("sm_90", "sm_86", "sm_90")]
    for device in (0, 1, 2, 1):
        launch(plans[device], device)
    assert len(stub_driver.calls("cuLibraryLoadData")) == 2
    assert [call.device for call in stub_driver.calls("cuKernelGetFunction")] == [0, 1, 2]


@isolated
@pytest.mark.parametrize("shared_bytes", [0, 48 * 1024, 48 * 1024 + 1, 200 * 1024])
def test_shared_memory_beyond_48_kib_is_asked_for_once_per_device(serve: Serve, shared_bytes: int) -> None:
    stub_driver.devices("sm_90", "sm_90")
    found = changed(serve, shared_bytes=shared_bytes)
    for device in (0, 1, 1, 0):
        launch(found, device)
    asked = [call.arguments[:3] for call in stub_driver.calls("cuKernelSetAttribute")]
    wanted = [[8, shared_bytes, 0], [8, shared_bytes, 1]]  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    assert asked == (wanted if shared_bytes > 48 * 1024 else [])
    assert {call.shared_bytes for call in stub_driver.launches()} == {shared_bytes}


@isolated
def test_an_enumeration_that_takes_no_subscript(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like that of cuda-bindings from 13.2 on."""
    members = SimpleNamespace(**cuda.CUfunction_attribute.__members__)
    monkeypatch.setattr(cuda, "CUfunction_attribute", members)
    launch(changed(serve, shared_bytes=48 * 1024 + 1))
    assert len(stub_driver.calls("cuKernelSetAttribute")) == 1


@isolated
@pytest.mark.parametrize("k", [65536, 65544])
def test_clusters_beyond_8_are_asked_for_once_per_device(serve: Serve, k: int) -> None:
    """By the first plan that has them; smaller clusters of the same kernel ask for nothing."""
    stub_driver.devices("sm_90", "sm_90")
    small, large, other = planned(serve, geometry((3, 20000))), plan_for(geometry((3, k))), plan_for(geometry((5, k)))
    assert small.variant == large.variant == other.variant
    for found in (small, large, other, large):
        for device in (0, 1, 1, 0):
            launch(found, device)
    asked = [call.arguments[:3] for call in stub_driver.calls("cuKernelSetAttribute")]
    wanted = [[14, 1, 0], [14, 1, 1]]  # CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
    assert asked == (wanted if k > 65536 else [])
    assert len(stub_driver.launches()) == 16


@isolated
def test_plans_are_forgotten_but_kernels_are_not(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "PLANS", 3)
    plans = [plan_for(geometry((rows, 1000))) for rows in range(1, 9)]
    serve(plans[0].variant)
    for found in plans + plans:
        launch(found)
    assert [call.grid[0] for call in stub_driver.launches()] == [found.launches[0].grid for found in plans + plans]
    assert len(stub_driver.calls("cuLibraryLoadData")) == 1
    assert len(launcher._executables) <= 3


# Contexts and threads


@isolated
def test_a_thread_without_a_context_gets_the_primary_one(serve: Serve) -> None:
    """The device's, retained once per process, because the default stream is that of the current context."""
    stub_driver.devices("sm_90", "sm_90")
    found = planned(serve)
    for _ in range(3):
        in_thread(lambda: launch(found, device=1, stream=0))
    assert [call.device for call in stub_driver.launches()] == [1, 1, 1]
    assert [call.arguments[0] for call in stub_driver.calls("cuDevicePrimaryCtxRetain")] == [1]


@isolated
def test_a_thread_that_lost_its_context_gets_it_again(serve: Serve) -> None:
    """It was set to none, or popped. If restoring it does not help, the launch is tried twice and no more."""
    found = planned(serve)
    launch(found, stream=0)
    for _ in range(2):
        driver.check("cuCtxSetCurrent", driver.cuda.cuCtxSetCurrent(0))
        stub_driver.forget()
        launch(found, stream=0)
        assert [call.device for call in stub_driver.launches()] == [-1, 0]
    stub_driver.fail("cuLaunchKernelEx", 201)
    stub_driver.forget()
    with pytest.raises(DriverError, match="CUDA_ERROR_INVALID_CONTEXT: invalid device context"):
        launch(found)
    assert len(stub_driver.launches()) == 2


@isolated
def test_a_thread_keeps_its_context(serve: Serve) -> None:
    """A thread that works on device 0 prepares a kernel for device 1 in a context of device 1."""
    stub_driver.devices("sm_90", "sm_90")
    found = planned(serve)
    launch(found, device=0)
    stub_driver.forget()
    launch(found, device=1)
    launch(found, device=0, stream=0)
    assert [call.device for call in stub_driver.calls("cuKernelGetFunction")] == [1]
    assert [call.device for call in stub_driver.launches()] == [0, 0]


@isolated
def test_first_use_by_many_threads_at_once(serve: Serve) -> None:
    found = planned(serve)
    start = threading.Barrier(8)
    stub_driver.hesitate(20e-3)

    def first_use(number: int) -> None:
        start.wait()
        launch(found, values=CALL | {"x.address": number})

    threads = [threading.Thread(target=first_use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names().count("cuLibraryLoadData") == names().count("cuKernelGetFunction") == 1
    assert sorted(struct.unpack_from("P", call.parameters)[0] for call in stub_driver.launches()) == list(range(8))


@isolated
@every_call
def test_threads_share_no_parameters(serve: Serve, of: Geometry) -> None:
    """Four threads on one executable; the driver runs without the interpreter lock and takes its time to read."""
    found = planned(serve, of)
    launch(found)
    stub_driver.forget()
    stub_driver.hesitate(20e-6)

    def hammer(first: int) -> None:
        for number in range(first, first + 500):
            launch(found, values=numbered(number), stream=number)

    threads = [threading.Thread(target=hammer, args=(1000 * i,)) for i in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorded = defaultdict(list)
    for call in stub_driver.launches():
        recorded[call.stream].append(call.parameters)
    numbers = [n for i in range(1, 5) for n in range(1000 * i, 1000 * i + 500)]
    assert recorded == {n: expected(found, numbered(n)) for n in numbers}


def numbered(n: int) -> dict[str, Any]:
    """A call in which every value depends on the number."""
    addresses = (name for name in CALL if name.endswith(".address"))
    return {name: n + (place << 41) for place, name in enumerate(addresses)} | {
        "scale": float(n),
        "mask.fill": -float(n),
    }


# CUDA graphs


@isolated
@pytest.mark.parametrize("stream", [STREAM, 0], ids=["captured stream", "default stream"])
def test_nothing_is_loaded_during_a_capture(serve: Serve, stream: int) -> None:
    other, found = planned(serve, geometry((3, 5, 7))), plan_for(ROWS)
    launch(other)  # the driver is in use, and this thread has a context
    serve(found.variant)
    stub_driver.capture(STREAM)
    stub_driver.forget()
    with pytest.raises(
        NotLoaded,
        match=rf"^{found.variant.name} is not loaded.*captured.*warm_up.*scores \(\d.* of f16 with mask kind none, or",
    ):
        launch(found, stream=stream)
    assert names() == []
    stub_driver.capture(0)
    launch(found)
    assert names()[-1] == "cuLaunchKernelEx"


@isolated
def test_loading_beside_a_capture(serve: Serve) -> None:
    """On a stream that is not captured, as by another thread, which may capture in the mode that forbids loading."""
    found = changed(serve, shared_bytes=100 * 1024)
    stub_driver.capture(STREAM)
    launch(found, stream=STREAM + 1)
    exchanged = driver.cuda.cuThreadExchangeStreamCaptureMode(driver.cuda.CUstreamCaptureMode(2))
    assert int(driver.check("cuThreadExchangeStreamCaptureMode", exchanged)) == 0, "the thread's own mode is restored"


@isolated
def test_what_is_loaded_is_launched_during_a_capture(serve: Serve) -> None:
    found = planned(serve)
    launch(found)
    stub_driver.capture(STREAM)
    stub_driver.forget()
    launch(found)
    assert names() == ["cuLaunchKernelEx"]


# Failures


@isolated
def test_a_refused_launch_says_what_cuda_says(serve: Serve) -> None:
    found = planned(serve)
    launch(found)
    stub_driver.fail("cuLaunchKernelEx", 701)
    with pytest.raises(DriverError) as error:
        launch(found)
    assert str(error.value) == (
        f"cuLaunchKernelEx of {found.variant.name}: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: "
        "too many resources requested for launch"
    )
    stub_driver.fail("cuLaunchKernelEx", 9999)
    with pytest.raises(DriverError, match=f"^cuLaunchKernelEx of {found.variant.name}: status 9999, of a driver newer"):
        launch(found)
    stub_driver.fail("", 0)
    launch(found)


@isolated
@pytest.mark.parametrize(
    ("call", "status", "words"),
    [
        ("cuInit", 100, "CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected"),
        ("cuStreamIsCapturing", 1, "CUDA_ERROR_INVALID_VALUE: invalid argument"),
        ("cuKernelGetFunction", 701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: too many resources requested for launch"),
        ("cuFuncLoad", 2, "CUDA_ERROR_OUT_OF_MEMORY: unknown error"),
        ("cuDevicePrimaryCtxRetain", 2, "CUDA_ERROR_OUT_OF_MEMORY: unknown error"),
        ("cuKernelSetAttribute", 1, "CUDA_ERROR_INVALID_VALUE: invalid argument"),
    ],
)
def test_a_failed_first_use_is_tried_again(serve: Serve, call: str, status: int, words: str) -> None:
    found = changed(serve, shared_bytes=100 * 1024)
    stub_driver.fail(call, status)
    for _ in range(2):
        with pytest.raises(DriverError) as error:
            launch(found)
        assert str(error.value) == f"{call}: {words}"
    stub_driver.fail("", 0)
    launch(found)


@isolated
def test_a_refused_load_tells_kernel_and_driver(serve: Serve) -> None:
    found = planned(serve)
    stub_driver.version(12, 4)
    stub_driver.fail("cuLibraryLoadData", 200)
    for _ in range(2):
        with pytest.raises(DriverError) as error:
            launch(found)
        assert str(error.value) == (
            f"cuLibraryLoadData of {found.variant.name} (the driver is one of CUDA 12.4): "
            "CUDA_ERROR_INVALID_IMAGE: device kernel image is invalid"
        )
    stub_driver.fail("", 0)
    launch(found)


@isolated
def test_a_driver_that_is_too_old(serve: Serve) -> None:
    stub_driver.version(11, 8)
    for _ in range(2):
        with pytest.raises(DriverError, match=r"the driver is one of CUDA 11\.8, and softmax_ops wants one of 12\.0"):
            launch(planned(serve))


@isolated
def test_a_cluster_that_was_not_permitted_is_asked_for_again(serve: Serve) -> None:
    found = planned(serve, geometry((3, 262144)))
    for fails in (True, True, False):
        stub_driver.fail("cuKernelSetAttribute" if fails else "", 1)
        if fails:
            with pytest.raises(DriverError, match="cuKernelSetAttribute: CUDA_ERROR_INVALID_VALUE: invalid argument"):
                launch(found)
        else:
            launch(found)
    assert stub_driver.launches()[-1].cluster == (16, 1, 1)


@isolated
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("k", "largest", "cluster"), [(262144, 8, 16), (262144, 1, 16), (50000, 2, 8), (50000, 1, 8)])
def test_clusters_that_a_device_has_no_place_for(serve: Serve, k: int, largest: int, cluster: int) -> None:
    """Others run instead, with the workspace that they need; it is reported once, and afterwards in explanations."""
    stub_driver.largest_cluster(largest)
    serve_all(serve, "fwd_f16_none_")
    first, second = plan_for(geometry((3, k))), plan_for(geometry((5, k)))
    assert (first.variant.plan, first.cluster) == ("cluster", cluster)
    with pytest.warns(
        RuntimeWarning,
        match=rf"device 0 cannot run clusters of {cluster} CTAs of {first.variant.name}, "
        r"for example because it is partitioned \(MIG\): it runs softmax_",
    ):
        found = launcher.executable(first, 0)
    assert found.plan.variant.plan == "split" and found.workspace_bytes > 0
    for each in (first, second):
        launch(each)
    assert [call.cluster for call in stub_driver.launches()] == [(0, 0, 0)] * 4
    asked = [call.arguments[0] for call in stub_driver.calls("cuOccupancyMaxActiveClusters")]
    assert asked == [ctas for ctas in (8, 4, 2) if ctas >= min(largest, 8) and ctas > 1] + [16] * (cluster == 16)
    told = explain_geometry(first.geometry, "sm_90", partial(launcher.settled, device=0))
    fewest = {262144: 16, 50000: 4}[k]  # with as many columns in a CTA as it holds
    assert told.plan == "split" and f"the GPU cannot run clusters of {fewest} CTAs" in told.reason


@isolated
@pytest.mark.filterwarnings("ignore")
def test_an_explanation_follows_a_device_to_what_runs(serve: Serve) -> None:
    """Rows that would share SMs in clusters of 16, and just fit clusters of 8: a device may be able to run neither."""
    stub_driver.largest_cluster(4)
    serve_all(serve, "fwd_f32_none_")
    wanted = plan_for(geometry((3, 100001), "f32"))
    assert (wanted.variant.plan, wanted.cluster) == ("cluster", 16)
    found = launcher.executable(wanted, 0)
    told = explain_geometry(wanted.geometry, "sm_90", partial(launcher.settled, device=0))
    assert told.variant == found.plan.variant.name and told.workspace_bytes == found.workspace_bytes > 0


@isolated
@pytest.mark.filterwarnings("error")
def test_a_row_that_fits_smaller_clusters_keeps_its_kernel(serve: Serve) -> None:
    """Two CTAs of a cluster of 16 would share an SM; a device without such clusters runs them in clusters of 8."""
    stub_driver.largest_cluster(8)
    serve_all(serve, "bwd_f32_causal_cluster")
    wanted = plan_for(geometry((3, 128256), "f32", direction="bwd"))
    assert (wanted.cluster, wanted.launches[0].threads) == (16, 13 * 32)
    with pytest.warns(RuntimeWarning, match=rf"of 16 CTAs of {wanted.variant.name}.*{wanted.variant.name} in clusters"):
        found = launcher.executable(wanted, 0).plan
    assert (found.variant, found.cluster, found.launches[0].threads) == (wanted.variant, 8, 26 * 32)


@isolated
def test_clusters_that_fit_are_asked_for_once(serve: Serve) -> None:
    found = planned(serve, geometry((3, 20000)))
    stub_driver.largest_cluster(4)
    for rows in (3, 5):
        launch(plan_for(geometry((rows, 20000))))
    assert {call.cluster for call in stub_driver.launches()} == {(found.cluster, 1, 1)}
    assert len(stub_driver.calls("cuOccupancyMaxActiveClusters")) == 2, "8, and 4"


@isolated
def test_no_such_device(serve: Serve) -> None:
    found = planned(serve)
    with pytest.raises(DriverError, match="cuDeviceGet: CUDA_ERROR_INVALID_DEVICE: invalid device ordinal"):
        launch(found, device=1)


@isolated
def test_an_image_of_another_kernel(serve: Serve) -> None:
    found = planned(serve, symbol="something_else")
    with pytest.raises(DriverError, match="cuLibraryGetKernel: CUDA_ERROR_NOT_FOUND: named symbol not found"):
        launch(found)


@isolated
def test_no_kernel_for_the_device(serve: Serve) -> None:
    stub_driver.devices("sm_80")
    planned(serve)
    found = plan_for(ROWS, "sm_80")
    with pytest.raises(KernelNotFound, match=rf"^no kernel {found.variant.name} for sm_80:"):
        launch(found)
    assert "cuLibraryLoadData" not in names()


def test_no_driver(tmp_path: Path) -> None:
    """In one sentence, whichever call comes first. A libcuda.so.1 that is an empty file counts as missing."""
    (tmp_path / "libcuda.so.1").touch()
    code = """if True:
        from softmax_ops import driver
        for first in (driver.is_capturing, driver.architecture):
            try:
                first(0)
            except driver.DriverError as error:
                print(error)
    """
    environment = stub_driver.environment(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=stub_driver.CHECKOUT, capture_output=True, text=True
    )
    first, second = result.stdout.splitlines()  # what follows the colon depends on cuda-bindings
    assert first == second and first.startswith("no CUDA driver: "), result


# Fork


@isolated
def test_fork_after_use_is_refused(serve: Serve) -> None:
    """For loaded and new kernels, only in the child, where the driver is not called at all."""
    first, second = planned(serve), plan_for(geometry((3, 5, 7)))
    launch(first)
    for use in (partial(launch, first), partial(launch, second), partial(launcher.executable, first, 0)):
        said = in_child(use)
        assert said.startswith("DriverError: softmax_ops was used on a GPU before this process was forked"), said
        assert "spawn" in said
    launch(first)


@isolated
def test_fork_before_use_works(serve: Serve) -> None:
    found = planned(serve)
    assert in_child(lambda: launch(found)) == "done"
    launch(found)
    assert len(stub_driver.launches()) == 1
