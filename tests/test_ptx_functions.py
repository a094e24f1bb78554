"""Calls of a module's functions, whose bodies are inlined."""

from __future__ import annotations

import numpy as np

from tests.ptx import GlobalMemory, parse, run
from tests.ptx.snippets import module, packed_params

HALVED = """
.func (.param .b64 func_retval0) halved(.param .b64 halved_param_0);
.func (.param .b64 func_retval0) halved(
    .param .b64 halved_param_0
)
{
    .reg .pred %p<4>; .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [halved_param_0];
    setp.ne.u64 %p1, %rd1, 7;
    @%p1 bra $L__BB1_2;
    mov.u64 %rd2, 100;
    st.param.b64 [func_retval0+0], %rd2;
    ret;
$L__BB1_2:
    shr.u64 %rd2, %rd1, 1;
    st.param.b64 [func_retval0+0], %rd2;
    ret;
}
"""

TWICE = """
    mov.u32 %r1, %tid.x; cvt.u64.u32 %rd1, %r1; ld.param.u64 %rd9, [k_param_0];
    shl.b64 %rd8, %rd1, 3; add.u64 %rd9, %rd9, %rd8;
    { // callseq 0, 0
    .param .b64 param0; st.param.b64 [param0+0], %rd1; .param .b64 retval0;
    call.uni (retval0), halved, (param0);
    ld.param.b64 %rd2, [retval0+0];
    }
    { // callseq 1, 0
    .param .b64 param0; st.param.b64 [param0+0], %rd2; .param .b64 retval0;
    call.uni (retval0),
    halved,
    (
    param0
    );
    ld.param.b64 %rd3, [retval0+0];
    }
    st.global.u64 [%rd9], %rd3; ret;
"""


def test_each_call_has_registers_and_labels_of_its_own() -> None:
    """Threads that return at different places meet again after the call."""
    memory = GlobalMemory()
    result = memory.add("result", 32 * 8, "write")
    program = parse(module(TWICE, params=1, outside=HALVED))
    run(program, grid=1, block=32, params=packed_params(result), memory=memory)

    def halved(n: int) -> int:
        return 100 if n == 7 else n // 2

    assert memory.read("result").view(np.uint64).tolist() == [halved(halved(n)) for n in range(32)]
