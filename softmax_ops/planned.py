"""Calls planned in advance: one comparison, one launch. For servers that make the same call again and again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, NoReturn, Self, overload

import torch
from torch import Tensor

from . import current, dispatch, layouts
from .checks import Request, check_softmax, check_softmax_backward
from .checks.scalars import check_flag
from .checks.tensors import describe, described
from .known.call import Known, possible, unknown
from .launcher import Executable
from .modes import may_be_transformed, needs_operator

_OP = "softmax_ops.plan"
_WANTED = "want numbers and one dtype: call softmax_ops.softmax, which is fast when repeated"


@overload
def plan(
    x: Tensor,
    *,
    scale: float | Tensor = ...,
    mask: Tensor | None = ...,
    causal: bool = ...,
    causal_offset: int | None = ...,
    batch_invariant: bool = ...,
    out: Tensor | None = ...,
    backward: Literal[False] = ...,
) -> Planned: ...


@overload
def plan(
    x: Tensor,
    *,
    scale: float | Tensor = ...,
    mask: None = ...,
    causal: bool = ...,
    causal_offset: int | None = ...,
    batch_invariant: bool = ...,
    out: Tensor | None = ...,
    backward: Literal[True],
) -> PlannedBackward: ...


@overload
def plan(
    x: Tensor,
    *,
    scale: float | Tensor = ...,
    mask: Tensor | None = ...,
    causal: bool = ...,
    causal_offset: int | None = ...,
    batch_invariant: bool = ...,
    out: Tensor | None = ...,
    backward: bool,
) -> Planned | PlannedBackward: ...


def plan(
    x: Tensor,
    *,
    scale: float | Tensor = 1.0,
    mask: Tensor | None = None,
    causal: bool = False,
    causal_offset: int | None = None,
    batch_invariant: bool = False,
    out: Tensor | None = None,
    backward: bool = False,
) -> Planned | PlannedBackward:
    """A callable for calls of `softmax` like this one, at the lowest host cost: checks and planning are done here.

        run = softmax_ops.plan(scores, scale=0.125, mask=mask, causal=True)
        probs = run(scores, mask=mask)                  # scores and masks of that shape, at any address
        run(scores, mask=mask, out=probs)

    The arguments are the plain ones of `softmax`, scale and causal_offset as numbers. Of the tensors only the metadata
    is kept: shape, strides, dtype, device, and the largest power of two, up to 16 bytes, that divides their addresses.
    The kernel is found, loaded and prepared now, so that calls may be captured in a CUDA graph, and `freeze()` does not
    affect them.

    out       a tensor like those that results will be written to (x itself: in place, or anything like x). Without it
              results are contiguous: new tensors, or those that a call passes as out.
    backward  plan `softmax_backward` with dy and y like x: the callable takes (dy, y, out=None). It has no mask.

    Raises what `softmax` raises, and ValueError for a layout that no kernel can follow without a copy.
    """
    check_flag(_OP, backward, "backward")
    if backward and mask is not None:
        raise ValueError(f"{_OP}: mask is given, and backward is True; y is 0 where the mask hid: leave the mask out")
    with torch.no_grad():  # requires_grad does not matter here: each call is checked
        request = check_softmax(x, scale=scale, mask=mask, causal=causal, causal_offset=causal_offset, out=out)
    if request.general:
        given = {"scale": request.scale_tensor, "causal_offset": request.offset_tensor, "out": out}
        name, tensor = next((name, each) for name, each in given.items() if each is not None)
        raise ValueError(f"{_OP}: {name} is {described(tensor)} and x {described(x)}; {_WANTED}")
    if needs_operator(x, mask, out):
        raise ValueError(
            f"{_OP}: x is {described(x)}; want plain tensors on cpu or cuda, where the calls will be, outside of "
            "compilers and dispatch modes"
        )
    check_flag(_OP, batch_invariant, "batch_invariant")
    flags = _Flags(causal, causal_offset, batch_invariant)
    if backward:
        return PlannedBackward("bwd", {"dy": x, "y": x}, None, request, flags)
    return Planned("fwd", {"x": x}, mask, request, flags)


class _Flags(NamedTuple):
    """What a plan depends on besides tensors and scale, as given."""

    causal: bool
    causal_offset: int | None
    batch_invariant: bool


class _Layout(NamedTuple):
    """The metadata of a tensor that a plan depends on."""

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # 0 for dimensions of one element
    dtype: torch.dtype
    device: torch.device
    alignment: int  # bytes; that of a call may be larger
    words: str  # for messages

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> _Layout:
        alignment = layouts.alignment(tensor)
        words = f"{describe(tensor)}, {alignment}-byte aligned"
        return cls(
            name,
            tuple(tensor.shape),
            layouts.moving(tensor.shape, tensor.stride()),
            tensor.dtype,
            tensor.device,
            alignment,
            words,
        )

    def check(self, tensor: Tensor) -> None:
        """Raises ValueError for a tensor with other metadata."""
        given = tuple(tensor.shape), layouts.moving(tensor.shape, tensor.stride()), tensor.dtype, tensor.device
        if given != (self.shape, self.strides, self.dtype, self.device) or tensor.data_ptr() % self.alignment:
            raise ValueError(
                f"{_OP}: {self.name} is a {self.of(self.name, tensor).words}, and what was planned is a {self.words}; "
                "make a plan for it, or call softmax_ops.softmax, which takes anything"
            )


class _Planned:
    """What both directions have in common."""

    def __init__(self, direction: str, inputs: dict[str, Tensor], mask: Tensor | None, request: Request, flags: _Flags):
        like = request.x
        result = torch.empty(like.shape, dtype=like.dtype, device=like.device) if request.out is None else request.out
        self._flags, self._scale = flags, request.scale
        self._inputs = [_Layout.of(name, tensor) for name, tensor in inputs.items()]
        self._mask = None if mask is None else _Layout.of("mask", mask)
        self._result = _Layout.of("out", result)
        self._makes_new = result.is_contiguous()
        self._known: list[Known | None] = [None, None]  # to out, to a new result
        self._run: list[Callable[..., Any]] = [unknown, unknown]
        self._executable: Executable | None = None
        if current.on_gpu(like) and like.numel() > 0:
            scalars = layouts.Scalars(request.scale, request.fill, request.causal_offset, flags.batch_invariant)
            others = {} if mask is None else {"mask": mask}
            self._executable = dispatch.executable(direction, (*inputs.values(), result), others, scalars)
            if self._executable is None:
                boundary = ", and rows of out on 16-byte boundaries, as batch_invariant needs them"
                raise ValueError(
                    f"{_OP}: no kernel follows {described(like)} without a copy; want a last stride of 1 and, of the "
                    "leading dimensions, at most four that do not continue each other"
                    f"{boundary if flags.batch_invariant else ''}: plan for contiguous tensors, or tensors with gaps"
                )

    def __copy__(self) -> Self:
        """The plan itself: threads share it, and nothing about it can be changed."""
        return self

    def __deepcopy__(self, memo: dict) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{_OP}: a plan belongs to its process and GPU, and cannot be pickled: plan again in the other")

    def __repr__(self) -> str:
        kernel = "torch operations" if self._executable is None else self._executable.plan.variant.name
        operands = ", ".join(f"{each.name}: {each.words}" for each in (*self._inputs, self._mask, self._result) if each)
        return f"<softmax_ops plan, {kernel}; {operands}>"

    def _checked(
        self, launch: Callable[[Any, bool], Any], request: Any, arguments: Mapping[str, Tensor | None]
    ) -> Tensor:
        """The result of a valid call that the fast path does not know yet, which it does from now on."""
        self._check(arguments)
        self._learn(arguments)
        result = self._run[arguments["out"] is None](*arguments.values())
        with torch.no_grad():
            return launch(request, self._flags.batch_invariant) if result is None else result

    def _check(self, arguments: Mapping[str, Tensor | None]) -> None:
        """Raises ValueError unless the (valid) tensors are as planned and neither autograd nor a compiler must see the
        call."""
        inputs = [arguments[layout.name] for layout in self._inputs]
        mask, out = arguments.get("mask"), arguments["out"]
        if may_be_transformed() or needs_operator(*inputs, mask, out):
            raise ValueError(
                f"{_OP}: compilers, dispatch modes, tensor subclasses, meta tensors and transforms of torch.func "
                "cannot follow a planned call; call softmax_ops.softmax there"
            )
        if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
            raise ValueError(
                f"{_OP}: a tensor requires grad, and a planned call is invisible to autograd: "
                "call softmax_ops.softmax, or make the call under torch.no_grad()"
            )
        if (mask is None) != (self._mask is None):
            planned = "none" if self._mask is None else f"a {self._mask.words}"
            raise ValueError(
                f"{_OP}: mask is {'None' if mask is None else described(mask)}; planned is {planned}: "
                "plan such a call, or call softmax_ops.softmax"
            )
        for layout, tensor in zip((*self._inputs, self._mask, self._result), (*inputs, mask, out), strict=True):
            if layout is not None and tensor is not None:
                layout.check(tensor)
        if out is None and not self._makes_new:
            raise ValueError(f"{_OP}: out is None; results were planned to be written to a {self._result.words}")

    def _learn(self, arguments: Mapping[str, Tensor | None]) -> None:
        """Remembers this checked call, so that calls like it take the fast path. Does nothing for CPU tensors."""
        tensors = {name: tensor for name, tensor in arguments.items() if tensor is not None}
        if self._executable is None or any(tensor.requires_grad for tensor in tensors.values()) or not possible():
            return
        out = arguments["out"]
        operands = {name: tensor for name, tensor in arguments.items() if name == "out" or tensor is not None}
        known = self._known[out is None]
        if known is None or not known.knows(*arguments.values()):  # the first call, or another mode
            like = tensors[self._inputs[-1].name]
            known = Known(arguments, [*operands], like if out is None else out, scale=self._scale)
        addresses = (0 if operand is None else operand.data_ptr() for operand in operands.values())
        known.add(self._executable, tuple(addresses))
        self._known[out is None] = known
        self._run[out is None] = known.run


class Planned(_Planned):
    """What `plan` returns for the forward."""

    def __call__(self, x: Tensor, out: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The softmax of x, in `out` if there is one: what `softmax` with the planned arguments would return.

        x, out, mask  as planned, `x` and `mask` at any address of the planned alignment; a mask if one was planned.

        Raises ValueError for tensors that differ from the planned ones, that overlap, or that autograd would have to
        record, TypeError for what is not a tensor, and DriverError if CUDA refuses the launch.
        """
        y = self._run[out is None](x, out, mask)
        if y is not None:
            return y
        request = check_softmax(
            x, scale=self._scale, mask=mask, causal=self._flags.causal, causal_offset=self._flags.causal_offset, out=out
        )
        return self._checked(dispatch.forward, request, {"x": x, "out": out, "mask": mask})


class PlannedBackward(_Planned):
    """What `plan` returns for the backward."""

    def __call__(self, dy: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
        """The gradient, in `out` if there is one: what `softmax_backward` with the planned arguments would return.

        Raises what a planned forward raises.
        """
        dx = self._run[out is None](dy, y, out)
        if dx is not None:
            return dx
        request = check_softmax_backward(
            dy, y, scale=self._scale, causal=self._flags.causal, causal_offset=self._flags.causal_offset, out=out
        )
        return self._checked(dispatch.backward, request, {"dy": dy, "y": y, "out": out})
