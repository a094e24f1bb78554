"""What the InfiniOP causal softmax launches on a stub of the driver, how that fails, and the examples of its page."""

import re
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from softmax_ops import driver, launcher
from softmax_ops.planning.launch_plan import LaunchPlan
from tests.support import stub_driver
from tests.support.infiniop import (
    BF16,
    CODES,
    DATA,
    F16,
    F32,
    F64,
    WORKSPACE,
    Ref,
    api,
    create,
    handle,
    is_,
    no_driver,
    on_the_stub,
    run,
    served,
    softmax,
    tensor,
    workspace_size,
)
from tests.support.launches import STREAM, in_child, names
from tests.support.stub_driver import isolated

__all__ = ["no_driver", "served"]  # fixtures


# Launches


def expected(launch_plan: LaunchPlan, data: int = DATA, workspace: int = 0) -> list[bytes]:
    """The parameters of every launch: in place, with scale 1."""
    values: dict[str, float] = {"x.address": data, "y.address": data, "workspace.address": workspace, "scale": 1.0}
    return [launch_plan.arguments(part, values) for part in launch_plan.launches]


def launched() -> list[bytes]:
    return [call.parameters for call in stub_driver.launches()]


@isolated
@on_the_stub
@pytest.mark.parametrize("dtype", [F16, F32, F64, BF16])
def test_a_run_launches_the_plan_of_the_datas_alignment(dtype: int) -> None:
    for shape, strides in [
        ((4, 7), None),
        ((5, 1000), None),
        ((3, 5, 1000), (1024, 4096, 1)),
        ((3, 5, 1000), (8000, 1001, 1)),
        ((2, 300000), None),
    ]:
        descriptor = softmax(shape, dtype, strides)
        size = workspace_size(descriptor)
        aligned, anywhere = descriptor.plans("sm_90")
        one_for_both = dtype == F64 or strides is not None or shape[-1] == 7 or size
        assert anywhere.variant.vec == 1 and (one_for_both or aligned.variant.vec != 1)
        for beyond, chosen in [(0, aligned), (16, aligned), (8, anywhere)]:
            stub_driver.forget()
            is_(run(descriptor, DATA + beyond, workspace=WORKSPACE, size=size), "SUCCESS")
            assert launched() == expected(chosen, DATA + beyond, WORKSPACE)
            for call in stub_driver.launches():
                assert (call.kernel.decode(), call.stream) == (chosen.variant.name, STREAM)


@isolated
@on_the_stub
def test_a_workspace_is_used_where_there_are_no_clusters() -> None:
    stub_driver.devices("sm_80", "sm_90")
    descriptor, other = softmax((3, 20000)), softmax((3, 20000), device=1)
    assert workspace_size(other) == 0
    size = workspace_size(descriptor)
    assert size == 3 * 5 * 8  # 5 pieces of 4096 columns, a maximum and a sum in f32
    for workspace, wrong in [(None, size), (0, size), (WORKSPACE, size - 1), (WORKSPACE, 0)]:
        is_(run(descriptor, workspace=workspace, size=wrong), "INSUFFICIENT_WORKSPACE")
    assert launched() == []
    is_(run(descriptor, workspace=WORKSPACE, size=size + 1), "SUCCESS")
    assert launched() == expected(descriptor.plans("sm_80")[0], DATA, WORKSPACE) and len(launched()) == 2
    is_(run(other), "SUCCESS")


@isolated
@on_the_stub
@pytest.mark.filterwarnings("ignore:softmax_ops. device 0 cannot run clusters:RuntimeWarning")
def test_a_gpu_whose_partition_has_no_place_for_clusters() -> None:
    """Few rows are split, and need a workspace; many are streamed."""
    stub_driver.largest_cluster(1)
    descriptor, many = softmax((3, 20000)), softmax((129, 20000))
    size = workspace_size(descriptor)
    assert size == 3 * 5 * 8 and workspace_size(many) == 0
    is_(run(descriptor, workspace=WORKSPACE, size=size), "SUCCESS")
    is_(run(many), "SUCCESS")
    assert [call.kernel.decode().split("_")[4] for call in stub_driver.launches()] == ["split", "split", "stream"]


@isolated
@on_the_stub
def test_streams_are_passed_through() -> None:
    """By a thread without a context, and by one that works in the device's."""
    descriptor = softmax((4, 7))
    for turn in range(2):
        for stream in (STREAM, 0, None, 2**63 + 1):
            is_(run(descriptor, stream=stream), "SUCCESS")
        driver.ensure_context(0)
        assert len(launched()) == 4 * (turn + 1)
    assert [call.stream for call in stub_driver.launches()] == [STREAM, 1, 1, 2**63 + 1] * 2
    assert all(call.device == 0 for call in stub_driver.launches())


