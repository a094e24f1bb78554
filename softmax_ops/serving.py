"""For servers: kernels loaded before the first request. Needs no torch."""

import re
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any, NamedTuple

from . import driver, launcher
from .artifacts.constants import ACCESS_BYTES, DTYPE_BYTES
from .planning.geometry import (
    BIASED,
    DTYPE_NAMES,
    OPERANDS,
    General,
    Geometry,
    Operand,
    broadcast_strides,
    contiguous_strides,
)


class Call(NamedTuple):
    """An expected call: scores [..., Q, K] of a dtype ("f16", "bf16", "f32", "f64" or torch's own)."""

    shape: tuple[int, ...]
    dtype: object = "f16"
    mask_shape: tuple[int, ...] | None = None  # the mask broadcasts to shape; None: no mask
    causal: bool = False
    backward: bool = False
    batch_invariant: bool = False
    general: bool = False  # uses anything in docs/attention_inputs.md: a bias, lengths, lse, a scale in a tensor ...
    result_dtype: object = None  # dtype of the probabilities if it is not the scores': "f32"
    mask_dtype: object = "bool"  # or "uint8"; for transformer_softmax_lib also a float dtype


def warm_up(*calls: Call | tuple[int, ...], device: Any = 0, **facts) -> list[str]:
    """Loads the kernels that the calls will need on a device: those for rows that start on 16-byte boundaries, and
    those for unaligned rows, one after the other or apart. A plain shape stands for a Call with these `facts`
    (fields of Call). The device is the ordinal of a GPU, "cuda:1", or a torch.device with its index.

    >>> warm_up((8, 16, 512, 512), dtype="bf16", causal=True)              # doctest: +SKIP
    >>> warm_up(Call((64, 32000), "f32"), Call((64, 32000), "f32", backward=True))  # doctest: +SKIP

    Returns the names of the kernels, in order. The calls are then safe inside a CUDA graph capture, and after
    `freeze()`. Raises ValueError for an invalid call, TypeError for facts if every call is a Call and for another
    device, and what a launch raises: KernelNotFound, NoVariant, DriverError.
    """
    if facts and all(isinstance(call, Call) for call in calls):
        raise TypeError(
            f"warm_up: every call is a Call, which has its own facts, and {', '.join(facts)} given as well; "
            f"want shapes to go with them, or call._replace({next(iter(facts))}=...)"
        )
    ordinal = _ordinal(device)
    geometries = [
        each for call in calls for each in _geometries(call if isinstance(call, Call) else Call(call, **facts))
    ]
    arch = driver.architecture(ordinal)
    names: dict[str, None] = {}
    for geometry in geometries:
        plan = launcher.plan_for(geometry, arch)
        names[launcher.executable(plan, ordinal).plan.variant.name] = None
    return list(names)


def _ordinal(device: Any) -> int:
    if isinstance(device, str) and (found := re.fullmatch(r"cuda:(\d+)", device)):
        return int(found[1])
    ordinal = getattr(device, "index", device)
    if not isinstance(ordinal, Integral):
        raise TypeError(
            f"warm_up: device is {device!r}; want the ordinal of a GPU, 'cuda:0', or a torch.device with its index"
        )
    return int(ordinal)


