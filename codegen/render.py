"""Spec -> source text. Pure: the same spec and templates give the same text on any machine and day."""

from functools import cache
from pathlib import Path

import jinja2

from .axes import Direction, Plan
from .features import Feature, Mask
from .occupancy import ctas_per_sm
from .spec import Spec
from .variants import computed_by

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
INCLUDE = TEMPLATES / "include"

_PLAN_HEADERS = {
    Plan.TILE: ("tile.cuh",),
    Plan.CLUSTER: ("cluster.cuh", "pieces.cuh"),
    Plan.STREAM: ("pieces.cuh",),
    Plan.SPLIT: ("pieces.cuh",),
}

_SOFTMAX = "m_i = max_j z_ij;  s_i = sum_j exp(z_ij - m_i);  y_ij = exp(z_ij - m_i) / s_i"
_SCORES_OR_FILL = "z_ij = scale * x_ij, or fill where mask_ij is 1; a fill of -inf hides the column"
_CAUSAL = "over j <= i + offset, 0 elsewhere"
_GRADIENT = "d_i = sum_j y_ij dy_ij - dlse_i;  dx_ij = scale_i * y_ij * (dy_ij - d_i)"
_OF_LOGARITHMS = "or, of logarithms, d_i = sum_j dy_ij - dlse_i;  dx_ij = scale_i * (dy_ij - exp(y_ij) d_i)"

_FORMULAS = {
    (Direction.FORWARD, Mask.NONE): (f"z_ij = scale * x_ij;  {_SOFTMAX}",),
    (Direction.FORWARD, Mask.CAUSAL): (f"z_ij = scale * x_ij;  {_SOFTMAX}", _CAUSAL),
    (Direction.FORWARD, Mask.BOOLCAUSAL): (_SCORES_OR_FILL, _SOFTMAX, _CAUSAL),
    (Direction.FORWARD, Mask.LIKE): (_SCORES_OR_FILL, _SOFTMAX),
    (Direction.FORWARD, Mask.BIAS): (f"z_ij = scale * x_ij + bias_ij;  {_SOFTMAX}",),
    (Direction.BACKWARD, Mask.CAUSAL): ("d_i = sum_j y_ij dy_ij;  dx_ij = scale * y_ij * (dy_ij - d_i)", _CAUSAL),
    (Direction.FORWARD, Mask.BAND): (
        "z_ij = scale_i * x_ij;  lse_i = log(exp(sink_i) + sum_j exp(z_ij))",
        "y_ij = exp(z_ij - lse_i), or its logarithm, over j visible to window and length, 0 or -inf elsewhere",
    ),
    (Direction.BACKWARD, Mask.BAND): (
        _GRADIENT,
        _OF_LOGARITHMS,
        "over j visible to window and length, 0 elsewhere",
    ),
    (Direction.FORWARD, Mask.GENERAL): (
        "s_ij = scale_i * x_ij, capped by softcap;  z_ij = s_ij - slope_i * |i + offset - j| + bias_ij",
        "lse_i = log(exp(sink_i) + sum_j exp(z_ij));  y_ij = exp(z_ij - lse_i), or its logarithm",
        "over j visible to window, length and mask, 0 or -inf elsewhere",
    ),
    (Direction.BACKWARD, Mask.GENERAL): (
        _GRADIENT,
        _OF_LOGARITHMS,
        "times the derivative of the softcap, over j visible to window and length; 0 elsewhere",
    ),
}
"""What a kernel computes, by direction and mask kind."""


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
    features = [*spec.features, spec.epilogue] if spec.epilogue else [*spec.features]
    headers = {"launch.cuh", f"{spec.direction.struct.lower()}.cuh", *(feature.header for feature in features)}
    headers |= {*_PLAN_HEADERS.get(spec.plan, ())}
    if any("Optional<" in feature.type for feature in features):
        headers.add("optional.cuh")
    return (
        _environment(templates)
        .get_template(template_of(spec))
        .render(
            spec=spec,
            template=template_of(spec),
            formula=_formula(spec),
            headers=sorted(headers),
            threads="MaxThreads" if spec.by_warp else "Threads",
            cta=_cta(spec),
            ctas=ctas_per_sm(spec),
            lane_holds="lane holds" if spec.threads_per_row == 1 else "lanes hold",
            row_alias="Row".ljust(len("Partial")) if _has_partials(spec) else "Row",
            row_type="TileRow" if spec.plan is Plan.TILE else "UnalignedRow" if spec.unaligned else "AlignedRow",
            row_options=_row_options(spec),
            only_ranges=str(spec.flat).lower(),
            pointers=_pointers(spec),
            operand_types="Element, Output" if spec.dtype.converts else "Element",
            numeric=spec.numeric,
            features=[_named(spec, feature) for feature in spec.features],
            epilogue=_named(spec, spec.epilogue) if spec.epilogue else None,
            keep=", epilogue.keeps_exponents()" if spec.epilogue else "",
            score_arguments=", ".join([_scale(spec), *(feature.name for feature in spec.features)]),
            gradient=_gradient(spec),
            visible=_named(spec, spec.features[0]) if spec.features else None,
            fragment_shape=_fragment_shape(spec),
            traffic=_traffic(spec),
        )
    )


