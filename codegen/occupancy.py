"""CTAs of a kernel that its registers are to leave room for on an SM: as many as fit without spilling, as compiled."""

from typing import NamedTuple

from .axes import Direction, DType, Plan
from .features import Mask
from .spec import Spec

HBM3 = ("sm_90", "sm_100", "sm_103")
"""Architectures whose memory wants two to four times as much in flight on an SM as that of an sm_80."""


class CtasPerSm(NamedTuple):
    """By architecture."""

    any: int
    hbm3: int
    sm_120: int

    def on(self, arch: str) -> int:
        return self.hbm3 if arch in HBM3 else self.sm_120 if arch == "sm_120" else self.any


def ctas_per_sm(spec: Spec) -> CtasPerSm:
    """For sm_120 ptxas takes up to a third more registers for the same code; not for the loop of a forward stream."""
    least = max(_threads(spec) // spec.threads, 1)
    whole = least == 1 or (spec.plan is Plan.STREAM and spec.direction is Direction.FORWARD)
    return CtasPerSm(least, max(_threads_on_hbm3(spec) // spec.threads, 1), least if whole else least * 3 // 4)


def _threads(spec: Spec) -> int:
    """1024, which leaves 64 registers to each and is what the smallest SM (sm_75) holds.

    Half of that in tiles of f64, and where f32 scores share them with a mask; 640 where the edges of two tensors are a
    good part of a short row, or a lane holds five aligned vectors of each. Three quarters where one ptxas or another
    spills at 64: in other warps of two aligned tensors, f32 scores of a whole CTA, and, in rows that start anywhere,
    warps with many edges or five vectors to a lane, both masks or a bias in a cluster, general scores in a warp, a CTA
    or a stream, two 16-bit tensors in a CTA.
    """
    masked = spec.mask in (Mask.BOOL, Mask.BOOLCAUSAL, Mask.LIKE)
    f32_scores = spec.dtype is DType.F32 and spec.direction is Direction.FORWARD
    general_scores = spec.mask.general and spec.direction is Direction.FORWARD
    crowded = {
        Plan.WARP: general_scores or spec.edges > 2 or spec.chunks > 4,
        Plan.BLOCK: f32_scores or general_scores or (spec.direction is Direction.BACKWARD and spec.dtype.bytes == 2),
        Plan.CLUSTER: f32_scores or spec.mask in (Mask.BOOLCAUSAL, Mask.BIAS),
        Plan.STREAM: general_scores,
    }
    if (spec.plan is Plan.TILE and spec.dtype is DType.F64) or (spec.dtype is DType.F32 and masked):
        return 512
    if spec.plan is Plan.WARP and spec.direction is Direction.BACKWARD:
        if spec.ragged:
            return 640 if spec.edges > 2 else 768 if spec.chunks > 4 else 1024
        return 640 if spec.chunks > 4 else 768
    if (spec.ragged and crowded.get(spec.plan, False)) or (spec.plan is Plan.BLOCK and f32_scores):
        return 768
    return 1024


def _threads_on_hbm3(spec: Spec) -> int:
    """1536 where 40 registers cost few instructions or none: in streams, other than with both masks or of general f64
    scores, and in forward warps of f32 and f64 scores, masked or not, and of aligned general ones of f32. 1280 in
    general streams of 16-bit scores, which spill at 40 on sm_100, and in aligned causal warps of 16 bits.
    """
    half = spec.dtype.bytes == 2
    many = {
        Mask.NONE: not half,
        Mask.CAUSAL: not half,
        Mask.BOOLCAUSAL: not half and not spec.ragged,
        Mask.GENERAL: spec.dtype is DType.F32 and not spec.ragged,
    }
    forward = spec.direction is Direction.FORWARD
    general_scores = spec.mask.general and forward
    long_exp = general_scores and spec.dtype is DType.F64
    if spec.plan is Plan.STREAM and spec.mask is not Mask.BOOLCAUSAL and not long_exp:
        return 1280 if general_scores and half else 1536
    if spec.plan is Plan.WARP and forward:
        if many.get(spec.mask, False):
            return 1536
        if spec.mask is Mask.CAUSAL and not spec.ragged and spec.chunks <= 4:
            return 1280
    return _threads(spec)
