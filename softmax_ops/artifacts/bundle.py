"""The prebuilt cubins of many architectures in one read-only file, whose first use reads only three small pieces.

    header   magic 8 bytes | schema u32 | length of top u32 | length of file u64 | sha256 of these and top, 32 bytes
    top      JSON: toolchain, and the regions of the catalog and of each architecture's index
    body     catalog, then one index per architecture, then the entries, architecture by architecture
    trailer  sha256 of the whole file before it, 32 bytes: for `verify`; `find` does not need it

An index has one line per entry: the variant, a space, and the values of its row as a JSON list. A region is
zlib-compressed, located by its offset, and verified by the sha256 of its expanded content. The same cubins, in any
order, give the same bytes (with the same zlib library: libraries differ in how they compress).

`find` opens the file anew and uses pread. So nothing is inherited across a fork, no descriptor is lost to a daemon that
closes them all or to a stale network handle, and there is no mmap, where a vanished network file means SIGBUS.
Header and indexes stay cached until the path leads to another file. Symbolic links are followed (runfiles trees and
package stores consist of them): owner and mode are checked on the open file at their end.
"""

import hashlib
import json
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from . import signature as signatures
from .cubin import Absent, Cubin, architecture_order, canonical_json
from .files import as_trusted_as_this_package, open_directory, pread_exactly, publish
from .lazy_mapping import LazyMapping
from .region import Region, compress, expand

SCHEMA = 2

_MAGIC = b"SMXBUNDL"
_HEAD = struct.Struct("<8sIIQ")
_SHA256_BYTES = 32
_TOP_START = _HEAD.size + _SHA256_BYTES
_REGION = len(fields(Region))
_FIRST_READ = 8192  # bytes; header and top of some 30 architectures


@dataclass(frozen=True)
class BundleFacts:
    """What a bundle holds; sizes of cubins are before compression."""

    file_bytes: int
    cubins: int
    variants: int  # distinct kernel names
    per_architecture: tuple[tuple[str, int], ...]  # (architecture, cubins), in order of architecture
    cubin_bytes: int
    median_cubin_bytes: int
    largest_cubin_bytes: int
    largest_cubin: str  # "variant for architecture"
    catalog_sha256: str
    toolchain: str


@dataclass(frozen=True)
class _Row:
    """One line of an index. Its offset counts from the first entry of that architecture."""

    code: Region
    registers: int
    shared_bytes: int
    source: str
    fingerprint: str


@dataclass(frozen=True)
class _Architecture:
    """Where one architecture lives. Offsets count from the start of the body."""

    index: Region
    entries_at: int


class _File(NamedTuple):
    """What tells one file from another that took its place."""

    device: int
    inode: int
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class _Top:
    """The content of the first read of one particular file, and the indexes read since."""

    file: _File
    digest: bytes
    body_at: int
    catalog: Region
    toolchain: str
    architectures: dict[str, _Architecture]  # in order
    indexes: dict[str, Mapping[str, _Row]]


