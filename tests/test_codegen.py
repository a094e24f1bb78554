"""The generator: names, plans, the shipped set, rendering, the catalog, and which module imports which."""

import ast
import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

from codegen import build, plans, render, variants
from codegen import catalog as codegen_catalog
from codegen.__main__ import main as command_line
from codegen.axes import Direction, DType, Plan
from codegen.features import Mask
from codegen.spec import ANY_K, Spec
from softmax_ops.artifacts import catalog
from softmax_ops.artifacts.catalog import Catalog, CatalogError
from softmax_ops.artifacts.cubin import Cubin
from softmax_ops.planning import geometry

CHECKOUT = Path(__file__).resolve().parents[1]
SHIPPED = variants.shipped()
LONG = (Plan.CLUSTER, Plan.STREAM, Plan.SPLIT)


def run(*arguments: str):
    return CliRunner().invoke(command_line, arguments)


# ---- names and the shipped set


@pytest.mark.parametrize("spec", SHIPPED, ids=lambda spec: spec.name)
def test_name_and_spec_determine_each_other(spec: Spec) -> None:
    assert Spec.from_name(spec.name) == spec
    assert re.fullmatch(r"[a-z0-9_]+", spec.name)


def test_names_decode() -> None:
    """By the grammar in the docs, including the parts that occur in few names."""
    cluster = Spec(Direction.BACKWARD, DType.F16, Mask.CAUSAL, Plan.CLUSTER, 262144, 8, 512, 1, cluster=16)
    assert cluster.name == "softmax_bwd_f16_causal_cluster_k262144_v8_t512r1c16"
    stream = Spec(Direction.FORWARD, DType.F64, Mask.BOOLCAUSAL, Plan.STREAM, ANY_K, 1, 256, 1)
    assert stream.name == "softmax_fwd_f64_boolcausal_stream_kany_v1_t256r1"
    assert {Spec.from_name(spec.name) for spec in (cluster, stream)} == {cluster, stream}
    assert {spec.direction.label for spec in SHIPPED} == {spec.name.split("_")[1] for spec in SHIPPED} == {"fwd", "bwd"}
    assert all(("_kany_" in spec.name) == (spec.plan in (Plan.STREAM, Plan.SPLIT)) for spec in SHIPPED)
    assert all(spec.name.endswith(f"r1c{spec.cluster}") == (spec.plan is Plan.CLUSTER) for spec in SHIPPED)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "softmax_<fwd|bwd>_"),
        ("softmax_fwd_f16_none_warp_k1024_v8_t128", "softmax_<fwd|bwd>_"),
        ("softmax_fwd_f8_none_warp_k1024_v8_t128r4", "no such element type, mask kind or plan"),
        ("softmax_fwd_f16_some_warp_k1024_v8_t128r4", "no such element type, mask kind or plan"),
        ("softmax_fwd_f16_none_heap_k1024_v8_t128r4", "no such element type, mask kind or plan"),
        ("softmax_fwd_f16_none_warp_k01024_v8_t128r4", "softmax_<fwd|bwd>_"),
        ("softmax_bck_f16_none_warp_k1024_v8_t128r4", "softmax_<fwd|bwd>_"),
        ("softmax_fwd_f16_none_stream_kall_v1_t256r1", "softmax_<fwd|bwd>_"),
        ("softmax_fwd_f16_none_stream_k_v1_t256r1", "softmax_<fwd|bwd>_"),
        ("softmax_fwd_f16_none_cluster_k262144_v8_t512r1c", "softmax_<fwd|bwd>_"),
        ("softmax_fwd_f16_none_cluster_k262144_v8_t512r1c016", "softmax_<fwd|bwd>_"),
        ("softmax_fwd_f16_none_warp_k1024_v8_t128r4c1", "it is written softmax_fwd_f16_none_warp_k1024_v8_t128r4"),
        (f"softmax_fwd_f16_none_stream_k{ANY_K}_v1_t256r1", "it is written softmax_fwd_f16_none_stream_kany_"),
        ("softmax_fwd_f16_none_warp_k1024_v8_t128r4 ", "softmax_<fwd|bwd>_"),
    ],
)
def test_what_is_not_a_name_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(repr(name))} is not a variant name: {re.escape(reason)}"):
        Spec.from_name(name)


