"""Scalar arguments, converted to plain Python numbers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from .tensors import described, type_name

# The largest |scale| by accumulation type, in which it is applied: the largest power of two of f32, every finite f64.
SCALE_LIMIT_F32 = 2.0**127
_SCALE_LIMIT_F64 = sys.float_info.max

_INSTEAD = {"scale": "leave scale at 1 and multiply by it in torch", "alibi_slopes": "add them as a bias"}
"""What to do instead, for arguments that have no gradient."""


def check_flag(op: str, given: Any, name: str) -> None:
    """Refuse all but True and False."""
    if given is not True and given is not False:
        raise TypeError(f"{op}: {name} is {given!r} of type {type_name(given)}; want a bool: pass True or False")


def check_types(op: str, given: Mapping[str, Any]) -> None:
    """Refuse scalar arguments of a type that none may have, before a compiler or an operator converts them.

    It looks at no value, and not for a type that numbers may have: under a compiler they stand for symbols and arrays.
    """
    for name in ("causal", "return_lse"):
        if name in given:
            check_flag(op, given[name], name)
    if isinstance(given["scale"], (bool, str)):
        raise _not_real(op, given["scale"])
    if isinstance(given["scale"], Tensor) and given["scale"].dim() == 0:
        _check_real(op, given["scale"])
    if isinstance(given["causal_offset"], (bool, float, str)):
        raise _not_an_offset(op, given["causal_offset"])
    if isinstance(given["softcap"], (bool, str)):
        raise _not_a_softcap(op, given["softcap"])


def finite_scale(op: str, given: Any, rows: Tensor) -> float:
    """`given` as a float that is finite in the accumulation type of `rows`, [..., K]."""
    scale: float = given if type(given) is float else _float(op, given)
    limit = _SCALE_LIMIT_F64 if rows.dtype is torch.float64 else SCALE_LIMIT_F32
    if -limit <= scale <= limit:  # false for NaN
        return scale
    raise ValueError(
        f"{op}: scale is {scale}; want a finite number, at most {limit:.4g} in magnitude for {described(rows)}: "
        "check how it was computed"
    )


def _float(op: str, scale: Any) -> float:
    if isinstance(scale, Tensor):
        return _scale_of_tensor(op, scale)
    if isinstance(scale, bool) or not isinstance(scale, Real):
        raise _not_real(op, scale)
    try:
        return float(scale)
    except OverflowError:
        raise ValueError(f"{op}: scale is an integer beyond the range of float; want a finite number") from None


def _not_real(op: str, scale: Any) -> TypeError:
    advice = "pass 1.0 for no scale" if scale is None else "pass float(scale)"
    return TypeError(f"{op}: scale is {scale!r} of type {type_name(scale)}; want a real number: {advice}")


def _not_an_offset(op: str, causal_offset: Any) -> TypeError:
    return TypeError(
        f"{op}: causal_offset is {causal_offset!r} of type {type_name(causal_offset)}; want an int: column j is "
        "visible to query i if j <= i + causal_offset"
    )


def _not_a_softcap(op: str, softcap: Any) -> TypeError:
    return TypeError(f"{op}: softcap is {softcap!r} of type {type_name(softcap)}; want a real number: pass a float")


def _scale_of_tensor(op: str, scale: Tensor) -> float:
    given = f"{op}: scale is {described(scale)}"
    if scale.layout is not torch.strided or scale.dim() != 0 or scale.device.type != "cpu":
        raise ValueError(f"{given}; want a number or a 0-d CPU tensor: pass float(scale) if it has one element")
    _check_real(op, scale)
    check_no_gradient(op, scale, "scale")
    return float(scale)


def _check_real(op: str, scale: Tensor) -> None:
    if scale.dtype is torch.bool or scale.is_complex():
        raise TypeError(f"{op}: scale is {described(scale)}; want a real number: pass float(scale)")


def check_no_gradient(op: str, tensor: Tensor, name: str) -> None:
    """Refuse a tensor that requires grad, for an argument that has no gradient."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{op}: {name} is {described(tensor)} that requires grad, and no gradient with respect to {name} is "
            f"computed: pass {name}.detach(), call under torch.no_grad(), or {_INSTEAD[name]}"
        )


def clamped_offset(op: str, rows: Tensor, causal: Any, causal_offset: Any) -> int | None:
    """The causal offset of `rows`, [..., Q, K] or [K]: K - Q by default, clamped to [-Q, K]; None if not causal."""
    if causal is False:
        if causal_offset is None:
            return None
        given = f"{described(causal_offset)}" if isinstance(causal_offset, Tensor) else repr(causal_offset)
        raise ValueError(
            f"{op}: causal_offset is {given} and causal is False; pass causal=True as well, or what else "
            "measures from it: a window, alibi_slopes"
        )
    check_flag(op, causal, "causal")
    columns = rows.shape[-1]
    queries = rows.shape[-2] if rows.dim() > 1 else 1
    if causal_offset is None:
        return columns - queries
    if isinstance(causal_offset, bool) or not isinstance(causal_offset, Integral):
        raise _not_an_offset(op, causal_offset)
    return max(-queries, min(int(causal_offset), columns))


def positive_softcap(op: str, given: Any, rows: Tensor) -> float | None:
    """`given` as a float that, like its reciprocal, is a normal number in the accumulation type of `rows`."""
    if given is None:
        return None
    if isinstance(given, (bool, Tensor)) or not isinstance(given, Real):
        raise _not_a_softcap(op, given)
    limit = 2.0**1022 if rows.dtype is torch.float64 else 2.0**126
    try:
        softcap = float(given)
    except OverflowError:
        raise ValueError(
            f"{op}: softcap is an integer beyond the range of float; want a finite number: pass None for no softcap"
        ) from None
    if not 1 / limit <= softcap <= limit:  # so for NaN
        raise ValueError(
            f"{op}: softcap is {softcap}; want a finite number above 0, within {1 / limit:.4g} and {limit:.4g} for "
            f"{str(rows.dtype)[6:]}: pass None for no softcap"
        )
    return softcap
