"""Spec -> source text. Pure: the same spec and templates give the same text on any machine and day."""

from functools import cache
from pathlib import Path

import jinja2

from .spec import Mask, Plan, Spec

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
INCLUDE = TEMPLATES / "include"

_PLAN_HEADERS = {Plan.TILE: ("tile.cuh",), Plan.WARP: (), Plan.BLOCK: ()}


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
    return f"softmax_{spec.direction.value}_{spec.plan.label}.cu.jinja"


def render(spec: Spec, templates: Path = TEMPLATES) -> str:
    """The CUDA C++ source of one kernel."""
    features = spec.mask.features
    headers = {"forward.cuh", *(feature.header for feature in features), *_PLAN_HEADERS[spec.plan]}
    return (
        _environment(templates)
        .get_template(template_of(spec))
        .render(
            spec=spec,
            template=template_of(spec),
            headers=sorted(headers),
            row_type="RaggedRow" if spec.ragged else "AlignedRow",
            features=[{"name": feature.name, "type": spec.feature_type(feature)} for feature in features],
            score_arguments=", ".join(["p.operands.scale", *(feature.name for feature in features)]),
            fragment_shape=_fragment_shape(spec),
            traffic=_traffic(spec),
        )
    )


def _fragment_shape(spec: Spec) -> str:
    return f"({spec.access}*{spec.chunks}{'+1' if spec.ragged else ''})"


def _traffic(spec: Spec) -> str:
    size = spec.dtype.bytes
    mask = {Mask.BOOL: 1, Mask.BOOLCAUSAL: 1, Mask.LIKE: size}.get(spec.mask)
    visible = "visible " if spec.mask in (Mask.CAUSAL, Mask.BOOLCAUSAL) else ""
    reads = f"{size} bytes read per {visible}element" + (f", {mask} of the mask" if mask else "")
    return f"Traffic: {reads}; {size} bytes written per element. One exponential."


def source_files(specs: tuple[Spec, ...], templates: Path = TEMPLATES) -> dict[str, str]:
    """File name -> text of every rendered source."""
    return {f"{spec.name}.cu": render(spec, templates) for spec in specs}
