"""The user's cache of compiled kernels: a directory of cubin images that any number of processes share without locks.

A file is `<variant>.<arch>.<first 32 hex digits of the fingerprint>.<kind>`. Writers publish by rename; readers trust
only the open descriptor (owner, mode) and the sha256 of what they read. Any failure is a miss: the kernel is compiled
and runs, and the reason why it could not be kept is reported once per process. There are no locks, so none can be left
behind: if two processes compile the same kernel, each uses its own bytes, and the later rename wins.

The time of last use is the file's mtime. It only decides the order of eviction, so a jumping clock costs a recompile.
"""

import errno
import logging
import os
import re
import stat
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from . import settings
from .cubin import Absent, Cubin, check_digest, check_name, decode, encode
from .files import (
    PARTIAL_PREFIX,
    is_stale,
    list_files,
    only_ours,
    open_directory,
    pread_exactly,
    publish,
    random_token,
    remove,
    why,
)
from .once import warn_once

SET_ASIDE_PREFIX = ".bad-"
SET_ASIDE_KEPT = 8  # damaged files kept for inspection
LARGEST_ENTRY_BYTES = 64 << 20  # a cubin has less than 100 KiB, PTX less than 1 MiB
SWEPT_SHARE = 64  # a process sweeps after it has stored this part of the cap, or has filled it

_log = logging.getLogger(__name__)
_ENTRY_NAME = re.compile(r"([a-z0-9_]+)\.(sm_[0-9]+[af]?)\.([0-9a-f]{32})\.(cubin|ptx)")
# O_NONBLOCK: a planted FIFO must not hang the reader.
_OPEN_ENTRY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class Entry:
    """One file of the cache, as described by its name and inode; its content has not been read."""

    name: str
    variant: str
    arch: str
    kind: str
    build: str  # first 32 hex digits of the fingerprint
    stored_bytes: int
    used_ns: int  # time of last use or of storing, ns since the epoch


@dataclass(frozen=True)
class Swept:
    """What a clean-up removed, and what remains."""

    files: int
    freed_bytes: int
    kept_bytes: int
    stuck: tuple[str, ...] = ()  # names of what should have been removed and could not be


_room: dict["Cache", int] = {}
"""Bytes that this process may store in a cache before it sweeps it again."""