def _named(spec: Spec, feature: Feature) -> dict[str, str]:
    return {"name": feature.name, "type": spec.feature_type(feature)}


def _scale(spec: Spec) -> str:
    return "epilogue.scale(p.operands.scale)" if spec.epilogue else "p.operands.scale"


def _gradient(spec: Spec) -> str:
    """The declaration of what computes the gradient of each element."""
    if spec.epilogue is None:
        return "SoftmaxGradient<Element> const gradient{p.operands.scale};"
    return f"{spec.feature_type(spec.epilogue)} const gradient(p.gradient, p.operands.scale, rows, index);"


def _has_partials(spec: Spec) -> bool:
    """Whether several warps share a row: their partial results then have a type beside the row's."""
    return spec.plan not in (Plan.TILE, Plan.WARP)


def _pointers(spec: Spec) -> dict[str, str]:
    """The declaration of a pointer to a row of each tensor, all of one length."""
    *inputs, output = spec.direction.tensors
    found = {name: f"Element const* const {name}" for name in inputs} | {output: f"{spec.output}* const {output}"}
    longest = max(map(len, found.values()))
    return {name: declaration.ljust(longest) for name, declaration in found.items()}


_WITHOUT_CAUSALITY = {Mask.CAUSAL: Mask.NONE, Mask.BOOLCAUSAL: Mask.BOOL}


def _formula(spec: Spec) -> tuple[str, ...]:
    lines = _FORMULAS[spec.direction, spec.mask]
    other = _WITHOUT_CAUSALITY.get(spec.mask)
    if other is None or computed_by(spec.direction, spec.dtype, other) is not spec.mask:
        return lines
    return *lines[:-1], f"{lines[-1]}; without a causal mask, offset = K"


def _fragment_shape(spec: Spec) -> str:
    return f"({spec.access}*{spec.chunks}{f'+{spec.edges}' if spec.unaligned else ''})"


def _row_options(spec: Spec) -> str:
    """C++ template arguments of the row type after Vec, Lanes and Chunks."""
    if spec.plan is Plan.TILE:
        return f", /*Access=*/{spec.word if spec.unaligned else spec.access}"
    if spec.by_warp:
        return ", /*ByWarp=*/true, /*Skips=*/true" if spec.skips_warps else ", /*ByWarp=*/true"
    streamed = spec.plan is Plan.STREAM and spec.unaligned
    return ", /*ByWarp=*/false, /*Skips=*/false, /*Streamed=*/true" if streamed else ""


def _cta(spec: Spec) -> str:
    """C++ expression for the number of the group of rows that a CTA (or cluster) works on."""
    of_clusters = " >> p.cluster.shift" if spec.plan is Plan.CLUSTER else ""
    number, count = f"blockIdx.x{of_clusters}", f"gridDim.x{of_clusters}"
    return f"from_either_end({number}, {count})" if spec.mask.causal else number


def _traffic(spec: Spec) -> tuple[str, str]:
    size = spec.dtype.bytes
    beside = {
        Mask.BOOLCAUSAL: ", 1 of the mask",
        Mask.LIKE: f", {size} of the mask",
        Mask.BIAS: f", {size} of the bias",
        Mask.GENERAL: " and those of a mask and a bias" if spec.direction is Direction.FORWARD else "",
    }.get(spec.mask, "")
    visible = "visible " if spec.mask.causal else ""
    inputs = len(spec.direction.tensors) - 1
    reads = f"{inputs * size} bytes read per {visible}element{beside}"
    twice = ", twice" if spec.piece else ""
    written = f"{spec.dtype.output.bytes} bytes written per element"
    return f"Traffic: {reads}{twice}; {written}.", f"Work per element: {_work(spec)}."


def _work(spec: Spec) -> str:
    """Special functions."""
    if spec.direction is Direction.FORWARD:
        each = "two exponentials" if spec.piece else "one exponential"
        return f"{each}; with a softcap {'two' if spec.piece else 'one'} more" if spec.mask.general else each
    with_cap = ", with a softcap one logarithm" if spec.mask.general else ""
    return f"with logarithms one exponential{with_cap}" if spec.epilogue else "no exponential"


def source_files(specs: tuple[Spec, ...], templates: Path = TEMPLATES) -> dict[str, str]:
    """File name -> text of every rendered source."""
    return {f"{spec.name}.cu": render(spec, templates) for spec in specs}