class Bundle:
    """The cubins of one bundle file, read on demand. Methods raise Absent if the file cannot be used.

    If the file of a public key is given, the bundle is used only if `signature`, by default the file beside it, is
    valid.
    """

    def __init__(self, path: Path, *, key: Path | None = None, signature: Path | None = None) -> None:
        self.path = path
        self._key = key
        self._signature = signature or signatures.beside(path)
        self._top: _Top | None = None

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r})"

    def find(self, variant: str, arch: str, *, source: str | None = None) -> Cubin:
        """The cubin for exactly this architecture and, if `source` is given, with exactly this source digest."""
        with self._open() as (descriptor, top):
            row = self._index(descriptor, top, arch).get(variant)
            if row is None:
                raise Absent(f"the bundle {self.path} holds no {variant} for {arch}")
            if source not in (None, row.source):
                raise Absent(f"the bundle {self.path} holds {variant} for {arch} built from another source")
            start = top.body_at + top.architectures[arch].entries_at
            code = self._expand(descriptor, row.code, start, f"{variant} for {arch}")
            return Cubin(variant, arch, code, row.registers, row.shared_bytes, row.source, row.fingerprint)

    def architectures(self) -> tuple[str, ...]:
        """The architectures in the bundle, oldest first; costs one read of the header."""
        with self._open() as (_, top):
            return tuple(top.architectures)

    def sources(self, arch: str) -> dict[str, str]:
        """The source digests of all kernels in the bundle for one architecture, by name."""
        with self._open() as (descriptor, top):
            return {variant: row.source for variant, row in self._index(descriptor, top, arch).items()}

    def catalog(self) -> bytes:
        """The catalog that these cubins were built with."""
        with self._open() as (descriptor, top):
            return self._expand(descriptor, top.catalog, top.body_at, "the catalog")

    def facts(self) -> BundleFacts:
        """Counts and sizes; reads every index and no entry."""
        with self._open() as (descriptor, top):
            return _facts(top, {arch: self._index(descriptor, top, arch) for arch in top.architectures})

    def digest(self) -> bytes:
        """The sha256 in the header. It covers the sha256 of every part, so signing it signs the whole bundle."""
        with self._open() as (_, top):
            return top.digest

    def verify(self) -> list[str]:
        """Read every byte: a sentence for each thing that is wrong, [] if nothing is."""
        fresh = Bundle(self.path, key=self._key, signature=self._signature)
        findings: list[str] = []
        with _noting(findings):
            architectures = fresh.architectures()
            with _noting(findings):
                fresh._check_whole()
            with _noting(findings):
                fresh.catalog()
            for arch in architectures:
                with _noting(findings):
                    for variant in sorted(fresh.sources(arch)):
                        with _noting(findings):
                            fresh.find(variant, arch)
        return findings

    @contextmanager
    def _open(self) -> Iterator[tuple[int, _Top]]:
        """The open file and its top. Whatever reading or parsing raises becomes Absent."""
        try:
            # O_NONBLOCK: a FIFO at that path must not hang the reader.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                yield descriptor, self._current_top(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            fault = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
            raise Absent(f"the bundle {self.path} cannot be read: {error.strerror or error}", fault) from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Absent(f"the bundle {self.path} is damaged: {error}", "damaged") from None

    def _current_top(self, descriptor: int) -> _Top:
        info = os.fstat(descriptor)
        refusal = as_trusted_as_this_package(info) if stat.S_ISREG(info.st_mode) else "it is no regular file"
        if refusal:
            raise Absent(f"the bundle {self.path} is not used: {refusal}", "refused")
        file = _File(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)
        top = self._top  # read once: another thread may replace it
        if top is None or top.file != file:
            self._top = top = self._read_top(descriptor, file)
        return top

    def _read_top(self, descriptor: int, file: _File) -> _Top:
        first = pread_exactly(descriptor, min(_FIRST_READ, file.size), 0)
        if len(first) < _TOP_START or not first.startswith(_MAGIC):
            raise Absent(f"{self.path} is not a bundle of softmax_ops", "damaged")
        _, schema, top_bytes, announced = _HEAD.unpack_from(first)
        if schema != SCHEMA:
            said = f"has schema {schema}, and this version of the package reads {SCHEMA}"
            raise Absent(f"the bundle {self.path} {said}", "of another schema")
        body_at = _TOP_START + top_bytes
        if file.size != announced or body_at > file.size:
            said = f"is truncated or damaged: {file.size} of {announced} bytes"
            raise Absent(f"the bundle {self.path} {said}", "damaged")
        first += pread_exactly(descriptor, max(0, body_at - len(first)), len(first))
        top = first[_TOP_START:body_at]
        digest = hashlib.sha256(first[: _HEAD.size] + top).digest()
        if digest != first[_HEAD.size : _TOP_START]:
            raise Absent(f"the bundle {self.path} is damaged: hash mismatch in its header", "damaged")
        if self._key is not None:
            try:
                signatures.check(digest, self._key, self._signature)
            except signatures.SignatureError as error:
                raise Absent(f"the bundle {self.path} is not used: {error}", "not signed") from None
        return _parse_top(json.loads(top), file, digest, body_at)

    def _index(self, descriptor: int, top: _Top, arch: str) -> Mapping[str, _Row]:
        """One architecture's index. Concurrent threads may each read it; they keep equal copies."""
        if arch not in top.architectures:
            raise Absent(f"the bundle {self.path} holds nothing for {arch}; it holds {', '.join(top.architectures)}")
        if arch not in top.indexes:
            region = top.architectures[arch].index
            top.indexes[arch] = _parse_index(self._expand(descriptor, region, top.body_at, f"the index of {arch}"))
        return top.indexes[arch]

    def _expand(self, descriptor: int, region: Region, start: int, what: str) -> bytes:
        stored = pread_exactly(descriptor, region.stored, start + region.offset)
        content = expand(region, stored)
        if content is None:
            raise Absent(f"the bundle {self.path} is damaged: hash mismatch in {what}", "damaged")
        return content

    def _check_whole(self) -> None:
        with self._open() as (descriptor, top):
            whole = pread_exactly(descriptor, top.file.size, 0)
            if hashlib.sha256(whole[:-_SHA256_BYTES]).digest() != whole[-_SHA256_BYTES:]:
                raise Absent(f"the bundle {self.path} is damaged: hash mismatch over the whole file", "damaged")