def test_shipped_set_is_sorted_unique_and_under_the_cap() -> None:
    names = [spec.name for spec in SHIPPED]
    assert names == sorted(set(names))
    assert len(names) <= variants.MAX_VARIANTS, "a kernel more costs another: docs/benchmarks.md, Tuning"


@pytest.mark.parametrize("spec", SHIPPED, ids=lambda spec: spec.name)
def test_tile_holds_its_longest_row(spec: Spec) -> None:
    if spec.plan in (Plan.STREAM, Plan.SPLIT):
        assert spec.max_k == ANY_K and spec.piece == spec.threads_per_row * spec.chunks * spec.access
    else:
        assert spec.cluster * spec.threads_per_row * spec.chunks * spec.access >= spec.max_k and spec.piece == 0
    assert spec.threads % 32 == 0 and spec.threads <= 1024
    assert spec.lanes & (spec.lanes - 1) == 0  # they shuffle in groups
    if spec.plan is Plan.TILE:
        assert spec.rows * spec.max_k <= spec.tile_elements
    else:
        assert spec.threads_per_row * spec.rows == spec.threads


every_table = pytest.mark.parametrize(
    ("direction", "dtype"),
    list(variants.MASKS),
    ids=[f"{direction.label}-{dtype.value}" for direction, dtype in variants.MASKS],
)


@every_table
def test_row_plans_of_one_alignment_leave_no_gap_up_to_the_longest(direction: Direction, dtype: DType) -> None:
    """Considering only plans for any number of rows, wherever they lie, on any architecture."""
    for vec in (1,) if dtype is DType.F64 else (1, dtype.vector):
        row_plans = [plan for plan in plans.row_plans(direction, dtype) if plan.vec == vec and not plan.architectures]
        lengths = [
            plan.k
            for plan in row_plans
            if not plan.max_rows and not variants.variant(direction, dtype, Mask.NONE, plan).flat
        ]
        assert lengths[0][0] == 1
        assert all(longer[0] == shorter[1] + 1 for shorter, longer in pairwise(lengths))
        assert lengths[-1][1] == (ANY_K if vec == 1 else 16384)
    assert all(1 <= plan.k[0] <= plan.k[1] for plan in plans.row_plans(direction, dtype))


