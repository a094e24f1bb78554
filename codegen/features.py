"""The features of kernels, each with its header, its C++ class and its arguments, and the mask kinds, which are
combinations of features."""

from dataclasses import dataclass, replace
from enum import Enum

Fields = tuple[tuple[str, str], ...]
"""Consecutive fields of a kernel's parameter struct: (name of the value that the launcher stores, `struct` format)."""


def _of_rows(*names: str) -> Fields:
    """Fields of values that every row has one of: RowValue in C++."""
    return tuple(field for name in names for field in ((f"{name}.address", "P"), (f"{name}.strides", "4i")))


@dataclass(frozen=True)
class Feature:
    """What a kernel does beyond scaling: a header, its C++ class, its run-time arguments.

    `type` may name the kernel's types Element and Accumulator, and contain {numeric}; in the formats of its fields "A"
    stands for the accumulator.
    """

    name: str
    header: str
    type: str
    fields: Fields

    def extended(self, type: str, fields: Fields) -> "Feature":
        """The feature of a C++ class that derives from this one's and has more arguments."""
        return replace(self, type=type, fields=(*self.fields, *fields))


def _tensor_mask(type: str) -> Feature:
    fields = (("mask.address", "P"), ("mask.fill", "A"), ("mask.column_stride", "i"), ("mask.strides", "4i"))
    return Feature("mask", "tensor_mask.cuh", type, fields)


CAUSALITY = Feature("causal", "causal.cuh", "Causal", (("causal.offset", "q"), ("causal.query", "4i")))

SOFTCAP = Feature(
    "softcap", "softcap.cuh", "Softcap<Accumulator>", (("softcap.cap", "A"), ("softcap.twice_inverse", "A"))
)
BAND = Feature(
    "band",
    "band.cuh",
    "Band",
    (
        *(("band.offset", "q"), ("band.left", "q"), ("band.right", "q"), ("band.query", "4i")),
        *_of_rows("offsets", "lengths"),
    ),
)
SLOPED_BAND = BAND.extended("SlopedBand<Accumulator>", _of_rows("slopes"))


def _bias(type: str) -> Feature:
    fields = (("bias.address", "P"), ("bias.wide", "i"), ("bias.strides", "4i"))
    return Feature("bias", "bias.cuh", type, fields)


OPTIONAL_MASK = _tensor_mask("Optional<TensorMask<uint8_t, Accumulator>>")
OPTIONAL_BIAS = _bias("Optional<Bias<Element, Accumulator>>")

EPILOGUE = Feature(
    "epilogue",
    "epilogue.cuh",
    "Epilogue<{numeric}>",
    (("epilogue.logarithms", "q"), *_of_rows("row_scale", "sinks", "lse")),
)
EPILOGUE_GRADIENT = Feature(
    "gradient",
    "epilogue_gradient.cuh",
    "EpilogueGradient<Element>",
    (("gradient.logarithms", "q"), *_of_rows("row_scale", "dlse", "d")),
)
CAPPED_GRADIENT = EPILOGUE_GRADIENT.extended(
    "CappedGradient<Element>", (*_of_rows("lse"), ("gradient.inverse_cap", "d"))
)


class Mask(Enum):
    """Mask kinds: the features that change the scores between the load and the softmax, in the order in which they act.

    BOOL is a bool or uint8 mask, LIKE a mask of the scores' own dtype. GENERAL has every feature of attention and
    sampling; a launch turns off those that it does not use by a null address or a neutral number. BAND has those of
    them that change no score by itself: which columns a row sees (causal, window, length), a scale per row, sinks,
    log-sum-exp, logarithms, results of another type.
    """

    NONE = "none", ()
    CAUSAL = "causal", (CAUSALITY,)
    BOOL = "bool", (_tensor_mask("TensorMask<uint8_t, Accumulator>"),)
    BOOLCAUSAL = "boolcausal", (CAUSALITY, _tensor_mask("TensorMask<uint8_t, Accumulator>"))
    LIKE = "like", (_tensor_mask("TensorMask<Element, Accumulator>"),)
    BIAS = "bias", (_bias("Bias<Element, Element>"),)
    BAND = "band", (BAND,)
    GENERAL = "general", (SOFTCAP, SLOPED_BAND, OPTIONAL_BIAS, OPTIONAL_MASK)

    def __init__(self, label: str, features: tuple[Feature, ...]):
        self.label = label
        self.features = features

    @property
    def general(self) -> bool:
        return self is Mask.GENERAL

    @property
    def has_epilogue(self) -> bool:
        """Whether a row may end in something else than its probabilities, or their plain gradient."""
        return self in (Mask.BAND, Mask.GENERAL)

    @property
    def sums(self) -> bool:
        """Whether a bias, a slope or a sink may join the scores."""
        return self is Mask.BIAS or self.has_epilogue

    @property
    def causal(self) -> bool:
        """Whether later queries may see more columns than earlier ones."""
        return not {CAUSALITY, BAND, SLOPED_BAND}.isdisjoint(self.features)
