"""The catalog: every shipped variant, its launch facts, and the rows that it serves; the link from building to serving.

It is generated together with the sources. The running package dispatches from it and makes no policy decisions itself.
"""

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from functools import cache, cached_property
from pathlib import Path

from .cubin import architecture_order
from .lazy_mapping import LazyMapping

SCHEMA = 10

_PACKAGED = Path(__file__).with_name("catalog.json")
_CHECKOUT = Path(__file__).resolve().parents[2] / "generated" / "catalog.json"

Layout = tuple[tuple[str, str], ...]
"""Fields of a kernel's parameter struct: (name of the value, its `struct` format in native alignment)."""


class CatalogError(RuntimeError):
    """The catalog is missing, or belongs to another version of the package."""


@dataclass(frozen=True)
class Variant:
    """One kernel as the launcher sees it."""

    name: str
    direction: str  # fwd, bwd
    dtype: str  # f16, bf16, f32, f64, or two of them joined by "to"
    mask: str  # none, causal, bool, boolcausal, like, bias, band, general
    plan: str  # tile, warp, block, cluster, stream, split
    max_k: int  # longest row, in whole vectors of columns
    vec: int  # alignment required of every row, in elements
    threads_per_row: int  # threads of a CTA that share a row; an upper limit if `by_warp`
    threads: int  # per CTA; an upper limit if `by_warp`
    rows: int  # per CTA; for a tile, at max_k
    access: int  # elements of a vector in registers
    chunks: int  # vectors that a lane holds at once
    by_warp: bool  # a launch has as many warps as the row needs
    tile_elements: int  # elements of each of a row's tensors that a tile's shared memory holds; 0: not a tile
    flat: bool  # it takes only rows that a tile moves as one range
    piece: int  # columns that a CTA handles at once if a row is longer; 0: it holds its part of the row
    splits: bool  # rows are shared by CTAs through a workspace, in several launches
    partial_bytes: int  # left by a piece in the workspace for the next launch
    cluster: int  # CTAs per cluster, at most
    cta_columns: int  # columns that a CTA of a cluster holds while several share an SM; 0: no clusters
    shared_bytes: int  # dynamic shared memory
    layout: str  # key of its argument layout
    architectures: tuple[str, ...]  # for which it ships
    source: str  # sha256 of its rendered source and the project's headers

    def in_vectors(self, k: int) -> int:
        """Columns of a row of k that its registers hold in vectors. Those outside whole vectors, at either end of an
        unaligned row, have registers of their own."""
        return k // self.access * self.access


@dataclass(frozen=True)
class Entry:
    """One line of a dispatch table: rows of k[0] .. k[1] columns, aligned to at least `vec` elements, `min_rows` to
    `max_rows` of them (0: any number), on these architectures (empty: all).

    `measured` is the measurement that chose it, after the architecture of the measurement ("sm_90: ..."); empty if it
    follows from arithmetic.
    """

    name: str
    k: tuple[int, int]
    vec: int
    min_rows: int
    max_rows: int
    architectures: tuple[str, ...]
    measured: str = ""


