"""What identifies an entry of the cache: everything that affects the bytes, and nothing else.

Each ingredient is changed at its source: a compiler's answer, an option, a header of each tree. Irrelevant things are
changed in a separate process, on a copy of the checkout.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("codegen.toolchain")

from codegen import render, sources, toolchain, variants
from softmax_ops.artifacts.cache import Cache
from tests.support.cubins import CHECKOUT, NAME, hidden

SOURCE = render.render(variants.by_name()[NAME])
TREES = tuple(tree.package for tree in toolchain.headers())
Patch = pytest.MonkeyPatch


def fingerprint(source: str = SOURCE, arch: str = "sm_90", kind: str = "cubin") -> str:
    return toolchain.fingerprint(source, arch, kind)


def ptx_build(ptx: bytes, build: bytes) -> bytes:
    return ptx.replace(b"Compiler Build ID: ", b"Compiler Build ID: " + build)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Makes the compiler's identification be read anew, and forgotten afterwards."""
    toolchain.compiler_build.cache_clear()
    yield
    toolchain.compiler_build.cache_clear()


# ---- what changes it


@pytest.mark.parametrize(
    "changed",
    [
        {"source": SOURCE + "\n"},
        {"source": SOURCE.replace("0", "1", 1)},
        {"arch": "sm_100"},
        {"arch": "sm_80"},
        {"kind": "ptx"},
    ],
    ids=["a blank line", "a digit", "a later architecture", "an earlier one", "kind"],
)
def test_what_is_asked_for(changed: dict[str, str]) -> None:
    assert fingerprint(**changed) != fingerprint()


def test_two_architectures_of_one_front_end() -> None:
    assert toolchain.family("sm_86") == toolchain.family("sm_80")
    assert fingerprint(arch="sm_86") != fingerprint(arch="sm_80")


@pytest.mark.parametrize("program", ["compiler", "linker"])
def test_another_build_of_the_same_version(program: str, monkeypatch: Patch, fresh_compiler: None) -> None:
    """Another build of NVRTC, or of nvJitLink, as each identifies itself in the PTX that it writes."""
    before = fingerprint()
    real_compile, real_link = toolchain._compile, toolchain._link
    if program == "compiler":
        monkeypatch.setattr(toolchain, "_compile", lambda *given: ptx_build(real_compile(*given), b"other-"))
    else:

        def link(*given):
            image = real_link(*given)
            return replace(image, code=ptx_build(image.code, b"other-"))

        monkeypatch.setattr(toolchain, "_link", link)
    toolchain.compiler_build.cache_clear()
    assert "other-" in toolchain.compiler_build() and fingerprint() != before


@pytest.mark.parametrize("table", ["_COMPILE_OPTIONS", "_LINK_OPTIONS"])
@pytest.mark.parametrize("change", ["one more", "one fewer", "another order"])
def test_an_option(table: str, change: str, monkeypatch: Patch) -> None:
    options = getattr(toolchain, table)
    changed = {"one more": (*options, "-x"), "one fewer": options[1:], "another order": options[::-1]}[change]
    before = fingerprint()
    monkeypatch.setattr(toolchain, table, changed)
    assert fingerprint() != before


def test_an_option_of_one_kind(monkeypatch: Patch) -> None:
    cubin, ptx = fingerprint(), fingerprint(kind="ptx")
    monkeypatch.setattr(toolchain, "_KIND_OPTIONS", {**toolchain._KIND_OPTIONS, "ptx": ()})
    assert fingerprint(kind="ptx") != ptx and fingerprint() == cubin


def test_the_schema(monkeypatch: Patch) -> None:
    before = fingerprint()
    monkeypatch.setattr(toolchain, "SCHEMA", toolchain.SCHEMA + 1)
    assert fingerprint() != before


def altered(tree: sources.Headers, folder: Path, change: Callable[[Path], object]) -> sources.Headers:
    """A tree of the same package with a few headers, one of them changed."""
    for name in ("a.h", "sub/b.h"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    change(folder)
    return sources.Headers(tree.package, folder)


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda root: (root / "sub/b.h").write_text("sub/b,h"),
    "name": lambda root: (root / "a.h").rename(root / "c.h"),
    "folder": lambda root: (root / "a.h").rename(root / "sub/a.h"),
    "one more": lambda root: (root / "sub/c.h").write_text(""),
    "one fewer": lambda root: (root / "a.h").unlink(),
    "contents exchanged": lambda root: ((root / "a.h").write_text("sub/b.h"), (root / "sub/b.h").write_text("a.h")),
    "one swallowed by another": lambda root: (root / "sub/b.h").rename(root / "a.h").write_text("a.hsub/b.hsub/b.h"),
}


