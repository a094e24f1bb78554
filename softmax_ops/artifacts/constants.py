"""What kernels and the code that launches them agree on, besides the catalog."""

ACCESS_BYTES = 16
"""Width of a vector access, the widest load and store of sm_70 .. sm_90. Larger alignments make no difference."""

WORD_BYTES = 4
"""Width of a bank of shared memory, and of an access to unaligned rows of a `tile`."""

MAX_CLUSTER = 16
"""CTAs per cluster, at most."""

DTYPE_BYTES = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8, "f16tof32": 2, "bf16tof32": 2, "f32tof16": 4, "f32tobf16": 4}
"""Size of an input element. The part after "to" is the type of the output, if it differs."""
