"""The toolchain: fingerprints, refusals, clean logs, and that nothing is compiled twice."""

import dataclasses
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from codegen import build, devices, disassembly, inspection, render, sources, toolchain, variants
from softmax_ops.artifacts.cache import Cache
from softmax_ops.artifacts.cubin import Cubin
from tests.support.cases import cases
from tests.support.engines import InterpreterEngine
from tests.support.outcomes import judge

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).resolve().parents[1]
SPEC = variants.by_name()["softmax_fwd_f16_none_warp_k64_v8_t128r32"]
CLUSTER = next(spec for spec in variants.shipped() if spec.cluster > 1)
OTHER = variants.by_name()["softmax_fwd_f16_boolcausal_warp_k64_v8_t128r32"]
SOURCE = render.render(SPEC)


def fingerprint() -> str:
    return toolchain.fingerprint(SOURCE, "sm_90", "cubin")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", max_bytes=1 << 30)


# ---- fingerprints


@pytest.mark.parametrize(
    "ingredient", ["source", "architecture", "kind", "compiler", "option", "schema", "header content", "header name"]
)
def test_every_ingredient_changes_the_fingerprint(
    ingredient: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint()
    if ingredient == "source":
        assert toolchain.fingerprint(SOURCE + " ", "sm_90", "cubin") != before
    elif ingredient == "architecture":
        assert toolchain.fingerprint(SOURCE, "sm_80", "cubin") != before
    elif ingredient == "kind":
        assert toolchain.fingerprint(SOURCE, "sm_90", "ptx") != before
    elif ingredient == "compiler":
        monkeypatch.setattr(toolchain, "compiler_build", lambda: "another build of the same version")
        assert fingerprint() != before
    elif ingredient == "option":
        monkeypatch.setattr(toolchain, "_COMPILE_OPTIONS", (*toolchain._COMPILE_OPTIONS, "-use_fast_math"))
        assert fingerprint() != before
    elif ingredient == "schema":
        monkeypatch.setattr(toolchain, "SCHEMA", toolchain.SCHEMA + 1)
        assert fingerprint() != before
    else:
        tree = tmp_path / "include"
        shutil.copytree(render.INCLUDE, tree)
        header = tree / "softmax" / "reduce.cuh"
        if ingredient == "header content":
            header.write_text(header.read_text() + "\n")
        else:
            header.rename(header.with_name("reduction.cuh"))
        others = toolchain.headers()[1:]
        monkeypatch.setattr(toolchain, "headers", lambda: (sources.Headers("softmax_ops", tree), *others))
        assert fingerprint() != before


def test_place_and_time_do_not_change_the_fingerprint(tmp_path: Path) -> None:
    """Headers installed elsewhere, touched later, read by another process: the same fingerprint."""
    moved = tmp_path / "elsewhere"
    shutil.copytree(render.INCLUDE, moved / "include")
    for path in moved.rglob("*.cuh"):
        path.touch()
    assert sources.Headers("softmax_ops", moved / "include").digest == sources.project_headers().digest
    program = (
        "from codegen import render, toolchain, variants\n"
        f"print(toolchain.fingerprint(render.render(variants.by_name()[{SPEC.name!r}]), 'sm_90', 'cubin'))"
    )
    environment = {"PYTHONPATH": str(CHECKOUT), "PYTHONHASHSEED": "7", "HOME": str(tmp_path)}
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == fingerprint()


# ---- refusals


@pytest.mark.parametrize("arch", ["sm_60", "sm_9", "ampere", "compute_90", "sm_90; rm"])
def test_an_unknown_architecture_is_one_clear_sentence(arch: str) -> None:
    with pytest.raises(toolchain.ToolchainError, match="not a supported architecture: choose from sm_70, sm_75"):
        toolchain.check_architectures([arch])


def test_an_architecture_beyond_this_toolchain_names_the_one_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "supported_architectures", lambda: ("sm_75", "sm_80"))
    with pytest.raises(toolchain.ToolchainError, match=r"cannot target sm_70 .it starts at sm_75.*12.9.*CUDA=12"):
        toolchain.check_architectures(["sm_70"])


def test_missing_headers_name_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "find_nvidia_header_directory", lambda name: None if name == "cutlass" else "/")
    toolchain.headers.cache_clear()
    try:
        with pytest.raises(toolchain.ToolchainError, match=r"headers of nvidia-cutlass are missing.*make generate"):
            toolchain.headers()
    finally:
        toolchain.headers.cache_clear()


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ("exponentiate<Numeric", "exponentiat<Numeric"),
        ("int const lane = ", "int const unused = 1;\n  int const lane = "),
    ],
    ids=["error", "warning"],
)
def test_anything_in_the_log_fails_the_build_with_options_and_numbered_source(damage: str, complaint: str) -> None:
    broken = SOURCE.replace(damage, complaint)
    assert broken != SOURCE
    with pytest.raises(toolchain.ToolchainError) as caught:
        toolchain.compile_unit({SPEC.name: broken}, ["sm_90"])
    message = str(caught.value)
    assert "options: -arch=compute_90 -std=c++17" in message
    assert "    1 // Generated by `make generate`" in message
    assert complaint.split("<")[0].split("\n")[0].strip() in message


