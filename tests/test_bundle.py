"""The bundle: the same cubins give the same bytes, first use reads three pieces, damage is absence, never wrong bytes.

`python -m tests.test_bundle SCENARIO ARGUMENT...` runs one scenario in a process of its own.
"""

import errno
import hashlib
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from softmax_ops.artifacts import bundle as bundle_module
from softmax_ops.artifacts import files as files_module
from softmax_ops.artifacts.bundle import Bundle, BundleFacts, write_bundle
from softmax_ops.artifacts.cubin import Absent, Cubin, canonical_json
from tests.cubins import CHECKOUT, failing, give_away, make

CATALOG = b'{"variants": []}'
TOOLCHAIN = "nvrtc 12.9.86, nvjitlink 12.9.86"
ARCHITECTURES = ("sm_70", "sm_90", "sm_90a", "sm_100")


def some_cubins(variants: int = 2, code_bytes: int = 64) -> list[Cubin]:
    """Cubins whose bytes do not compress, each with facts of its own, in order of architecture and name."""
    chance = random.Random(1)
    return [
        replace(
            make(
                f"softmax_fwd_f16_none_warp_k{32 << i}", arch, source=f"{i % 10}", code=chance.randbytes(code_bytes + i)
            ),
            registers=32 + i,
            shared_bytes=16 * at,
        )
        for at, arch in enumerate(ARCHITECTURES)
        for i in range(variants)
    ]


def write(path: Path, cubins: list[Cubin]) -> BundleFacts:
    return write_bundle(path, cubins, catalog=CATALOG, toolchain=TOOLCHAIN)


def reason(bundle: Bundle, cubin: Cubin, source: str | None = None) -> str:
    with pytest.raises(Absent) as raised:
        bundle.find(cubin.variant, cubin.arch, source=source)
    return raised.value.reason


def served(bundle: Bundle, cubin: Cubin) -> Cubin | None:
    with suppress(Absent):
        return bundle.find(cubin.variant, cubin.arch)
    return None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "kernels.bundle", some_cubins())
    return tmp_path / "kernels.bundle"


# ---------------------------------------------------------------------------------------------- what it is for


def test_every_cubin_comes_back_equal(path: Path) -> None:
    bundle = Bundle(path)
    for cubin in some_cubins():
        assert bundle.find(cubin.variant, cubin.arch) == cubin
        assert bundle.find(cubin.variant, cubin.arch, source=cubin.source) == cubin


def test_it_tells_what_it_holds(path: Path) -> None:
    bundle = Bundle(path)
    assert bundle.architectures() == ARCHITECTURES
    assert bundle.variants("sm_90") == ("softmax_fwd_f16_none_warp_k32", "softmax_fwd_f16_none_warp_k64")
    assert bundle.catalog() == CATALOG and bundle.verify() == []
    assert bundle.facts() == BundleFacts(
        file_bytes=path.stat().st_size,
        cubins=8,
        variants=2,
        per_architecture=tuple((arch, 2) for arch in ARCHITECTURES),
        cubin_bytes=4 * (64 + 65),
        median_cubin_bytes=65,
        largest_cubin_bytes=65,
        largest_cubin="softmax_fwd_f16_none_warp_k64 for sm_90a",
        catalog_sha256=hashlib.sha256(CATALOG).hexdigest(),
        toolchain=TOOLCHAIN,
    )


def test_absence_has_its_reason(path: Path) -> None:
    cubin = some_cubins()[0]
    assert "holds nothing for sm_75; it holds sm_70, sm_90, sm_90a, sm_100" in reason(
        Bundle(path), replace(cubin, arch="sm_75")
    )
    assert f"holds no {cubin.variant}x for sm_70" in reason(Bundle(path), replace(cubin, variant=cubin.variant + "x"))
    assert "another source" in reason(Bundle(path), cubin, source="f" * 64)
    with pytest.raises(Absent, match="holds nothing for nonsense"):
        Bundle(path).variants("nonsense")


# ---------------------------------------------------------------------------------------------- one set, one file


