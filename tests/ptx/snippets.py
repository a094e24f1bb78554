"""Small PTX kernels for the interpreter's own tests: a module around a body, and one instruction applied to arrays."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .machine import run
from .memory import GlobalMemory
from .parse import parse

_REGISTERS = """
    .reg .pred %p<16>;
    .reg .b16 %rs<32>;
    .reg .b32 %r<64>;
    .reg .f32 %f<64>;
    .reg .b64 %rd<64>;
    .reg .f64 %fd<64>;
"""


def module(body: str, params: int = 2, outside: str = "") -> str:
    """A module with the kernel `k` of `params` 64-bit parameters, k_param_0 and so on, and plenty of registers."""
    declared = ",\n".join(f"    .param .u64 k_param_{i}" for i in range(params))
    head = ".version 8.0\n.target sm_90\n.address_size 64\n"
    return f"{head}{outside}\n.visible .entry k(\n{declared}\n)\n{{{_REGISTERS}{body}\n}}\n"


def packed_params(*addresses: int) -> bytes:
    return struct.pack(f"<{len(addresses)}Q", *addresses)


def evaluate(code: str, *inputs: NDArray[Any], out: Any) -> NDArray[Any]:
    """Runs `code` with one thread per element: it reads $0, $1, ... and writes $d, a register as wide as `out`.

    With out=bool, $d is a predicate.
    """
    count = inputs[0].size
    memory = GlobalMemory()
    result_type = np.dtype(np.uint32 if out is bool else out)
    addresses = [memory.add(f"input {i}", values) for i, values in enumerate(inputs)]
    addresses.append(memory.add("output", count * result_type.itemsize, access="write"))
    text = module(_body(code, inputs, out, result_type.itemsize, count), params=len(addresses))
    block = min(count, 1024)
    run(parse(text), grid=-(-count // block), block=block, params=packed_params(*addresses), memory=memory)
    result = memory.read("output").view(result_type)
    return result.astype(np.bool_) if out is bool else result


def _body(code: str, inputs: Sequence[NDArray[Any]], out: Any, size: int, count: int) -> str:
    lines = [
        "mov.u32 %r0, %ctaid.x; mov.u32 %r1, %ntid.x; mov.u32 %r2, %tid.x; mad.lo.u32 %r3, %r0, %r1, %r2;",
        f"setp.ge.u32 %p0, %r3, {count}; @%p0 ret;",
        f".reg .b{8 * size} %result; .reg .pred %holds;",
    ]
    for i, values in enumerate(inputs):
        bits = 8 * values.itemsize
        lines.append(f".reg .b{bits} %in{i}; ld.param.u64 %rd0, [k_param_{i}];")
        lines.append(f"mul.wide.u32 %rd1, %r3, {values.itemsize}; add.u64 %rd0, %rd0, %rd1;")
        lines.append(f"ld.global.b{bits} %in{i}, [%rd0];")
        code = code.replace(f"${i}", f"%in{i}")
    lines.append(code.replace("$d", "%holds" if out is bool else "%result"))
    if out is bool:
        lines.append("selp.u32 %result, 1, 0, %holds;")
    lines.append(f"ld.param.u64 %rd0, [k_param_{len(inputs)}]; mul.wide.u32 %rd1, %r3, {size};")
    lines.append(f"add.u64 %rd0, %rd0, %rd1; st.global.b{8 * size} [%rd0], %result; ret;")
    return "\n".join(lines)
