"""The cells of the benchmark, ranked by how likely users are to ask for them; a budget cuts off the end.

The first CORE cells give the overall picture; `make bench-quick` takes the first dozen of them. Then come the cells
that the goals need, and those of the sweep.
"""

from dataclasses import dataclass
from math import prod

from softmax_ops.artifacts.constants import DTYPE_BYTES

MASKS = ("none", "causal", "padding", "bool", "like", "bias")
"""like: a mask of the scores' dtype; bias: a tensor added to the scaled scores."""

ASKS = {
    "f32": "float32 results of 16-bit scores",
    "temperature": "float32 results and a scale per row on the device",
    "lengths": "key lengths",
    "log": "logarithms",
}
"""What a cell may ask for besides a scale and a mask, in words."""

CORE = 40
QUICK = 12


@dataclass(frozen=True)
class Cell:
    """Scores [B, H, Q, K] of a dtype under a mask, in one direction; `asks` is "" or a key of ASKS."""

    case: str
    shape: tuple[int, int, int, int]
    dtype: str
    mask: str = "none"
    direction: str = "fwd"
    asks: str = ""

    @property
    def key(self) -> str:
        """The cell's name in results."""
        name = f"{self.case}|{'x'.join(map(str, self.shape))}|{self.dtype}|{self.mask}|{self.direction}"
        return f"{name}|{self.asks}" if self.asks else name

    @property
    def k(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def causal(self) -> bool:
        return self.mask == "causal"

    @property
    def result(self) -> str:
        """Dtype of the result."""
        return "f32" if self.asks in ("f32", "temperature") else self.dtype

    @property
    def key_lengths(self) -> tuple[int, ...] | None:
        """Lengths spread evenly from 0 to K, half of K on average; their order does not matter."""
        batch = self.shape[0]
        return tuple((2 * b + 1) * self.k // (2 * batch) for b in range(batch)) if self.asks == "lengths" else None

    @property
    def aligned(self) -> bool:
        """Whether the size of a row is a multiple of 16 bytes."""
        return self.k * DTYPE_BYTES[self.dtype] % 16 == 0

    @property
    def inputs(self) -> int:
        """The number of input tensors that have the scores' shape."""
        return 1 if self.direction == "fwd" else 2

    @property
    def mask_shape(self) -> tuple[int, int, int, int] | None:
        """The shape of the mask or bias; None in a backward, which reads neither."""
        batch, heads, queries, k = self.shape
        shapes = {
            "padding": (batch, 1, 1, k),
            "bool": (batch, 1, queries, k),
            "like": (1, 1, queries, k),
            "bias": (1, heads, queries, k),
        }
        return shapes.get(self.mask) if self.direction == "fwd" else None

    @property
    def visible(self) -> int:
        """Scores that the causal mask (bottom-right) or the key lengths leave visible; all scores without either."""
        if self.key_lengths:
            return self.elements // (self.shape[0] * self.k) * sum(self.key_lengths)
        if not self.causal:
            return self.elements
        queries, k = self.shape[-2:]
        seen = sum(min(max(query + k - queries + 1, 0), k) for query in range(queries))
        return self.elements // (queries * k) * seen

    @property
    def bytes(self) -> int:
        """Bytes that must move: each visible input once, the mask as stored in memory, the output once.

        With key lengths: the lengths, the columns before them, and the whole output. With temperatures: the scales too.
        """
        size = DTYPE_BYTES[self.dtype]
        mask = prod(self.mask_shape) * (size if self.mask in ("like", "bias") else 1) if self.mask_shape else 0
        numbers = {"lengths": self.shape[0], "temperature": self.rows}.get(self.asks, 0)
        return self.visible * self.inputs * size + mask + numbers * 4 + self.elements * DTYPE_BYTES[self.result]

    @property
    def full_bytes(self) -> int:
        """Bytes moved by a plain copy of this shape; for a backward, by the sum of two tensors into a third."""
        return self.elements * (self.inputs * DTYPE_BYTES[self.dtype] + DTYPE_BYTES[self.result])


MODELS = {
    "BERT-base": (32, 12, 384, 384),
    "BERT-large": (32, 16, 512, 512),
    "GPT-2": (8, 12, 1024, 1024),
    "GPT-3 TP8": (1, 12, 2048, 2048),
    "Llama 405B TP8": (1, 16, 4096, 4096),
    "Llama 70B TP8": (1, 8, 8192, 8192),
    "ViT 197": (256, 12, 197, 197),
    "ViT 577": (64, 16, 577, 577),
    "Whisper": (16, 20, 1500, 1500),
    "T5": (64, 16, 512, 512),
    "AlphaFold MSA": (128, 8, 256, 256),
    "decode 8k": (16, 32, 1, 8192),
    "decode 128k": (2, 32, 1, 131072),
    "128k chunk": (1, 8, 256, 131072),
}
BIASED = ("T5", "AlphaFold MSA")
"""Cases with a bias instead of a mask."""

VOCABULARY = (32000, 50257, 128256, 151936, 256000)
SMALL = ((1, 12, 128, 128), (8, 12, 128, 128), (8, 16, 256, 256), (1, 1, 64, 1024), (1, 32, 1, 4096), (1, 1, 264, 8192))
"""At most 40 MB read and written in f16; some have more rows than an H200 has SMs, some fewer."""

SWEEP = tuple(2**power for power in range(3, 19))
SWEEP_BYTES = 1 << 30
OVER_2_31 = (1, 1, (1 << 19) + 8, 4096)


def _of_model(case: str, dtype: str, mask: str, direction: str = "fwd") -> Cell:
    return Cell(case, MODELS[case], dtype, mask, direction)


def _of_tokens(rows: int, k: int) -> Cell:
    """Logits of `rows` tokens over a vocabulary of k."""
    return Cell(f"vocabulary {rows}", (1, 1, rows, k), "f32")


_CORE = (
    _of_model("GPT-2", "f16", "none"),
    _of_model("BERT-large", "f16", "none"),
    _of_model("Llama 405B TP8", "f16", "none"),
    _of_model("Llama 405B TP8", "f16", "causal"),
    _of_model("BERT-large", "f16", "padding"),
    _of_model("ViT 197", "f16", "none"),
    _of_model("GPT-2", "f16", "none", "bwd"),
    _of_model("GPT-2", "f16", "causal", "bwd"),
    _of_model("BERT-large", "f16", "bool"),
    _of_tokens(8, 128256),
    _of_model("decode 8k", "f16", "none"),
    _of_model("T5", "f16", "bias"),
    _of_model("BERT-base", "f16", "none"),
    _of_model("GPT-3 TP8", "f16", "none"),
    _of_model("Llama 70B TP8", "f16", "none"),
    _of_model("ViT 577", "f16", "none"),
    _of_model("Whisper", "f16", "none"),
    _of_model("decode 128k", "f16", "none"),
    _of_model("128k chunk", "f16", "none"),
    _of_model("GPT-2", "f16", "causal"),
    _of_model("GPT-3 TP8", "f16", "causal"),
    _of_model("Llama 70B TP8", "f16", "causal"),
    _of_model("128k chunk", "f16", "causal"),
    _of_model("BERT-large", "f16", "like"),
    _of_model("BERT-base", "f16", "padding"),
    _of_model("T5", "f16", "none"),
    _of_model("AlphaFold MSA", "f16", "none"),
    _of_model("AlphaFold MSA", "f16", "bias"),
    _of_model("BERT-large", "f16", "none", "bwd"),
    _of_model("Llama 405B TP8", "f16", "none", "bwd"),
    _of_model("Llama 405B TP8", "f16", "causal", "bwd"),
    _of_model("ViT 197", "f16", "none", "bwd"),
    _of_tokens(1, 256000),
    _of_tokens(64, 128256),
    _of_tokens(1024, 50257),
    _of_model("BERT-large", "bf16", "none"),
    _of_model("Llama 405B TP8", "bf16", "none"),
    _of_model("BERT-base", "f32", "none"),
    _of_model("GPT-2", "f32", "none"),
    _of_model("GPT-2", "bf16", "none", "bwd"),
)

_ASKING = (
    Cell("vocabulary 64", (1, 1, 64, 128256), "bf16", asks="temperature"),
    Cell("vocabulary 1024", (1, 1, 1024, 128256), "bf16", asks="temperature"),
    Cell("vocabulary 1024", (1, 1, 1024, 128256), "f32", asks="log"),
    Cell("vocabulary 1024", (1, 1, 1024, 128256), "f32", direction="bwd", asks="log"),
    Cell("MoE router", (1, 1, 65536, 64), "bf16", asks="f32"),
    Cell("padded decode 8k", (64, 32, 1, 8192), "f16", asks="lengths"),
)


def cells() -> list[Cell]:
    """Every cell once, in rank order."""
    ranked = [*_CORE, *_deciding(), *_ASKING, *_models(), *_vocabulary(), *_small(), *_sweep()]
    ranked.append(Cell("over 2^31 elements", OVER_2_31, "f16"))
    return list(dict.fromkeys(ranked))


def _deciding() -> list[Cell]:
    """Cells for the goals: few rows, small problems, short rows, powers of two, causal backwards beside full ones."""
    few = [_of_tokens(rows, 256000) for rows in (2, 4, 8)]
    aligned = [_swept("fwd", "f16", k) for k in SWEEP]
    short = [_swept("fwd", "f16", k + step) for k in SWEEP if k <= 128 for step in (-1, 1)]
    backward = [_swept("bwd", "f16", k) for k in SWEEP]
    causal = [
        _of_model(case, "f16", mask, "bwd") for case in ("Llama 70B TP8", "GPT-3 TP8") for mask in ("none", "causal")
    ]
    return [*few, *_small(), *aligned, *short, *backward, *causal]


def _models() -> list[Cell]:
    return [
        _of_model(case, dtype, mask, direction)
        for direction, masks in (("fwd", MASKS), ("bwd", ("none", "causal")))
        for dtype in ("f16", "bf16", "f32")
        for mask in masks
        for case in MODELS
        if _has(case, mask)
    ]


def _has(case: str, mask: str) -> bool:
    """Whether a case has cells with a mask: a single query only with padding, and only some models have a bias."""
    if mask == "bias":
        return case in BIASED
    return MODELS[case][2] > 1 or mask in ("none", "padding")


def _vocabulary() -> list[Cell]:
    every = [_of_tokens(rows, k) for rows in (1, 8, 64, 1024) for k in VOCABULARY]
    return every + [_of_tokens(rows, 256000) for rows in (2, 4)]


def _small() -> list[Cell]:
    return [Cell("small", shape, "f16", direction=direction) for direction in ("fwd", "bwd") for shape in SMALL]


def _swept(direction: str, dtype: str, k: int) -> Cell:
    """A cell with 1 GiB of scores."""
    return Cell("sweep", (1, 1, SWEEP_BYTES // (k * DTYPE_BYTES[dtype]), k), dtype, "none", direction)


def _sweep() -> list[Cell]:
    """For each kind of call all powers of two, then their neighbours."""
    kinds = [("fwd", "f16"), ("bwd", "f16"), ("fwd", "f32"), ("fwd", "bf16"), ("bwd", "f32"), ("bwd", "bf16")]
    return [
        _swept(direction, dtype, k + step)
        for direction, dtype in kinds
        for steps in ((0,), (-1, 1))
        for k in SWEEP
        for step in steps
    ]