@isolated
@on_the_stub
def test_a_descriptor_outlives_tensor_and_handle() -> None:
    ref, of, tensor_desc = Ref(), handle(), tensor((4, 7))
    is_(api.infiniopCreateCausalSoftmaxDescriptor(of, ref, tensor_desc), "SUCCESS")
    is_(api.infiniopDestroyTensorDescriptor(tensor_desc), "SUCCESS")
    is_(api.infiniopDestroyHandle(of), "SUCCESS")
    is_(run(ref.value), "SUCCESS")
    assert launched() == expected(ref.value.plans("sm_90")[0])


@isolated
@on_the_stub
def test_an_empty_tensor_launches_nothing() -> None:
    is_(run(softmax((0, 7)), data=None), "SUCCESS")
    assert names() == []


@isolated
@on_the_stub
def test_many_threads_share_a_descriptor_on_streams_of_their_own() -> None:
    descriptor = softmax((4, 7))
    start = threading.Barrier(8)
    stub_driver.forget()
    stub_driver.hesitate(1e-3)

    def work(number: int) -> None:
        start.wait()
        for turn in range(5):
            is_(run(descriptor, DATA + 1024 * number + 16 * turn, stream=number), "SUCCESS")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    aligned = descriptor.plans("sm_90")[0]
    assert {(call.stream, call.parameters) for call in stub_driver.launches()} == {
        (number, *expected(aligned, DATA + 1024 * number + 16 * turn)) for number in range(1, 9) for turn in range(5)
    }
    assert len(launched()) == 40


# Contexts


def current() -> int:
    """The number of the thread's context: 0 for none, n + 1 for that of device n."""
    return int(driver.check("cuCtxGetCurrent", driver.cuda.cuCtxGetCurrent()))


@isolated
@on_the_stub
@pytest.mark.parametrize("own", [0, 1, 2])
def test_the_context_is_the_devices_inside_and_the_threads_own_outside(own: int) -> None:
    """None, that of device 0, or that of device 1: in creating and running for device 1, and when either fails."""
    stub_driver.devices("sm_90", "sm_90")
    softmax((4, 7))  # initialises the driver
    driver.check("cuCtxSetCurrent", driver.cuda.cuCtxSetCurrent(own))
    descriptor = softmax((5, 7), device=1)
    assert current() == own
    for failing, status in [("", "SUCCESS"), ("cuLaunchKernelEx", "EXECUTION_FAILED")]:
        stub_driver.forget()
        stub_driver.fail(failing, 701)
        is_(run(descriptor, stream=0), status)
        assert [call.device for call in stub_driver.launches()] == [1]
        assert current() == own
    stub_driver.fail("cuLibraryLoadData", 200)
    is_(create((4, 1000), device=1)[0], "EXECUTION_FAILED")
    assert current() == own


# Graph captures


@isolated
@on_the_stub
def test_the_first_run_may_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """At either alignment: creating has loaded everything, and the descriptor holds it."""
    descriptor = softmax((4, 1000))
    monkeypatch.setattr(launcher, "executable", None)
    stub_driver.capture(STREAM)
    stub_driver.forget()
    for data in (DATA, DATA + 2):
        is_(run(descriptor, data), "SUCCESS")
    assert set(names()) == {"cuLaunchKernelEx", "cuCtxSetCurrent"} and len(launched()) == 2


@isolated
@on_the_stub
def test_what_is_not_loaded_is_not_captured() -> None:
    stub_driver.fail("cuInit", 100)
    descriptor = softmax((4, 7))
    stub_driver.fail("", 0)
    softmax((4, 1000))  # now the driver works
    stub_driver.capture(STREAM)
    is_(run(descriptor), "EXECUTION_FAILED", "NotLoaded: .* nothing can be loaded while a CUDA graph is")
    stub_driver.capture(0)
    is_(run(descriptor), "SUCCESS")


@isolated
@on_the_stub
def test_what_is_not_loaded_cannot_be_created_during_a_capture() -> None:
    """The default stream would wait for that. Nor after freeze(), until it is undone."""
    softmax((4, 7))
    stub_driver.capture(STREAM)
    is_(create((4, 1000))[0], "EXECUTION_FAILED", "NotLoaded: ")
    softmax((4, 7))
    stub_driver.capture(0)
    launcher.freeze()
    is_(create((4, 1000))[0], "EXECUTION_FAILED", "NotLoaded: ")
    softmax((4, 7))
    launcher.freeze(False)
    softmax((4, 1000))