def _geometries(call: Call) -> Iterator[Geometry]:
    """Geometries of aligned rows, of unaligned rows, and of such rows with gaps between them; none if there
    is nothing to compute."""
    for name in ("causal", "backward", "batch_invariant", "general"):
        if not isinstance(getattr(call, name), bool):
            raise TypeError(f"warm_up: {name} is {getattr(call, name)!r}; want True or False")
    scores = _dtype(call.dtype, "dtype")
    result = scores if call.result_dtype is None else _dtype(call.result_dtype, "result_dtype")
    general = call.general or scores != result
    read, written = (result, scores) if call.backward else (scores, result)
    if not _are_sizes(call.shape):
        raise TypeError(f"warm_up: shape is {call.shape!r}; want the sizes of scores, [..., Q, K]")
    sizes = tuple(call.shape)
    if not sizes or min(sizes) < 0:
        raise ValueError(f"warm_up: shape is {sizes}; want the sizes of scores, [..., Q, K]")
    if result not in (scores, "f32" if scores in ("f16", "bf16") else scores):
        raise ValueError(f"warm_up: result_dtype is {result} and dtype {scores}; want f32 for f16 and bf16, or none")
    shape = sizes if len(sizes) > 1 else (1, *sizes)
    if call.mask_shape is not None and not _are_sizes(call.mask_shape):
        raise TypeError(f"warm_up: mask_shape is {call.mask_shape!r}; want the sizes of the mask, or None")
    mask = () if call.mask_shape is None else (_mask_strides(call.mask_shape, shape),)
    if 0 in shape:
        return
    mask = () if call.backward else mask  # the backward takes none
    mask_kind = _mask_kind(call, scores, general) if mask else ""
    mask_bytes = DTYPE_BYTES[scores] if mask_kind == "like" else 1
    if call.general and call.backward and scores in ("f16", "bf16"):  # with a float32 bias, dy and y are widened
        yield from _geometries(call._replace(dtype="f32", result_dtype=None))
    kind = "general" if general else mask_kind + ("causal" if call.causal else "") or "none"
    for aligned, gap in ((True, 0), (False, 0), (False, 1)):
        tensors = _tensors(call, shape, read, written, aligned, gap)
        boundary = min(8 * mask_bytes, ACCESS_BYTES) if aligned else mask_bytes
        masks = [Operand("mask", strides, boundary, mask_bytes) for strides in mask]
        found = Geometry(
            "bwd" if call.backward else "fwd",
            read if read == written else f"{read}to{written}",
            kind,
            shape,
            (*tensors, *masks),
            shape[-1] - shape[-2] if call.causal else None,
            call.batch_invariant,
            General(right=0 if call.causal else None) if general else None,
        )
        yield found
        if not general:
            continue
        if not masks:
            yield found._replace(mask_kind="band")
        if not (call.backward or call.causal or masks) and found.dtype in BIASED:
            bias = tensors[0]._replace(name="bias")
            yield found._replace(mask_kind="bias", operands=(*tensors, bias), general=None)
        if call.backward or read == written:
            # What is left of a bias, slopes or lse in a gradient, and of a window (None, 0), is a plain call.
            operands = (*_tensors(call, shape, read, read, aligned, gap), *masks)
            plain = found._replace(dtype=read, operands=operands, general=None)
            if not call.causal:
                yield plain._replace(mask_kind=mask_kind or "none")
            yield plain._replace(mask_kind=f"{mask_kind}causal", causal_offset=shape[-1] - shape[-2])


def _are_sizes(given: object) -> bool:
    return isinstance(given, Sequence) and all(isinstance(size, Integral) for size in given)


def _tensors(
    call: Call, shape: tuple[int, ...], read: str, written: str, aligned: bool, gap: int
) -> tuple[Operand, ...]:
    """Inputs and output of these dtypes, with so many elements between rows."""
    *inputs, output = OPERANDS["bwd" if call.backward else "fwd"]
    sizes = [*((name, DTYPE_BYTES[read]) for name in inputs), (output, DTYPE_BYTES[written])]
    strides = contiguous_strides((*shape[:-1], shape[-1] + gap))
    return tuple(Operand(name, strides, ACCESS_BYTES if aligned else size, size) for name, size in sizes)


def _mask_strides(mask: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return broadcast_strides(mask, shape)
    except ValueError as error:
        raise ValueError(f"warm_up: {error}") from None


def _mask_kind(call: Call, scores: str, general: bool) -> str:
    """How kernels read the mask: "like" if it has the scores' dtype, else "bool", to which it is converted."""
    dtype = _name(call.mask_dtype)
    if dtype in ("bool", "uint8"):
        return "bool"
    if dtype not in DTYPE_NAMES.values() or call.causal or general:
        raise ValueError(
            f"warm_up: mask_dtype is {call.mask_dtype!r}; want bool or uint8. transformer_softmax_lib alone takes "
            f"others: {', '.join(DTYPE_NAMES.values())}, without causality and other features"
        )
    return "like" if dtype == scores != "f64" else "bool"


def _dtype(given: object, argument: str) -> str:
    dtype = _name(given)
    if dtype not in DTYPE_NAMES.values():
        known = ", ".join(DTYPE_NAMES.values())
        raise ValueError(f"warm_up: {argument} is {given!r}; want one of {known}, or torch's")
    return dtype


def _name(dtype: object) -> str:
    """The name that kernels use for a dtype, or the given dtype if they have none."""
    name = str(dtype).removeprefix("torch.")
    return DTYPE_NAMES.get(name, name)
