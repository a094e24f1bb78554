"""Checks of single accesses: bounds, alignment, rights, uninitialised bytes; and what is counted."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.ptx import Fault, GlobalMemory, Report, parse, run
from tests.ptx.snippets import module, packed_params

LOAD_STORE = """
    ld.param.u64 %rd1, [k_param_0]; ld.param.u64 %rd2, [k_param_1];
    mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mad.lo.s32 %r1, %r2, %r3, %r1;
    mul.wide.u32 %rd3, %r1, {step}; add.u64 %rd1, %rd1, %rd3; add.u64 %rd2, %rd2, %rd3;
    ld.global{type} {registers}, [%rd1{offset}];
    st.global{type} [%rd2{offset}], {registers};
    ret;
"""


def copy_text(step: int = 4, type_: str = ".u32", registers: str = "%r5", offset: str = "") -> str:
    """Each thread copies one element of the first buffer to the second."""
    return module(LOAD_STORE.format(step=step, type=type_, registers=registers, offset=offset))


WIDTHS = {
    1: (".u8", "%rs1"),
    2: (".u16", "%rs1"),
    4: (".u32", "%r5"),
    8: (".u64", "%rd5"),
    16: (".v4.u32", "{%r5, %r6, %r7, %r8}"),
    32: (".v4.b64", "{%rd5, %rd6, %rd7, %rd8}"),
}


def launch(text: str, memory: GlobalMemory, *addresses: int, grid: int = 1, block: int = 32) -> Report:
    return run(parse(text), grid=grid, block=block, params=packed_params(*addresses), memory=memory)


def fault_of(kind: str, text: str, memory: GlobalMemory, *addresses: int, block: int = 32) -> str:
    with pytest.raises(Fault) as caught:
        launch(text, memory, *addresses, block=block)
    assert caught.value.kind == kind
    return str(caught.value)


@pytest.mark.parametrize("width", WIDTHS)
def test_copies_of_every_width_are_exact_and_counted(width: int) -> None:
    memory = GlobalMemory()
    data = np.random.default_rng(23).integers(0, 256, 96 * width, dtype=np.uint8)
    x, y = memory.add("x", data), memory.add("y", data.nbytes, access="write")
    report = launch(copy_text(width, *WIDTHS[width]), memory, x, y, grid=3)
    assert np.array_equal(memory.read("y"), data)
    assert report.traffic["x"].reads == {width: 96} and report.traffic["x"].bytes_read == 96 * width
    assert report.traffic["y"].writes == {width: 96} and report.traffic["y"].bytes_written == 96 * width
    assert not report.traffic["x"].writes and not report.traffic["y"].reads
    assert not memory.unwritten("y").any()


@pytest.mark.parametrize(
    ("step", "width", "passes"),
    [(1, 1, 1), (2, 2, 1), (4, 4, 1), (8, 8, 2), (16, 16, 4), (8, 4, 2), (64, 4, 16), (128, 4, 32), (256, 16, 32)],
)
def test_lines_of_an_access_are_counted(step: int, width: int, passes: int) -> None:
    """One pass for each 128-byte line that a warp reads or writes; three warps, of which the last has half its
    lanes."""
    memory = GlobalMemory()
    data = np.zeros(80 * step + width, np.uint8)
    x, y = memory.add("x", data), memory.add("y", data.nbytes, access="write")
    report = launch(copy_text(step, *WIDTHS[width]), memory, x, y, block=80)
    assert report.passes["global"] == 2 * (2 * passes + -(-passes // 2))
    assert not report.passes["shared"]


@pytest.mark.parametrize(("step", "offset", "lines", "sectors"), [(64, 0, 16, 32), (16, 0, 4, 16), (16, 16, 5, 17)])
def test_lanes_in_any_order_share_lines_and_sectors(step: int, offset: int, lines: int, sectors: int) -> None:
    """Neighbouring lanes store far apart: 13 times the lane's number, modulo 32, steps from the start of a buffer that
    is `offset` bytes past a sector's boundary."""
    body = f"mov.u32 %r1, %tid.x; mul.lo.u32 %r2, %r1, 13; and.b32 %r2, %r2, 31; mul.wide.u32 %rd2, %r2, {step};"
    body += "ld.param.u64 %rd1, [k_param_0]; add.u64 %rd1, %rd1, %rd2; st.global.u32 [%rd1], %r1; ret;"
    memory = GlobalMemory()
    report = launch(module(body, params=1), memory, memory.add("y", 32 * step, access="write", offset=offset))
    assert report.passes["global"] == lines
    assert report.traffic["y"].sectors_written == sectors


