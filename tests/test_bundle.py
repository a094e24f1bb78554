"""The bundle: equal cubins give equal bytes, first use reads three pieces, damage means absence, never wrong bytes.

`python -m tests.test_bundle SCENARIO ARGUMENT...` runs one scenario in a process of its own.
"""

import errno
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from softmax_ops.__main__ import main as command_line
from softmax_ops.artifacts import bundle as bundle_module
from softmax_ops.artifacts import files as files_module
from softmax_ops.artifacts import signature
from softmax_ops.artifacts.bundle import Bundle, BundleFacts, write_bundle
from softmax_ops.artifacts.cubin import Absent, Cubin, canonical_json
from tests.support.cubins import CHECKOUT, failing, give_away, key_pair, make, sign

CATALOG = b'{"variants": []}'
TOOLCHAIN = "nvrtc 12.9.86, nvjitlink 12.9.86"
ARCHITECTURES = ("sm_70", "sm_90", "sm_90a", "sm_100")


def some_cubins(variants: int = 2, code_bytes: int = 64) -> list[Cubin]:
    """Cubins whose bytes do not compress, each with its own facts, in order of architecture and name."""
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
    assert [*bundle.sources("sm_90")] == ["softmax_fwd_f16_none_warp_k32", "softmax_fwd_f16_none_warp_k64"]
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
        Bundle(path).sources("nonsense")


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
    """On another day, by a process that hides its files from other users."""
    time.time, time.time_ns = (lambda: 4e9), (lambda: 4 * 10**18)
    os.umask(0o077)
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
    """The lengths of all preads, in order."""
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
    """Eight threads request everything at once, and so does each of four children forked meanwhile."""
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
    """Where the parts of a bundle are, according to its own header and indexes."""
    bundle = Bundle(path)
    with bundle._open() as (descriptor, top):
        parts = {"header": range(top.body_at)}
        parts["catalog"] = range(top.body_at, top.body_at + top.catalog.stored)
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
    """Damage affects the contents of that part, and nothing else."""
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
    where = regions(path)["catalog"]
    overwrite(path, where.start, bytes(len(where)))
    assert Bundle(path).find(first.variant, first.arch) == first
    assert any("hash mismatch in the catalog" in finding for finding in Bundle(path).verify())
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
    assert "has schema 2, and this version of the package reads 3" in reason(Bundle(path), some_cubins()[0])


@pytest.mark.parametrize("top", [[], {}, {"architectures": []}, {"architectures": {"x": {}}}, None, 1])
def test_intact_nonsense_is_absence(path: Path, top: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "softmax_ops.artifacts.bundle.canonical_json",
        lambda value: canonical_json(top if "toolchain" in value else value),
    )
    with pytest.raises(Absent, match="damaged"):
        write(path, some_cubins())
    assert "damaged" in reason(Bundle(path), some_cubins()[0]) and len(Bundle(path).verify()) == 1


@pytest.mark.parametrize("row", [[], 1, {}, {"code": 1}, "text", [1, 2], ["x"] * 8, [None] * 8, [0] * 9])
def test_an_intact_index_of_nonsense_is_absence(path: Path, row: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "softmax_ops.artifacts.bundle.canonical_json",
        lambda value: canonical_json(value if "toolchain" in value else row),
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


# ---------------------------------------------------------------------------------------------- signatures


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """(private, public)"""
    return key_pair(tmp_path)


def test_a_signed_bundle_serves_and_reads_no_more_than_an_unsigned_one(
    tmp_path: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cubins = some_cubins(variants=60, code_bytes=6000)
    facts = write(tmp_path / "large", cubins)
    sign(tmp_path / "large", keys[0])
    bundle = Bundle(tmp_path / "large", key=keys[1])
    with counting(monkeypatch) as reads:
        assert bundle.find(cubins[0].variant, cubins[0].arch) == cubins[0]
        assert sum(reads) < facts.file_bytes / 50
    assert bundle.verify() == []


@pytest.mark.parametrize("part", ["header", "sm_70", "softmax_fwd_f16_none_warp_k32 sm_70"])
def test_whoever_forges_a_part_and_its_hashes_still_lacks_the_signature(
    path: Path, tmp_path: Path, keys: tuple[Path, Path], part: str
) -> None:
    """The best that an attacker without the key can do: write the bundle anew."""
    sign(path, keys[0])
    first, *others = some_cubins()
    forged = {"header": "toolchain", "sm_70": "registers"}.get(part, "code")
    changed = {"registers": replace(first, registers=99), "code": replace(first, code=b"evil")}.get(forged, first)
    write_bundle(path, [changed, *others], catalog=CATALOG, toolchain="x" if forged == "toolchain" else TOOLCHAIN)
    assert Bundle(path).find(first.variant, first.arch) == changed
    assert "not that of this bundle" in reason(Bundle(path, key=keys[1]), first)
    assert any("not that of this bundle" in finding for finding in Bundle(path, key=keys[1]).verify())


@pytest.mark.parametrize(
    "flaw", ["missing", "empty", "noise", "cut short", "of another bundle", "of another key", "fifo"]
)
def test_a_signature_that_is_none_opens_nothing(path: Path, tmp_path: Path, keys: tuple[Path, Path], flaw: str) -> None:
    signed = sign(path, keys[0])
    assert served(Bundle(path, key=keys[1]), some_cubins()[0])
    if flaw == "of another bundle":
        write(tmp_path / "other", some_cubins(3))
        sign(tmp_path / "other", keys[0]).rename(signed)
    elif flaw == "of another key":
        sign(path, key_pair(tmp_path, "other")[0])
    elif flaw == "fifo":
        signed.unlink()
        os.mkfifo(signed)
    elif flaw == "missing":
        signed.unlink()
    else:
        content = {"empty": b"", "noise": b"\xff\0?", "cut short": signed.read_bytes()[:40]}[flaw]
        signed.write_bytes(content)
    said = reason(Bundle(path, key=keys[1]), some_cubins()[0])
    assert f"the bundle {path} is not used: " in said and str(signed) in said
    assert len(Bundle(path, key=keys[1]).verify()) == 1 and Bundle(path).verify() == []


@pytest.mark.parametrize("flaw", ["missing", "the private one", "text", "of another kind", "others can write it"])
def test_a_key_that_is_none_opens_nothing(
    path: Path, keys: tuple[Path, Path], flaw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = keys
    sign(path, private)
    monkeypatch.setattr(files_module, "_own_stat", lambda: stat_of(os.geteuid(), os.getegid(), 0o100644))
    assert served(Bundle(path, key=public), some_cubins()[0])
    if flaw == "missing":
        public.unlink()
    elif flaw == "the private one":
        public = private
    elif flaw == "text":
        public.write_text("ssh-ed25519 AAAA")
    elif flaw == "of another kind":
        public.write_bytes(of_another_kind())
    else:
        public.chmod(0o666)
    said = reason(Bundle(path, key=public), some_cubins()[0])
    wanted = {"missing": "cannot be read", "of another kind": "wanted Ed25519", "others can write it": "0666"}
    assert said.count(str(public)) == 1 and wanted.get(flaw, "no public key") in said
    assert served(Bundle(path), some_cubins()[0])


def of_another_kind() -> bytes:
    """A public key for another signature algorithm."""
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = generate_private_key(SECP256R1()).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_without_the_library_no_signature_is_valid(
    path: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sign(path, keys[0])
    for name in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert "pip install 'softmax-ops[signing]'" in reason(Bundle(path, key=keys[1]), some_cubins()[0])
    assert served(Bundle(path), some_cubins()[0])


@pytest.mark.parametrize("flaw", ["missing", "public", "encrypted"])
def test_what_cannot_sign_is_refused_in_a_sentence(keys: tuple[Path, Path], tmp_path: Path, flaw: str) -> None:
    path = {"missing": tmp_path / "none", "public": keys[1], "encrypted": tmp_path / "locked"}[flaw]
    if flaw == "encrypted":
        from cryptography.hazmat.primitives import serialization as s

        key = signature.load_private(keys[0])
        path.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"x")))
    with pytest.raises(signature.SignatureError, match=re.escape(str(path))):
        signature.load_private(path)


# ---------------------------------------------------------------------------------------------- the command lines


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = command_line(["bundle", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_inspect_prints_what_it_holds(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said, _ = command(capsys, "inspect", path, "--json")
    facts = json.loads(said)
    assert status == 0 and facts["cubins"] == 8 and facts["file_bytes"] == path.stat().st_size
    assert facts["per_architecture"] == [[arch, 2] for arch in ARCHITECTURES]
    status, said, _ = command(capsys, "inspect", path)
    lines = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in said.splitlines())
    assert status == 0 and lines["median cubin bytes"] == "65" and lines["toolchain"] == TOOLCHAIN
    assert lines["per architecture"] == "sm_70 2, sm_90 2, sm_90a 2, sm_100 2"
    status, said, error = command(capsys, "inspect", path.with_name("none"))
    assert (status, said) == (1, "") and error.startswith("error: the bundle") and error.count("\n") == 1


def test_verify_exits_with_what_it_found(
    path: Path, keys: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(capsys, "verify", path) == (0, f"{path}: intact\n", "")
    assert command(capsys, "verify", path, "--key", keys[1])[0] == 1
    elsewhere = sign(path, keys[0]).rename(tmp_path / "elsewhere")
    status, said, _ = command(capsys, "verify", path, "--key", keys[1], "--signature", elsewhere)
    assert (status, said) == (0, f"{path}: intact, validly signed\n")
    assert command(capsys, "verify", path, "--signature", elsewhere)[0] == 1
    overwrite(path, path.stat().st_size - 40, b"damage")
    status, said, _ = command(capsys, "verify", path)
    assert status == 1 and "hash mismatch" in said


def test_building_a_bundle_signs_it_and_never_leaves_a_signature_of_another(
    tmp_path: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a builder instead of the compiler."""
    codegen = pytest.importorskip("codegen.__main__")
    cubins = tuple(some_cubins())
    monkeypatch.setattr(codegen.builder, "build", lambda *_, **__: codegen.builder.Report(cubins, 8, 0))
    runner, out = CliRunner(), tmp_path / "out" / "kernels.bundle"
    result = runner.invoke(codegen.main, ["bundle", "--output", str(out), "--sign", str(keys[0])])
    assert result.exit_code == 0, result.output
    assert Bundle(out, key=keys[1]).verify() == [] and f"signed: {out}.sig" in result.output
    for figure in ("8 cubins", "2 variants", f"{out.stat().st_size} bytes", "median cubin 65", "largest 65", " s;"):
        assert figure in result.output, result.output
    catalog = Bundle(out).catalog()
    assert catalog == (CHECKOUT / "generated" / "catalog.json").read_bytes()
    assert runner.invoke(codegen.main, ["bundle", "--output", str(out)]).exit_code == 0
    assert os.listdir(out.parent) == [out.name]


def test_a_key_that_cannot_sign_fails_before_anything_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codegen = pytest.importorskip("codegen.__main__")
    monkeypatch.setattr(codegen.builder, "build", lambda *_, **__: pytest.fail("compiled"))
    out = str(tmp_path / "b")
    result = CliRunner().invoke(codegen.main, ["bundle", "--output", out, "--sign", str(tmp_path / "none")])
    assert result.exit_code == 1 and "none cannot be read" in result.output and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "command",
    [("bundle", "--arch", "sm_90", "--output"), ("tune", "24", "--prepare", "sm_90", "--bundle")],
    ids=["bundle", "tune"],
)
@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("file/b", "Not a directory"),
        ("file/sub/b", "Not a directory"),
        ("", "it is a directory"),
        ("x" * 300, "File name too long"),
        ("/proc/b", "No such file or directory"),
    ],
    ids=["below a file", "further below a file", "a directory", "too long", "read-only"],
)
def test_a_file_that_cannot_be_written_fails_before_anything_is_compiled(
    command: tuple[str, ...], place: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codegen = pytest.importorskip("codegen.__main__")
    monkeypatch.setattr(codegen.builder, "build", lambda *_, **__: pytest.fail("compiled"))
    (tmp_path / "file").write_text("mine")
    result = CliRunner().invoke(codegen.main, [*command, str(tmp_path / place)])
    assert result.exit_code == 1 and result.output.count("\n") == 1
    assert f"Error: {tmp_path / place} cannot be written: {why}; --output or --bundle names" in result.output
    assert os.listdir(tmp_path) == ["file"]


def test_the_folder_of_a_bundle_is_made_and_holds_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codegen = pytest.importorskip("codegen.__main__")
    out, seen = tmp_path / "new" / "folder" / "b", []

    def build(*_: object, **__: object) -> object:
        seen.append(os.listdir(out.parent))
        return codegen.builder.Report(tuple(some_cubins()), 8, 0)

    monkeypatch.setattr(codegen.builder, "build", build)
    result = CliRunner().invoke(codegen.main, ["bundle", "--output", str(out)])
    assert result.exit_code == 0 and seen == [[]] and os.listdir(out.parent) == ["b"], result.output


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