@dataclass(frozen=True)
class Catalog:
    """Variants by name, argument layouts by key, and dispatch tables by (direction, dtype, mask kind)."""

    variants: Mapping[str, Variant]
    layouts: Mapping[str, Layout]
    tables: Mapping[tuple[str, str, str], tuple[Entry, ...]]

    def candidates(self, direction: str, dtype: str, mask: str, k: int) -> list[Entry]:
        """Entries that hold rows of k columns, in the order in which they are tried.

        Raises LookupError, naming the nearest that ships, if there is no such table or if k is too large for all
        entries.
        """
        table = self.tables.get((direction, dtype, mask))
        if table is None:
            others = sorted(key[2] for key in self.tables if key[:2] == (direction, dtype))
            raise LookupError(
                f"no {direction} {dtype} kernel ships for mask kind {mask!r}; these do: {', '.join(others)}"
                if others
                else f"no {direction} {dtype} kernel ships"
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
        """One line per variant and per table entry, sorted: readable, with small diffs. Sets of architectures are
        written once and referred to by index."""
        entries = (entry for table in self.tables.values() for entry in table)
        used: set[tuple[str, ...]] = {variant.architectures for variant in self.variants.values()}
        sets = sorted(used | {entry.architectures for entry in entries})
        variants = (
            (name, [sets.index(fact) if isinstance(fact, tuple) else fact for fact in astuple(variant)[1:]])
            for name, variant in self.variants.items()
        )
        tables = (
            f"{json.dumps(' '.join(key))}: " + _lines(((None, _row(entry, sets)) for entry in table), "[]")
            for key, table in sorted(self.tables.items())
        )
        return "\n".join(
            [
                "{",
                f'"schema": {SCHEMA},',
                '"layouts": ' + _lines(self.layouts.items(), "{}") + ",",
                '"architectures": ' + _lines(((None, each) for each in sets), "[]") + ",",
                f'"fields": {json.dumps(_FACTS)},',
                '"variants": ' + _lines(variants, "{}") + ",",
                '"tables": {\n' + ",\n".join(tables) + "\n}",
                "}\n",
            ]
        )

    @classmethod
    def from_json(cls, text: str) -> "Catalog":
        data = json.loads(text)
        if data.get("schema") != SCHEMA:
            raise CatalogError(
                f"the catalog has schema {data.get('schema')}, this package reads {SCHEMA}: run `make generate`"
            )
        if data["fields"] != _FACTS:
            raise CatalogError(f"the catalog has other fields than {', '.join(_FACTS)}: run `make generate`")
        sets = [tuple(each) for each in data["architectures"]]

        def variant(name: str, facts: list) -> Variant:
            known = dict(zip(_FACTS, facts, strict=True))
            return Variant(name, **known | {"architectures": sets[known["architectures"]]})

        def table(key: tuple[str, str, str], rows: list[list]) -> tuple[Entry, ...]:
            return tuple(
                Entry(name, (k[0], k[1]), vec, min_rows, max_rows, sets[at], measured)
                for name, k, vec, min_rows, max_rows, at, measured in rows
            )

        def layout(key: str, fields: list[list]) -> Layout:
            return tuple((field, format) for field, format in fields)

        tables = {_table_key(key): rows for key, rows in data["tables"].items()}
        return cls(
            LazyMapping(data["variants"], variant), LazyMapping(data["layouts"], layout), LazyMapping(tables, table)
        )

    @cached_property
    def architectures(self) -> tuple[str, ...]:
        """All architectures for which some variant ships."""
        named = {arch for variant in self.variants.values() for arch in variant.architectures}
        return tuple(sorted(named, key=architecture_order))


_FACTS = [field.name for field in fields(Variant)][1:]
"""What the catalog records of each variant besides its name, in this order."""


def _row(entry: Entry, sets: list[tuple[str, ...]]) -> list:
    architectures = sets.index(entry.architectures)
    return [entry.name, entry.k, entry.vec, entry.min_rows, entry.max_rows, architectures, entry.measured]


def _table_key(words: str) -> tuple[str, str, str]:
    direction, dtype, mask = words.split()
    return direction, dtype, mask


def argument_bytes(layout: Layout) -> int:
    """Size of the parameter struct."""
    return struct.calcsize("".join(format for _, format in layout))


def location() -> Path:
    """The catalog: in an installed package beside this module, in a checkout in generated/."""
    return _PACKAGED if _PACKAGED.exists() else _CHECKOUT


@cache
def load() -> Catalog:
    """The catalog of this package, read once per process."""
    try:
        return Catalog.from_json(location().read_text())
    except FileNotFoundError:
        problem = "missing"
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        problem = f"damaged ({error})"
    raise CatalogError(f"{location()} is {problem}: run `make generate`, or install the package again")


def _lines(items: Iterable[tuple[str | None, object]], brackets: str) -> str:
    rows = [(f"{json.dumps(key)}: " if key is not None else "") + json.dumps(value) for key, value in items]
    return brackets[0] + "\n" + ",\n".join(rows) + "\n" + brackets[1]
