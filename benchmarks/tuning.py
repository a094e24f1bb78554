"""Times kernels that are in no catalog: the candidates of `python -m codegen tune`, beside the shipped kernel."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from codegen import catalog, tuning
from codegen.axes import Direction, DType
from codegen.spec import Spec
from codegen.variants import ARCHITECTURES
from softmax_ops import driver
from softmax_ops.artifacts.bundle import Bundle
from softmax_ops.artifacts.constants import DTYPE_BYTES
from softmax_ops.artifacts.cubin import Cubin, built_for
from softmax_ops.launcher import Executable
from softmax_ops.planning.geometry import contiguous_geometry
from softmax_ops.planning.launch_plan import plan
from tests.support.watchdog import limited

from .cells import SWEEP_BYTES, Cell
from .device import Cuda, Device, NoDevice
from .measure import measure
from .providers import OURS, Call, Provider, ours
from .results import Row
from .tensors import Tensors
from .timing import Turn

LIMIT_S = 300.0
"""Time of a sweep, without the compiler, after which a candidate counts as hanging."""


def cell_of(direction: Direction, dtype: DType, k: int) -> Cell:
    """A cell with 1 GiB of scores, as in the sweep."""
    rows = max(SWEEP_BYTES // (k * DTYPE_BYTES[dtype.value]), 1)
    return Cell("tune", (1, 1, rows, k), dtype.value, "none", direction.label)


def launched(cubin: Cubin, spec: Spec, cell: Cell, arch: str) -> Call:
    """A call that runs one cubin on contiguous tensors, through a catalog of its own."""
    geometry = contiguous_geometry(cell.shape, cell.dtype, direction=cell.direction)
    launch_plan = plan(geometry, catalog.alone(spec), arch)
    kernel = driver.Kernel(spec.name, cubin.code, launch_plan.variant.shared_bytes)
    kernel.prepare(0)
    kernel.permit_cluster(launch_plan.cluster, 0)
    executable = Executable(launch_plan, kernel, 0)
    workspace = torch.empty(max(launch_plan.workspace_bytes, 1), dtype=torch.uint8, device="cuda")

    def call(tensors: Tensors) -> Tensor:
        executable.launch(
            tuple(tensor.data_ptr() for tensor in (*tensors.inputs, tensors.out)),
            scale=tensors.scale,
            workspace=workspace.data_ptr(),
            stream=torch.cuda.current_stream().cuda_stream,
        )
        return tensors.out

    return call


def provider(spec: Spec, cubin: Cubin, arch: str) -> Provider:
    return Provider(spec.name, lambda cell: launched(cubin, spec, cell, arch), allowed=1.0)


def sweep(cell: Cell, device: Device, providers: Iterable[Provider]) -> Row:
    """Measures all providers beside the shipped kernel, in one run. Raises DeviceLost, and ends the process when a
    kernel hangs."""
    turn = Turn()
    with limited(LIMIT_S, lambda: print(f"HUNG {cell.key}: {turn.name}: not finished in {LIMIT_S:g} s", flush=True)):
        return measure(cell, device, [ours.PROVIDER, *providers], time.strftime("%Y-%m-%d"), turn)


def figures(row: Row, specs: Mapping[str, Spec]) -> tuple[list[tuning.Measured], dict[str, str]]:
    """Figures of the candidates that were right, and the reason for each of the others."""
    found = [
        tuning.Measured(specs[name], row.us(name).median, row.share(name).median)
        for name in row.times
        if name in specs and row.compared(name)
    ]
    wrong = {name: f"wrong by {row.errors[name]:.1f} times its bound" for name in row.wrong if name != OURS}
    return found, {**wrong, **row.failed}


def tune(direction: Direction, dtype: DType, k: int, bundle: Bundle | None = None) -> str:
    """The output of `python -m codegen tune` for the candidates in a bundle. Raises NoDevice without a GPU that
    runs the kernels, or when it is lost."""
    device = Cuda()
    gpu = driver.architecture(0)
    if (arch := built_for(gpu, ARCHITECTURES)) is None:
        raise NoDevice(f"no kernels can be built for {gpu}, the GPU here: nothing is measured")
    now, *others = tuning.compared(direction, dtype, k, arch)
    specs = {spec.name: spec for spec in (now, *others)}
    find = partial(tuning.prebuilt, bundle=bundle) if bundle else tuning.compiled
    cubins, refused = find(specs.values(), arch)
    make = partial(provider, arch=arch)
    row = sweep(cell_of(direction, dtype, k), device, [make(specs[cubin.variant], cubin) for cubin in cubins])
    found, without = figures(row, specs)
    lines = tuning.in_words({**refused, **without})
    if found:
        lines.append(tuning.proposal(found, now, k, arch, device.name, row.date))
    return "\n".join(lines)
