"""The cubin cache among processes and on failing disks: racing writers, kill -9, full and read-only places.

Tests run scenarios of this file in separate processes: `python -m tests.test_cache_processes SCENARIO ARGUMENT...`.
"""

import errno
import hashlib
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

import pytest

from softmax_ops import resolve
from softmax_ops.artifacts import catalog
from softmax_ops.artifacts.cache import Cache
from softmax_ops.artifacts.cubin import SCHEMA, Cubin, encode
from tests.support.cubins import CHECKOUT, NAME, NOBODY, failing, file_of, hidden, look, make, reason

pytestmark = pytest.mark.slow

WRITERS = 16
COMPILERS = 4
KILLS = 200


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


@pytest.mark.kernels
def test_processes_compile_the_same_variant_at_once(tmp_path: Path) -> None:
    """Starting from nothing, with the real compiler: each process gets the kernel somehow, and one entry results."""
    pytest.importorskip("codegen.toolchain")
    cache = roomy(tmp_path / "cache")
    environment = {"SOFTMAX_OPS_CACHE_DIR": str(cache.root), "SOFTMAX_OPS_BUNDLE": "", "SOFTMAX_OPS_COMPILE": "auto"}
    compiling = [run_scenario("resolve_one_variant", environment=environment) for _ in range(COMPILERS)]
    said = {line.split()[0] for line in finish(*compiling, timeout=540).splitlines()}
    (entry,) = cache.entries()
    assert entry.variant == NAME and hidden(cache, ".") == [] and cache.verify() == []
    stored = cache.find(NAME, "sm_90", source=catalog.load().variants[NAME].source)
    assert said == {hashlib.sha256(stored.code).hexdigest()}
    assert stored.code.startswith(b"\x7fELF") and NAME.encode() in stored.code
    assert finish(run_scenario("resolve_one_variant", environment=environment)).split()[1] == "cache"


def test_writers_killed_in_the_middle(tmp_path: Path) -> None:
    cache = roomy(tmp_path / "cache")
    left_behind = int(finish(run_scenario("kill_writers", cache.root)))
    partials = hidden(cache, ".part-")
    assert 0 < left_behind == len(partials)  # some were really killed while writing
    for name in partials:
        os.utime(tmp_path / "cache" / name, (1, 1))
    assert cache.gc().files == left_behind
    assert cache.verify() == []


def test_file_size_limit(tmp_path: Path) -> None:
    finish(run_scenario("under_file_size_limit", tmp_path / "cache"))


def test_full_and_read_only_disk(tmp_path: Path) -> None:
    namespace = ("unshare", "-rm")  # where a mount affects nobody else
    if succeeds(*namespace, "true"):
        finish(run_scenario("on_tiny_then_read_only_disk", tmp_path, "mount", before=namespace))
    else:
        finish(run_scenario("on_tiny_then_read_only_disk", tmp_path, "pretend"))


def test_read_only_directory() -> None:
    finish(run_scenario("in_read_only_directory"))


