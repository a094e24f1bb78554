"""Spec -> source text. Pure: the same spec and templates give the same text on any machine and day."""

from functools import cache
from pathlib import Path

import jinja2

from .spec import Direction, Mask, Plan, Spec

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
INCLUDE = TEMPLATES / "include"

_PLAN_HEADERS = {
    Plan.TILE: ("tile.cuh",),
    Plan.CLUSTER: ("cluster.cuh", "pieces.cuh"),
    Plan.STREAM: ("pieces.cuh",),
    Plan.SPLIT: ("pieces.cuh",),
}

_FORMULAS = {
    Direction.FORWARD: (
        "y_ij = exp(z_ij - m_i) / sum_j exp(z_ij - m_i) over visible j, 0 elsewhere;  z = scale * x,  m_i = max_j z_ij"
    ),
    Direction.BACKWARD: "dx_ij = scale * y_ij * (dy_ij - sum_j y_ij dy_ij) over visible j, 0 elsewhere",
}


@cache
def _environment(templates: Path) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def template_of(spec: Spec) -> str:
    """File name of the template: one per direction and plan."""
    return f"softmax_{spec.direction.label}_{spec.plan.label}.cu.jinja"


def render(spec: Spec, templates: Path = TEMPLATES) -> str:
    """The CUDA C++ source of one kernel."""
    features = spec.mask.features
    plan_headers = _PLAN_HEADERS.get(spec.plan, ())
    headers = {f"{spec.direction.struct.lower()}.cuh", *(feature.header for feature in features), *plan_headers}
    return (
        _environment(templates)
        .get_template(template_of(spec))
        .render(
            spec=spec,
            template=template_of(spec),
            formula=_FORMULAS[spec.direction],
            headers=sorted(headers),
            cta=_cta(spec),
            row_type="RaggedRow" if spec.ragged else "AlignedRow",
            row_options=", /*InPhase=*/false, /*Streamed=*/true" if spec.plan is Plan.STREAM else "",
            features=[{"name": feature.name, "type": spec.feature_type(feature)} for feature in features],
            score_arguments=", ".join(["p.operands.scale", *(feature.name for feature in features)]),
            fragment_shape=_fragment_shape(spec),
            traffic=_traffic(spec),
        )
    )


def _fragment_shape(spec: Spec) -> str:
    return f"({spec.access}*{spec.chunks}{f'+{spec.edges}' if spec.ragged else ''})"


def _cta(spec: Spec) -> str:
    """The number of the group of rows that a CTA (or cluster) works on."""
    cluster = spec.plan is Plan.CLUSTER
    number = "cute::cluster_id_in_grid().x" if cluster else "blockIdx.x"
    count = "cute::cluster_grid_dims().x" if cluster else "gridDim.x"
    return f"from_either_end({number}, {count})" if spec.mask.causal else number


def _traffic(spec: Spec) -> str:
    size = spec.dtype.bytes
    mask = {Mask.BOOL: 1, Mask.BOOLCAUSAL: 1, Mask.LIKE: size}.get(spec.mask)
    visible = "visible " if spec.mask.causal else ""
    inputs = len(spec.direction.tensors) - 1
    reads = f"{inputs * size} bytes read per {visible}element" + (f", {mask} of the mask" if mask else "")
    twice = ", twice" if spec.piece else ""
    work = "One exponential" if spec.direction is Direction.FORWARD else "No exponential"
    if spec.piece and spec.direction is Direction.FORWARD:
        work = "Two exponentials"
    return f"Traffic: {reads}{twice}; {size} bytes written per element. {work}."


def source_files(specs: tuple[Spec, ...], templates: Path = TEMPLATES) -> dict[str, str]:
    """File name -> text of every rendered source."""
    return {f"{spec.name}.cu": render(spec, templates) for spec in specs}