BANKED = """
    .shared .align 16 .b8 tile[8192];
    mov.u32 %r1, %tid.x; mul.lo.u32 %r1, %r1, {step}; mov.u32 %r2, tile; add.u32 %r1, %r1, %r2;
    st.shared{type} [%r1], {registers};
    ret;
"""


@pytest.mark.parametrize(
    ("step", "width", "passes"),
    [
        *((2, 2, 1), (4, 4, 1), (12, 4, 1), (8, 4, 2), (16, 4, 4), (128, 4, 32), (132, 4, 1)),
        *((8, 8, 2), (16, 8, 4), (16, 16, 4), (32, 16, 8), (80, 16, 4)),
    ],
)
def test_bank_conflicts_are_counted(step: int, width: int, passes: int) -> None:
    """32 banks of 4 bytes; accesses of 8 and 16 bytes by half and by quarter warp."""
    text = module(BANKED.format(step=step, type=WIDTHS[width][0], registers=WIDTHS[width][1]), params=1)
    assert launch(text, GlobalMemory(), 0).passes == {"shared": passes}


def test_executed_instructions_are_counted() -> None:
    memory = GlobalMemory()
    data = np.arange(40, dtype=np.uint32)
    x, y = memory.add("x", data), memory.add("y", data.nbytes, access="write")
    body = "setp.ge.u32 %p1, %r1, 40; @%p1 ret; ld.global"
    report = launch(copy_text().replace("ld.global", body), memory, x, y, block=64)
    assert report.executed["ret"] == 24 + 40
    assert report.executed["ld.global.u32"] == 40
    guarded = next(i for i, each in enumerate(report.program.instructions) if each.guard)
    assert (report.reached_at[guarded], report.executed_at[guarded]) == (64, 24)


@pytest.mark.parametrize("missing", ["x", "y"])
def test_one_byte_past_the_end_is_out_of_bounds(missing: str) -> None:
    memory = GlobalMemory()
    x = memory.add("x", np.zeros(128 - (missing == "x"), np.uint8))
    y = memory.add("y", 128 - (missing == "y"), access="write")
    message = fault_of("bounds", copy_text(), memory, x, y)
    assert "block 0 thread 31" in message and f"{missing}[124:128] of 127 bytes" in message


def test_before_the_start_and_far_away_are_out_of_bounds() -> None:
    memory = GlobalMemory()
    x, y = memory.add("x", np.zeros(32, np.uint32)), memory.add("y", 128, access="write")
    assert "x[-4:0]" in fault_of("bounds", copy_text(offset="+-4"), memory, x, y)
    memory = GlobalMemory()
    x, y = memory.add("x", np.zeros(32, np.uint32)), memory.add("y", 128, access="write")
    far = module("ld.param.u64 %rd1, [k_param_{}]; add.u64 %rd1, %rd1, {}; ld.global.u32 %r1, [%rd1]; ret;")
    assert "x[4294967292:4294967296]" in fault_of(
        "bounds", far.replace("{}", "0", 1).replace("{}", "0xFFFFFFFC"), memory, x, y
    )
    assert "y[-4:0]" in fault_of("bounds", far.replace("{}", "1", 1).replace("{}", "-4"), memory, x, y)
    null = module("mov.u64 %rd1, 0; ld.global.u32 %r1, [%rd1]; ret;")
    fault_of("bounds", null, memory, x, y)


