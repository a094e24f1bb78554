"""docs/plans.md and docs/plans.svg are what the generator writes, and match what dispatch does."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from codegen import pages, plan_picture, plan_tables, variants
from codegen.__main__ import main as command_line
from codegen.plans import MAX_SPLIT_ROWS
from tests.support.geometries import geometry
from tests.support.planning import planned

STALE = "python -m codegen plans --write brings it up to date"


def test_page_holds_what_the_command_prints() -> None:
    printed = CliRunner().invoke(command_line, ["plans"]).stdout
    page = plan_tables.PAGE.read_text()
    assert printed and page == pages.with_block(page, printed, plan_tables.COMMAND), STALE


def test_picture_is_what_the_command_draws() -> None:
    pytest.importorskip("matplotlib")
    assert plan_picture.PICTURE.read_text() == plan_picture.draw(), STALE


@pytest.mark.parametrize("page", ["", "<!-- end -->", 2 * "<!-- begin: here -->\n<!-- end -->\n"])
def test_a_page_without_one_block_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="no single block"):
        pages.with_block(page, "text", "here")


@pytest.mark.parametrize("arch", variants.ARCHITECTURES)
@pytest.mark.parametrize("rows", [2, MAX_SPLIT_ROWS, MAX_SPLIT_ROWS + 1])
@pytest.mark.parametrize("kind", plan_tables.KINDS, ids=lambda kind: f"{kind[0].label}-{kind[1].value}-{kind[2].label}")
def test_spans_are_what_dispatch_chooses(kind: plan_tables.Kind, rows: int, arch: str) -> None:
    """At both ends of each span, aligned and not, for rows with gaps between them."""
    direction, dtype, mask = kind
    for vec in (dtype.vector, 1):
        for span in plan_tables.spans(kind, arch, vec, rows):
            for k in {-(-span.first // vec) * vec, span.last // vec * vec}:
                aligned = 16 if vec > 1 else 1
                apart: dict[str, tuple[int, ...]] = {direction.tensors[0]: (k + dtype.vector, 1)}
                of = geometry(
                    (rows, k), dtype.value, mask.label, direction=direction.label, alignment=aligned, strides=apart
                )
                assert planned(of, arch).variant.name == named(kind, span.plan), (k, vec)


def named(kind: plan_tables.Kind, row_plan: plan_tables.RowPlan) -> str:
    return next(spec.name for own, spec in variants.dispatch(*kind) or () if own == row_plan)
