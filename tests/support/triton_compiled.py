"""Compiles the benchmark's causal Triton kernels for an H200, without a GPU: they must access 16 bytes at a time."""

import re
import sys
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import triton_softmax

POINTERS = {"x", "y", "dy", "dx", "mask", "bias"}
H200 = GPUTarget("cuda", 90, 32)


def widths(kernel: Any, pointer: str, warps: int, **constants: Any) -> set[str]:
    """Widths of its PTX's accesses to global memory. Pointers and integers are multiples of 16, as in the cells."""
    types = {"scale": "fp32", **dict.fromkeys(POINTERS, pointer), **dict.fromkeys(constants, "constexpr")}
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    places = {name: (place,) for place, name in enumerate(kernel.arg_names)}
    divisible = {places[name]: [["tt.divisibility", 16]] for name in signature if signature[name] in ("i32", pointer)}
    constexprs = {places[name]: value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=divisible)
    ptx = triton.compile(source, target=H200, options={"num_warps": warps}).asm["ptx"]
    return set(re.findall(r"(?:ld|st)\.global\.([\w.]+)", ptx))


for pointer, vector in (("*fp16", 8), ("*bf16", 8), ("*fp32", 4)):
    causal: dict[str, Any] = {"CAUSAL": True, "VEC": vector}
    held: dict[str, Any] = {**causal, "ROWS": 1, "BLOCK": 4096}
    long: dict[str, Any] = {**causal, "BLOCK": triton_softmax.PIECE}
    plain: dict[str, Any] = {"MASKED": False, "BIASED": False}
    for found in (
        widths(triton_softmax._forward, pointer, 4, **plain, **held),
        widths(triton_softmax._forward_long, pointer, 16, **plain, **long),
        widths(triton_softmax._backward, pointer, 4, **held),
        widths(triton_softmax._backward_long, pointer, 16, **long),
        widths(triton_softmax._copy_visible, pointer, 4, VEC=vector, BLOCK=triton_softmax.PROGRAM),
    ):
        assert found == {"v4.b32"}, (pointer, found)