@pytest.mark.parametrize("package", TREES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_header(package: str, change: str, tmp_path: Path, monkeypatch: Patch) -> None:
    """A header of the project, of CuTe, of the CUDA run time, or of CCCL."""
    trees = toolchain.headers()
    at = TREES.index(package)
    prints = set()
    for folder, what in (("before", lambda _: None), ("after", CHANGES[change])):
        (tmp_path / folder).mkdir()
        tree = altered(trees[at], tmp_path / folder, what)
        monkeypatch.setattr(toolchain, "headers", lambda tree=tree: (*trees[:at], tree, *trees[at + 1 :]))
        prints.add(fingerprint())
    assert len(prints) == 2


def test_the_order_in_which_headers_are_searched(monkeypatch: Patch) -> None:
    before, trees = fingerprint(), toolchain.headers()
    monkeypatch.setattr(toolchain, "headers", lambda: trees[::-1])
    assert fingerprint() != before


# ---- what does not


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout at another path, with new time stamps on every file."""
    root = tmp_path_factory.mktemp("elsewhere") / "another name"
    for name in ("codegen", "softmax_ops", "templates"):
        shutil.copytree(CHECKOUT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in root.rglob("*"):
        os.utime(path, (1, 1))
    return root


IRRELEVANT = {
    "nothing": ({}, ""),
    "hash seed": ({"PYTHONHASHSEED": "4242"}, ""),
    "clock": ({"TZ": "Asia/Kathmandu"}, "import time; time.time = lambda: 4e9; time.time_ns = lambda: 4 * 10**18; "),
    "language": ({"LC_ALL": "C", "LANG": "tr_TR.UTF-8"}, ""),
    "home and user": ({"HOME": "/nonexistent", "USER": "nobody", "LOGNAME": "nobody"}, ""),
    "working directory": ({}, "import os; os.chdir('/'); "),
    "file mode mask": ({}, "import os; os.umask(0o077); "),
    "settings": ({"SOFTMAX_OPS_CACHE_DIR": "/nonexistent", "SOFTMAX_OPS_COMPILE": "never"}, ""),
}


@pytest.mark.parametrize("what", IRRELEVANT)
def test_place_time_and_process_are_irrelevant(what: str, copy: Path) -> None:
    """The fingerprint of a checkout elsewhere, and the digest in the catalog."""
    environment, before = IRRELEVANT[what]
    program = (
        f"{before}from codegen import render, sources, toolchain, variants; "
        f"source = render.render(variants.by_name()[{NAME!r}]); "
        "print(toolchain.fingerprint(source, 'sm_90', 'cubin'), sources.source_digest(source), render.__file__)"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    own = f"{fingerprint()} {sources.source_digest(SOURCE)} {copy}/codegen/render.py"
    assert result.stdout.strip() == own


def test_where_headers_are_installed_is_irrelevant(tmp_path: Path, monkeypatch: Patch) -> None:
    """All four trees, reached through another path."""
    before, moved = fingerprint(), []
    for number, tree in enumerate(toolchain.headers()):
        (tmp_path / f"{number}").symlink_to(tree.root, target_is_directory=True)
        moved.append(sources.Headers(tree.package, tmp_path / f"{number}" / "."))
    monkeypatch.setattr(toolchain, "headers", lambda: tuple(moved))
    assert fingerprint() == before


@pytest.mark.kernels
def test_the_bytes_are_those_of_the_fingerprint_wherever_they_are_compiled(copy: Path, tmp_path: Path) -> None:
    """What a checkout elsewhere compiled on another day is found by this one, which would compile the same bytes."""
    program = (
        "import time; time.time = lambda: 4e9\n"
        "from codegen import build, variants\n"
        "from softmax_ops.artifacts.cache import user_cache\n"
        f"build.build([variants.by_name()[{NAME!r}]], ['sm_90'], user_cache(), jobs=1, progress=False)"
    )
    environment = {**os.environ, "PYTHONPATH": str(copy), "SOFTMAX_OPS_CACHE_DIR": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    cache = Cache(tmp_path / "cache", max_bytes=1 << 30)
    (here,) = toolchain.compile_unit({NAME: SOURCE}, ["sm_90"])
    assert cache.find(NAME, "sm_90", fingerprint=fingerprint()) == here and hidden(cache, ".") == []
