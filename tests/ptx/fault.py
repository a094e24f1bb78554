"""The only error that the interpreter raises: a kernel did something that no correct kernel does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .program import Instruction

KINDS = (
    "bounds",
    "alignment",
    "read-only",
    "uninitialised",
    "race",
    "same-address",
    "divergent barrier",
    "deadlock",
    "missing lane",
    "unsupported",
)


class Fault(AssertionError):
    """A failed check, with what a CUDA programmer needs to find the cause.

    Code that detects a fault knows the lane; the machine adds block, thread and instruction with `locate`.
    """

    def __init__(self, kind: str, what: str, lane: int | None = None) -> None:
        super().__init__(what)
        if kind not in KINDS:
            raise ValueError(f"unknown kind of fault: {kind!r}")
        self.kind = kind
        self.what = what
        self.lane = lane
        self.block: int | None = None
        self.thread: int | None = None
        self.instruction: Instruction | None = None

    def locate(self, instruction: Instruction | None, threads_stride: int) -> Fault:
        """Adds block, thread and instruction; lanes are numbered block * threads_stride + thread."""
        self.instruction = self.instruction or instruction
        if self.lane is not None:
            self.block, self.thread = divmod(self.lane, threads_stride)
        self.args = (str(self),)
        return self

    def __str__(self) -> str:
        who = "" if self.block is None else f"block {self.block} thread {self.thread}: "
        where = "" if self.instruction is None else f" in `{self.instruction}`"
        return f"{self.kind}: {who}{self.what}{where}"