def test_order_does_not_matter(path: Path, tmp_path: Path) -> None:
    for seed in range(5):
        cubins = some_cubins() + some_cubins()[:3]
        random.Random(seed).shuffle(cubins)
        write(tmp_path / "again", cubins)
        assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_process_hash_seed_and_directory_do_not_matter(path: Path, tmp_path: Path) -> None:
    for seed in ("0", "1", "random"):
        folder = tmp_path / seed
        folder.mkdir()
        python_path = os.pathsep.join([str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": python_path, "TZ": f"UTC{len(seed)}"}
        subprocess.run(
            [sys.executable, "-m", "tests.test_bundle", "write_shuffled", "out"],
            cwd=folder,
            env=environment,
            check=True,
        )
        assert (folder / "out").read_bytes() == path.read_bytes()


def write_shuffled(path: str) -> None:
    write(Path(path), list(set(some_cubins())))


@pytest.mark.parametrize(
    "change", [{"registers": 99}, {"code": b"other"}, {"source": "9" * 64}, {"fingerprint": "9" * 64}]
)
def test_whatever_differs_shows_in_the_bytes(path: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    first, *others = some_cubins()
    write(tmp_path / "other", [replace(first, **change), *others])
    assert (tmp_path / "other").read_bytes() != path.read_bytes()


def test_what_no_bundle_can_hold_is_refused_and_the_old_file_stays(path: Path, tmp_path: Path) -> None:
    cubins, before = some_cubins(), path.read_bytes()
    for wrong, said in (
        ([], "no cubins"),
        ([*cubins, replace(cubins[0], code=b"other")], "two different cubins"),
        ([replace(cubins[0], kind="ptx")], "is ptx"),
    ):
        with pytest.raises(ValueError, match=said):
            write(path, wrong)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    path: Path, tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    monkeypatch.setattr(os, call, failing(errno.ENOSPC))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        write(path, some_cubins(3))
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


# ---------------------------------------------------------------------------------------------- reads


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The length of every pread, in order."""
    reads: list[int] = []
    real = os.pread

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        reads.append(length)
        return real(descriptor, length, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", pread)
        yield reads


def test_first_use_reads_header_one_index_and_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cubins = some_cubins(variants=60, code_bytes=6000)
    facts = write(tmp_path / "large", cubins)
    bundle = Bundle(tmp_path / "large")
    with counting(monkeypatch) as reads:
        assert bundle.architectures() == ARCHITECTURES
        assert len(reads) == 1
        assert bundle.find(cubins[0].variant, "sm_90").arch == "sm_90"
        assert len(reads) == 3 and sum(reads) < 8192 + 60 * 200 + 6500 < facts.file_bytes / 50
        assert bundle.find(cubins[1].variant, "sm_90").arch == "sm_90"
        assert len(reads) == 4 and reads[3] < 6500
        with pytest.raises(Absent):
            bundle.find("softmax_nothing", "sm_90")
        assert len(reads) == 4


def test_a_header_longer_than_the_first_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(tmp_path / "b", some_cubins(), catalog=CATALOG, toolchain="x" * 20000)
    with counting(monkeypatch) as reads:
        assert Bundle(tmp_path / "b").facts().toolchain == "x" * 20000
    assert len(reads) == 2 + len(ARCHITECTURES)


def test_short_reads_are_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, length, offset: real(descriptor, min(length, 7), offset))
    assert Bundle(path).verify() == []


def test_no_descriptor_is_held(path: Path) -> None:
    bundle, before = Bundle(path), os.listdir("/proc/self/fd")
    bundle.facts()
    reason(bundle, replace(some_cubins()[0], arch="sm_75"))
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_the_file_that_replaced_it_serves_from_then_on(path: Path) -> None:
    bundle, (first, *_) = Bundle(path), some_cubins()
    assert bundle.find(first.variant, first.arch) == first
    newer = replace(first, code=b"newer")
    write(path, [newer])
    assert bundle.find(first.variant, first.arch) == newer and bundle.architectures() == (first.arch,)


def test_threads_and_forked_children_share_it(path: Path) -> None:
    subprocess.run([sys.executable, "-m", "tests.test_bundle", "thread_and_fork", path], cwd=CHECKOUT, check=True)


def thread_and_fork(path: str) -> None:
    """Eight threads ask for everything at once, and so does each of four children forked meanwhile."""
    bundle, cubins, wrong = Bundle(Path(path)), some_cubins(), []

    def ask() -> None:
        for cubin in cubins * 20:
            if served(bundle, cubin) != cubin:
                wrong.append(cubin)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        child = os.fork()
        if child == 0:
            ask()
            os._exit(bool(wrong))
        assert os.waitpid(child, 0)[1] == 0
    for thread in threads:
        thread.join()
    assert not wrong


# ---------------------------------------------------------------------------------------------- damage


def regions(path: Path) -> dict[str, range]:
    """Where the parts of a bundle lie, as its own header and indexes tell."""
    bundle = Bundle(path)
    with bundle._open() as (descriptor, top):
        parts = {"header": range(top.body_at)}
        parts["catalogue"] = range(top.body_at, top.body_at + top.catalog.stored)
        for arch, where in top.architectures.items():
            start = top.body_at + where.index.offset
            parts[arch] = range(start, start + where.index.stored)
            for variant, row in bundle._index(descriptor, top, arch).items():
                start = top.body_at + where.entries_at + row.code.offset
                parts[f"{variant} {arch}"] = range(start, start + row.code.stored)
    parts["trailer"] = range(path.stat().st_size - 32, path.stat().st_size)
    return parts


def test_the_parts_cover_the_file(path: Path) -> None:
    assert sorted(at for part in regions(path).values() for at in part) == list(range(path.stat().st_size))


def test_a_flipped_bit_anywhere_is_found_by_verify_and_never_served(path: Path) -> None:
    """Damage reaches what lies in that part, and no further."""
    image, cubins = path.read_bytes(), some_cubins()
    for part, where in regions(path).items():
        for at in where:
            overwrite(path, at, bytes([image[at] ^ 1 << at % 8]))
            bundle = Bundle(path)
            assert bundle.verify(), f"byte {at}, in {part}"
            for cubin in cubins:
                struck = part in ("header", cubin.arch, f"{cubin.variant} {cubin.arch}")
                found = served(bundle, cubin)
                assert found == cubin or (found is None and struck), f"byte {at}, in {part}: {cubin}"
                assert found is None or part != "header", f"byte {at}, in {part}"
            overwrite(path, at, image[at : at + 1])


def overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def test_overwritten_parts_are_absent_and_say_where(path: Path) -> None:
    image, first = path.read_bytes(), some_cubins()[0]
    where = regions(path)["catalogue"]
    overwrite(path, where.start, bytes(len(where)))
    assert Bundle(path).find(first.variant, first.arch) == first
    assert any("hash mismatch in the catalogue" in finding for finding in Bundle(path).verify())
    for part, said in (
        ("header", "not a bundle"),
        (first.arch, f"hash mismatch in the index of {first.arch}"),
        (f"{first.variant} {first.arch}", f"hash mismatch in {first.variant} for {first.arch}"),
    ):
        path.write_bytes(image)
        where = regions(path)[part]
        overwrite(path, where.start, bytes(len(where)))
        assert said in reason(Bundle(path), first)
        assert any(said in finding for finding in Bundle(path).verify())


def test_entries_exchanged_on_disk_are_not_confused(path: Path) -> None:
    image, (first, *_) = path.read_bytes(), some_cubins()
    one, other = (regions(path)[f"{first.variant} {arch}"] for arch in ARCHITECTURES[:2])
    assert len(one) == len(other)
    swapped = bytearray(image)
    swapped[one.start : one.stop], swapped[other.start : other.stop] = (
        image[other.start : other.stop],
        image[one.start : one.stop],
    )
    path.write_bytes(swapped)
    assert "hash mismatch" in reason(Bundle(path), first)


def test_every_other_length_is_absent(path: Path) -> None:
    image, first = path.read_bytes(), some_cubins()[0]
    for length in reversed(range(len(image))):
        os.truncate(path, length)
        said = reason(Bundle(path), first)
        assert ("truncated" in said) == (length >= 56) and ("not a bundle" in said) == (length < 56), (length, said)
        assert len(Bundle(path).verify()) == 1
    path.write_bytes(image + b"\0")
    assert "truncated or damaged" in reason(Bundle(path), first)


def test_another_schema_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "SCHEMA", bundle_module.SCHEMA + 1)
    assert "has schema 1, and this version of the package reads 2" in reason(Bundle(path), some_cubins()[0])


@pytest.mark.parametrize("top", [[], {}, {"architectures": []}, {"architectures": {"x": {}}}, None, 1])
def test_intact_nonsense_is_absence(path: Path, top: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "softmax_ops.artifacts.bundle.canonical_json",
        lambda value: canonical_json(top if "toolchain" in value else value),
    )
    with pytest.raises(Absent, match="damaged"):
        write(path, some_cubins())
    assert "damaged" in reason(Bundle(path), some_cubins()[0]) and len(Bundle(path).verify()) == 1


@pytest.mark.parametrize("rows", [[], 1, {"k": {}}, {"k": {"code": 1}}, {"softmax_fwd_f16_none_warp_k32": []}])
def test_an_intact_index_of_nonsense_is_absence(path: Path, rows: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "softmax_ops.artifacts.bundle.canonical_json",
        lambda value: canonical_json(value if "toolchain" in value else rows),
    )
    with pytest.raises(Absent, match="damaged"):
        write(path, some_cubins())
    assert "damaged" in reason(Bundle(path), some_cubins()[0])


@pytest.mark.parametrize("planted", ["nothing", "directory", "fifo", "text", "below a file"])
def test_what_is_no_bundle_is_absent_and_never_hangs(tmp_path: Path, planted: str) -> None:
    path = tmp_path / "b"
    if planted == "directory":
        path.mkdir()
    elif planted == "fifo":
        os.mkfifo(path)
    elif planted != "nothing":
        path.write_text("SOFTMAX? " * 99)
    bundle = Bundle(path / "sub" if planted == "below a file" else path)
    said = {"nothing": "cannot be read", "text": "not a bundle", "below a file": "cannot be read"}
    assert said.get(planted, "no regular file") in reason(bundle, some_cubins()[0])
    assert len(bundle.verify()) == 1
    for ask in (bundle.architectures, bundle.facts, bundle.catalog):
        with pytest.raises(Absent):
            ask()


def test_a_failing_disk_is_absence(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pread", failing(errno.ESTALE))
    assert os.strerror(errno.ESTALE) in reason(Bundle(path), some_cubins()[0])


# ---------------------------------------------------------------------------------------------- who can write it


def stat_of(uid: int, gid: int, mode: int) -> os.stat_result:
    return os.stat_result((mode, 1, 1, 1, uid, gid, 0, 0, 0, 0))


def test_a_bundle_that_others_can_write_is_not_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "_own_stat", lambda: stat_of(os.geteuid(), os.getegid(), 0o100644))
    for mode in (0o664, 0o646, 0o666):
        path.chmod(mode)
        assert f"{mode:04o}" in reason(Bundle(path), some_cubins()[0])
    path.chmod(0o444)
    assert Bundle(path).verify() == []


def test_a_bundle_is_trusted_as_far_as_the_package_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(package: os.stat_result, bundle: os.stat_result) -> bool:
        monkeypatch.setattr(files_module, "_own_stat", lambda: package)
        return files_module.as_trusted_as_this_package(bundle) is not None

    me, installer, stranger = os.geteuid(), 1234567, 7654321
    private, shared = stat_of(installer, 5, 0o100644), stat_of(installer, 5, 0o100664)
    assert [refused(private, stat_of(uid, 5, 0o100644)) for uid in (me, 0, installer, stranger)] == [0, 0, 0, 1]
    assert refused(private, stat_of(installer, 5, 0o100664))
    assert not refused(shared, stat_of(installer, 5, 0o100664))
    assert refused(shared, stat_of(installer, 6, 0o100664))
    assert refused(shared, stat_of(installer, 5, 0o100666))


def test_a_bundle_of_a_stranger_is_not_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "_own_stat", lambda: stat_of(os.geteuid(), 0, 0o100644))
    give_away(path, monkeypatch)
    assert "belongs to user" in reason(Bundle(path), some_cubins()[0])


def test_a_symbolic_link_leads_to_the_file_that_is_judged(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(path)
    assert Bundle(tmp_path / "link").verify() == []
    monkeypatch.setattr(files_module, "_own_stat", lambda: stat_of(os.geteuid(), os.getegid(), 0o100644))
    path.chmod(0o646)
    assert "0646" in reason(Bundle(tmp_path / "link"), some_cubins()[0])


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
