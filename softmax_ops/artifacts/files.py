"""Files that processes share and that outlive them: atomic publishing, checks of who can write, listing, removal."""

import errno
import os
import time
from contextlib import suppress
from pathlib import Path

PARTIAL_PREFIX = ".part-"  # a file being written; a process that dies while writing leaves one behind
STALE_PARTIAL_SECONDS = 3600


def open_directory(path: Path) -> int:
    """Descriptor of a directory; its last component must not be a symbolic link."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def publish(directory: int, name: str, content: bytes, mode: int) -> None:
    """Write `content` as `name` in an open directory: readers see the old file or the whole new one, even after a
    crash.

    Raises OSError if the file is not published. Once it is, nothing raises: the fsync of the directory only decides
    whether the new name survives a power cut, and some network file systems refuse it.
    """
    partial = PARTIAL_PREFIX + random_token()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(partial, flags, mode, dir_fd=directory)
    try:
        try:
            _write_all(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(partial, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial, dir_fd=directory)
        raise
    with suppress(OSError):
        os.fsync(directory)


def replace(path: Path, text: str) -> None:
    """Make a file, or replace it: readers see the old text or the whole new one."""
    partial = path.with_name(PARTIAL_PREFIX + random_token())
    try:
        partial.write_text(text)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def pread_exactly(descriptor: int, length: int, offset: int) -> bytes:
    """`length` bytes from `offset`, fewer only at the end of the file; does not move the file position."""
    pieces, have = [], 0
    while have < length and (piece := os.pread(descriptor, length - have, offset + have)):
        pieces.append(piece)
        have += len(piece)
    return b"".join(pieces)


def list_files(directory: int, prefix: str = "") -> list[tuple[str, os.stat_result]]:
    """Files with a prefix, most recently used first; one that vanishes meanwhile is left out."""
    files = []
    for name in os.listdir(directory):
        if name.startswith(prefix):
            with suppress(OSError):
                files.append((name, os.stat(name, dir_fd=directory, follow_symlinks=False)))
    return sorted(files, key=lambda file: (-file[1].st_mtime_ns, file[0]))


def remove(directory: int, name: str) -> bool:
    """Remove a file or an empty directory; False if that failed."""
    with suppress(OSError):
        try:
            os.unlink(name, dir_fd=directory)
        except IsADirectoryError:
            os.rmdir(name, dir_fd=directory)
        return True
    return False


def is_stale(info: os.stat_result) -> bool:
    """Whether a partial file is more than an hour old, or an hour in the future, in which case the clock has been set
    back since: whoever wrote it has died."""
    return abs(time.time() - info.st_mtime) > STALE_PARTIAL_SECONDS


def why(error: OSError) -> str:
    """The error in words."""
    if error.errno in (errno.ENOTDIR, errno.ELOOP):  # the result of O_DIRECTORY with O_NOFOLLOW on a symbolic link
        return "it is a symbolic link or no directory"
    return error.strerror or str(error)


def only_ours(info: os.stat_result) -> str | None:
    """None if only this process's user can write what `info` describes; otherwise who else can."""
    if info.st_uid != os.geteuid():
        return f"it belongs to user {info.st_uid}, not to this process's user {os.geteuid()}"
    if info.st_mode & 0o022:
        return f"its mode is {info.st_mode & 0o7777:04o}: others can write it (chmod go-w)"
    return None


def as_trusted_as_this_package(info: os.stat_result) -> str | None:
    """None if only this user, root, and those who can write this very module can write the file; otherwise who else
    can.

    Installed files belong to whoever installed them (a bind-mounted checkout, an image that runs under a random user)
    and are group-writable if the umask is 002. Refusing those would protect nothing: the code beside them already runs.
    """
    package = _own_stat()
    if info.st_uid not in {os.geteuid(), 0, package.st_uid}:
        return f"it belongs to user {info.st_uid}: neither this process's user, nor root, nor who installed softmax_ops"
    excused = package.st_mode & (0o022 if package.st_gid == info.st_gid else 0o002)
    if info.st_mode & 0o022 & ~excused:
        return f"its mode is {info.st_mode & 0o7777:04o}: others can write it (chmod go-w)"
    return None


def random_token() -> str:
    """16 hex digits that no two processes share, not even forked ones."""
    return os.urandom(8).hex()


def _own_stat() -> os.stat_result:
    return os.stat(__file__)


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
