"""Cubins to store, and shared helpers for the tests of cache and bundle."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import softmax_ops
from softmax_ops.artifacts import signature
from softmax_ops.artifacts.bundle import Bundle
from softmax_ops.artifacts.cache import Cache
from softmax_ops.artifacts.cubin import Absent, Cubin

CHECKOUT = Path(softmax_ops.__file__).parents[1]
NAME = "softmax_fwd_f16_none_warp_k1024_v8_t128r4"
NOBODY = 65534  # a user who owns nothing


def make(
    variant: str = NAME, arch: str = "sm_90", build: str = "b", source: str = "a", code: bytes = b"ELF!" * 8
) -> Cubin:
    return Cubin(variant, arch, code, registers=40, shared_bytes=1024, source=source * 64, fingerprint=build * 64)


def file_of(cache: Cache, cubin: Cubin) -> Path:
    assert cache.root is not None
    return cache.root / f"{cubin.variant}.{cubin.arch}.{cubin.fingerprint[:32]}.{cubin.kind}"


def look(cache: Cache, cubin: Cubin) -> Cubin | str:
    """What `find` gives for this very cubin: a cubin, or the reason why there is none."""
    try:
        return cache.find(cubin.variant, cubin.arch, fingerprint=cubin.fingerprint, kind=cubin.kind)
    except Absent as absent:
        return absent.reason


def reason(cache: Cache, cubin: Cubin) -> str:
    found = look(cache, cubin)
    assert isinstance(found, str), f"served {found}"
    return found


def hidden(cache: Cache, prefix: str) -> list[str]:
    assert cache.root is not None
    return sorted(name for name in os.listdir(cache.root) if name.startswith(prefix))


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make another user the owner of `path`: really, or, if this process may not do that, only according to fstat."""
    with suppress(OSError):
        os.chown(path, os.geteuid() + 1, -1)
        return
    real, inode = os.fstat, path.stat().st_ino

    def fstat(descriptor: int) -> os.stat_result:
        info = real(descriptor)
        return os.stat_result([*info[:4], os.geteuid() + 1, *info[5:]]) if info.st_ino == inode else info

    monkeypatch.setattr(os, "fstat", fstat)


def key_pair(folder: Path, name: str = "key") -> tuple[Path, Path]:
    """Writes a new Ed25519 key; returns the files (private, public)."""
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    formats = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    private.write_bytes(key.private_bytes(*formats))
    spki = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    public.write_bytes(key.public_key().public_bytes(*spki))
    return private, public


def sign(bundle: Path, private: Path) -> Path:
    """Writes the signature next to a bundle."""
    path = signature.beside(bundle)
    path.write_bytes(signature.sign(Bundle(bundle).digest(), signature.load_private(private)))
    return path


def failing(number: int) -> Callable[..., None]:
    """A replacement for a system call that fails with this errno."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail
