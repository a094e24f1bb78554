"""The axes along which kernels differ, apart from mask kind and tile: element types, direction, and plan."""

from enum import Enum

from softmax_ops.artifacts.constants import ACCESS_BYTES, DTYPE_BYTES

from .features import Fields


class DType(Enum):
    """Element types of a kernel: the type it reads and, after "to", the type it writes if that is another one."""

    F16 = "f16"
    BF16 = "bf16"
    F32 = "f32"
    F64 = "f64"
    F16TOF32 = "f16tof32"
    BF16TOF32 = "bf16tof32"
    F32TOF16 = "f32tof16"
    F32TOBF16 = "f32tobf16"

    @property
    def input(self) -> "DType":
        return DType(self.value.split("to")[0])

    @property
    def output(self) -> "DType":
        return DType(self.value.split("to")[-1])

    @property
    def converts(self) -> bool:
        """Whether results have another type than scores."""
        return self.output is not self

    @property
    def bytes(self) -> int:
        """Size of an input element."""
        return DTYPE_BYTES[self.value]

    @property
    def element(self) -> str:
        """The C++ type of an input element."""
        names = {"f16": "cutlass::half_t", "bf16": "cutlass::bfloat16_t", "f32": "float", "f64": "double"}
        return names[self.input.value]

    @property
    def accumulator(self) -> str:
        """The C++ type in which scores, maximum and sum are computed."""
        return "double" if self is DType.F64 else "float"

    @property
    def vector(self) -> int:
        """Elements of one access, which is 16 bytes of what is wider, input or output. The other one moves in 8 bytes:
        lanes that stored 32 bytes each, in two halves, would fill half of every 32-byte sector at a time."""
        return ACCESS_BYTES // max(self.bytes, self.output.bytes)


class Direction(Enum):
    """Each direction with the C++ struct of its operands, and the tensors in it: the inputs, then the output."""

    FORWARD = "fwd", "Forward", ("x", "y")
    BACKWARD = "bwd", "Backward", ("dy", "y", "dx")

    def __init__(self, label: str, struct: str, tensors: tuple[str, ...]):
        self.label = label
        self.struct = struct
        self.tensors = tensors

    @property
    def tile_vectors(self) -> int:
        """Vectors of each input that a thread of a `tile` kernel moves: four over all inputs."""
        return 4 // (len(self.tensors) - 1)


_SPLIT = tuple((f"split.{name}", "i") for name in ("pieces", "ctas", "known", "writes"))


class Plan(Enum):
    """Which threads share a row, and where they keep it. `piece_vectors` is 0, or the vectors per thread of the pieces
    in which STREAM and SPLIT, which keep no row, go over it. docs/plans.md describes each plan."""

    TILE = "tile", (("tile.rows_per_cta", "i"), ("tile.pitch", "i"), ("tile.flat", "i"))
    WARP = "warp", ()
    BLOCK = "block", ()
    CLUSTER = "cluster", (("cluster.columns", "i"), ("cluster.shift", "i"))
    STREAM = "stream", (), 2
    SPLIT = "split", (("workspace.address", "P"), *_SPLIT), 2

    def __init__(self, label: str, fields: Fields, piece_vectors: int = 0):
        self.label = label
        self.fields = fields
        self.piece_vectors = piece_vectors
        self.in_pieces = piece_vectors > 0
