"""QuACK's softmax, compiled ahead of time into a shared library for GPU machines on which QuACK cannot be installed.

Building needs quack-kernels, its compiler and cc, but no GPU; loading needs only apache-tvm-ffi. The library holds one
function for each direction, dtype and row length among the cells that QuACK takes.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from softmax_ops.artifacts.constants import DTYPE_BYTES

from .cells import ASKS, Cell
from .providers import in_brief

LIBRARY = Path(__file__).resolve().parents[1] / "build" / "quack" / "quack_softmax.so"
TARGET = "sm_90a"

_RAISE = """
void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message);
void CuteDSLRT_TVMFFISetRaisedCudaError(void) { TVMFFIErrorSetRaisedFromCStr("RuntimeError", "a CUDA call failed"); }
"""
"""The only function that the objects need from the compiler's 43 MB run-time library."""


def name_of(cell: Cell) -> str:
    """The name of the function that computes a cell's rows."""
    return f"quack_{cell.direction}_{cell.dtype}_{cell.k}"


def refuses(cell: Cell) -> str | None:
    if cell.asks:
        return f"QuACK's softmax has no {ASKS[cell.asks]}"
    vector = 16 // DTYPE_BYTES[cell.dtype]
    return f"QuACK takes K that is a multiple of {vector}" if cell.k % vector else None


def build(cells: Iterable[Cell], output: Path = LIBRARY) -> dict[str, str]:
    """Compiles what the cells need; returns errors by name of the function. Raises ImportError without QuACK."""
    os.environ.setdefault("CUTE_DSL_ARCH", TARGET)  # read when cutlass is imported
    wanted = {name_of(cell): cell for cell in cells if refuses(cell) is None}
    failed = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, cell in sorted(wanted.items()):
            try:
                _compile(cell).export_to_c(object_file_path=str(Path(folder, f"{name}.o")), function_name=name)
            except Exception as error:  # its compiler raises exceptions of its own
                failed[name] = in_brief(error)
        output.parent.mkdir(parents=True, exist_ok=True)
        _link(Path(folder), output)
    return failed


def _compile(cell: Cell) -> Any:
    import quack.cache
    from quack.cute_dsl_utils import torch2cute_dtype_map
    from quack.softmax import Softmax, SoftmaxBackward

    from .tensors import DTYPES

    quack.cache.CACHE_ENABLED = False  # functions loaded from the cache cannot be exported
    dtype = torch2cute_dtype_map[DTYPES[cell.dtype]]
    if cell.direction == "bwd":
        return SoftmaxBackward.compile(dtype, dtype, dtype, cell.k)
    return Softmax.compile(dtype, dtype, cell.k)


def _link(folder: Path, output: Path) -> None:
    """Links the objects, the small static part of the run time, and _RAISE; torch loads CUDA's own run time.

    A symbol that is missing then is an error of loading, which leaves QuACK out, and not the end of the process.
    """
    import nvidia_cutlass_dsl

    root = Path(next(iter(nvidia_cutlass_dsl.__path__)))
    archives = sorted(root.glob("cu*/lib/libcuda_dialect_runtime_static.a"))
    source = folder / "raise.c"
    source.write_text(_RAISE)
    objects = sorted(map(str, folder.glob("*.o")))
    flags = ["-shared", "-fPIC", "-O2", "-Wl,-z,now"]
    subprocess.run(["cc", *flags, "-o", str(output), str(source), *objects, str(archives[-1])], check=True)


def load(path: Path = LIBRARY) -> Callable[[str], Callable[..., None] | None]:
    """A lookup of functions by name, which gives None for an unknown name."""
    import torch

    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):  # tvm_ffi would compile one, and put it there
        os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")
    import tvm_ffi

    module = tvm_ffi.load_module(str(path))

    def find(name: str) -> Callable[..., None] | None:
        try:
            return module.get_function(name)
        except AttributeError:
            return None

    return find
