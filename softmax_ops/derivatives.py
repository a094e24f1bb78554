"""Derivatives of the backward, second ones of a softmax, by torch operations: in reverse and in forward mode.

With p = y, or exp(y) of log y; r = scale * (1 - (s / softcap)^2), s = log p + lse, and r' its derivative by s:

    of y:      d = sum p dy - grad_lse;   dx = r p (dy - d)
    of log y:  d = sum dy - grad_lse;     dx = r (dy - p d)

In hidden columns everything is 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import cpu
from .checks import BackwardRequest
from .checks.values import accumulation


class Gradients(NamedTuple):
    """Of the inputs of a backward: its gradients of them, or their tangents. None where there is none."""

    dy: Tensor | None
    y: Tensor | None
    lse: Tensor | None
    grad_lse: Tensor | None


class _Terms(NamedTuple):
    """What both modes need, [..., Q, K] or [..., Q, 1], of the accumulation type."""

    hidden: Tensor
    dy: Tensor
    p: Tensor
    d: Tensor
    r: Tensor | float
    r_by_s: Tensor | float


def pulled_back(request: BackwardRequest, of_dx: Tensor | None, of_d: Tensor | None) -> Gradients:
    """The gradients of a valid request's inputs, from those of dx and of d, either of which may be None.

    With g and e for those of dx and d, and u = e - sum r p g:

        of y:      g_dy = p (r g + u);   g_y = r g (dy - d) + u dy + r' g (dy - d)
        of log y:  g_dy = r g + u;       g_y = - r g p d + r' g (dy - p d)
        g_lse = sum of r' times g p (dy - d), or of log y g (dy - p d);   g_grad_lse = -u
    """
    hidden, dy, p, d, r, r_by_s = _terms(request)
    g = torch.zeros_like(p) if of_dx is None else of_dx.to(p.dtype).masked_fill(hidden, 0.0)
    u = -(r * p * g).sum(-1, keepdim=True)
    if of_d is not None:
        u = u + of_d.unsqueeze(-1)
    if request.log:
        moved = r_by_s * g * (dy - p * d)
        of_dy = r * g + u
        of_y = moved - r * g * p * d
        of_lse = moved.sum(-1)
    else:
        moved = r_by_s * g * (dy - d)
        of_dy = p * (r * g + u)
        of_y = r * g * (dy - d) + u * dy + moved
        of_lse = (moved * p).sum(-1)
    of_dy, of_y = (each.masked_fill(hidden, 0.0) for each in (of_dy, of_y))
    return Gradients(
        of_dy.to(request.dy.dtype),
        of_y.to(request.y.dtype),
        None if request.lse is None else of_lse,
        None if request.grad_lse is None else -u.squeeze(-1),
    )


def pushed_forward(request: BackwardRequest, tangents: Gradients) -> tuple[Tensor, Tensor]:
    """The tangents of dx and d of a valid request, from those of its inputs, written t(...):

    t(r) = r' * (t(log p) + t(lse))
    of y:      t(d) = sum (p t(dy) + dy t(p)) - t(grad_lse)
               t(dx) = r (t(p) (dy - d) + p (t(dy) - t(d))) + t(r) p (dy - d)
    of log y:  t(d) = sum t(dy) - t(grad_lse)
               t(dx) = r (t(dy) - t(p) d - p t(d)) + t(r) (dy - p d)
    """
    hidden, dy, p, d, r, r_by_s = _terms(request)
    zero = torch.zeros_like(p)
    t_dy, t_y = (zero if t is None else t.to(p.dtype).masked_fill(hidden, 0.0) for t in (tangents.dy, tangents.y))
    t_lse, t_grad_lse = (0.0 if t is None else t.unsqueeze(-1) for t in (tangents.lse, tangents.grad_lse))
    if request.log:
        t_p = p * t_y
        t_d = t_dy.sum(-1, keepdim=True) - t_grad_lse
        t_dx = r * (t_dy - t_p * d - p * t_d) + r_by_s * (t_y + t_lse) * (dy - p * d)
    else:
        t_d = (p * t_dy + dy * t_y).sum(-1, keepdim=True) - t_grad_lse
        t_dx = r * (t_y * (dy - d) + p * (t_dy - t_d)) + r_by_s * (t_y + p * t_lse) * (dy - d)
    return t_dx.masked_fill(hidden, 0.0).to(request.dtype or request.y.dtype), t_d.squeeze(-1)


def _terms(request: BackwardRequest) -> _Terms:
    wide = accumulation(request.y)
    hidden = cpu.hidden_from(request)
    fill = -torch.inf if request.log else 0.0
    dy = request.dy.to(wide).masked_fill(hidden, 0.0)
    given = request.y.to(wide).masked_fill(hidden, fill)
    p = given.exp() if request.log else given
    d = (dy if request.log else p * dy).sum(-1, keepdim=True)
    if request.grad_lse is not None:
        d = d - request.grad_lse.unsqueeze(-1)
    scale = request.scale if request.scale_tensor is None else request.scale_tensor.to(wide).unsqueeze(-1)
    if request.softcap is None:
        return _Terms(hidden, dy, p, d, scale, 0.0)
    lse = request.lse
    assert lse is not None
    none = p == 0.0
    log_p = given if request.log else p.masked_fill(none, 1.0).log()  # log 0 would have a derivative
    s = (log_p + lse.unsqueeze(-1)) / request.softcap
    within = (s.abs() < 1.0) & ~none  # rounding of y may move s beyond softcap
    s = s.masked_fill(~within, 0.0)
    return _Terms(hidden, dy, p, d, scale * (1.0 - s * s) * within, -2.0 / request.softcap * scale * s)
