"""The catalogue: every shipped variant, its launch facts, and which rows it serves. Where building and serving meet.

It is written with the generated sources; the running package dispatches from it and decides no policy of its own.
"""

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import TypeVar

SCHEMA = 3

_PACKAGED = Path(__file__).with_name("catalog.json")
_CHECKOUT = Path(__file__).resolve().parents[2] / "generated" / "catalog.json"

Key = TypeVar("Key")
Value = TypeVar("Value")

Layout = tuple[tuple[str, str], ...]
"""Fields of a kernel's parameter struct: (what to put there, `struct` format in native alignment)."""


class CatalogError(RuntimeError):
    """The catalogue is missing, or of another version than the package."""


@dataclass(frozen=True)
class Variant:
    """One kernel as the launcher sees it."""

    name: str
    direction: str  # fwd, bwd
    dtype: str  # f16, bf16, f32, f64
    mask: str  # none, causal, bool, boolcausal, like: what its arguments are
    plan: str  # tile, warp, block, cluster, stream, split
    max_k: int  # longest row, in columns
    vec: int  # alignment that every row must have, in elements
    lanes: int  # threads that share a row
    threads: int  # per CTA
    rows: int  # per CTA; of a tile, at max_k
    tile_elements: int  # of a row's tensors each that a tile's shared memory holds; 0: not a tile
    piece: int  # columns that a CTA handles at once where a row is longer; 0: it holds its part of the row
    passes: int  # launches over the same rows
    partial_bytes: int  # that a piece leaves in the workspace for the next pass
    cluster: int  # CTAs per cluster, at most
    shared_bytes: int  # dynamic shared memory
    layout: str  # key of its argument layout
    architectures: tuple[str, ...]  # that it ships for
    source: str  # sha256 of its rendered source and the project's headers


@dataclass(frozen=True)
class Entry:
    """One line of a dispatch table: rows of k[0] .. k[1] columns, whose alignment is at least `vec` elements, at most
    `max_rows` of them (0: any number), on these architectures (none named: on all)."""

    name: str
    k: tuple[int, int]
    vec: int
    max_rows: int
    architectures: tuple[str, ...]


@dataclass(frozen=True)
class Catalog:
    """Variants by name, argument layouts by key, and dispatch tables by (direction, dtype, mask kind)."""

    variants: Mapping[str, Variant]
    layouts: Mapping[str, Layout]
    tables: Mapping[tuple[str, str, str], tuple[Entry, ...]]

    def candidates(self, direction: str, dtype: str, mask: str, k: int) -> list[Entry]:
        """Entries that hold rows of k columns, in the order in which they are tried.

        Raises LookupError, naming the nearest that ships, when there is no such table or no row is that long.
        """
        table = self.tables.get((direction, dtype, mask))
        if table is None:
            others = sorted(key[2] for key in self.tables if key[:2] == (direction, dtype))
            raise LookupError(
                f"no {direction} {dtype} kernel ships for mask kind {mask!r}; these do: {', '.join(others)}"
            )
        found = [entry for entry in table if entry.k[0] <= k <= entry.k[1]]
        if not found:
            longest = max(entry.k[1] for entry in table)
            raise LookupError(
                f"no {direction} {dtype} {mask} kernel ships for rows of {k} columns; the longest is {longest}"
            )
        return found

    def layout(self, variant: Variant) -> Layout:
        return self.layouts[variant.layout]

    def to_json(self) -> str:
        """One line per variant and per table entry, sorted: readable, and small differences stay small."""
        variants = ((name, list(astuple(variant))[1:]) for name, variant in self.variants.items())
        return "\n".join(
            [
                "{",
                f'"schema": {SCHEMA},',
                '"layouts": ' + _lines(self.layouts.items(), "{}") + ",",
                f'"fields": {json.dumps(_FACTS)},',
                '"variants": ' + _lines(variants, "{}") + ",",
                '"tables": ' + _lines(self._table_rows(), "[]"),
                "}\n",
            ]
        )

    def _table_rows(self) -> Iterable[tuple[None, object]]:
        for key, entries in sorted(self.tables.items()):
            for entry in entries:
                yield None, [*key, *asdict(entry).values()]

    @classmethod
    def from_json(cls, text: str) -> "Catalog":
        data = json.loads(text)
        if data.get("schema") != SCHEMA:
            raise CatalogError(
                f"the catalogue has schema {data.get('schema')}, this package reads {SCHEMA}: run `make generate`"
            )
        if data["fields"] != _FACTS:
            raise CatalogError(f"the catalogue has other fields than {', '.join(_FACTS)}: run `make generate`")
        rows: dict[tuple[str, str, str], list[list]] = {}
        for direction, dtype, mask, *entry in data["tables"]:
            rows.setdefault((direction, dtype, mask), []).append(entry)
        return cls(
            variants=_Made(data["variants"], _variant),
            layouts={
                key: tuple((field, format) for field, format in layout) for key, layout in data["layouts"].items()
            },
            tables=_Made(rows, _entries),
        )

    @cached_property
    def architectures(self) -> tuple[str, ...]:
        """Every architecture that some variant ships for."""
        named = {arch for variant in self.variants.values() for arch in variant.architectures}
        return tuple(sorted(named, key=lambda arch: int(arch[3:])))


_FACTS = [field.name for field in fields(Variant)][1:]
"""What the catalogue says of each variant beside its name, in this order."""


class _Made(Mapping[Key, Value]):
    """Values made of what stands in the catalogue when somebody asks for them: a process needs few of them."""

    def __init__(self, raw: Mapping[Key, list], make: Callable[[Key, list], Value]):
        self._raw, self._make = raw, make
        self._made: dict[Key, Value] = {}

    def __getitem__(self, key: Key) -> Value:
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = self._make(key, self._raw[key])
        return found

    def __iter__(self) -> Iterator[Key]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)


def _variant(name: str, facts: list) -> Variant:
    known = dict(zip(_FACTS, facts, strict=True))
    return Variant(name, **known | {"architectures": tuple(known["architectures"])})


def _entries(key: tuple[str, str, str], rows: list[list]) -> tuple[Entry, ...]:
    return tuple(
        Entry(name, (k[0], k[1]), vec, max_rows, tuple(architectures)) for name, k, vec, max_rows, architectures in rows
    )


def argument_bytes(layout: Layout) -> int:
    """Size of the parameter struct."""
    return struct.calcsize("".join(format for _, format in layout))


def location() -> Path:
    """The catalogue beside this module in an installed package, in generated/ in a checkout."""
    return _PACKAGED if _PACKAGED.exists() else _CHECKOUT


@cache
def load() -> Catalog:
    """The catalogue of this package, read once per process."""
    try:
        return Catalog.from_json(location().read_text())
    except FileNotFoundError:
        raise CatalogError(f"{location()} is missing: run `make generate`, or install the package again") from None


def _lines(items: Iterable[tuple[str | None, object]], brackets: str) -> str:
    rows = [(f"{json.dumps(key)}: " if key is not None else "") + json.dumps(value) for key, value in items]
    return brackets[0] + "\n" + ",\n".join(rows) + "\n" + brackets[1]
