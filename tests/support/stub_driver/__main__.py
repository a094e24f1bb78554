"""Runs each test in a process of its own, forked from this one, which imports the test modules but uses nothing.

Reads a line for each test, [node, environment], and writes one, [exit status of the process, its output].
"""

import gc
import io
import json
import os
import sys
import tempfile
from contextlib import redirect_stdout

import pytest

OPTIONS = ["--noconftest", "-p", "no:cacheprovider", "-o", "addopts=", "-q", "--no-header", "--tb=short"]


def main() -> int:
    imported = set()
    while request := sys.stdin.readline():
        node, environment = json.loads(request)
        module, _, _ = node.partition("::")
        if module not in imported:
            with redirect_stdout(io.StringIO()):
                pytest.main([*OPTIONS, "--collect-only", module])
            imported.add(module)
            gc.freeze()  # pytest collects garbage before it ends: spares each process half of its time
        with tempfile.TemporaryDirectory() as folder, open(f"{folder}/output", "w+", errors="replace") as output:
            child = os.fork()
            if child == 0:
                os.environ.clear()
                os.environ.update(environment)
                for stream in (sys.stdout, sys.stderr):
                    os.dup2(output.fileno(), stream.fileno())
                status = pytest.main([*OPTIONS, f"--basetemp={folder}/tmp", node])
                sys.stdout.flush()
                os._exit(status)
            _, status = os.waitpid(child, 0)
            output.seek(0)
            print(json.dumps([status, output.read()]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
