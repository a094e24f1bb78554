"""The compiled part by itself: what it refuses, what it keeps, and when it is not used.

tests/support/ways.py has the ways in which its tests, and those of launches and known calls, run.
"""

import ctypes
import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import softmax_ops
from softmax_ops import current, dispatch, launcher, native
from softmax_ops.driver import DriverError
from softmax_ops.known import addressed, calls
from softmax_ops.known.call import Known
from softmax_ops.layouts import Scalars
from softmax_ops.planning.launch_plan import LaunchPlan
from tests.support import stub_driver
from tests.support.cubins import CHECKOUT
from tests.support.launches import CALL, STREAM, Serve, planned, posing, serve, serve_all
from tests.support.stub_driver import isolated
from tests.support.ways import asking, only_by_exchange
from tests.test_known import long_calls

pytestmark = pytest.mark.slow  # a process per test

__all__ = ["asking", "long_calls", "posing", "serve"]  # fixtures


def rows() -> Tensor:
    return torch.zeros(3, 5, 1000, dtype=torch.float16)


def plan_of(x: Tensor, out: Tensor) -> LaunchPlan:
    """The plan of the plain call, after it was made once."""
    found = dispatch.executable("fwd", (x, out), {}, Scalars(1.0, 0.0, None, False))
    assert found is not None
    return found.plan


def executables(known: Known) -> list[launcher.Executable]:
    return [*known.addressed.by_addresses.values()]


@isolated
@pytest.mark.parametrize("setting", ["auto", "never"])
def test_the_setting_decides(serve: Serve, monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    """Without the compiled part every call is a first one."""
    monkeypatch.setenv("SOFTMAX_OPS_NATIVE", setting)
    found = launcher.executable(planned(serve), 0)
    assert (found.native is not None) == (setting == "auto")
    serve_all(serve, "f16_none_warp")
    for _ in range(2):
        softmax_ops.softmax(rows())
    assert len(calls.forward._known) == (setting == "auto") and len(stub_driver.launches()) == 2


@isolated
@only_by_exchange
@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("addresses", (1 << 40,), ValueError),
        ("addresses", (1 << 40, -1), OverflowError),
        ("addresses", (1 << 40, 1.0), TypeError),
        ("scale", 1e39, OverflowError),
        ("scale", "1", TypeError),
        ("stream", "7", TypeError),
    ],
)
def test_what_cannot_be_launched_is_not(serve: Serve, argument: str, value: Any, error: type[Exception]) -> None:
    """And the next launch is right."""
    found = launcher.executable(planned(serve), 0)
    arguments: dict[str, Any] = {"addresses": (CALL["x.address"], CALL["y.address"]), "scale": 0.5, "stream": STREAM}
    with pytest.raises(error):
        found.launch(**arguments | {argument: value})
    found.launch(**arguments)
    (call,) = stub_driver.launches()
    values = {"x.address": CALL["x.address"], "y.address": CALL["y.address"], "scale": 0.5}
    assert call.parameters == found.plan.arguments(found.plan.launches[0], values)


@isolated
def test_nothing_is_kept_but_what_is_known(serve: Serve) -> None:
    """References: none to tensors, and nothing is left of a call that is forgotten."""
    serve_all(serve, "f16")
    x, y, out, mask = rows(), rows(), rows(), torch.zeros(1000, dtype=torch.bool)
    made: list[Callable[[], object]] = [
        partial(softmax_ops.softmax, x, out=out),
        partial(softmax_ops.softmax, x, mask=mask, causal=True, causal_offset=300, out=x),
        partial(softmax_ops.softmax, x),
        partial(softmax_ops.softmax_backward, x, y, causal=True, out=out),
        partial(softmax_ops.softmax_backward, x, y, out=y),
    ]

    for call in made:
        call(), call()
    every = [*calls.forward._known.values(), *calls.backward._known.values()]
    launches = [executable.native for known in every for executable in executables(known)]
    del every

    def references() -> list[int]:
        return [sys.getrefcount(each) for each in (x, y, out, mask, None, True, False, *launches)]

    before = references()
    for call in made:
        for _ in range(100):
            call()
    grown = [after - count for after, count in zip(references(), before, strict=True)]
    assert grown[:4] == [0] * 4, "tensors"
    assert max(grown[4:]) < 50, "launches, by the places that are remembered; None, True and False by others too"
    # Everything is forgotten.
    calls.forward.forget()
    calls.backward.forget()
    gc.collect()
    left = [each for each in gc.get_objects() if type(each) in (Known, addressed.Addressed)]
    assert left == []


