"""The cubin cache among processes and on disks that refuse: racing writers, kill -9, full and read-only places.

Tests run scenarios of this file in processes of their own: `python -m tests.test_cache_processes SCENARIO ARGUMENT...`.
"""

import errno
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

from softmax_ops.artifacts.cache import Cache
from softmax_ops.artifacts.cubin import Cubin, encode
from tests.cubins import CHECKOUT, NOBODY, failing, file_of, hidden, look, make, reason

WRITERS = 16
KILLS = 40


def test_sixteen_writers_of_one_entry(tmp_path: Path) -> None:
    cache = roomy(tmp_path / "cache")
    finish(*(run_scenario("write_one_entry", cache.root, number) for number in range(WRITERS)))
    found = look(cache, make())
    assert isinstance(found, Cubin) and found == numbered(found.registers)
    assert hidden(cache, ".") == [] and len(cache.entries()) == 1


def test_writers_that_evict_each_other(tmp_path: Path) -> None:
    cache = roomy(tmp_path / "cache")
    finish(*(run_scenario("write_under_pressure", cache.root, number) for number in range(4)))
    assert hidden(cache, ".") == [] and cache.verify() == []


def test_writers_killed_in_the_middle(tmp_path: Path) -> None:
    cache = roomy(tmp_path / "cache")
    left_behind = int(finish(run_scenario("kill_writers", cache.root)))
    partials = hidden(cache, ".part-")
    assert 0 < left_behind == len(partials)  # some were really hit while writing
    for name in partials:
        os.utime(tmp_path / "cache" / name, (1, 1))
    assert cache.gc().files == left_behind
    assert cache.verify() == [] and len(cache.entries()) == 1


def test_file_size_limit(tmp_path: Path) -> None:
    finish(run_scenario("under_file_size_limit", tmp_path / "cache"))


def test_full_and_read_only_disk(tmp_path: Path) -> None:
    namespace = ("unshare", "-rm")  # where a mount is nobody else's business
    if succeeds(*namespace, "true"):
        finish(run_scenario("on_tiny_then_read_only_disk", tmp_path, "mount", before=namespace))
    else:
        finish(run_scenario("on_tiny_then_read_only_disk", tmp_path, "pretend"))


def test_read_only_directory() -> None:
    finish(run_scenario("in_read_only_directory"))


def run_scenario(name: str, *arguments: object, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [*before, sys.executable, "-m", "tests.test_cache_processes", name, *map(str, arguments)]
    return subprocess.Popen(command, cwd=CHECKOUT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(*processes: subprocess.Popen[str]) -> str:
    output = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(output)
    return "".join(output)


def succeeds(*command: str) -> bool:
    return shutil.which(command[0]) is not None and subprocess.run(command, capture_output=True).returncode == 0


def roomy(root: Path) -> Cache:
    return Cache(root, max_bytes=1 << 30)


def numbered(number: int) -> Cubin:
    """What writer `number` compiled: the same fingerprint, its own bytes, as large as cubins get."""
    return replace(make(code=bytes([number]) * (1 << 17)), registers=number)


def write_one_entry(root: str, number: str) -> None:
    """Store and find in turn; others do so too, and none ever sees a miss or a mixture."""
    cache, mine = roomy(Path(root)), numbered(int(number))
    for _ in range(4):
        assert cache.store(mine)
        found = look(cache, mine)
        assert isinstance(found, Cubin), found
        assert found == numbered(found.registers)


def write_under_pressure(root: str, number: str) -> None:
    """Room for two entries, eight builds by four processes that also clear: misses, but no errors or wrong bytes."""
    cache = Cache(Path(root), max_bytes=2 * len(encode(numbered(0))))
    for turn in range(12):
        mine = replace(numbered(int(number)), fingerprint=f"{turn % 2}{number}" * 32)
        assert cache.store(mine)
        for found in (look(cache, mine), look(cache, replace(mine, fingerprint=f"{turn % 2}0" * 32))):
            assert isinstance(found, str) or found.code == bytes([found.registers]) * (1 << 17)
        assert cache.verify() == [] and all(entry.stored_bytes for entry in cache.entries())
        if turn % 6 == 5:
            cache.clear()


def kill_writers(root: str) -> None:
    """Kill -9 one writer after the other at a random moment; the entry is whole all the time."""
    cache, chance = roomy(Path(root)), random.Random(0)
    assert cache.store(numbered(0))
    for round_ in range(KILLS):
        ready, started = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(started, b"!")
            while True:
                for number in range(4):
                    cache.store(numbered(number))
        os.read(ready, 1)
        time.sleep(chance.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(started)
        found = look(cache, numbered(0))
        assert isinstance(found, Cubin) and found == numbered(found.registers), f"round {round_}: {found}"
    assert hidden(cache, ".bad-") == [] and cache.verify() == []
    print(len(hidden(cache, ".part-")))


def under_file_size_limit(root: str) -> None:
    """The write itself fails (EFBIG), for root too."""
    cache = Cache(Path(root), max_bytes=1 << 20)
    assert cache.store(make())
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    assert not cache.store(make(build="c", code=bytes(8192)))
    assert hidden(cache, ".part-") == [] and look(cache, make()) == make()


def on_tiny_then_read_only_disk(folder: str, how: str) -> None:
    """A tmpfs of 64 KiB, read-only later; where no mount is permitted, system calls that answer as it would."""
    mounted = how == "mount" and succeeds("mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", folder)
    cache = Cache(Path(folder, "cache"), max_bytes=1 << 20)
    assert cache.store(make())
    with nullcontext() if mounted else mock.patch.object(os, "write", failing(errno.ENOSPC)):
        assert not cache.store(make(build="c", code=random.Random(0).randbytes(1 << 17)))
    assert hidden(cache, ".part-") == [] and look(cache, make()) == make()
    assert not mounted or succeeds("mount", "-o", "remount,bind,ro", folder)
    read_only: dict[str, Any] = dict.fromkeys(("write", "rename", "utime", "unlink"), failing(errno.EROFS))
    with nullcontext() if mounted else mock.patch.multiple(os, **read_only):
        assert not cache.store(make(build="d"))
        assert look(cache, make()) == make() and cache.verify() == []
    assert [message.split(": ")[-1] for message in Recorder.messages] == list(
        map(os.strerror, (errno.ENOSPC, errno.EROFS))
    )


def in_read_only_directory() -> None:
    """Mode 0500, as an ordinary user: root, whom modes do not stop, becomes one first."""
    if os.geteuid() == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        except OSError:  # root of a namespace without other users: modes stop nobody there, so mkdir has to
            with mock.patch.object(os, "mkdir", failing(errno.EACCES)):
                assert not roomy(Path("/no/such/place")).store(make())
            return
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder, "cache"), max_bytes=1 << 20)
        assert cache.store(make()) and cache.root is not None
        path = file_of(cache, make())
        cache.root.chmod(0o500)
        assert not cache.store(make(build="c")) and not cache.store(make(build="d"))
        assert look(cache, make()) == make()
        path.write_bytes(b"damaged")
        assert "could not be set aside" in reason(cache, make())
        assert len(Recorder.messages) == 2
        cache.root.chmod(0o700)


class Recorder(logging.Handler):
    """Keeps every warning of this process."""

    messages: ClassVar[list[str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


if __name__ == "__main__":
    logging.getLogger().addHandler(Recorder())
    globals()[sys.argv[1]](*sys.argv[2:])
