"""What is measured: shapes of real models and a sweep over row lengths, in rank order."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One measurement: scores [batch, heads, queries, k] of a dtype under a mask kind.

    Masks: none, causal, padding [B, 1, 1, K], bool [B, 1, Q, K].
    """

    name: str
    shape: tuple[int, int, int, int]
    dtype: str
    mask: str = "none"

    @property
    def key(self) -> str:
        return f"{self.name} {'x'.join(map(str, self.shape))} {self.dtype} {self.mask}"


MODELS = (
    ("BERT-base", (32, 12, 384, 384)),
    ("BERT-large", (32, 16, 512, 512)),
    ("GPT-2", (8, 12, 1024, 1024)),
    ("GPT-3 TP8", (1, 12, 2048, 2048)),
    ("Llama 405B TP8", (1, 16, 4096, 4096)),
    ("Llama 70B TP8", (1, 8, 8192, 8192)),
    ("ViT", (64, 16, 577, 577)),
    ("ViT-B", (256, 12, 197, 197)),
    ("Whisper", (16, 20, 1500, 1500)),
    ("decode", (512, 1, 1, 8192)),
)

SWEEP = tuple(2**power for power in range(4, 15))


def cells() -> list[Cell]:
    """Every cell, the most telling first: models in f16 under each mask, the sweep in bf16, models in other dtypes."""
    ranked = [
        Cell(name, shape, "f16", mask) for mask in ("none", "padding", "causal", "bool") for name, shape in MODELS
    ]
    ranked += [Cell("sweep", _sweep_shape(k, 2), "bf16") for k in SWEEP]
    ranked += [Cell("sweep", _sweep_shape(k + step, 2), "bf16") for k in SWEEP[:-1] for step in (-1, 1)]
    ranked += [Cell(name, shape, dtype) for dtype in ("bf16", "f32") for name, shape in MODELS]
    return ranked


def _sweep_shape(k: int, element_bytes: int) -> tuple[int, int, int, int]:
    """1 GiB of scores."""
    return (1, 1, (1 << 30) // (k * element_bytes), k)