@isolated
def test_new_results_belong_to_the_caller(serve: Serve) -> None:
    serve_all(serve, "f16_band", "f16_none_warp")
    x, lengths = rows(), torch.tensor([3, 5, 7], dtype=torch.int32)
    for _ in range(4):
        y, lse = softmax_ops.softmax(x, key_lengths=lengths, return_lse=True)
        alone = softmax_ops.softmax(x)
        other = torch.empty(3)
        assert len({sys.getrefcount(each) for each in (y, lse, alone, other)}) == 1


@isolated
def test_more_places_than_it_remembers(serve: Serve) -> None:
    """With forty results in turn, each one is written to."""
    serve_all(serve, "f16_none_warp")
    x, outs = rows(), [rows() for _ in range(40)]
    for _ in range(3):
        stub_driver.forget()
        for out in outs:
            softmax_ops.softmax(x, out=out)
        written = [int.from_bytes(call.parameters, "little") for call in stub_driver.launches()]
        assert len(set(written)) == 40
    (known,) = calls.forward._known.values()
    plan = executables(known)[0].plan
    values = {"x.address": x.data_ptr(), "y.address": outs[-1].data_ptr(), "scale": 1.0}
    assert stub_driver.launches()[-1].parameters == plan.arguments(plan.launches[0], values)


@isolated
def test_many_kinds_in_turn(serve: Serve, long_calls: list[str]) -> None:
    """More than are tried one after the other; then calls of one kind."""
    serve_all(serve, "f16_none_warp")
    kinds = [(torch.zeros(count, 1000, dtype=torch.float16), torch.zeros(count, 1000).half()) for count in range(1, 41)]
    for x, out in kinds:
        softmax_ops.softmax(x, out=out)
    assert long_calls == ["fwd"] * 40
    for x, out in [*kinds, *kinds[:3] * 3, *kinds[::-1], *kinds]:
        stub_driver.forget()
        assert softmax_ops.softmax(x, out=out) is out
        (launch,) = stub_driver.launches()
        (at,) = (offset for name, offset, _ in plan_of(x, out).fields if name == "y.address")
        assert int.from_bytes(launch.parameters[at : at + 8], "little") == out.data_ptr()
    assert long_calls == ["fwd"] * 40


