"""The cubin cache: whatever happens to its files, `find` gives the right bytes or says why not, and nothing hangs."""

import errno
import logging
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from softmax_ops.artifacts import cache as cache_module
from softmax_ops.artifacts import cubin as cubin_module
from softmax_ops.artifacts import once
from softmax_ops.artifacts.cache import LARGEST_ENTRY_BYTES, SET_ASIDE_KEPT, Cache, Entry, Swept
from softmax_ops.artifacts.cubin import Absent, encode
from tests.support.cubins import CHECKOUT, NAME, failing, file_of, give_away, hidden, look, make, reason


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setattr(once, "_already_said", {})
    return Cache(tmp_path / "deep" / "softmax_ops", max_bytes=1 << 20)


# ---------------------------------------------------------------------------------------------- what it is for


def test_what_was_stored_is_found_by_fingerprint_and_by_source(cache: Cache) -> None:
    cubin = make()
    assert cache.store(cubin)
    assert cache.find(NAME, "sm_90", fingerprint="b" * 64) == cubin
    assert cache.find(NAME, "sm_90", source="a" * 64) == cubin
    assert cache.find(NAME, "sm_90", source="a" * 64, fingerprint="b" * 64) == cubin


def test_ptx_and_cubin_of_one_build_are_two_entries(cache: Cache) -> None:
    cubin, ptx = make(), replace(make(), kind="ptx", code=b".version 8.0")
    assert cache.store(cubin) and cache.store(ptx)
    assert look(cache, cubin) == cubin and look(cache, ptx) == ptx
    assert cache.find(NAME, "sm_90", source="a" * 64, kind="ptx") == ptx


def test_a_file_is_named_by_what_it_holds_and_only_its_owner_can_touch_it(cache: Cache) -> None:
    assert cache.store(make())
    assert cache.root is not None
    assert os.listdir(cache.root) == [f"{NAME}.sm_90.{'b' * 32}.cubin"]
    assert cache.root.stat().st_mode & 0o777 == 0o700
    assert file_of(cache, make()).stat().st_mode & 0o777 == 0o600


def test_of_several_builds_of_a_source_the_latest_serves(cache: Cache) -> None:
    for seconds, build in ((300, "c"), (200, "b"), (100, "d")):
        assert cache.store(make(build=build))
        os.utime(file_of(cache, make(build=build)), (seconds, seconds))
    assert cache.find(NAME, "sm_90", source="a" * 64).fingerprint == "c" * 64