DAMAGE = {
    "cut short": "cut short",
    "a flipped bit": "sha256 does not match",
    "no bytes": "cut short",
    "terabytes": f"it has {1 << 42} bytes",
    "a foreign file": "first bytes are foreign",
    "a planted link": "symbolic link",
    "a pipe": "no regular file",
    "writable by all": "0666: others can write it",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_a_miss_told_in_one_line_and_healed(tmp_path: Path, damage: str) -> None:
    cache = roomy(tmp_path / "cache")
    assert cache.store(make())
    spoil(file_of(cache, make()), damage, tmp_path)
    outcomes, warnings = serve(cache.root)
    assert outcomes == ["miss", "stored", "right"]
    assert len(warnings) == 1 and DAMAGE[damage] in warnings[0] and "set aside" in warnings[0]
    assert serve(cache.root) == (["right", "stored", "right"], [])


def spoil(path: Path, damage: str, elsewhere: Path) -> None:
    image = path.read_bytes()
    if damage == "writable by all":
        path.chmod(0o666)
        return
    if damage == "terabytes":
        os.truncate(path, 1 << 42)  # sparse
        return
    path.unlink()
    if damage == "a planted link":
        (elsewhere / "planted").write_bytes(image)
        path.symlink_to(elsewhere / "planted")
    elif damage == "a pipe":
        os.mkfifo(path, 0o600)
    else:
        flipped = image[:100] + bytes([image[100] ^ 4]) + image[101:]
        path.write_bytes({"cut short": image[:-1], "a flipped bit": flipped, "no bytes": b""}.get(damage, b"#!" * 99))
        path.chmod(0o600)


@pytest.mark.parametrize("place", ["writable by all", "of another user", "a link", "a file", "no home", "on no disk"])
def test_a_place_that_cannot_be_used_costs_one_line(tmp_path: Path, place: str) -> None:
    """The caller gets its kernel all the same."""
    root, said = tmp_path / "cache", "compiled kernels are not kept"
    if place == "writable by all":
        roomy(root).store(make())
        root.chmod(0o777)
        said = "0777: others can write it"
    elif place == "of another user":
        root, said = of_another_user(root), "it belongs to user"
    elif place == "a link":
        roomy(tmp_path / "real").store(make())
        root.symlink_to(tmp_path / "real")
        said = "symbolic link"
    elif place == "a file":
        root.write_text("mine")
        said = "no directory"
    elif place == "on no disk":
        root = Path("/proc/softmax_ops")
    arguments = () if place == "no home" else (root,)
    outcomes, warnings = serve(*arguments)
    assert outcomes == ["miss", "lost", "miss"]
    assert len(warnings) == 1 and said in warnings[0], warnings


def of_another_user(path: Path) -> Path:
    """A directory that belongs to another user than this process's."""
    if os.geteuid() != 0:
        return Path("/")
    path.mkdir(mode=0o700)
    os.chown(path, NOBODY, -1)
    return path


def test_a_clock_that_went_backwards_loses_nothing(tmp_path: Path) -> None:
    """Everything there was written and used a day ahead of this clock."""
    cache, tomorrow = roomy(tmp_path / "cache"), time.time() + 86400
    assert cache.store(make()) and cache.store(make(build="c"))
    for path in (cache.root or tmp_path).iterdir():
        os.utime(path, (tomorrow, tomorrow))
    assert serve(cache.root) == (["right", "stored", "right"], [])
    assert serve(cache.root, 2 * len(encode(make()))) == (["right", "stored", "right"], [])
    assert len(cache.entries()) == 2
    assert serve(cache.root, len(encode(make()))) == (["right", "stored", "right"], [])
    assert [entry.build[0] for entry in cache.entries()] == ["b"]


def test_two_versions_of_the_package_share_a_cache(tmp_path: Path) -> None:
    """Both run at once, the newer one with another schema: each silently gets what is right for it, or a miss."""
    newer = tmp_path / "newer"
    shutil.copytree(CHECKOUT / "softmax_ops", newer / "softmax_ops", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CHECKOUT / "tests", newer / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    module = newer / "softmax_ops" / "artifacts" / "cubin.py"
    text = module.read_text()
    assert f"SCHEMA = {SCHEMA}\n" in text
    module.write_text(text.replace(f"SCHEMA = {SCHEMA}\n", f"SCHEMA = {SCHEMA + 1}\n"))
    cache = roomy(tmp_path / "cache")
    both = [run_scenario("work_beside_another_version", cache.root, where=where) for where in (CHECKOUT, newer)]
    assert [int(line) for line in finish(*both).splitlines()] == [SCHEMA, SCHEMA + 1]
    assert hidden(cache, ".") == [] and len(cache.entries()) == 3
    assert look(cache, make(build="1")) == make(build="1") and "its schema is" in reason(cache, make(build="2"))


def serve(root: Path | None = None, max_bytes: int = 1 << 30) -> tuple[list[str], list[str]]:
    """What a separate process finds when it looks for a kernel, stores it and looks again; and its output."""
    homeless = {"HOME": "/nonexistent/home", "XDG_CACHE_HOME": "", "SOFTMAX_OPS_CACHE_DIR": ""}
    process = run_scenario("look_store_look", root or "", max_bytes, environment=homeless, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.split(), err.splitlines()


def run_scenario(
    name: str,
    *arguments: object,
    before: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
    where: Path = CHECKOUT,
    stderr: int = subprocess.STDOUT,
) -> subprocess.Popen[str]:
    command = [*before, sys.executable, "-m", "tests.test_cache_processes", name, *map(str, arguments)]
    environment = {**os.environ, **(environment or {})}
    return subprocess.Popen(command, cwd=where, env=environment, text=True, stdout=subprocess.PIPE, stderr=stderr)


def finish(*processes: subprocess.Popen[str], timeout: float = 60) -> str:
    output = [process.communicate(timeout=timeout)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(output)
    return "".join(output)


def succeeds(*command: str) -> bool:
    return shutil.which(command[0]) is not None and subprocess.run(command, capture_output=True).returncode == 0


def roomy(root: Path) -> Cache:
    return Cache(root, max_bytes=1 << 30)


def numbered(number: int) -> Cubin:
    """The cubin compiled by writer `number`: the same fingerprint, different bytes, as large as cubins get."""
    return replace(make(code=bytes([number]) * (1 << 17)), registers=number)


def write_one_entry(root: str, number: str) -> None:
    """Stores and finds in turn, while others do so too; none ever sees a miss or a mixture."""
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


def resolve_one_variant() -> None:
    """Resolves as serving does; prints the digest of the code, and where it came from."""
    resolve.PACKAGED_BUNDLE = Path("/nonexistent")
    found = resolve.resolve(catalog.load().variants[NAME], "sm_90")
    print(hashlib.sha256(found.cubin.code).hexdigest(), found.place)


def look_store_look(root: str, max_bytes: str) -> None:
    """Like a server that compiles what it misses. Warnings go where Python sends them by default."""
    logging.getLogger().handlers.clear()
    cache = Cache(Path(root), max_bytes=int(max_bytes)) if root else resolve.user_cache()
    for step in (look, None, look):
        if step is None:
            print("stored" if cache.store(make()) else "lost")
        else:
            found = step(cache, make())
            assert isinstance(found, str) or found == make(), found
            print("miss" if isinstance(found, str) else "right")


def work_beside_another_version(root: str) -> None:
    """Uses its own builds and one that both versions have. Prints the schema."""
    cache = roomy(Path(root))
    mine, shared = make(build=str(SCHEMA)), make(build="f")
    for _ in range(50):
        for cubin in (mine, shared):
            assert cache.store(cubin)
            found = look(cache, cubin)
            assert found == cubin or (cubin is shared and isinstance(found, str) and "its schema is" in found), found
    assert Recorder.messages == [] and cache.verify() == []
    print(SCHEMA)


def kill_writers(root: str) -> None:
    """Kills (-9) one writer after another at a random moment: then every entry is right, or was never there."""
    cache, chance, hits = roomy(Path(root)), random.Random(0), 0
    names = [replace(numbered(0), fingerprint=f"{name}" * 64) for name in "0123"]
    for round_ in range(KILLS):
        cache.clear()  # what killed writers left unfinished stays
        ready, started = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(started, b"!")
            while True:
                for number, entry in enumerate(names):
                    cache.store(replace(numbered(number), fingerprint=entry.fingerprint))
        os.read(ready, 1)
        time.sleep(chance.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(started)
        for number, entry in enumerate(names):
            found = look(cache, entry)
            assert isinstance(found, str) or found == replace(numbered(number), fingerprint=entry.fingerprint), (
                f"round {round_}: {found}"
            )
            hits += isinstance(found, Cubin)
        assert hidden(cache, ".bad-") == [] and cache.verify() == []
    assert 0 < hits < KILLS * len(names)
    assert Recorder.messages == []
    print(len(hidden(cache, ".part-")))


def under_file_size_limit(root: str) -> None:
    """The write itself fails (EFBIG), for root too."""
    cache = Cache(Path(root), max_bytes=1 << 20)
    assert cache.store(make())
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    assert not cache.store(make(build="c", code=bytes(8192)))
    assert hidden(cache, ".part-") == [] and look(cache, make()) == make()


def on_tiny_then_read_only_disk(folder: str, how: str) -> None:
    """A tmpfs of 64 KiB, later read-only; if mounting is not permitted, system calls that fail in the same way."""
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