def write_bundle(path: Path, cubins: Iterable[Cubin], *, catalog: bytes, toolchain: str) -> BundleFacts:
    """Write one bundle, whole or not at all, and return its facts. On OSError and ValueError the old file stays."""
    image = _image(_by_architecture(cubins), catalog, toolchain)
    directory = open_directory(path.parent.resolve())
    try:
        publish(directory, path.name, image, 0o644)
    finally:
        os.close(directory)
    return Bundle(path).facts()


def _by_architecture(cubins: Iterable[Cubin]) -> dict[str, dict[str, Cubin]]:
    """Cubins by architecture and name, in order. Equal ones count once; two that differ are an error."""
    chosen: dict[str, dict[str, Cubin]] = {}
    for cubin in cubins:
        if cubin.kind != "cubin":
            raise ValueError(f"{cubin.variant} for {cubin.arch} is {cubin.kind}; a bundle holds cubins only")
        if chosen.setdefault(cubin.arch, {}).setdefault(cubin.variant, cubin) != cubin:
            raise ValueError(f"two different cubins of {cubin.variant} for {cubin.arch}; a bundle holds one of each")
    if not chosen:
        raise ValueError("no cubins were given; a bundle holds at least one")
    return {arch: dict(sorted(chosen[arch].items())) for arch in sorted(chosen, key=architecture_order)}


def _image(chosen: Mapping[str, Mapping[str, Cubin]], catalog: bytes, toolchain: str) -> bytes:
    blocks = {arch: _block(cubins) for arch, cubins in chosen.items()}
    catalog_region, indexes = compress(catalog, 0)
    regions = {}
    for arch, (index, _) in blocks.items():
        regions[arch], stored = compress(index, len(indexes))
        indexes += stored
    architectures, body = {}, indexes
    for arch, (_, entries) in blocks.items():
        architectures[arch] = asdict(_Architecture(regions[arch], entries_at=len(body)))
        body += entries
    top = canonical_json({"architectures": architectures, "catalog": asdict(catalog_region), "toolchain": toolchain})
    head = _HEAD.pack(_MAGIC, SCHEMA, len(top), _TOP_START + len(top) + len(body) + _SHA256_BYTES)
    image = head + hashlib.sha256(head + top).digest() + top + body
    return image + hashlib.sha256(image).digest()


def _block(cubins: Mapping[str, Cubin]) -> tuple[bytes, bytes]:
    """One architecture's index, uncompressed, and its entries concatenated."""
    lines, entries = [], bytearray()
    for variant, cubin in cubins.items():
        region, stored = compress(cubin.code, len(entries))
        row = _Row(region, cubin.registers, cubin.shared_bytes, cubin.source, cubin.fingerprint)
        lines.append(variant.encode() + b" " + canonical_json([*astuple(region), *astuple(row)[1:]]))
        entries += stored
    return b"\n".join(lines), bytes(entries)


def _parse_top(facts: dict[str, Any], file: _File, digest: bytes, body_at: int) -> _Top:
    found = facts["architectures"]
    architectures = {
        arch: _Architecture(Region(**found[arch]["index"]), found[arch]["entries_at"])
        for arch in sorted(found, key=architecture_order)
    }
    return _Top(file, digest, body_at, Region(**facts["catalog"]), facts["toolchain"], architectures, indexes={})


def _parse_index(raw: bytes) -> Mapping[str, _Row]:
    def row(_: str, line: str) -> _Row:
        facts = json.loads(line)
        if not isinstance(facts, list):  # a dict of slices is looked up without an error from Python 3.12 on
            raise ValueError(f"a row is {facts!r}, not a list")
        return _Row(Region(*facts[:_REGION]), *facts[_REGION:])

    return LazyMapping(dict(line.split(" ", 1) for line in raw.decode().split("\n")), row)


def _facts(top: _Top, indexes: Mapping[str, Mapping[str, _Row]]) -> BundleFacts:
    sizes = sorted((row.code.raw, f"{name} for {arch}") for arch, rows in indexes.items() for name, row in rows.items())
    return BundleFacts(
        file_bytes=top.file.size,
        cubins=len(sizes),
        variants=len({name for rows in indexes.values() for name in rows}),
        per_architecture=tuple((arch, len(rows)) for arch, rows in indexes.items()),
        cubin_bytes=sum(raw for raw, _ in sizes),
        median_cubin_bytes=sizes[len(sizes) // 2][0],
        largest_cubin_bytes=sizes[-1][0],
        largest_cubin=sizes[-1][1],
        catalog_sha256=top.catalog.sha256,
        toolchain=top.toolchain,
    )


@contextmanager
def _noting(findings: list[str]) -> Iterator[None]:
    try:
        yield
    except Absent as absent:
        findings.append(absent.reason)
