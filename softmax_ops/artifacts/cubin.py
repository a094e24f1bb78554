"""One compiled kernel as a value, and that value as the bytes of a file.

Image of a cubin (a cache entry is exactly one):

    magic 8 bytes | schema u32 | length of facts u32 | facts, JSON | code | sha256 of all before it, 32 bytes

Magic, schema and the closing sha256 are at the same place in every schema, so a reader can tell a damaged entry from
one that another version of the package wrote, which it leaves alone.
"""

import hashlib
import json
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

SCHEMA = 1
KINDS = ("cubin", "ptx")

TEGRA = ("sm_72", "sm_87", "sm_101", "sm_110")
"""Architectures of integrated GPUs (Tegra, Jetson)."""

_MAGIC = b"SMXCUBIN"
_HEAD = struct.Struct("<8sII")
_DIGEST_BYTES = 32
_VARIANT = re.compile(r"[a-z0-9_]{1,160}")
_ARCHITECTURE = re.compile(r"sm_([0-9]{2,3})([af]?)")
_SHA256_HEX = re.compile(r"[0-9a-f]{64}")


class Absent(LookupError):
    """A place that was asked for a cubin did not provide it; `reason` says why in one sentence.

    `fault` names what is wrong with a place that is there and cannot or must not be used; it is "" if nothing is.
    """

    def __init__(self, reason: str, fault: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.fault = fault


@dataclass(frozen=True)
class Cubin:
    """One variant compiled for one architecture, with what the linker reported about it.

    >>> Cubin("softmax_fwd_f32_none_any", "sm_90", b"...", 32, 0, source=64 * "a", fingerprint=64 * "b").kind
    'cubin'
    """

    variant: str  # kernel name, also the symbol inside the image
    arch: str  # "sm_90"
    code: bytes = field(repr=False)  # ELF image; PTX text when kind is "ptx"
    registers: int  # per thread
    shared_bytes: int  # static shared memory per CTA
    source: str  # sha256 of the rendered source and the project's own headers
    fingerprint: str  # sha256 of everything that went into the bytes
    kind: str = "cubin"  # or "ptx", for the interpreter

    def __post_init__(self) -> None:
        check_name(self.variant, self.arch, self.kind)
        check_digest("source", self.source)
        check_digest("fingerprint", self.fingerprint)
        if not isinstance(self.code, bytes) or not self.code:
            raise ValueError(f"{self.variant} for {self.arch}: code must be bytes, and not empty")
        for what, number in (("registers", self.registers), ("shared_bytes", self.shared_bytes)):
            if not isinstance(number, int) or number < 0:
                raise ValueError(f"{self.variant} for {self.arch}: {what} is {number!r}; wanted an integer >= 0")


def check_name(variant: str, arch: str, kind: str = "cubin") -> None:
    """Raise ValueError unless the three may be parts of a file name."""
    if not _VARIANT.fullmatch(variant):
        raise ValueError(f"variant {variant!r} is no kernel name; wanted 1 to 160 of a-z, 0-9 and _")
    architecture_order(arch)
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is unknown; wanted one of {', '.join(KINDS)}")


def check_digest(what: str, digest: str) -> None:
    """Raise ValueError unless `digest` is a sha256 in lower-case hex."""
    if not isinstance(digest, str) or not _SHA256_HEX.fullmatch(digest):
        raise ValueError(f"{what} {digest!r} is no digest; wanted 64 lower-case hex digits of a sha256")


def architecture_order(arch: str) -> tuple[int, str]:
    """Sort key that puts sm_70 before sm_100.

    >>> sorted(["sm_100", "sm_90a", "sm_70", "sm_90"], key=architecture_order)
    ['sm_70', 'sm_90', 'sm_90a', 'sm_100']
    """
    found = _ARCHITECTURE.fullmatch(arch) if isinstance(arch, str) else None
    if not found:
        raise ValueError(f"architecture {arch!r} is unknown; wanted sm_ and a number, such as sm_90 or sm_90a")
    return int(found[1]), found[2]


def runs_on(built: str, arch: str) -> bool:
    """A cubin runs on its own architecture and on later minors of its major version; sm_90a's only on sm_90a.

    CUDA does not promise this for integrated GPUs.
    """
    (number, suffix), (wanted, _) = architecture_order(built), architecture_order(arch)
    return built == arch or (
        not suffix and number // 10 == wanted // 10 and number <= wanted and not {built, arch}.intersection(TEGRA)
    )


def built_for(arch: str, architectures: Iterable[str]) -> str | None:
    """Of some architectures that of the cubins which a GPU of architecture `arch` runs: its own, or the nearest lower
    one of its major version; None if it runs none of them.

    >>> built_for("sm_121", ["sm_90", "sm_120"])
    'sm_120'
    """
    return max((each for each in architectures if runs_on(each, arch)), key=architecture_order, default=None)


def canonical_json(value: object) -> bytes:
    """The one serialisation of a JSON value that is hashed and stored: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def encode(cubin: Cubin) -> bytes:
    """The image of one cubin; the same cubin always gives the same bytes."""
    facts = canonical_json({name: value for name, value in vars(cubin).items() if name != "code"})
    body = _HEAD.pack(_MAGIC, SCHEMA, len(facts)) + facts + cubin.code
    return body + hashlib.sha256(body).digest()


def decode(image: bytes) -> Cubin:
    """The cubin of an image. ValueError: not an intact image. Absent: intact, but of another schema."""
    if len(image) < _HEAD.size + _DIGEST_BYTES:
        raise ValueError(f"it is cut short: {len(image)} bytes")
    magic, schema, facts_length = _HEAD.unpack_from(image)
    if magic != _MAGIC:
        raise ValueError("it is no cubin image: its first bytes are foreign")
    body, digest = image[:-_DIGEST_BYTES], image[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("its sha256 does not match its content: cut short or altered")
    if schema != SCHEMA:
        raise Absent(f"its schema is {schema}, and this version of the package reads {SCHEMA}")
    return _from_body(body, facts_length)


def _from_body(body: bytes, facts_length: int) -> Cubin:
    code_start = _HEAD.size + facts_length
    try:
        facts: dict[str, Any] = json.loads(body[_HEAD.size : code_start])
        return Cubin(code=body[code_start:], **facts)
    except (TypeError, ValueError) as error:
        raise ValueError(f"its facts are malformed: {error}") from None
