"""What importing does not do: touch a GPU, write anywhere, need torch."""

import subprocess
import sys
from pathlib import Path

import pytest

import softmax_ops

CHECKOUT = Path(softmax_ops.__file__).parents[1]

TORCH_FREE = sorted(
    ".".join(path.relative_to(CHECKOUT).with_suffix("").parts).removesuffix(".__init__")
    for path in Path(softmax_ops.__file__).parent.rglob("*.py")
    if path.stem not in ("api", "checks", "cpu", "driver", "launcher")
)

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
    """What a fresh python prints, which writes no bytecode. Anything on stderr fails."""
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
    ask = f"    print(*{{'torch', 'numpy', 'cuda', 'jinja2', 'codegen'}} & {new})"
    assert python(f"{WATCH}{before}    import {module}\n{ask}") == "\n"


def test_import_of_the_launcher_loads_no_driver() -> None:
    """cuda-bindings opens libcuda at its first call; that of 12.9 runs `ldconfig -p` when it is imported."""
    import_it = "    import softmax_ops.launcher\n"
    ask = "    print('libcuda' in open('/proc/self/maps').read(), 'torch' in sys.modules)"
    said = python(WATCH + import_it + ask)
    assert said.endswith("False False\n")
    assert "opened for writing" not in said and "os." not in said


def test_all_but_the_torch_interface_works_without_torch() -> None:
    modules = ", ".join([*TORCH_FREE, "softmax_ops.launcher", "softmax_ops.driver"])
    code = f"    import {modules}\n    print(softmax_ops.NoVariant)"
    assert python(BLOCK.format(blocked={"torch", "numpy"}) + code) == "<class 'softmax_ops.plan.NoVariant'>\n"


def test_the_torch_interface_says_that_torch_is_missing() -> None:
    code = "    import softmax_ops\n    try: softmax_ops.softmax\n    except ModuleNotFoundError as error: print(error)"
    assert python(BLOCK.format(blocked={"torch"}) + code) == "No module named 'torch'\n"


def test_the_command_line_works_without_torch_and_cuda() -> None:
    code = "    from softmax_ops.__main__ import main\n    sys.exit(main(sys.argv[1:]))"
    arguments = ("explain", "--shape", "2,3,5,1000", "--dtype", "f16", "--mask", "causal")
    said = python(BLOCK.format(blocked={"torch", "numpy", "cuda"}) + code, *arguments)
    assert said.startswith("softmax_fwd_f16_causal_warp_k1024_v8_t128r4 on sm_90\n")


def test_public_names() -> None:
    assert set(softmax_ops.__all__) <= set(dir(softmax_ops))
    with pytest.raises(AttributeError, match="module 'softmax_ops' has no attribute 'softmin'"):
        _ = softmax_ops.softmin
