"""A mapping whose values are made on first access, because a process needs few of the many that a file lists."""

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

Key = TypeVar("Key")
Raw = TypeVar("Raw")
Value = TypeVar("Value")


class LazyMapping(Mapping[Key, Value], Generic[Key, Raw, Value]):
    """`make(key, raw[key])` for the keys of `raw`, called at most once per key."""

    def __init__(self, raw: Mapping[Key, Raw], make: Callable[[Key, Raw], Value]):
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
