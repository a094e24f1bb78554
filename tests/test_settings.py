"""The table of environment variables: defaults, units, bad values, hosts without a home."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from softmax_ops.__main__ import main as command_line
from softmax_ops.artifacts import settings
from tests.support.cubins import CHECKOUT

NAMES = (
    "SOFTMAX_OPS_BUNDLE",
    "SOFTMAX_OPS_CACHE_DIR",
    "SOFTMAX_OPS_CACHE_MAX_BYTES",
    "SOFTMAX_OPS_COMPILE",
    "SOFTMAX_OPS_NATIVE",
    "SOFTMAX_OPS_PUBLIC_KEY",
)
PATHS = ("SOFTMAX_OPS_BUNDLE", "SOFTMAX_OPS_CACHE_DIR", "SOFTMAX_OPS_PUBLIC_KEY")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*NAMES, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_defaults(tmp_path: Path) -> None:
    assert [settings.read(name) for name in NAMES] == [
        None,
        tmp_path / ".cache/softmax_ops",
        2 << 30,
        "auto",
        "auto",
        None,
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_empty_means_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unset = settings.read(name)
    monkeypatch.setenv(name, "")
    assert settings.read(name) == unset
    assert {setting.source for setting in settings.table()} == {"default"}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        *(("0", 0), ("1024", 1024), ("7B", 7), ("2GiB", 2 << 30), ("500 MB", 500 * 10**6), ("1kb", 1000)),
        *(("3tib", 3 << 40), ("5 ", 5), (" 5", 5), ("2 GiB ", 2 << 30), ("\t2GiB\n", 2 << 30)),
    ],
)
def test_byte_counts(text: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTMAX_OPS_CACHE_MAX_BYTES", text)
    assert settings.read("SOFTMAX_OPS_CACHE_MAX_BYTES") == count


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        *(
            ("SOFTMAX_OPS_CACHE_MAX_BYTES", bad, "2GiB")
            for bad in ("2G", "-1", "1.5GiB", "lots", "GiB", "0x10", "\u0663", " ")
        ),
        *(("SOFTMAX_OPS_COMPILE", bad, "auto, never") for bad in ("yes", "AUTO", "0", "auto ")),
        ("SOFTMAX_OPS_NATIVE", "always", "auto, never"),
        *((name, "~nobody-of-that-name/file", "a path") for name in PATHS),
    ],
)
def test_a_bad_value_is_named_with_what_is_wanted(
    name: str, text: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(ValueError) as raised:
        settings.read(name)
    assert all(part in str(raised.value) for part in (name, repr(text), wanted))
    (row,) = (setting for setting in settings.table() if setting.name == name)
    assert (row.value, row.source, row.problem) == (None, "environment", str(raised.value))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"SOFTMAX_OPS_NOPE is no setting.*SOFTMAX_OPS_COMPILE"):
        settings.read("SOFTMAX_OPS_NOPE")


@pytest.mark.parametrize("name", PATHS)
def test_paths_become_absolute_and_know_home(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text, path in (("~/a", tmp_path / "a"), (f"b/../{name}", Path.cwd() / name), ("/d", Path("/d"))):
        monkeypatch.setenv(name, text)
        assert settings.read(name) == path


@pytest.mark.parametrize("name", PATHS)
def test_a_relative_path_stays_where_it_was_when_it_was_first_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, f"of/{name}")
    assert settings.read(name) == tmp_path / "of" / name
    monkeypatch.chdir("/")
    assert settings.read(name) == tmp_path / "of" / name


def test_a_relative_path_needs_a_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setenv("SOFTMAX_OPS_BUNDLE", "relative to nothing")
    with pytest.raises(ValueError, match="wanted an absolute path: the working directory is gone"):
        settings.read("SOFTMAX_OPS_BUNDLE")


@pytest.mark.parametrize("home", [None, "", "relative", "/nonexistent/home", "/dev/null"])
def test_without_a_usable_home_there_is_no_cache(home: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
    assert settings.read("SOFTMAX_OPS_CACHE_DIR") is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert settings.read("SOFTMAX_OPS_CACHE_DIR") == Path("/var/cache/me/softmax_ops")


def test_a_relative_xdg_directory_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert settings.read("SOFTMAX_OPS_CACHE_DIR") == tmp_path / ".cache/softmax_ops"


def test_the_table_has_every_variable_with_value_source_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTMAX_OPS_COMPILE", "never")
    rows = settings.table()
    assert tuple(row.name for row in rows) == NAMES and len(rows) < 10
    assert [row.source for row in rows] == ["default"] * 3 + ["environment"] + ["default"] * 2
    assert rows[3].value == "never" and all(row.problem is None for row in rows)
    for row in rows:
        assert row.type and row.default and row.description and "\n" not in row.description
        assert hash(row) == hash(row) and row.name in repr(row)


def test_the_command_prints_each_value_and_where_it_comes_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("SOFTMAX_OPS_CACHE_DIR", str(tmp_path / "kernels"))
    assert command_line(["config", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert tuple(rows) == NAMES
    cache = rows["SOFTMAX_OPS_CACHE_DIR"]
    assert (cache["value"], cache["source"], cache["type"]) == (str(tmp_path / "kernels"), "environment", "path")
    assert (rows["SOFTMAX_OPS_BUNDLE"]["value"], rows["SOFTMAX_OPS_BUNDLE"]["source"]) == (None, "default")
    assert command_line(["config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(NAMES)
    assert f"{tmp_path}/kernels" in lines[1] and "(environment)" in lines[1] and "(default)" in lines[0]


def test_the_command_fails_for_a_value_that_cannot_be_used_and_prints_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOFTMAX_OPS_COMPILE", "maybe")
    assert command_line(["config"]) == 1
    said = capsys.readouterr().out
    assert "SOFTMAX_OPS_COMPILE is 'maybe'; wanted one of auto, never" in said and len(said.splitlines()) == len(NAMES)


def test_every_variable_that_the_package_reads_is_in_the_table() -> None:
    """No other code reads the environment."""
    read = {
        path.name: set(re.findall(r"SOFTMAX_OPS_[A-Z_]+", path.read_text())) - set(NAMES)
        for path in [*(CHECKOUT / "softmax_ops").rglob("*.py"), *(CHECKOUT / "codegen").rglob("*.py")]
    }
    assert {name: unknown for name, unknown in read.items() if unknown} == {}


def test_nothing_is_read_at_import() -> None:
    script = (
        "import os; seen = []; real = type(os.environ).__getitem__\n"
        "type(os.environ).__getitem__ = lambda self, key: (seen.append(key), real(self, key))[1]\n"
        "import softmax_ops.artifacts.settings, softmax_ops.artifacts\n"
        "print([key for key in seen if key.startswith(('SOFTMAX', 'HOME', 'XDG'))])"
    )
    environment = {**os.environ, "SOFTMAX_OPS_COMPILE": "nonsense"}
    output = subprocess.run(
        [sys.executable, "-c", script], cwd=CHECKOUT, env=environment, capture_output=True, text=True
    )
    assert (output.stdout, output.stderr) == ("[]\n", "")
