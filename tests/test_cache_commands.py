"""`python -m codegen cache list|verify|gc|clear`, and what every command says about a cache that cannot be used."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from softmax_ops.artifacts.cache import Cache
from softmax_ops.artifacts.cubin import encode
from tests.support.cubins import CHECKOUT, NAME, file_of, make

codegen = pytest.importorskip("codegen.__main__")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """Three entries, used on days 1, 2 and 3, in the cache that the settings name."""
    monkeypatch.setenv("SOFTMAX_OPS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("SOFTMAX_OPS_CACHE_MAX_BYTES", raising=False)
    cache = Cache(tmp_path / "cache", max_bytes=1 << 20)
    for day, build in enumerate("bcd", start=1):
        assert cache.store(make(build=build))
        os.utime(file_of(cache, make(build=build)), (86400 * day, 86400 * day))
    return cache


def run(*arguments: str) -> tuple[int, list[str]]:
    result = CliRunner().invoke(codegen.main, ["cache", *arguments])
    return result.exit_code, result.output.splitlines()


def test_list(cache: Cache) -> None:
    size = len(encode(make()))
    status, lines = run("list")
    assert status == 0 and len(lines) == 4
    assert lines[0].split() == [str(size), "1970-01-04", "00:00", f"{NAME}.sm_90.{'d' * 32}.cubin"]
    assert lines[-1] == f"3 entries, {3 * size} bytes of at most {2 << 30}, in {cache.root}"
    status, lines = run("list", "--json")
    assert [entry["build"][0] for entry in json.loads("\n".join(lines))] == ["d", "c", "b"]


def test_verify(cache: Cache) -> None:
    assert run("verify") == (0, [f"3 entries in {cache.root}, every one intact"])
    path = file_of(cache, make(build="c"))
    path.write_bytes(path.read_bytes()[:-1])
    status, lines = run("verify")
    assert status == 1 and len(lines) == 2 and path.name in lines[0] and path.exists()
    assert lines[1] == f"Error: 1 findings in {cache.root}; `cache clear` removes every entry"


@pytest.mark.parametrize("place", ["writable by all", "a file", "too long"])
def test_verify_advises_nothing_against_a_cache_that_cannot_be_used(
    cache: Cache, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = {"a file": tmp_path / "file", "too long": tmp_path / ("x" * 300)}.get(place, tmp_path / "cache")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "cache").chmod(0o777)
    monkeypatch.setenv("SOFTMAX_OPS_CACHE_DIR", str(root))
    status, (finding, error) = run("verify")
    assert status == 1 and finding.startswith(f"the cache directory {root} ")
    assert error == f"Error: 1 findings in {root}"


def test_gc(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(encode(make()))
    assert run("gc") == (0, [f"0 files removed, 0 bytes; {3 * size} bytes stay"])
    monkeypatch.setenv("SOFTMAX_OPS_CACHE_MAX_BYTES", str(2 * size))
    assert run("gc") == (0, [f"1 files removed, {size} bytes; {2 * size} bytes stay"])
    assert [entry.build[0] for entry in cache.entries()] == ["d", "c"]


def test_clear(cache: Cache) -> None:
    assert run("clear") == (0, [f"3 files removed, {3 * len(encode(make()))} bytes; 0 bytes stay"])
    assert cache.entries() == []


def test_clear_names_what_it_cannot_remove(cache: Cache) -> None:
    path = file_of(cache, make(build="c"))
    path.unlink()
    (path / "sub").mkdir(parents=True)
    size = path.stat().st_size
    removed = f"2 files removed, {2 * len(encode(make()))} bytes; {size} bytes stay"
    assert run("clear") == (1, [removed, f"Error: could not be removed: {path.name}"])


def test_a_reader_that_has_seen_enough_ends_the_command_in_silence() -> None:
    """Like `head`, which closes the pipe."""
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-B", "-m", "codegen", "cache", "list"]
    result = subprocess.run(command, cwd=CHECKOUT, stdout=writes, stderr=subprocess.PIPE, text=True)
    os.close(writes)
    assert (result.returncode, result.stderr) == (-signal.SIGPIPE, "")


@pytest.mark.parametrize("action", ["list", "verify", "gc", "clear"])
def test_without_a_cache_there_is_nothing_to_do(action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTMAX_OPS_CACHE_DIR", str(tmp_path / "none"))
    assert run(action)[0] == 0 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("action", ["list", "verify", "gc", "clear"])
def test_a_bad_setting_is_one_sentence(action: str, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTMAX_OPS_CACHE_MAX_BYTES", "much")
    status, lines = run(action)
    assert status == 1 and len(lines) == 1 and "SOFTMAX_OPS_CACHE_MAX_BYTES is 'much'" in lines[0]


@pytest.mark.parametrize(
    "command",
    [
        ("compile", NAME, "--arch", "sm_90"),
        ("inspect", NAME),
        ("bundle", "--arch", "sm_90"),
        ("tune", "24", "--prepare", "sm_90", "--bundle", "tune.bundle"),
        ("tune", "24"),
    ],
    ids=["compile", "inspect", "bundle", "prepare", "tune"],
)
@pytest.mark.parametrize(
    ("name", "value"), [("SOFTMAX_OPS_CACHE_MAX_BYTES", "much"), ("SOFTMAX_OPS_CACHE_DIR", "~no-such-user/cache")]
)
def test_a_bad_setting_is_one_sentence_where_kernels_are_compiled(
    command: tuple[str, ...], name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    result = CliRunner().invoke(codegen.main, [*command])
    lines = result.output.splitlines()
    assert result.exit_code == 1 and len(lines) == 1 and f"{name} is {value!r}" in lines[0], result.output
