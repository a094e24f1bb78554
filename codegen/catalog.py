"""Writes what generating produces, the rendered sources and the catalog, and checks that they are current."""

import difflib
from pathlib import Path

from softmax_ops.artifacts import files
from softmax_ops.artifacts.catalog import Catalog, Entry, Variant

from .axes import Direction, DType
from .features import Mask
from .occupancy import columns_of_cta
from .plans import RowPlan
from .render import TEMPLATES, render, source_files
from .sources import source_digest
from .spec import Spec
from .variants import architectures, computed_by, dispatch, shipped

GENERATED = TEMPLATES.parent / "generated"
CATALOG = "catalog.json"


def build_catalog(sources: dict[str, str]) -> Catalog:
    """The catalog of the shipped set, whose rendered sources (file name -> text) are given."""
    specs = shipped()
    return Catalog(
        variants={spec.name: _variant(spec, sources[f"{spec.name}.cu"]) for spec in specs},
        layouts=dict(sorted({_layout_key(spec): spec.arguments for spec in specs}.items())),
        tables={
            (direction.label, dtype.value, mask.label): tuple(_entry(plan, spec) for plan, spec in table)
            for direction in Direction
            for dtype in DType
            for mask in Mask
            if (table := dispatch(direction, dtype, mask)) is not None
        },
    )


def alone(spec: Spec) -> Catalog:
    """A catalog of one kernel, shipped or not, which serves every row that it can: for launching only that kernel."""
    entry = Entry(spec.name, (1, spec.max_k), spec.vec, 0, 0, ())
    served = [
        mask.label for mask in Mask if computed_by(spec.direction, spec.dtype, mask) is spec.mask or mask is spec.mask
    ]
    return Catalog(
        variants={spec.name: _variant(spec, render(spec))},
        layouts={_layout_key(spec): spec.arguments},
        tables={(spec.direction.label, spec.dtype.value, mask): (entry,) for mask in served},
    )


def _variant(spec: Spec, source: str) -> Variant:
    return Variant(
        name=spec.name,
        direction=spec.direction.label,
        dtype=spec.dtype.value,
        mask=spec.mask.label,
        plan=spec.plan.label,
        max_k=spec.max_k,
        vec=spec.vec,
        threads_per_row=spec.threads_per_row,
        threads=spec.threads,
        rows=spec.rows,
        access=spec.access,
        chunks=spec.chunks,
        by_warp=spec.by_warp,
        tile_elements=spec.tile_elements,
        flat=spec.flat,
        piece=spec.piece,
        splits=spec.splits,
        partial_bytes=spec.partial_bytes,
        cluster=spec.cluster,
        cta_columns=columns_of_cta(spec),
        shared_bytes=spec.shared_bytes,
        layout=_layout_key(spec),
        architectures=architectures(spec),
        source=source_digest(source),
    )


def _layout_key(spec: Spec) -> str:
    kind = [spec.mask.label] if spec.mask.has_epilogue else [feature.name for feature in spec.features]
    parts = [spec.direction.struct.lower(), *kind]
    if spec.plan.fields:
        parts.append(spec.plan.label)
    return f"{spec.dtype.accumulator}: {' + '.join(parts)}"


def _entry(plan: RowPlan, spec: Spec) -> Entry:
    return Entry(spec.name, plan.k, plan.vec, plan.min_rows, plan.max_rows, plan.architectures, plan.measured)


def generated_files() -> dict[str, str]:
    """File name -> text of everything that generating writes."""
    sources = source_files(shipped())
    return {**sources, CATALOG: build_catalog(sources).to_json()}


def _present(directory: Path) -> list[Path]:
    """The existing sources and catalog; anything else in the folder belongs to someone else and is left alone."""
    return [path for path in (*directory.glob("*.cu"), directory / CATALOG) if path.is_file()]


def write(directory: Path = GENERATED) -> tuple[int, int]:
    """Brings generated/ up to date: (files written, files removed). An unchanged file keeps its time stamp."""
    directory.mkdir(exist_ok=True)
    wanted = generated_files()
    written = 0
    for name, text in wanted.items():
        path = directory / name
        if not path.exists() or path.read_text() != text:
            files.replace(path, text)
            written += 1
    stale = [path for path in _present(directory) if path.name not in wanted]
    left = [path for path in directory.glob(f"{files.PARTIAL_PREFIX}*") if files.is_stale(path.stat())]
    for path in (*stale, *left):
        path.unlink(missing_ok=True)
    return written, len(stale)


def differences(directory: Path = GENERATED) -> str:
    """A unified diff from generated/ to what the templates render now; empty when they agree."""
    wanted = generated_files()
    present = {path.name: path.read_text() for path in _present(directory)}
    changed = [name for name in sorted(wanted.keys() | present.keys()) if present.get(name) != wanted.get(name)]
    return "".join(_difference(name, present.get(name, ""), wanted.get(name, "")) for name in changed)


def _difference(name: str, present: str, wanted: str) -> str:
    before, after = (text.splitlines(keepends=True) for text in (present, wanted))
    lines = difflib.unified_diff(before, after, f"generated/{name}", f"rendered/{name}")
    return "".join(lines) or f"--- generated/{name}\n"  # an empty file that nothing renders