@every_table
def test_edge_columns_have_registers_beside_the_vectors(direction: Direction, dtype: DType) -> None:
    """A row may exceed the vectors of its variant by less than a vector, if edge columns hold the rest."""
    for mask in variants.MASKS[direction, dtype]:
        for plan, spec in variants.dispatch(direction, dtype, mask) or ():
            held = plan.plan in (Plan.WARP, Plan.BLOCK, Plan.CLUSTER)
            beside = 4 if spec.flat else spec.access - 1 if spec.unaligned and held else 0
            assert plan.k[1] <= spec.max_k + beside
            assert plan.measured or plan.k[1] - beside in (spec.max_k, spec.max_k // 2 if spec.cluster > 1 else 0)
            head = 4 // spec.dtype.bytes if spec.plan is Plan.TILE else spec.access
            assert not spec.unaligned or spec.edges * spec.lanes >= head - 1 + spec.access - 1


@every_table
def test_rows_that_several_ctas_share_begin_behind_the_longest_block(direction: Direction, dtype: DType) -> None:
    row_plans = plans.row_plans(direction, dtype)
    behind = max(plan.k[1] for plan in row_plans if plan.plan is Plan.BLOCK) + 1
    assert {plan.k[0] for plan in row_plans if plan.plan in LONG} == {behind}
    ctas = {(plan.architectures, 16 * plan.k[1] // plan.max_k) for plan in row_plans if plan.plan is Plan.CLUSTER}
    assert ctas == {(("sm_90", "sm_100", "sm_103"), 16), (("sm_120",), 8)}
    assert {plan.max_rows for plan in row_plans if plan.plan is Plan.SPLIT} == {128}


def test_clusters_ship_for_architectures_that_have_them() -> None:
    """Other kernels ship for all, unless they were measured and are only for where they were."""
    clustered = ("sm_90", "sm_100", "sm_103", "sm_120")
    for key, masks in variants.MASKS.items():
        for plan, spec in (each for mask in masks for each in variants.dispatch(*key, mask) or ()):
            able = clustered if spec.plan is Plan.CLUSTER else variants.ARCHITECTURES
            found = variants.architectures(spec)
            assert found == able or (plan.measured and {*plan.architectures} <= {*found} < {*able}), spec.name


# ---- rendering


def test_rendering_is_pure(tmp_path: Path) -> None:
    """Another process, directory, hash seed and clock give the same text."""
    program = "from codegen import render, variants; print(sum(hash_(render.render(s)) for s in variants.shipped()))"
    program = "from zlib import crc32\nhash_ = lambda text: crc32(text.encode())\n" + program
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONHASHSEED": seed, "TZ": zone},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, zone in (("0", "UTC"), ("1", "Asia/Tokyo"))
    }
    assert len(outputs) == 1


def test_generated_is_what_the_templates_render() -> None:
    assert codegen_catalog.differences() == ""


def test_check_prints_a_diff_when_generated_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codegen_catalog.write(tmp_path)
    name = f"{SHIPPED[0].name}.cu"
    (tmp_path / name).write_text((tmp_path / name).read_text().replace("Threads", "threads", 1))
    monkeypatch.setattr(codegen_catalog.differences, "__defaults__", (tmp_path,))
    result = run("check")
    assert result.exit_code == 1
    assert f"--- generated/{name}" in result.output and "make generate" in result.output


def test_write_touches_only_what_changed_and_removes_what_is_gone(tmp_path: Path) -> None:
    assert codegen_catalog.write(tmp_path) == (len(SHIPPED) + 1, 0)
    (tmp_path / "softmax_fwd_gone.cu").write_text("")
    assert codegen_catalog.differences(tmp_path) == "--- generated/softmax_fwd_gone.cu\n"
    (tmp_path / f"{SHIPPED[0].name}.cu").write_text("stale")
    assert codegen_catalog.write(tmp_path) == (1, 1)
    assert codegen_catalog.write(tmp_path) == (0, 0)


def test_what_is_not_generated_is_left_alone(tmp_path: Path) -> None:
    """Except what a killed run left of its own."""
    codegen_catalog.write(tmp_path)
    (tmp_path / "folder.cu").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.cu").write_text("mine")
    (tmp_path / ".DS_Store").write_bytes(b"\xff")
    (tmp_path / ".part-gone").write_text("half")
    os.utime(tmp_path / ".part-gone", (1, 1))
    (tmp_path / ".part-under-way").write_text("half")
    before = {path.name for path in tmp_path.iterdir()}
    assert codegen_catalog.differences(tmp_path) == ""
    assert codegen_catalog.write(tmp_path) == (0, 0)
    assert before - {path.name for path in tmp_path.iterdir()} == {".part-gone"}
    assert (tmp_path / "notes" / "mine.cu").read_text() == "mine" and (tmp_path / ".DS_Store").read_bytes() == b"\xff"


def test_a_bias_is_a_mask_kind_where_serving_takes_it_for_one() -> None:
    having = {dtype.value for (_, dtype), masks in variants.MASKS.items() if Mask.BIAS in masks}
    assert having == set(geometry.BIASED)


@pytest.mark.parametrize("spec", SHIPPED, ids=lambda spec: spec.name)
def test_an_absent_feature_leaves_no_trace(spec: Spec) -> None:
    text = render.render(spec)
    forward = spec.direction is Direction.FORWARD
    general, epilogue = spec.mask is Mask.GENERAL, spec.mask in (Mask.BAND, Mask.GENERAL)
    assert ("Causal" in text) == (spec.mask in (Mask.CAUSAL, Mask.BOOLCAUSAL))
    assert ("SlopedBand" in text) == (general and forward)
    assert ("TensorMask" in text) == (spec.mask in (Mask.BOOL, Mask.BOOLCAUSAL, Mask.LIKE) or (general and forward))
    assert ("Band" in text) == epilogue
    assert ("Epilogue<" in text, "EpilogueGradient<" in text or "CappedGradient<" in text) == (
        epilogue and forward,
        epilogue and not forward,
    )
    assert ("SoftmaxGradient" in text) == (not forward and not epilogue)
    assert ("CappedGradient" in text) == (general and not forward)
    assert all((f"{name}.cuh" in text) == (general and forward) for name in ("softcap", "optional"))
    assert ("bias.cuh" in text) == ((general and forward) or spec.mask is Mask.BIAS)
    assert ("tile.cuh" in text) == (spec.plan is Plan.TILE)
    assert ("forward.cuh" in text, "backward.cuh" in text) == (forward, not forward)
    assert ("rDy" in text or "sDy" in text) == (not forward)
    assert ("exponentiate<" in text or "exponentials_of_warp<" in text) == forward
    assert ("cluster.cuh" in text) == ("cluster_" in text) == (spec.plan is Plan.CLUSTER)
    assert ("pieces.cuh" in text) == (spec.plan in LONG)
    assert ("SplitParams" in text) == ("workspace" in text) == (spec.plan is Plan.SPLIT)
    assert "\n\n\n" not in text and " \n" not in text and "{%" not in text and "{{" not in text
    assert max(map(len, text.splitlines())) <= 140


def test_every_template_is_rendered() -> None:
    """There is one template for each direction and plan."""
    used = {render.template_of(spec) for spec in SHIPPED}
    assert {path.name for path in render.TEMPLATES.glob("softmax_*.jinja")} == used
    assert used == {f"softmax_{direction.label}_{plan.label}.cu.jinja" for direction in Direction for plan in Plan}


def test_templates_hold_no_logic() -> None:
    """Python decides values, Jinja which statements exist: no preprocessor conditionals, no arithmetic, comparison,
    call or filter in Jinja, short templates."""
    for path in render.TEMPLATES.glob("*.jinja"):
        text = path.read_text()
        assert not re.search(r"^\s*#\s*(if|ifdef|ifndef)\b", text, re.MULTILINE), path.name
        assert not re.search(r"\{[{%][^{}]*( [-+*/<>|]|//|==|!=|\w\()[^{}]*[%}]\}", text), path.name
        assert len(text.splitlines()) <= 80, path.name


# ---- the catalog


def test_catalog_survives_json_and_knows_every_variant() -> None:
    catalog = codegen_catalog.build_catalog(render.source_files(SHIPPED))
    again = Catalog.from_json(catalog.to_json())
    assert again == catalog
    assert list(catalog.variants) == [spec.name for spec in SHIPPED]
    served = {entry.name for table in catalog.tables.values() for entry in table}
    assert served == set(catalog.variants), "a shipped variant that nothing dispatches to is dead"


def test_catalog_entries_are_of_variants_that_serve_them() -> None:
    """The rows of an entry are no longer than its variant allows, on architectures for which it ships, and aligned as
    it requires. What was not measured also has the alignment of its variant, the largest clusters, and a limit for
    split rows."""
    catalog = codegen_catalog.build_catalog(render.source_files(SHIPPED))
    assert catalog.architectures == variants.ARCHITECTURES
    for (direction, dtype, _), table in catalog.tables.items():
        for entry in table:
            variant = catalog.variants[entry.name]
            assert (variant.direction, variant.dtype) == (direction, dtype)
            assert entry.vec % variant.vec == 0
            assert entry.k[1] < variant.max_k + variant.access or (variant.flat and entry.k[1] == variant.max_k + 4)
            assert {*(entry.architectures or variants.ARCHITECTURES)} <= {*variant.architectures}
            assert variant.splits == (variant.plan == "split")
            assert (variant.piece > 0) == (variant.plan in ("split", "stream"))
            assert (variant.cluster > 1) == (variant.plan == "cluster")
            if not entry.measured:
                assert entry.vec == variant.vec and variant.cluster in (1, 16)
                assert (entry.max_rows == 128) == variant.splits


def test_catalog_of_another_schema_is_refused() -> None:
    with pytest.raises(CatalogError, match=r"schema 99.*make generate"):
        Catalog.from_json(json.dumps({"schema": 99}))


@pytest.mark.parametrize("text", ["", '{"schema": ', "[]", f'{{"schema": {catalog.SCHEMA}}}', None])
def test_a_catalog_that_cannot_be_read_is_named(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "catalog.json"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(catalog, "location", lambda: path)
    wrong = "missing" if text is None else "damaged"
    with pytest.raises(
        CatalogError, match=rf"^{path} is {wrong}.*: run `make generate`, or install the package again$"
    ):
        catalog.load.__wrapped__()


# ---- which module imports which


def imported(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, relative imports resolved."""
    package = path.relative_to(CHECKOUT).with_suffix("").parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            prefix = list(package[: -node.level]) if node.level else []
            module = ".".join(prefix + ([node.module] if node.module else []))
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def importers(folder: str, module: str) -> set[str]:
    paths = (CHECKOUT / folder).rglob("*.py")
    found = {path for path in paths if any(f"{name}.".startswith(f"{module}.") for name in imported(path))}
    return {path.relative_to(CHECKOUT).as_posix() for path in found}


def test_layers() -> None:
    artifacts = (CHECKOUT / "softmax_ops" / "artifacts").glob("*.py")
    ours = {name for path in artifacts for name in imported(path) if name.startswith(("softmax_ops", "codegen"))}
    assert all(name.startswith("softmax_ops.artifacts") for name in ours)
    planning = {name for path in (CHECKOUT / "softmax_ops" / "planning").glob("*.py") for name in imported(path)}
    below = ("softmax_ops.artifacts.", "softmax_ops.planning.")
    assert all(f"{name}.".startswith(below) for name in planning if name.startswith("softmax_ops."))
    assert not {"codegen", "torch", "cuda"}.intersection(name.split(".")[0] for name in planning)
    of_serving = {
        name
        for path in (CHECKOUT / "codegen").glob("*.py")
        for name in imported(path)
        if name.startswith("softmax_ops.") and not name.startswith("softmax_ops.artifacts")
    }
    assert of_serving == set()
    assert importers("codegen", "torch") == set()
    assert importers("codegen", "benchmarks") == {"codegen/__main__.py"}  # lazily, for `tune`
    assert importers("codegen", "jinja2") == {"codegen/render.py"}
    assert importers("codegen", "cuda.bindings.nvrtc") == {"codegen/toolchain.py"}
    assert importers("codegen", "cuda.bindings.nvjitlink") == {"codegen/toolchain.py"}
    assert importers("softmax_ops", "codegen") == {"softmax_ops/resolve.py"}
    assert importers("softmax_ops", "cryptography") == {"softmax_ops/artifacts/signature.py"}
    assert importers("codegen", "cryptography") == set()
    torch_only = (
        *("api", "autograd", "batching", "cpu", "current", "derivatives", "dispatch", "keywords", "layouts", "modes"),
        *("modules", "operands", "ops", "planned", "routes", "schema", "transforms"),
        *(f"known/{name}" for name in ("addressed", "call", "calls", "likeness")),
    )
    of_torch = {f"softmax_ops/{name}.py" for name in torch_only}
    of_checks = {path for path in importers("softmax_ops", "torch") if path.startswith("softmax_ops/checks/")}
    assert importers("softmax_ops", "torch") - of_checks == of_torch
    assert importers("softmax_ops", "softmax_ops.checks") <= of_torch | of_checks | {"softmax_ops/checks/__init__.py"}


# ---- the command line


def test_list_prints_every_variant() -> None:
    rows = json.loads(run("list", "--json").output)
    assert [row["name"] for row in rows] == [spec.name for spec in SHIPPED]
    assert set(rows[0]) >= {"name", "direction", "dtype", "mask", "plan", "bucket", "vec"}
    assert [(row["direction"], row["plan"]) for row in rows] == [
        (spec.direction.label, spec.plan.label) for spec in SHIPPED
    ]
    assert f"{len(SHIPPED)} variants" in run("list").output


def test_render_prints_the_source() -> None:
    assert run("render", SHIPPED[0].name).output == render.render(SHIPPED[0])


def test_compiling_for_a_cache_that_keeps_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image without kernels would be noticed only where they are needed."""
    spec = SHIPPED[0]
    cubin = Cubin(spec.name, "sm_90", b"code", 32, 0, "0" * 64, "0" * 64)
    monkeypatch.setattr(build, "build", lambda *_, **__: build.Report((cubin,), compiled=1, unstored=1))
    result = run("compile", spec.name, "--arch", "sm_90")
    assert result.exit_code == 1 and "1 could not be stored" in result.output


@pytest.mark.parametrize("command", ["render", "inspect", "compile"])
def test_an_unknown_variant_is_one_clear_sentence(command: str) -> None:
    result = run(command, "softmax_fwd_f16_none_warp_k3_v8_t128r4")
    assert result.exit_code == 1
    assert "is not a shipped variant" in result.output and "list" in result.output
