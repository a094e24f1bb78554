"""What importing does not do: use a GPU, write files, need torch. The command line needs none of this either."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import softmax_ops
from softmax_ops.__main__ import main as command_line

CHECKOUT = Path(softmax_ops.__file__).parents[1]

MODULES = {
    ".".join(path.relative_to(CHECKOUT).with_suffix("").parts).removesuffix(".__init__")
    for path in Path(softmax_ops.__file__).parent.rglob("*.py")
}

OF_TORCH = {"api", "autograd", "batching", "checks", "cpu", "derivatives", "dispatch", "modules", "ops"}
OF_TORCH |= {"current", "known", "layouts", "modes", "operands", "planned", "routes", "schema", "keywords"}
OF_TORCH |= {"transforms"}
OF_CUDA = {"driver", "launcher", "serving"}
TORCH_FREE = sorted(name for name in MODULES if not (OF_TORCH | OF_CUDA) & set(name.split(".")))

WATCH = """if True:
    import os, sys

    def watch(event, arguments):
        if event == "open":
            path, mode, flags = arguments
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and path != os.devnull:
                print("opened for writing:", path)
        elif event == "ctypes.dlopen" and arguments[0] is None:
            pass  # the program itself: what importing ctypes does
        elif event in ("os.mkdir", "os.rename", "os.remove", "subprocess.Popen", "ctypes.dlopen", "socket.connect"):
            print(event, *arguments)

    sys.addaudithook(watch)
"""

BLOCK = """if True:
    import sys

    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in {blocked}:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

    sys.meta_path.insert(0, Block())