@isolated
@only_by_exchange
def test_as_many_kinds_in_turn_as_a_server_has(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are found without computing a key."""
    serve_all(serve, "f16_none_warp")
    kinds = [(torch.zeros(count, 1000).half(), torch.zeros(count, 1000).half()) for count in range(1, 33)]
    for x, out in kinds:
        softmax_ops.softmax(x, out=out)
    monkeypatch.setattr(calls.forward, "found", None)
    for x, out in kinds * 2:
        assert softmax_ops.softmax(x, out=out) is out


@isolated
@pytest.mark.parametrize("shapes", ["one", "each its own"])
def test_threads_at_once_launch_what_each_asked_for(serve: Serve, shapes: str) -> None:
    """The driver reads parameters while other threads run the same call."""
    serve_all(serve, "f16_none_warp")
    counts = [5 if shapes == "one" else 1 + number for number in range(12)]
    pairs = [(torch.zeros(n, 1000).half(), torch.zeros(n, 1000).half(), 0.5 + at) for at, n in enumerate(counts)]
    for x, out, _ in pairs:
        softmax_ops.softmax(x, out=out)
    stub_driver.forget()
    stub_driver.hesitate(0.002)

    def work(x: Tensor, out: Tensor, scale: float) -> None:
        for _ in range(5):
            softmax_ops.softmax(x, out=out, scale=scale)

    threads = [threading.Thread(target=work, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [
        plan.arguments(plan.launches[0], {"x.address": x.data_ptr(), "y.address": out.data_ptr(), "scale": scale})
        for x, out, scale in pairs
        for plan in [plan_of(x, out)]
    ] * 5
    assert sorted(call.parameters for call in stub_driver.launches()) == sorted(expected)


@only_by_exchange
@pytest.mark.parametrize(
    ("module", "problem"),
    [("None", "import of softmax_ops.native.calls halted"), ("sys", "it was compiled from other sources than those")],
    ids=["missing", "stale"],
)
def test_without_the_module_python_stands_in(module: str, problem: str) -> None:
    """As on a host where nothing could be compiled, or after an update; the reason is available."""
    program = (
        f"import sys; sys.modules['softmax_ops.native.calls'] = {module}\n"
        "from softmax_ops import native; print(native.compiled(), native.problem)"
    )
    said = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True)
    assert said.stdout.startswith(f"None {problem}"), said.stderr


@isolated
@only_by_exchange
def test_other_bindings_export_another_launch(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then launches run in Python."""
    for exported in ({}, {"cuLaunchKernelEx": object()}):
        monkeypatch.setattr(launcher.cydriver, "__pyx_capi__", exported)
        monkeypatch.setattr(launcher, "_executables", {})
        found = launcher.executable(planned(serve), 0)
        assert found.native is None
        found.launch((CALL["x.address"], CALL["y.address"]), scale=0.5, stream=STREAM)
    assert len(stub_driver.launches()) == 2


TABLE = (ctypes.c_uint64 * 7)()
"""A table of functions, all of them null."""


def table(version: int) -> object:
    """A capsule of a DLPack table of this version."""
    TABLE[0] = version
    new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return new(("PyCapsule_New", ctypes.pythonapi))(ctypes.addressof(TABLE), b"dlpack_exchange_api", None)


@only_by_exchange
@pytest.mark.parametrize("exchange", [None, object(), table(0), table(1), table(2)], ids=["none", "other", *"012"])
def test_what_is_no_exchange_is_not_used(exchange: object) -> None:
    """The tables describe no tensors, or are of another version."""
    compiled: Any = native.compiled()
    assert not compiled.is_exchange(exchange)
    known = Known({"x": rows(), "out": None}, ["x", "out"], rows())
    assert known.knows(rows(), None) and not known.knows(rows()[:, :4], None)


@only_by_exchange
def test_the_exchange_of_this_torch_is_used() -> None:
    compiled: Any = native.compiled()
    assert compiled.is_exchange(Tensor.__dlpack_c_exchange_api__)


@isolated
def test_what_autograd_records_is_not_looked_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of all arguments takes longer than the launch and finds nothing; the inner call matches the latest one."""
    serve_all(serve, "f16_none_warp", "f16_causal_warp")
    x, dy = rows().requires_grad_(), rows()
    looked_up: list[str] = []

    def no_key(*_: object) -> tuple:
        looked_up.append("a key")
        return ()

    for _ in range(2):
        assert softmax_ops.softmax(x).requires_grad and softmax_ops.softmax_backward(dy, x).requires_grad
        for direction in (calls.forward, calls.backward):
            monkeypatch.setattr(direction, "_key", no_key)
    assert looked_up == []
    softmax_ops.softmax(x.detach()[:2])
    assert looked_up, "others are"


@isolated
@pytest.mark.parametrize("current_before", [0, 1])
def test_the_device_is_current_for_a_call(
    serve: Serve, long_calls: list[str], monkeypatch: pytest.MonkeyPatch, current_before: int
) -> None:
    """And the previously current one is restored, after a failure too."""
    working_on = [current_before]
    at_work: list[tuple[int, int]] = []

    def exchange(device: int) -> int:
        previous, working_on[0] = working_on[0], device
        return previous

    def stream(device: int) -> int:
        at_work.append((device, working_on[0]))
        return STREAM

    monkeypatch.setattr(current, "ordinal", lambda tensor: 1)
    monkeypatch.setattr(current, "exchange_device", exchange)
    monkeypatch.setattr(current, "restore_device", exchange)
    monkeypatch.setattr(current, "stream", stream)
    stub_driver.devices("sm_90", "sm_90")
    serve_all(serve, "f16_none_warp")
    x, out = rows(), rows()
    for _ in range(3):
        at_work.clear()
        softmax_ops.softmax(x, out=out)
        assert at_work[0] == (1, 1) and working_on == [current_before]
    assert long_calls == ["fwd"]
    stub_driver.fail("cuLaunchKernelEx", 701)
    with pytest.raises(DriverError, match="cuLaunchKernelEx"):
        softmax_ops.softmax(x, out=out)
    assert working_on == [current_before] and long_calls == ["fwd"]
