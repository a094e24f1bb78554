"""Detached signatures of bundles: Ed25519 over the digest in a bundle's header, which covers the digests of its parts.

Checking a signature therefore reads no more of the bundle than its first use does. Keys are PEM files:

    openssl genpkey -algorithm ed25519 -out key.pem
    openssl pkey -in key.pem -pubout -out key.pub

This is the only module that uses a library outside the standard one: `cryptography`, from the extra `signing`,
imported only when a signature is made or checked. Without it no signature is valid.
"""

import base64
import binascii
import os
import stat
from pathlib import Path
from typing import Any

from .files import as_trusted_as_this_package, pread_exactly

SUFFIX = ".sig"
"""Suffix of the signature file beside a bundle, which is one line of base64."""

_CONTEXT = b"softmax_ops bundle, signed digest of its header: "
_LARGEST_FILE = 1 << 16  # bytes of a key or a signature


class SignatureError(ValueError):
    """A signature cannot be made, or is not valid; the message says why."""


def beside(bundle: Path) -> Path:
    """Where the signature of a bundle is expected."""
    return bundle.with_name(bundle.name + SUFFIX)


def load_private(path: Path) -> Any:
    """The Ed25519 private key in a PEM file, for signing. Raises SignatureError."""
    ed25519, serialization = _library()
    content = _read(path, "private key")
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, _unsupported()) as error:
        raise SignatureError(f"{path} is no private key in an unencrypted PEM file: {error}") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise SignatureError(f"{path} holds a private key of another kind; wanted Ed25519")
    return key


def sign(digest: bytes, private_key: Any) -> bytes:
    """The content of a signature file."""
    return base64.b64encode(private_key.sign(_CONTEXT + digest)) + b"\n"


def check(digest: bytes, public_key: Path, signature: Path) -> None:
    """Returns if the signature file signs the digest with the key's private half; else raises SignatureError."""
    ed25519, serialization = _library()
    content = _read(public_key, "public key", trusted=True)
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, _unsupported()) as error:
        raise SignatureError(f"{public_key} is no public key in a PEM file: {error}") from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise SignatureError(f"{public_key} holds a public key of another kind; wanted Ed25519")
    try:
        signed = base64.b64decode(_read(signature, "signature").strip(), validate=True)
    except binascii.Error:
        raise SignatureError(f"{signature} holds no signature: it is not base64") from None
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signed, _CONTEXT + digest)
    except InvalidSignature:
        raise SignatureError(f"the signature {signature} is not that of this bundle by the key {public_key}") from None


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise SignatureError(
            f"signatures need the library cryptography ({error}): pip install 'softmax-ops[signing]'"
        ) from None
    return ed25519, serialization


def _unsupported() -> type[Exception]:
    """The exception that the library raises for kinds of keys that it does not support."""
    from cryptography.exceptions import UnsupportedAlgorithm

    return UnsupportedAlgorithm


def _read(path: Path, what: str, *, trusted: bool = False) -> bytes:
    """The content of a small regular file; a `trusted` one must not be writable by more users than this package."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SignatureError(f"the {what} {path} cannot be read: {error.strerror or error}") from None
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_size > _LARGEST_FILE:
            raise SignatureError(f"the {what} {path} is no file of at most {_LARGEST_FILE} bytes")
        refusal = as_trusted_as_this_package(info) if trusted else None
        if refusal:
            raise SignatureError(f"the {what} {path} is not used: {refusal}")
        return pread_exactly(descriptor, info.st_size, 0)
    except OSError as error:
        raise SignatureError(f"the {what} {path} cannot be read: {error.strerror or error}") from None
    finally:
        os.close(descriptor)