@pytest.mark.parametrize("width", [2, 4, 8, 16, 32])
def test_alignment_is_that_of_the_access(width: int) -> None:
    memory = GlobalMemory()
    x = memory.add("x", np.zeros(32 * width, np.uint8), offset=width // 2)
    y = memory.add("y", 32 * width, access="write")
    message = fault_of("alignment", copy_text(width, *WIDTHS[width]), memory, x, y)
    assert f"read of {width} bytes" in message and f"is {width // 2} past" in message


def test_shifted_buffers_work_where_the_access_allows_it() -> None:
    memory = GlobalMemory()
    data = np.arange(32, dtype=np.uint16)
    x, y = memory.add("x", data, offset=2), memory.add("y", 64, access="write", offset=30)
    assert (x % 256, y % 256) == (2, 30)
    launch(copy_text(2, *WIDTHS[2]), memory, x, y)
    assert np.array_equal(memory.read("y").view(np.uint16), data)


def test_a_read_only_buffer_is_not_written() -> None:
    memory = GlobalMemory()
    x, y = memory.add("x", np.zeros(32, np.uint32)), memory.add("y", np.zeros(32, np.uint32))
    assert "y[0:4]" in fault_of("read-only", copy_text(), memory, x, y)


def test_an_output_is_uninitialised_until_written() -> None:
    memory = GlobalMemory()
    x, y = memory.add("x", 128, access="write"), memory.add("y", 128, access="write")
    assert "x[0:4]" in fault_of("uninitialised", copy_text(), memory, x, y)
    assert memory.unwritten("y").all()
    assert (memory.read("y") == 0xFF).all()


def test_what_one_launch_wrote_the_next_may_read() -> None:
    memory = GlobalMemory()
    x, y = memory.add("x", np.arange(32, dtype=np.uint32)), memory.add("y", 128, access="write")
    z = memory.add("z", 128, access="write")
    launch(copy_text(), memory, x, y)
    report = launch(copy_text(), memory, y, z)
    assert np.array_equal(memory.read("z").view(np.uint32), np.arange(32))
    assert not report.traffic["x"].reads and report.traffic["y"].bytes_read == 128


def test_bytes_that_no_thread_wrote_are_listed() -> None:
    memory = GlobalMemory()
    x, y = memory.add("x", np.zeros(40, np.uint32)), memory.add("y", 160, access="write")
    launch(copy_text(), memory, x, y)
    assert memory.unwritten("y").nonzero()[0].tolist() == list(range(128, 160))


@pytest.mark.parametrize("buffer", ["x", "y"])
def test_guard_bytes_around_strided_rows(buffer: str) -> None:
    """Rows of 3 elements, 4 apart: every fourth element is a guard."""
    memory = GlobalMemory()
    rows = np.tile(np.array([True, True, True, False]), 8).repeat(4)
    x = memory.add("x", np.zeros(32, np.uint32), valid=rows if buffer == "x" else None)
    y = memory.add("y", 128, access="write", valid=rows if buffer == "y" else None)
    message = fault_of("bounds", copy_text(), memory, x, y)
    assert "thread 3" in message and f"outside the valid rows: {buffer}[12:16]" in message


def test_valid_rows_count_as_the_whole_output() -> None:
    memory = GlobalMemory()
    valid = np.repeat(np.arange(48) < 32, 4)
    x, y = memory.add("x", np.zeros(32, np.uint32)), memory.add("y", 192, access="write", valid=valid)
    launch(copy_text(), memory, x, y)
    assert not memory.unwritten("y").any()


def test_one_instruction_may_touch_several_buffers() -> None:
    memory = GlobalMemory()
    x = memory.add("x", np.arange(8, dtype=np.uint32), at=1 << 33)
    memory.add("further x", np.arange(8, 16, dtype=np.uint32), at=(1 << 33) + 8 * (1 << 35))
    y = memory.add("y", 64, access="write")
    body = """
        ld.param.u64 %rd1, [k_param_0]; ld.param.u64 %rd2, [k_param_1]; mov.u32 %r1, %tid.x;
        shr.u32 %r2, %r1, 3; and.b32 %r3, %r1, 7; mul.wide.u32 %rd3, %r3, 4;
        cvt.u64.u32 %rd4, %r2; shl.b64 %rd4, %rd4, 38; add.u64 %rd3, %rd3, %rd4; add.u64 %rd1, %rd1, %rd3;
        ld.global.nc.L1::no_allocate.L2::evict_first.u32 %r5, [%rd1];
        mul.wide.u32 %rd3, %r1, 4; add.u64 %rd2, %rd2, %rd3; st.global.u32 [%rd2], %r5; ret;"""
    launch(module(body), memory, x, y, block=16)
    assert memory.read("y").view(np.uint32).tolist() == list(range(16))
    with pytest.raises(ValueError, match="overlaps"):
        memory.add("z", 64, at=(1 << 33) + 4)


def test_small_types_are_extended_on_loading() -> None:
    body = """ld.param.u64 %rd1, [k_param_0]; ld.param.u64 %rd2, [k_param_1];
        ld.global.s8 %r1, [%rd1]; ld.global.u8 %r2, [%rd1]; ld.global.s16 %r3, [%rd1];
        st.global.v4.b32 [%rd2], {%r1, %r2, %r3, %r1}; ret;"""
    memory = GlobalMemory()
    x, y = memory.add("x", np.array([0x80, 0xFF], np.uint8)), memory.add("y", 16, access="write")
    launch(module(body), memory, x, y, block=1)
    assert memory.read("y").view(np.int32).tolist() == [-128, 128, -128, -128]


def test_a_struct_parameter_is_read_at_offsets() -> None:
    text = module(
        """ld.param.u64 %rd1, [k_param_0+8]; ld.param.v2.u32 {%r1, %r2}, [k_param_0+16]; mov.b64 %rd4, k_param_0;
        ld.param.u16 %rs1, [%rd4+2]; cvt.u32.u16 %r3, %rs1;
        st.global.u32 [%rd1], %r1; st.global.u32 [%rd1+4], %r2; st.global.u32 [%rd1+8], %r3; ret;""",
        params=0,
    ).replace("k(\n\n)", "k(\n\t.param .align 8 .b8 k_param_0[24]\n)")
    memory = GlobalMemory()
    y = memory.add("y", 12, access="write")
    program = parse(text)
    run(program, grid=1, block=1, params=struct.pack("<HHIQII", 1, 77, 0, y, 5, 6), memory=memory)
    assert memory.read("y").view(np.uint32).tolist() == [5, 6, 77]
    with pytest.raises(ValueError, match="24 bytes of parameters, not 23"):
        run(program, grid=1, block=1, params=bytes(23), memory=memory)


STATIC = ".shared .align 8 .b8 fixed[64];\n.extern .shared .align 16 .b8 dynamic[];\n"


SHARED = "mov.u32 %r1, dynamic; mov.u16 %rs1, 7; {} ret;"


def run_shared(body: str, **launch: int) -> Report:
    program = parse(module(SHARED.format(body), 0, STATIC))
    assert (program.shared_static, program.shared_dynamic) == (64, 64)
    return run(program, grid=1, block=1, params=b"", memory=GlobalMemory(), shared_bytes=36, **launch)


@pytest.mark.parametrize("offset", [36, 38, -65, 1 << 30])
def test_shared_memory_ends_exactly(offset: int) -> None:
    """64 static and 36 dynamic bytes."""
    report = run_shared("st.shared.u8 [%r1+35], %rs1; ld.shared.u8 %rs2, [%r1+35]; st.shared.u8 [%r1+-64], %rs1;")
    assert report.executed["st.shared.u8"] == 2
    with pytest.raises(Fault, match=r"shared.* of 100 bytes") as caught:
        run_shared(f"st.shared.u8 [%r1+{offset}], %rs1;")
    assert caught.value.kind == "bounds"


def test_shared_memory_starts_uninitialised() -> None:
    with pytest.raises(Fault, match=r"shared\[65:66\]") as caught:
        run_shared("st.shared.u8 [%r1], %rs1; ld.shared.u8 %rs2, [%r1+1];")
    assert caught.value.kind == "uninitialised"


def test_a_fault_names_the_source_line() -> None:
    text = '.file 1 "/somewhere/softmax.cu"\n.file 2 "/somewhere/rows.cuh"\n' + copy_text()
    loc = ".loc 1 40 3\n.loc 2 7 5, function_name $L__info_string0, inlined_at 1 40 3\nld.global"
    memory = GlobalMemory()
    x, y = memory.add("x", np.zeros(3, np.uint8)), memory.add("y", 128, access="write")
    message = fault_of("bounds", text.replace("ld.global", loc), memory, x, y)
    assert "`ld.global.u32 %r5, [%rd1] at rows.cuh:7 <- softmax.cu:40`" in message


def test_launches_that_the_driver_would_refuse() -> None:
    text = copy_text().replace("\n{", "\n.maxntid 64, 1, 1\n{", 1)
    with pytest.raises(ValueError, match="64 threads per block, not 65"):
        launch(text, GlobalMemory(), 0, 0, block=65)
    with pytest.raises(ValueError, match="clusters of 2"):
        run(parse(text), grid=3, block=32, cluster=2, params=packed_params(0, 0), memory=GlobalMemory())
    with pytest.raises(ValueError, match="no kernel 'other'"):
        parse(text, "other")


def test_many_blocks_run_in_waves() -> None:
    """More lanes than run at once: the totals are still right."""
    memory = GlobalMemory()
    data = np.arange(400 * 128, dtype=np.uint32)
    x, y = memory.add("x", data), memory.add("y", data.nbytes, access="write")
    report = launch(copy_text(), memory, x, y, grid=400, block=128)
    assert np.array_equal(memory.read("y").view(np.uint32), data)
    assert report.executed["ld.global.u32"] == data.size