def test_looking_for_a_kernel_asks_nothing_of_the_files_of_others(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variant in (NAME, NAME + "x", "x" + NAME):
        assert cache.store(make(variant=variant))
    asked, stat = [], os.stat

    def ask(name: str, **how: Any) -> os.stat_result:
        asked.append(name)
        return stat(name, **how)

    monkeypatch.setattr(os, "stat", ask)
    assert cache.find(NAME, "sm_90", source="a" * 64) == make()
    assert asked == [file_of(cache, make()).name]


@pytest.mark.parametrize("asked", [{"variant": NAME + "x"}, {"arch": "sm_80"}, {"build": "c"}])
def test_another_variant_architecture_or_build_is_absent(cache: Cache, asked: dict[str, Any]) -> None:
    assert cache.store(make())
    other = make(**asked)
    assert "holds no matching" in reason(cache, other)
    if "build" not in asked:  # one source serves every architecture: its digest alone must not decide
        with pytest.raises(Absent, match="holds no matching"):
            cache.find(other.variant, other.arch, source=other.source)


def test_another_source_is_absent_and_says_so(cache: Cache) -> None:
    assert cache.store(make())
    for fingerprint in (None, "b" * 64):
        with pytest.raises(Absent, match="another source"):
            cache.find(NAME, "sm_90", source="9" * 64, fingerprint=fingerprint)


def test_two_fingerprints_that_share_the_digits_in_the_name_are_told_apart(cache: Cache) -> None:
    assert cache.store(make())
    with pytest.raises(Absent):
        cache.find(NAME, "sm_90", fingerprint="b" * 63 + "c")
    assert look(cache, make()) == make()


@pytest.mark.parametrize("variant", ["", "../escape", "a/b", "A", "a.b", "a\n", "a\0", "é", "x" * 161])
def test_what_is_no_kernel_name_never_becomes_a_file_name(cache: Cache, variant: str) -> None:
    with pytest.raises(ValueError, match="kernel name"):
        cache.find(variant, "sm_90", source="a" * 64)
    with pytest.raises(ValueError, match="kernel name"):
        make(variant=variant)


@pytest.mark.parametrize(
    "given",
    [
        *({"arch": "sm_90/.."}, {"arch": "90"}, {"arch": 90}),
        *({"kind": "fatbin"}, {"source": "A" * 64}, {"fingerprint": "b" * 32}),
    ],
)
def test_what_cannot_name_a_build_is_refused(cache: Cache, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        cache.find(**{"variant": NAME, "arch": "sm_90", "source": "a" * 64, **given})
    with pytest.raises(ValueError, match="wanted"):
        replace(make(), **given)


@pytest.mark.parametrize("given", [{"code": b""}, {"code": "text"}, {"registers": -1}, {"shared_bytes": None}])
def test_a_cubin_is_checked_when_made(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=NAME):
        replace(make(), **given)


def test_a_build_must_be_named(cache: Cache) -> None:
    with pytest.raises(ValueError, match="source or by fingerprint"):
        cache.find(NAME, "sm_90")


def test_no_descriptor_is_left_open(cache: Cache, tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    assert cache.store(make()) and look(cache, make()) == make() and cache.verify() == []
    plant(cache, b"damaged")
    assert reason(cache, make()) and reason(Cache(tmp_path / "none", max_bytes=0), make())
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_looking_creates_nothing(cache: Cache) -> None:
    assert "does not exist" in reason(cache, make())
    assert (cache.entries(), cache.verify(), cache.gc().files, cache.clear().files) == ([], [], 0, 0)
    assert cache.root is not None
    assert not cache.root.parent.exists()


def test_import_creates_nothing_and_loads_no_heavy_package(tmp_path: Path) -> None:
    script = "import sys, softmax_ops.artifacts as a; print({'torch', 'jinja2', 'numpy', 'pickle'} & set(sys.modules))"
    environment = {
        **os.environ,
        "PYTHONPATH": str(CHECKOUT),
        "HOME": str(tmp_path),
        "SOFTMAX_OPS_CACHE_MAX_BYTES": "bad",
    }
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "XDG_CACHE_HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-S", "-c", script], env=environment, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("set()\n", "")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------- damaged content


def plant(cache: Cache, image: bytes) -> Path:
    path = file_of(cache, make())
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_bytes(image)
    path.chmod(0o600)
    return path


def test_a_flipped_bit_anywhere_is_a_miss_and_the_file_is_set_aside(cache: Cache) -> None:
    image = encode(make())
    for at in range(len(image)):
        path = plant(cache, image[:at] + bytes([image[at] ^ 1 << at % 8]) + image[at + 1 :])
        assert "set aside" in reason(cache, make()), f"byte {at}"
        assert not path.exists()
    assert plant(cache, image) and look(cache, make()) == make()


@pytest.mark.parametrize("change", ["shorter", "longer"])
def test_a_file_of_another_length_is_a_miss(cache: Cache, change: str) -> None:
    image = encode(make())
    for length in range(len(image)):
        plant(cache, image[:length] if change == "shorter" else image + image[: length + 1])
        assert "set aside" in reason(cache, make()), f"{length} bytes"


@pytest.mark.parametrize("length", [LARGEST_ENTRY_BYTES + 1, 1 << 42])
def test_an_entry_larger_than_memory_is_a_miss_and_not_read(
    cache: Cache, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = os.pread

    def pread(descriptor: int, count: int, offset: int) -> bytes:
        read.append(count)
        return real(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", pread)
    path = plant(cache, encode(make()))
    os.truncate(path, length)
    said = f"it has {length} bytes, and no entry more than {64 << 20}"
    assert cache.verify() == [f"{path.name}: {said}"] and path.exists()
    assert f"{path.name} is set aside: {said}" in reason(cache, make()) and not path.exists()
    assert cache.store(make()) and look(cache, make()) == make()
    assert read == [len(encode(make()))]


def test_an_intact_image_under_another_name_is_a_miss(cache: Cache) -> None:
    plant(cache, encode(make(arch="sm_80")))
    assert "its name is not that" in reason(cache, make())
    plant(cache, encode(replace(make(), kind="ptx")))
    assert "its name is not that" in reason(cache, make())


@pytest.mark.parametrize("facts", [b"[]", b"{}", b'{"variant":1}', b"\xff", b"1" * 5000])
def test_intact_nonsense_is_a_miss(cache: Cache, facts: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cubin_module, "canonical_json", lambda _: facts)
    plant(cache, encode(make()))
    assert "malformed" in reason(cache, make())


def test_an_intact_file_of_another_program_is_a_miss(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cubin_module, "_MAGIC", b"SOMEBODY")
    image = encode(make())
    monkeypatch.undo()
    plant(cache, image)
    assert "first bytes are foreign" in reason(cache, make())


def test_damage_is_said_once_a_bounded_number_of_files_is_kept_and_the_next_store_heals(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(SET_ASIDE_KEPT + 5):
        plant(cache, b"damaged")
        reason(cache, make())
    assert len(hidden(cache, ".bad-")) == SET_ASIDE_KEPT
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert NAME in caplog.text and "set aside" in caplog.text
    assert cache.store(make()) and look(cache, make()) == make()


def test_by_source_an_unfit_entry_does_not_hide_a_good_one(cache: Cache) -> None:
    assert cache.store(make(build="c"))
    os.utime(file_of(cache, make(build="c")), (1, 1))
    plant(cache, b"damaged")
    assert cache.find(NAME, "sm_90", source="a" * 64) == make(build="c")


def test_verify_names_what_is_unfit_and_changes_nothing(cache: Cache) -> None:
    assert cache.store(make(build="c"))
    assert cache.verify() == []
    path = plant(cache, b"damaged")
    (finding,) = cache.verify()
    assert path.name in finding and path.exists()


@pytest.mark.parametrize(
    ("place", "why"),
    [("file", "no directory"), ("file/sub", "no directory"), ("x" * 300, "File name too long")],
    ids=["a file", "below a file", "too long"],
)
def test_verify_says_why_a_cache_cannot_be_read(cache: Cache, place: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (finding,) = Cache(tmp_path / place, max_bytes=1).verify()
    assert finding.startswith(f"the cache directory {tmp_path / place} cannot be used: ") and finding.endswith(why)


def test_a_cache_that_is_not_there_is_an_empty_one(cache: Cache, tmp_path: Path) -> None:
    assert [Cache(root, max_bytes=1).verify() for root in (None, tmp_path / "none", tmp_path / "none/sub")] == [[]] * 3


def test_a_good_entry_that_replaced_the_bad_one_meanwhile_is_not_set_aside(cache: Cache) -> None:
    bad_inode = plant(cache, b"damaged").stat().st_ino
    assert cache.store(make())
    assert cache.root is not None
    directory = os.open(cache.root, os.O_RDONLY)
    cache_module._set_aside(directory, file_of(cache, make()).name, bad_inode)
    os.close(directory)
    assert look(cache, make()) == make()


def test_two_schemas_live_side_by_side(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = make(build="b"), make(build="c", code=b"newer")
    assert cache.store(old)
    monkeypatch.setattr(cubin_module, "SCHEMA", cubin_module.SCHEMA + 1)
    assert "schema" in reason(cache, old)
    assert cache.store(new) and look(cache, new) == new
    assert cache.find(NAME, "sm_90", source="a" * 64) == new
    monkeypatch.undo()
    assert look(cache, old) == old and "schema" in reason(cache, new)
    assert cache.verify() == [] and len(cache.entries()) == 2
    assert hidden(cache, ".bad-") == [] and caplog.records == []


# ---------------------------------------------------------------------------------------------- who can write it


def test_a_symbolic_link_in_place_of_an_entry_is_not_followed(cache: Cache, tmp_path: Path) -> None:
    path = plant(cache, encode(make()))
    elsewhere = path.rename(tmp_path / "elsewhere")
    path.symlink_to(elsewhere)
    assert "symbolic link" in reason(cache, make())
    assert not path.is_symlink() and elsewhere.read_bytes() == encode(make())
    path.symlink_to(elsewhere)
    other = replace(make(), registers=41)
    assert cache.store(other) and look(cache, other) == other
    assert elsewhere.read_bytes() == encode(make())


def test_a_symbolic_link_in_place_of_the_root_is_not_followed(cache: Cache, tmp_path: Path) -> None:
    assert cache.store(make()) and cache.root is not None
    link = Cache(tmp_path / "link", max_bytes=1 << 20)
    (tmp_path / "link").symlink_to(cache.root)
    assert "symbolic link" in reason(link, make())
    assert not link.store(make(build="c"))
    assert len(link.verify()) == 1 and link.entries() == [] and link.clear().files == 0
    assert len(cache.entries()) == 1
    inside = Cache(tmp_path / "link" / "sub", max_bytes=1 << 20)  # a link higher up is the user's own business
    assert inside.store(make()) and look(inside, make()) == make()


@pytest.mark.parametrize("planted", ["fifo", "directory"])
def test_what_is_no_file_neither_hangs_nor_serves_nor_stays(cache: Cache, planted: str) -> None:
    path = plant(cache, b"")
    path.unlink()
    os.mkfifo(path, 0o600) if planted == "fifo" else path.mkdir(mode=0o700)
    assert "no regular file" in reason(cache, make())
    assert cache.store(make()) and look(cache, make()) == make()


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_an_entry_that_others_can_write_is_a_miss(cache: Cache, mode: int) -> None:
    plant(cache, encode(make())).chmod(mode)
    assert f"{mode:04o}" in reason(cache, make())
    assert cache.store(make()) and look(cache, make()) == make()


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_a_directory_that_others_can_write_is_not_used(
    cache: Cache, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert cache.store(make()) and cache.root is not None
    cache.root.chmod(mode)
    assert f"{mode:04o}" in reason(cache, make())
    assert not cache.store(make(build="c"))
    assert len(cache.verify()) == 1 and cache.clear().files == 0 and len(caplog.records) == 1
    cache.root.chmod(0o700)
    assert look(cache, make()) == make() and len(cache.entries()) == 1


def test_an_entry_of_another_user_is_a_miss(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    give_away(plant(cache, encode(make())), monkeypatch)
    assert "belongs to user" in reason(cache, make())
    assert cache.store(make()) and look(cache, make()) == make()


def test_a_directory_of_another_user_is_not_used(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    give_away(plant(cache, encode(make())).parent, monkeypatch)
    assert "belongs to user" in reason(cache, make())
    assert not cache.store(make(build="c"))


# ---------------------------------------------------------------------------------------------- nowhere to write


@pytest.mark.parametrize("place", ["no home", "a file", "below a file", "proc", "dangling link"])
def test_where_nothing_can_be_stored_the_kernel_still_runs_and_one_warning_says_so(
    cache: Cache, place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    roots = {"no home": None, "a file": tmp_path / "file", "below a file": tmp_path / "file" / "sub"}
    roots |= {"proc": Path("/proc/softmax_ops"), "dangling link": tmp_path / "link"}
    nowhere = Cache(roots[place], max_bytes=1 << 20)
    assert [nowhere.store(make()) for _ in range(3)] == [False] * 3
    assert len(caplog.records) == 1
    assert reason(nowhere, make())
    assert (nowhere.entries(), nowhere.gc().files, nowhere.clear().files) == ([], 0, 0)
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_write_that_fails_half_way_leaves_no_trace(
    cache: Cache, call: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert cache.store(make())

    monkeypatch.setattr(os, call, failing(errno.EIO))
    assert [cache.store(make(build="c")) for _ in range(3)] == [False] * 3
    assert len(caplog.records) == 1 and os.strerror(errno.EIO) in caplog.text
    assert hidden(cache, ".part-") == [] and look(cache, make()) == make()


def test_a_failed_clean_up_never_fails_a_publish(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_sweep", failing(errno.EIO))
    assert cache.store(make()) and look(cache, make()) == make()


def test_a_hit_counts_although_its_time_cannot_be_written(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.store(make())
    monkeypatch.setattr(os, "utime", failing(errno.EROFS))
    assert look(cache, make()) == make()


def test_a_directory_that_cannot_be_listed_is_absence_not_an_error(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache.store(make())
    monkeypatch.setattr(os, "listdir", failing(errno.ESTALE))
    with pytest.raises(Absent, match=os.strerror(errno.ESTALE)):
        cache.find(NAME, "sm_90", source="a" * 64)
    assert cache.verify() == [f"the cache {cache.root} cannot be read: {os.strerror(errno.ESTALE)}"]
    assert cache.entries() == [] and cache.gc().files == 0


def test_short_writes_are_continued(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: real(descriptor, bytes(content[:7])))
    assert cache.store(make()) and look(cache, make()) == make()


# ---------------------------------------------------------------------------------------------- size


def test_the_least_recently_used_goes_first_and_a_hit_counts_as_use(cache: Cache) -> None:
    for day, build in enumerate("bcdef"):
        assert cache.store(make(build=build))
        os.utime(file_of(cache, make(build=build)), (86400 * day, 86400 * day))
    assert look(cache, make(build="b")) == make(build="b")
    size = len(encode(make()))
    small = Cache(cache.root, max_bytes=3 * size + 1)
    swept = small.gc()
    assert (swept.files, swept.freed_bytes, swept.kept_bytes) == (2, 2 * size, 3 * size)
    assert [entry.build[0] for entry in cache.entries()] == ["b", "f", "e"]


def test_storing_keeps_the_cap(cache: Cache) -> None:
    small = Cache(cache.root, max_bytes=int(3.1 * len(encode(make()))))
    for build in "0123456789":
        assert small.store(make(build=build))
        os.utime(file_of(small, make(build=build)), (int(build), int(build)))
    assert [entry.build[0] for entry in small.entries()] == ["9", "8", "7"]


def test_few_stores_look_at_every_file(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those that have filled the cache, or a 64th of it: of a cap of 640 entries ten. A full one is emptied by as
    much."""
    size = len(encode(make(variant="k000")))
    of_640 = Cache(cache.root, max_bytes=640 * size)
    sweep, stored = cache_module._sweep, 0
    swept_after = []

    def counted(*given: Any, **how: Any) -> Swept:
        swept_after.append(stored)
        return sweep(*given, **how)

    monkeypatch.setattr(cache_module, "_sweep", counted)
    for stored in range(700):
        assert of_640.store(make(variant=f"k{stored:03}"))
    assert len(of_640.entries()) <= 640
    assert swept_after == [0, *range(11, 640, 11), 640, *range(651, 700, 11)]


def test_a_clock_set_back_does_not_make_the_entry_just_stored_the_oldest(cache: Cache) -> None:
    small = Cache(cache.root, max_bytes=int(2.1 * len(encode(make()))))
    for build in "cd":
        assert small.store(make(build=build))
        os.utime(file_of(small, make(build=build)), (time.time() + 1e6, time.time() + 1e6))
    assert small.store(make()) and look(small, make()) == make()
    assert len(small.entries()) == 2


def test_files_set_aside_go_before_entries(cache: Cache) -> None:
    plant(cache, b"damaged" * 100)
    reason(cache, make())
    assert cache.store(make())
    Cache(cache.root, max_bytes=len(encode(make()))).gc()
    assert hidden(cache, ".bad-") == [] and look(cache, make()) == make()


@pytest.mark.parametrize(
    ("age_seconds", "stays"), [(0, True), (3000, True), (4000, False), (-3000, True), (-4000, False)]
)
def test_gc_removes_partial_files_of_dead_writers_only(cache: Cache, age_seconds: int, stays: bool) -> None:
    assert cache.store(make()) and cache.root is not None
    partial = cache.root / ".part-0123"
    partial.write_bytes(b"half")
    os.utime(partial, (time.time() - age_seconds,) * 2)
    cache.gc()
    assert partial.exists() == stays and look(cache, make()) == make()


@pytest.mark.parametrize(("max_bytes", "warnings"), [(0, 0), (10, 1)])
def test_a_cubin_over_the_cap_is_not_stored_and_a_cap_of_zero_is_silent(
    cache: Cache, max_bytes: int, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    none = Cache(cache.root, max_bytes=max_bytes)
    assert not none.store(make()) and not none.store(make(build="c"))
    assert len(caplog.records) == warnings and none.entries() == []


def test_clear_removes_all_of_ours_and_nothing_else(cache: Cache) -> None:
    for build in "bcd":
        assert cache.store(make(build=build))
    assert cache.root is not None
    plant(cache, b"")
    (cache.root / "notes.txt").write_text("mine")
    assert cache.clear().files == 3
    assert os.listdir(cache.root) == ["notes.txt"]


@pytest.mark.parametrize("aside", [True, False])
def test_clear_removes_empty_directories_too_and_names_what_stays(cache: Cache, aside: bool) -> None:
    """Directories in place of entries, set aside or not yet."""
    assert cache.store(make()) and cache.root is not None
    for build in "cd":
        path = file_of(cache, make(build=build))
        path.mkdir(mode=0o700)
        if build == "d":
            (path / "notes.txt").write_text("mine")
        if aside:
            assert "set aside" in reason(cache, make(build=build))
    sizes = {path.name: path.stat().st_size for path in cache.root.iterdir()}
    (full,) = [name for name in sizes if "d" * 32 in name]
    assert cache.clear() == Swept(2, sum(sizes.values()) - sizes[full], sizes[full], (full,))
    assert os.listdir(cache.root) == [full] and os.listdir(cache.root / full) == ["notes.txt"]


def test_entries_tell_what_their_names_tell(cache: Cache) -> None:
    assert cache.store(make())
    os.utime(file_of(cache, make()), ns=(5, 5))
    assert cache.entries() == [
        Entry(f"{NAME}.sm_90.{'b' * 32}.cubin", NAME, "sm_90", "cubin", "b" * 32, len(encode(make())), 5)
    ]