# Failures


@isolated
@on_the_stub
def test_a_refused_launch_says_what_cuda_says() -> None:
    descriptor = softmax((4, 7))
    stub_driver.fail("cuLaunchKernelEx", 701)
    status = run(descriptor)
    is_(status, "EXECUTION_FAILED", "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: too many resources requested for launch$")
    assert status == api.INFINI_STATUS_EXECUTION_FAILED
    stub_driver.fail("", 0)
    is_(run(descriptor), "SUCCESS")


@isolated
@on_the_stub
def test_a_gpu_that_is_not_there() -> None:
    stub_driver.devices("sm_90", "sm_90")
    softmax((4, 7), device=1)
    is_(create((4, 7), device=2)[0], "DEVICE_NOT_FOUND", "there is no GPU 2: cuDeviceGet: CUDA_ERROR_INVALID_DEVICE")


@isolated
@on_the_stub
def test_a_driver_that_works_later() -> None:
    """The descriptor was created without it: its first run loads the kernels, and finds what creating could not."""
    stub_driver.fail("cuInit", 100)
    descriptor, absent, long = softmax((4, 7)), softmax((4, 7), device=1), softmax((3, 20000))
    is_(run(descriptor), "DEVICE_NOT_INITIALIZED", "cuInit: CUDA_ERROR_NO_DEVICE")
    stub_driver.fail("", 0)
    is_(run(descriptor), "SUCCESS")
    is_(run(absent), "DEVICE_NOT_FOUND")
    size = workspace_size(long)
    assert size == 120  # what sm_80 needs, although this GPU needs none
    is_(run(long), "INSUFFICIENT_WORKSPACE")
    is_(run(long, workspace=WORKSPACE, size=size), "SUCCESS")
    stub_driver.forget()
    is_(run(descriptor), "SUCCESS")
    assert set(names()) == {"cuCtxSetCurrent", "cuLaunchKernelEx"}


@isolated
def test_a_driver_that_is_too_old() -> None:
    stub_driver.version(11, 8)
    is_(run(softmax((4, 7))), "DEVICE_NOT_INITIALIZED", r"the driver is one of CUDA 11\.8")


@isolated
@pytest.mark.parametrize("arch", ["sm_60", "sm_120"])
def test_an_architecture_without_kernels(served: Callable[..., None], arch: str) -> None:
    """One for which nothing ships, and one that this bundle does not contain; on creation, and in the first run."""
    stub_driver.devices(arch)
    stub_driver.fail("cuInit", 100)
    descriptor = softmax((4, 7))
    stub_driver.fail("", 0)
    is_(create((4, 7))[0], "DEVICE_ARCHITECTURE_NOT_SUPPORTED", f"no kernel softmax_fwd_f16_causal_tile_.* for {arch}:")
    is_(run(descriptor), "DEVICE_ARCHITECTURE_NOT_SUPPORTED")
    assert launched() == []


@isolated
@on_the_stub
def test_a_forked_process_has_no_driver() -> None:
    """Trying to use it there does not crash either."""
    descriptor = softmax((4, 7))

    def child() -> None:
        is_(run(descriptor), "DEVICE_NOT_INITIALIZED", "before this process was forked")
        other = softmax((5, 7))
        is_(run(other), "DEVICE_NOT_INITIALIZED", "before this process was forked")

    assert in_child(child) == "done"
    is_(run(descriptor), "SUCCESS")


# The page


def examples() -> list[str]:
    page = (stub_driver.CHECKOUT / "docs" / "infiniop.md").read_text()
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def test_the_first_example_needs_no_gpu(no_driver: None) -> None:
    names: dict[str, Any] = {}
    exec(examples()[0], names)
    assert names["size"].value == 0


@isolated
@on_the_stub
def test_the_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(data_ptr=lambda: DATA)

    stream = SimpleNamespace(cuda_stream=STREAM)
    torch = SimpleNamespace(
        randn=allocate,
        empty=allocate,
        float16=None,
        uint8=None,
        cuda=SimpleNamespace(current_stream=lambda device: stream),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    names: dict[str, Any] = {}
    for each in examples():
        exec(each, names)
    assert launched() == expected(names["softmax"].value.plans("sm_90")[0])
    assert len(examples()) == 2 and not names["softmax"].value.alive


def test_the_page_names_every_code() -> None:
    page = (stub_driver.CHECKOUT / "docs" / "infiniop.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (`.*?`) \|", page, re.MULTILINE)
    assert {name.strip("`"): int(code) for code, named in rows for name in named.split(", ")} == CODES
