"""Minimum CTAs per SM for `__launch_bounds__`, which sets the register budget of a kernel.

The largest numbers that fit without spilling, as compiled with each toolchain for each architecture; not timed.
"""

from typing import NamedTuple

from .axes import Direction, DType, Plan
from .features import Mask
from .spec import Spec


class CtasPerSm(NamedTuple):
    """CTAs per SM by architecture; an architecture between two of these has the figure of the earlier one."""

    sm_70: int
    sm_80: int
    sm_90: int
    sm_100: int
    sm_120: int

    def on(self, arch: str) -> int:
        return next(ctas for own, ctas in reversed([*self._asdict().items()]) if int(own[3:]) <= int(arch[3:]))


def ctas_per_sm(spec: Spec) -> CtasPerSm:
    """The CTAs per SM that a kernel should leave room for.

    The memory of sm_90 and sm_100 needs two to four times as many bytes in flight on an SM as that of sm_80. For the
    same code ptxas takes up to a third more registers on sm_120, except in the loop of a forward stream.
    """
    threads = (_threads_on_sm_70(spec), _threads(spec), _threads_on_sm_90(spec), _threads_on_sm_100(spec))
    sm_70, sm_80, sm_90, sm_100 = (max(of_sm // spec.threads, 1) for of_sm in threads)
    whole = sm_80 == 1 or (spec.plan is Plan.STREAM and spec.direction is Direction.FORWARD)
    return CtasPerSm(sm_70, sm_80, sm_90, sm_100, sm_80 if whole else sm_80 * 3 // 4)


def columns_of_cta(spec: Spec) -> int:
    """Columns of a row that a CTA of a cluster holds if four such CTAs are to share an SM, so that some load while
    others compute or store; two of kernels of which one full CTA fits. 0 if the kernel has no clusters. A launch gives
    a CTA more only if there are too few of them.
    """
    if spec.cluster == 1:
        return 0
    full = ctas_per_sm(spec).sm_90
    warps = full * spec.warps // 4 if full > 1 else spec.warps // 2
    return warps * 32 * spec.access * spec.chunks


_TWO_OF_17_WARPS = 2 * 17 * 32
"""Threads of two CTAs of a cluster that have a warp more than those of a block: 56 registers each."""


def _first(*rules: tuple[bool, int]) -> int:
    """Threads on an SM by the first rule that holds: 1024 leave 64 registers to each thread, 1536 leave 40."""
    return next(threads for holds, threads in rules if holds)


def _threads(spec: Spec) -> int:
    """Threads on an SM for any architecture. The default, 1024, is what the smallest SM (sm_75) holds; fewer wherever
    one ptxas or another spills at 64 registers.
    """
    forward, unaligned = spec.direction is Direction.FORWARD, spec.unaligned
    f32_scores = forward and spec.dtype is DType.F32
    f32_masked = f32_scores and spec.mask in (Mask.BOOLCAUSAL, Mask.LIKE)
    general_scores = forward and spec.mask.general
    many_edges, many_vectors = spec.edges > 2, spec.chunks > 4
    warp, block, cluster = (spec.plan is plan for plan in (Plan.WARP, Plan.BLOCK, Plan.CLUSTER))
    backward_warp = warp and not forward
    return _first(
        (spec.plan is Plan.TILE and spec.dtype is DType.F64, 512),
        (f32_masked and not (block and spec.mask is Mask.BOOLCAUSAL), 512),
        (backward_warp and unaligned and many_edges, 640),  # edges are a large part of a short row, in two tensors
        (backward_warp and not unaligned and many_vectors, 640),
        (backward_warp and (many_vectors or not unaligned), 768),
        (warp and forward and unaligned and (general_scores or many_edges or many_vectors), 768),
        # These take at most 64 registers as it is; bound to that number, they would have more instructions.
        (block and f32_scores and (spec.mask in (Mask.NONE, Mask.CAUSAL) or (general_scores and not unaligned)), 768),
        (block and unaligned and general_scores and spec.dtype is DType.F64, 768),
        (cluster and unaligned and (f32_scores or spec.mask in (Mask.BOOLCAUSAL, Mask.BIAS)), 768),
        (spec.plan is Plan.STREAM and unaligned and general_scores, 768),
        (cluster and spec.warps == 17, _TWO_OF_17_WARPS),
        (True, 1024),
    )


def _threads_on_sm_70(spec: Spec) -> int:
    """Fewer where only the ptxas of sm_70 spills: in CTAs that hold unaligned rows."""
    block = spec.plan is Plan.BLOCK and spec.direction is Direction.FORWARD and spec.unaligned
    return _first(
        (block and (spec.mask.general or (spec.mask is Mask.BAND and spec.dtype is DType.F32)), 768),
        (True, _threads(spec)),
    )


def _threads_on_sm_100(spec: Spec) -> int:
    """Threads on an SM of sm_100: more where 40 or 48 registers cost few or no instructions."""
    forward, half = spec.direction is Direction.FORWARD, spec.dtype.bytes == 2
    general_scores = forward and spec.mask.general
    stream = spec.plan is Plan.STREAM and spec.mask is not Mask.BOOLCAUSAL
    warp = spec.plan is Plan.WARP and forward
    wide = warp and not half
    cluster, unaligned_half = spec.plan is Plan.CLUSTER and not spec.mask.general, half and spec.unaligned
    block = spec.plan is Plan.BLOCK and spec.unaligned
    widens = spec.dtype.output is DType.F32
    return _first(
        (stream and general_scores and spec.dtype is DType.F64, _threads(spec)),
        (stream and general_scores and half, 1280),
        (stream, 1536),
        (wide and spec.mask is Mask.CAUSAL and spec.unaligned and spec.edges > 1, 1280),
        (wide and spec.mask in (Mask.NONE, Mask.CAUSAL), 1280 if spec.unaligned and spec.chunks > 4 else 1536),
        (wide and spec.mask is Mask.BOOLCAUSAL and not spec.unaligned, 1536),
        (wide and spec.mask.general and spec.dtype is DType.F32 and not spec.unaligned, 1536),
        (warp and half and spec.mask is Mask.CAUSAL and not spec.unaligned and spec.chunks <= 3, 1536),
        (warp and spec.mask is Mask.CAUSAL and not spec.unaligned and spec.chunks <= 4, 1280),
        (cluster and unaligned_half and (not forward or spec.mask is Mask.LIKE or widens), 768),
        (block and half and not forward and not spec.mask.general, 768),
        (block and spec.dtype is DType.F32 and spec.mask is Mask.BOOLCAUSAL, 768),
        (spec.plan is Plan.TILE and unaligned_half and not forward, 1280),
        (_is_full_causal_tile(spec), 768),
        (True, _threads(spec)),
    )


def _is_full_causal_tile(spec: Spec) -> bool:
    """Whether a lane of a causal forward tile holds 32 columns of 16 bits: sm_100's ptxas spills at 64 registers."""
    tile = spec.plan is Plan.TILE and spec.direction is Direction.FORWARD
    return tile and spec.mask is Mask.CAUSAL and spec.dtype.bytes == 2 and spec.unaligned and spec.chunks > 4


def _threads_on_sm_90(spec: Spec) -> int:
    """As on sm_100, and more where only the ptxas of sm_100 spills: in unaligned rows."""
    forward, unaligned_half = spec.direction is Direction.FORWARD, spec.unaligned and spec.dtype.bytes == 2
    warp = spec.plan is Plan.WARP and forward and unaligned_half
    causal_f16 = spec.mask is Mask.CAUSAL and spec.dtype is DType.F16
    f32_scores = forward and spec.unaligned and spec.dtype is DType.F32
    return _first(
        (warp and spec.mask is Mask.NONE and spec.chunks == 5, 1024),
        (warp and spec.mask is Mask.NONE and spec.chunks == 4 and spec.edges <= 2, 1152),
        (warp and spec.mask is Mask.CAUSAL and spec.chunks == 5, _threads_on_sm_100(spec)),
        (spec.plan is Plan.WARP and unaligned_half and spec.chunks > 4, 896),
        (warp and spec.mask.general and spec.lanes > 8 and spec.dtype is not DType.BF16TOF32, 896),
        (warp and spec.mask is Mask.NONE and spec.chunks <= 2, 1536),
        (warp and causal_f16 and spec.chunks <= 4 and spec.edges <= 2, 1280),
        (spec.plan is Plan.BLOCK and ((not forward and unaligned_half) or f32_scores), _threads(spec)),
        (spec.plan is Plan.CLUSTER and f32_scores and spec.mask is not Mask.LIKE and not spec.mask.general, 1024),
        (spec.plan is Plan.CLUSTER and not spec.mask.general and unaligned_half, _TWO_OF_17_WARPS),
        (_is_full_causal_tile(spec), 1024),
        (True, _threads_on_sm_100(spec)),
    )