def test_the_ptx_of_a_kernel_is_the_same_whatever_it_was_linked_with() -> None:
    names = (OTHER.name, "softmax_fwd_f16_none_tile_k32_v8_t256r256", "softmax_fwd_f16_causal_tile_k32_v8_t256r256")
    for image, alone in _linked_together_and_alone(names):
        ptx = image.code.decode()
        assert _instructions(ptx) == _instructions(alone.code.decode())
        mentioned = re.findall(r"function_name (\S+),", ptx)
        assert mentioned and {*mentioned} == {*re.findall(r"^(\S+):\n\.b8", ptx, re.M)}


def test_kernels_that_share_functions_are_linked_one_by_one() -> None:
    names = ("softmax_bwd_f64_general_warp_k128_v1_t128r4", "softmax_bwd_f64_general_warp_k64_v1_t128r8")
    for image, alone in _linked_together_and_alone(names):
        assert b".func" in image.code and image == alone


def _linked_together_and_alone(names: tuple[str, ...]) -> Iterator[tuple[toolchain._Image, toolchain._Image]]:
    sources = "\n".join(render.render(variants.by_name()[name]) for name in names)
    ir = toolchain._front_end(sources, 90, toolchain._KIND_OPTIONS["ptx"])
    for name, image in toolchain._images(ir, "sm_90", [*names], "ptx").items():
        yield image, toolchain._link(ir, "sm_90", name, "ptx")


def _instructions(ptx: str) -> list[str]:
    """Lines without their places in the source."""
    lines = re.sub(r"//.*|^\s*\.(loc|file)\b.*", "", ptx.partition("\t.section")[0], flags=re.M)
    return [line for line in lines.split("\n") if line.strip()]


def test_a_spill_fails_the_build() -> None:
    crowded = re.sub(r"(?<=/\*sm_90=\*/)\d+", "16", SOURCE)
    assert crowded != SOURCE
    with pytest.raises(toolchain.ToolchainError, match=f"{SPEC.name} for sm_90 spills registers"):
        toolchain.compile_unit({SPEC.name: crowded.replace("/*Chunks=*/2", "/*Chunks=*/8")}, ["sm_90"])


def test_sums_across_lanes_are_never_fused_with_a_product() -> None:
    """ptxas may fuse mul and add unless they say how they round: lanes that did so would not agree in the last bit. The
    interpreter runs the PTX, and cannot see it."""
    spec = variants.by_name()["softmax_fwd_f32_none_block_k16384_v4_t512r1"]
    (cubin,) = toolchain.compile_unit({spec.name: render.render(spec)}, ["sm_90"], kind="ptx")
    text = cubin.code.decode()
    shuffled = set(re.findall(r"shfl\.sync\.bfly\.b32\s+(%r\d+)", text))
    moved = {new for new, old in re.findall(r"mov\.b32\s+(%f\d+), (%r\d+);", text) if old in shuffled}
    sums = [
        kind for kind, *terms in re.findall(r"\b(add[.\w]*f32)\s+%f\d+, (%f\d+), (%f\d+);", text) if moved & {*terms}
    ]
    assert len(sums) == 9 and {*sums} == {"add.rn.f32"}  # 32 lanes, then 16


