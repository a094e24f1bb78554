"""Digests of headers and sources, from which the catalog and the build fingerprint are made."""

import hashlib
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from .render import INCLUDE


@dataclass(frozen=True)
class Headers:
    """A tree of headers: the package that brings it, its root, and a digest over relative names and contents."""

    package: str
    root: Path

    @cached_property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for path in sorted(self.root.rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                digest.update(f"{path.relative_to(self.root).as_posix()}\0{len(content)}\0".encode())
                digest.update(content)
        return digest.hexdigest()


@cache
def project_headers() -> Headers:
    return Headers("softmax_ops", INCLUDE)


def project_headers_changed() -> bool:
    """Whether they are other files than this process read at first."""
    return Headers("softmax_ops", INCLUDE).digest != project_headers().digest


@cache
def source_digest(source: str) -> str:
    """The digest that the catalog records of a variant: of its rendered source and the project's own headers."""
    return hashlib.sha256(f"{project_headers().digest}\0{source}".encode()).hexdigest()