"""


def python(code: str, *arguments: str) -> str:
    """The output of a fresh Python that writes no bytecode. Anything on stderr is a failure."""
    command = [sys.executable, "-B", "-c", code, *arguments]
    result = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, ""), result
    return result.stdout


def test_watching_sees_what_it_should() -> None:
    assert "opened for writing" in python(WATCH + "    open('/dev/full', 'w').close()")
    assert "os.mkdir" in python(WATCH + "    try: os.mkdir('/')\n    except OSError: pass")


@pytest.mark.parametrize("module", ["softmax_ops", *[name for name in TORCH_FREE if name != "softmax_ops"]])
def test_import_writes_nothing_and_brings_in_neither_torch_nor_cuda(module: str) -> None:
    before = "    before = set(sys.modules)\n"  # an installed .pth file may have imported something
    new = "{name.split('.')[0] for name in set(sys.modules) - before}"
    ask = f"    print(*{{'torch', 'numpy', 'cuda', 'jinja2', 'codegen', 'cryptography'}} & {new})"
    assert python(f"{WATCH}{before}    import {module}\n{ask}") == "\n"


def test_import_of_the_launcher_loads_no_driver() -> None:
    """cuda-bindings opens libcuda at its first call; version 12.9 runs `ldconfig -p` on import."""
    import_it = "    import softmax_ops.launcher\n"
    ask = "    print('libcuda' in open('/proc/self/maps').read(), 'torch' in sys.modules)"
    said = python(WATCH + import_it + ask)
    assert said.endswith("False False\n")
    assert "opened for writing" not in said and "os." not in said


def test_all_but_the_torch_interface_works_without_torch() -> None:
    """test_codegen.py says of which modules the interface consists."""
    assert {"softmax_ops.planning.launch_plan", "softmax_ops.explanation"} <= {*TORCH_FREE}
    modules = ", ".join([*TORCH_FREE, "softmax_ops.launcher", "softmax_ops.driver"])
    code = f"    import {modules}\n    print(softmax_ops.NoVariant)"
    said = python(BLOCK.format(blocked={"torch", "numpy"}) + code)
    assert said == "<class 'softmax_ops.planning.selection.NoVariant'>\n"


def test_the_torch_interface_says_that_torch_is_missing() -> None:
    code = "    import softmax_ops\n    try: softmax_ops.softmax\n    except ModuleNotFoundError as error: print(error)"
    assert python(BLOCK.format(blocked={"torch"}) + code) == "No module named 'torch'\n"


@pytest.mark.parametrize(
    ("arguments", "kernel"),
    [
        ("--shape 2,3,5,1000 --dtype f16 --mask causal", r"softmax_fwd_f16_causal_warp_k1024_v8_\w+ on sm_90\n"),
        ("--shape 2,3,5,1000 --dtype f16 --backward", r"softmax_bwd_f16_causal_warp_k1024_v8_\w+ on sm_90\n"),
        ("--shape 50257 --dtype bf16", r"softmax_fwd_bf16_none_cluster_k278528_v1_\w+c16 on sm_90\n"),
        ("--shape 8,50257 --dtype bf16 --arch sm_80", r"softmax_fwd_bf16_none_split_kany_v1_\w+ on sm_80\n"),
        ("--shape 8,512 --dtype bf16 --mask bias", r"softmax_fwd_bf16_bias_warp_k512_v8_\w+ on sm_90\n"),
        ("--shape 8,512 --dtype f16tof32 --mask general", r"softmax_fwd_f16tof32_general_warp_k512_v4_\w+ on sm_90\n"),
        ("--shape 8,512 --dtype f32tof16 --mask general --backward", r"softmax_bwd_f32tof16_general_\w+ on sm_90\n"),
    ],
)
def test_the_command_line_works_without_torch_and_cuda(arguments: str, kernel: str) -> None:
    code = "    from softmax_ops.__main__ import main\n    sys.exit(main(sys.argv[1:]))"
    said = python(BLOCK.format(blocked={"torch", "numpy", "cuda"}) + code, "explain", *arguments.split())
    assert re.match(kernel, said), said


def explained(arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert command_line(["explain", "--dtype", "f16", "--json", *arguments.split()]) == 0
    explanation: dict[str, Any] = json.loads(capsys.readouterr().out)
    return explanation


def test_the_command_line_tells_traffic_and_workspace(capsys: pytest.CaptureFixture[str]) -> None:
    """For both directions: the backward reads two tensors, and no mask."""
    size = 2 * 8 * 50257
    for arch, plan, times in [("sm_90", "cluster", 1), ("sm_80", "split", 2)]:
        said = explained(f"--shape 8,50257 --arch {arch}", capsys)
        assert (said["plan"], said["bytes_read"], said["bytes_written"]) == (plan, times * size, size)
        backward = explained(f"--shape 8,50257 --arch {arch} --backward", capsys)
        assert (backward["plan"], backward["bytes_read"], backward["bytes_written"]) == (plan, 2 * times * size, size)
        assert (said["workspace_bytes"] > 0) == (backward["workspace_bytes"] > 0) == (plan == "split")
    assert (
        explained("--shape 8,16,4,1000 --mask bool --mask-shape 8,1,1,1000", capsys)["bytes_read"] == 2 * 512000 + 8000
    )
    assert explained("--shape 8,16,4,1000 --mask bias --mask-shape 16,4,1000", capsys)["bytes_read"] == 2 * 576000
    assert explained(f"--shape 4,1000 --mask causal --causal-offset {10**30}", capsys)["bytes_read"] == 8000
    assert explained(f"--shape 4,1000 --mask causal --causal-offset -{10**30}", capsys)["bytes_read"] == 0
    many = explained("--shape 2000000000,4 --mask causal", capsys)  # the last query sees 4 columns
    assert (many["bytes_read"], many["bytes_written"]) == (2 * (1 + 2 + 3 + 4), 16 * 10**9)
    assert len(explained(f"--shape {2**43},1", capsys)["grid"]) == 4097
    wide = explained("--dtype f16tof32 --mask general --shape 3,1000", capsys)
    assert (wide["bytes_read"], wide["bytes_written"]) == (6000, 12000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--shape 3,7 --mask bool --backward",
            "--backward takes no mask and no bias",
        ),
        ("--shape 3,7 --dtype f16tof32", "no fwd f16tof32 kernel ships for mask kind 'none'; these do: band, general"),
        ("--shape 3,7 --dtype f32tof16", "--dtype f32tof16 goes with --backward"),
        ("--shape 2,2147483647", "rows of 2147483647 columns; the longest is 2146435072"),
        ("--shape 3,7 --causal-offset 1", "--causal-offset goes with --mask causal or boolcausal"),
        ("--shape 3,7 --mask-shape 1,7", "--mask-shape goes with --mask bool, boolcausal, like or bias"),
        ("--shape 3,7 --mask bool --mask-shape 2,7", "a mask of shape (2, 7) does not broadcast to (3, 7)"),
        *(
            (f"--shape {rows},4", f"a result of shape ({rows}, 4) has {8 * rows} bytes, more than any GPU holds")
            for rows in (2**41 + 1, 9999999999999999, 99999999999999999999)
        ),
        (
            "--shape 3,7 --arch sm_87",
            "sm_120, or a later minor version, except sm_72, sm_87, sm_101, sm_110: integrated GPUs (Tegra, Jetson)",
        ),
    ],
)
def test_the_command_line_fails_in_a_sentence(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["explain", "--dtype", "f16", *arguments.split()]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and message in said.err and said.err.count("\n") == 1


def test_public_names() -> None:
    assert set(softmax_ops.__all__) <= set(dir(softmax_ops))
    with pytest.raises(AttributeError, match="module 'softmax_ops' has no attribute 'softmin'"):
        _ = softmax_ops.softmin


def test_a_reader_that_has_seen_enough_ends_the_command_in_silence() -> None:
    """Like `head`, which closes the pipe."""
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-B", "-m", "softmax_ops", "config"]
    result = subprocess.run(command, cwd=CHECKOUT, stdout=writes, stderr=subprocess.PIPE, text=True)
    os.close(writes)
    assert (result.returncode, result.stderr) == (-signal.SIGPIPE, "")