def gated(type: str, gate: str) -> Cubin:
    """The PTX of a kernel with the feature of the documentation, which reads `gate`."""
    page = (CHECKOUT / "docs" / "adding_a_variant.md").read_text()
    (feature,) = re.findall(r"^```cpp\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    made = f"{type}(Gate<Element>::Params{{{gate}, p.operands.x_strides}}, rows, index)"
    headers = f"#include <softmax/optional.cuh>\nnamespace softmax {{\n{feature}\n}}\nnamespace "
    source = SOURCE.replace("\nnamespace ", headers).replace("(p.operands.scale);", f"(p.operands.scale, {made});")
    (cubin,) = toolchain.compile_unit({SPEC.name: source}, ["sm_90"], kind="ptx")
    return cubin


@pytest.mark.parametrize("type", ["Gate<Element>", "Optional<Gate<Element>>"])
def test_the_feature_of_the_documentation_compiles(type: str) -> None:
    """By itself and in the general kind; it is loaded in the same wide accesses as the scores, of which there are
    two."""
    assert gated(type, "p.operands.x").code.count(b"ld.global.v4") == 2 + 2


def test_the_feature_of_the_documentation_may_be_absent() -> None:
    """Nothing is loaded from its null address, and the result is that of a kernel without it."""
    interpreter = InterpreterEngine({SPEC.name: gated("Optional<Gate<Element>>", "nullptr")})
    call = cases(SPEC)[0].call()
    judge(call, interpreter.run(call.plan, call.operands))


# ---- building


def test_nothing_is_compiled_twice(cache: Cache) -> None:
    first = build.build([SPEC, OTHER], ["sm_90"], cache, jobs=1, progress=False)
    again = build.build([SPEC, OTHER], ["sm_90"], cache, jobs=1, progress=False)
    assert (first.compiled, again.compiled) == (2, 0)
    assert {cubin.variant: cubin for cubin in again.cubins} == {cubin.variant: cubin for cubin in first.cubins}


def test_an_architecture_is_added_without_recompiling_the_others(cache: Cache) -> None:
    build.build([SPEC], ["sm_90"], cache, jobs=1, progress=False)
    assert build.build([SPEC], ["sm_80", "sm_90"], cache, jobs=1, progress=False).compiled == 1


def test_a_variant_is_built_for_what_it_ships_for(cache: Cache) -> None:
    """No cluster kernel for GPUs without clusters, for which the same call builds others."""
    report = build.build([CLUSTER], ["sm_80", "sm_89"], cache, jobs=1, progress=False)
    assert (report.cubins, report.compiled) == ((), 0)
    report = build.build([CLUSTER, SPEC], ["sm_80", "sm_90"], cache, jobs=1, progress=False)
    made = {(cubin.variant, cubin.arch) for cubin in report.cubins}
    assert made == {(CLUSTER.name, "sm_90"), (SPEC.name, "sm_80"), (SPEC.name, "sm_90")}


def test_neighbours_in_a_unit_and_other_processes_do_not_change_the_bytes(cache: Cache, tmp_path: Path) -> None:
    (alone,) = build.build([SPEC], ["sm_90"], cache, jobs=1, progress=False).cubins
    together = toolchain.compile_unit({OTHER.name: render.render(OTHER), SPEC.name: SOURCE}, ["sm_90"])
    assert next(cubin for cubin in together if cubin.variant == SPEC.name) == alone
    elsewhere = Cache(tmp_path / "elsewhere", max_bytes=1 << 30)
    in_a_pool = build.build([SPEC, OTHER], ["sm_80", "sm_90"], elsewhere, jobs=2, progress=False).cubins
    assert alone in in_a_pool


def test_units_share_a_front_end_only_inside_a_family() -> None:
    missing = {"sm_80": [SPEC.name], "sm_86": [SPEC.name], "sm_90": [SPEC.name]}
    units = list(build._units({SPEC.name: SOURCE}, missing, "cubin", build.UNIT_KERNELS))
    assert [unit.architectures for unit in units] == [("sm_80", "sm_86"), ("sm_90",)]


def test_without_a_gpu_the_default_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_devices", list)
    assert devices.default_architectures([]) == (("sm_90",), "no GPU found: the default")
    assert devices.default_architectures(["sm_80"]) == (("sm_80",), "as named")


@pytest.mark.parametrize(
    ("gpus", "architectures", "why"),
    [
        (["sm_80", "sm_90"], ("sm_80", "sm_90"), "the GPUs of this machine"),
        (["sm_121", "sm_120"], ("sm_120",), "the GPUs of this machine"),
        (["sm_61", "sm_90"], ("sm_90",), "the GPUs of this machine, without sm_61"),
        (["sm_61"], ("sm_90",), "no kernels for sm_61, found here: the default"),
    ],
)
def test_kernels_are_built_for_the_gpus_here(
    gpus: list[str], architectures: tuple[str, ...], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one of a later minor version those that it runs; one that runs none does not keep the others waiting."""
    monkeypatch.setattr(devices, "_devices", lambda: gpus)
    assert devices.default_architectures([]) == (architectures, why)


@pytest.mark.skipif("sm_70" in toolchain.supported_architectures(), reason="this toolchain has them all")
def test_a_gpu_of_another_toolchain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_devices", lambda: ["sm_70"])
    with pytest.raises(toolchain.ToolchainError, match="make generate CUDA=12"):
        devices.default_architectures([])
    monkeypatch.setattr(devices, "_devices", lambda: ["sm_70", "sm_90"])
    assert devices.default_architectures([]) == (("sm_90",), "the GPUs of this machine, without sm_70")


def test_inspection_counts_what_the_disassembler_prints(cache: Cache) -> None:
    (cubin,) = build.build([SPEC], ["sm_90"], cache, jobs=1, progress=False).cubins
    facts = inspection.inspect(cubin)
    assert disassembly.count(facts.sass, r"LDG\.E\.128") == disassembly.count(facts.sass, r"STG\.E\.128") == SPEC.chunks
    assert disassembly.count(facts.sass, r"MUFU\.EX2") == SPEC.chunks * SPEC.access
    assert facts.instructions == sum(facts.sass.values()) > 100
    older = dataclasses.replace(cubin, arch="sm_70")
    assert inspection.inspect(older).sass == {}


def test_headers_edited_during_a_compile_give_no_cubin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be cached as the cubin of the headers before."""
    header = tmp_path / "softmax.cuh"
    header.write_text("// before")
    monkeypatch.setattr(sources, "INCLUDE", tmp_path)
    monkeypatch.setattr(toolchain, "_front_end", lambda *_: header.write_text("// after"))
    sources.project_headers.cache_clear()
    try:
        assert sources.project_headers().digest
        with pytest.raises(toolchain.ToolchainError, match="was edited while it was compiled: compile again"):
            toolchain.compile_unit({"probe": ""}, ["sm_90"])
    finally:
        sources.project_headers.cache_clear()