class _Unfit(Exception):
    """A file that must not be used and is to be set aside; `inode` is None if it could not even be opened."""

    def __init__(self, reason: str, inode: int | None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.inode = inode


@dataclass(frozen=True)
class Cache:
    """The cubins under `root`, at most `max_bytes` in all; if root is None, there is nowhere to keep any."""

    root: Path | None
    max_bytes: int = field(kw_only=True)

    def find(
        self, variant: str, arch: str, *, source: str | None = None, fingerprint: str | None = None, kind: str = "cubin"
    ) -> Cubin:
        """The entry with this fingerprint; given only a source, the latest entry built from it. Raises Absent."""
        check_name(variant, arch, kind)
        if source is None and fingerprint is None:
            raise ValueError(f"{variant} for {arch}: say which build is wanted, by source or by fingerprint digest")
        for what, digest in (("source", source), ("fingerprint", fingerprint)):
            if digest is not None:
                check_digest(what, digest)
        try:
            with self._directory() as directory:
                if fingerprint is not None:
                    names = [_file_name(variant, arch, fingerprint, kind)]
                else:
                    names = [e.name for e in _entries(directory, f"{variant}.{arch}.") if e.kind == kind]
                return self._first_match(directory, names, source, fingerprint, f"{variant} for {arch}")
        except OSError as error:
            raise Absent(f"the cache {self.root} cannot be read: {why(error)}") from None

    def store(self, cubin: Cubin) -> bool:
        """Keep a cubin. If that fails, returns False and warns once per process and cause, instead of raising."""
        image = encode(cubin)
        name = _file_name(cubin.variant, cubin.arch, cubin.fingerprint, cubin.kind)
        if len(image) > self.max_bytes:
            if self.max_bytes > 0:  # 0 means that the user wants nothing to be kept
                self._say("size", f"{name} has {len(image)} bytes, over the cache's cap of {self.max_bytes}: not kept")
            return False
        try:
            if self.root is not None:
                with suppress(FileExistsError, NotADirectoryError):  # reported below
                    self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._directory() as directory:
                publish(directory, name, image, 0o600)
                with suppress(OSError):
                    self._make_room(directory, name, len(image))
        except Absent as absent:
            self._say("directory", f"compiled kernels are not kept: {absent.reason}")
            return False
        except OSError as error:
            self._say(error.errno, f"compiled kernels are not kept in {self.root}: {why(error)}")
            return False
        return True

    def entries(self) -> list[Entry]:
        """Every entry, most recently used first; empty without a usable directory."""
        with suppress(Absent, OSError), self._directory() as directory:
            return _entries(directory)
        return []

    def verify(self) -> list[str]:
        """Read every entry and change nothing: a sentence for each one that is unfit, [] if none is.

        Entries of another schema belong to another version and are ignored; a missing directory is an empty cache. One
        that cannot be used is the only finding.
        """
        findings: list[str] = []
        try:
            with self._directory() as directory:
                for entry in _entries(directory):
                    findings += _findings(directory, entry.name)
        except Absent as absent:
            if absent.fault:
                findings.append(absent.reason)
        except OSError as error:
            findings.append(f"the cache {self.root} cannot be read: {why(error)}")
        return findings

    def gc(self) -> Swept:
        """Bring the cache under its cap, least recently used first, and remove what killed writers left behind."""
        return self._clean(self.max_bytes)

    def clear(self) -> Swept:
        """Remove every entry and every file set aside; a file that is being written survives."""
        return self._clean(-1)

    def _make_room(self, directory: int, stored: str, size: int) -> None:
        """Sweep, unless the last sweep of this process left room for what it has stored since. A sweep looks at every
        file, so it leaves room for many; other processes are not asked what they store meanwhile."""
        share = self.max_bytes // SWEPT_SHARE
        left = _room.get(self, 0) - size
        if left < 0:
            kept_bytes = _sweep(directory, self.max_bytes, spare=stored, room=share).kept_bytes
            left = min(self.max_bytes - kept_bytes, share)
        _room[self] = left

    def _clean(self, cap_bytes: int) -> Swept:
        with suppress(Absent, OSError), self._directory() as directory:
            return _sweep(directory, cap_bytes)
        return Swept(0, 0, 0)

    def _first_match(
        self, directory: int, names: list[str], source: str | None, fingerprint: str | None, wanted: str
    ) -> Cubin:
        reasons, others = [], 0
        for name in names:
            try:
                cubin = self._take(directory, name)
            except Absent as absent:
                reasons.append(absent.reason)
                continue
            if source in (None, cubin.source) and fingerprint in (None, cubin.fingerprint):
                with suppress(OSError):
                    os.utime(name, dir_fd=directory, follow_symlinks=False)
                return cubin
            others += 1
        if others:
            reasons.append(f"{others} of that name {'was' if others == 1 else 'were'} built from another source")
        raise Absent(f"the cache {self.root} holds no matching {wanted}" + "".join(f"; {reason}" for reason in reasons))

    def _take(self, directory: int, name: str) -> Cubin:
        """Load an entry or raise Absent; an unfit one is set aside."""
        try:
            return _load(directory, name)
        except FileNotFoundError:
            raise Absent(f"there is no {name}") from None
        except OSError as error:
            raise Absent(f"{name} cannot be read: {why(error)}") from None
        except Absent as absent:
            raise Absent(f"{name} is left alone: {absent.reason}") from None
        except _Unfit as unfit:
            moved = _set_aside(directory, name, unfit.inode)
            done = "set aside" if moved else "ignored; it could not be set aside"
            self._say("unfit", f"{name} in the cache {self.root} is {done}: {unfit.reason}")
            raise Absent(f"{name} is {done}: {unfit.reason}") from None

    @contextmanager
    def _directory(self) -> Iterator[int]:
        """Descriptor of the root, which must be only ours and no symbolic link; otherwise Absent, reported once."""
        if self.root is None:
            raise Absent("there is no cache directory: neither SOFTMAX_OPS_CACHE_DIR nor a usable HOME is set")
        try:
            directory = open_directory(self.root)
        except FileNotFoundError:
            raise Absent(f"the cache directory {self.root} does not exist") from None
        except OSError as error:
            reason = f"the cache directory {self.root} cannot be used: {why(error)}"
            self._say("directory", reason)
            raise Absent(reason, "unreadable") from None
        try:
            refusal = only_ours(os.fstat(directory))
            if refusal:
                reason = f"the cache directory {self.root} is not used: {refusal}"
                self._say("directory", reason)
                raise Absent(reason, "refused")
            yield directory
        finally:
            os.close(directory)

    def _say(self, cause: Hashable, message: str) -> None:
        """Warn once per process, root and cause."""
        warn_once(_log, self.root, cause, message)


def _file_name(variant: str, arch: str, fingerprint: str, kind: str) -> str:
    return f"{variant}.{arch}.{fingerprint[:32]}.{kind}"


def _load(directory: int, name: str) -> Cubin:
    """One entry, verified. OSError: cannot be read. Absent: has another schema. _Unfit: must not be used."""
    try:
        descriptor = os.open(name, _OPEN_ENTRY, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _Unfit("it is a symbolic link", None) from None
        raise
    try:
        info = os.fstat(descriptor)
        refusal = only_ours(info) if stat.S_ISREG(info.st_mode) else "it is no regular file"
        if refusal:
            raise _Unfit(refusal, info.st_ino)
        if info.st_size > LARGEST_ENTRY_BYTES:
            raise _Unfit(f"it has {info.st_size} bytes, and no entry more than {LARGEST_ENTRY_BYTES}", info.st_ino)
        cubin = decode(pread_exactly(descriptor, info.st_size, 0))
    except ValueError as error:
        raise _Unfit(str(error), info.st_ino) from None
    finally:
        os.close(descriptor)
    if _file_name(cubin.variant, cubin.arch, cubin.fingerprint, cubin.kind) != name:
        raise _Unfit("its name is not that of the cubin inside", info.st_ino)
    return cubin


def _findings(directory: int, name: str) -> list[str]:
    try:
        _load(directory, name)
    except _Unfit as unfit:
        return [f"{name}: {unfit.reason}"]
    except OSError as error:
        return [] if isinstance(error, FileNotFoundError) else [f"{name}: it cannot be read: {why(error)}"]
    except Absent:
        pass
    return []


def _set_aside(directory: int, name: str, inode: int | None) -> bool:
    """Rename an unfit entry, unless another process has replaced it meanwhile; keeps a bounded number of them."""
    with suppress(OSError):
        if inode not in (None, os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino):
            return True
        os.rename(name, f"{SET_ASIDE_PREFIX}{name}.{random_token()}", src_dir_fd=directory, dst_dir_fd=directory)
        for surplus, _ in list_files(directory, SET_ASIDE_PREFIX)[SET_ASIDE_KEPT:]:
            remove(directory, surplus)
        return True
    return False


def _sweep(directory: int, cap_bytes: int, spare: str = "", room: int = 0) -> Swept:
    """Remove stale partial files and, if the cap is exceeded, files set aside and the least recently used entries until
    it leaves `room` bytes.

    A directory in place of a file is removed too if it is empty.
    """
    files = list_files(directory)
    aside = [(name, info) for name, info in files if name.startswith(SET_ASIDE_PREFIX)]
    kept = [(name, info) for name, info in files if _ENTRY_NAME.fullmatch(name)] + aside[:SET_ASIDE_KEPT]
    doomed = [(name, info) for name, info in files if name.startswith(PARTIAL_PREFIX) and is_stale(info)]
    doomed += aside[SET_ASIDE_KEPT:]
    kept_bytes = sum(info.st_size for _, info in kept)
    candidates = [(name, info) for name, info in kept if name != spare]
    most = cap_bytes if kept_bytes <= cap_bytes else cap_bytes - room
    while candidates and kept_bytes > most:
        doomed.append(candidates.pop())
        kept_bytes -= doomed[-1][1].st_size
    gone = {name: info.st_size for name, info in doomed if remove(directory, name)}
    left = {name: info.st_size for name, info in doomed if name not in gone}
    stuck = sorted(left.keys() & set(os.listdir(directory))) if left else []  # others have removed the rest
    return Swept(len(gone), sum(gone.values()), kept_bytes + sum(left[name] for name in stuck), tuple(stuck))


def _entries(directory: int, prefix: str = "") -> list[Entry]:
    found = ((_ENTRY_NAME.fullmatch(name), info) for name, info in list_files(directory, prefix))
    return [Entry(m[0], m[1], m[2], m[4], m[3], info.st_size, info.st_mtime_ns) for m, info in found if m]


def user_cache() -> Cache:
    """The cache at the location that the settings give."""
    return Cache(settings.read("SOFTMAX_OPS_CACHE_DIR"), max_bytes=settings.read("SOFTMAX_OPS_CACHE_MAX_BYTES"))
