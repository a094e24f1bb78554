"""`python -m tests.on_gpu`: the test cases of every shipped kernel on the GPU here, with the kernels of a bundle.

    python -m tests.on_gpu --bundle build/sm_90.bundle --jobs 8 --json build/on_gpu.json
    compute-sanitizer --tool memcheck python -m tests.on_gpu --sample 12

Needs no compiler: cubins come from the bundle, expected numbers from the float64 reference. With one job, the default,
everything runs in this process, where a sanitizer sees it; but an illegal access leaves a process without a usable
context, and a kernel that never ends can only be ended with its process. With more jobs, either costs one of several
processes, and another one goes on with the next variant.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from codegen import variants
from softmax_ops import driver
from softmax_ops.artifacts import catalog, settings
from softmax_ops.artifacts.bundle import Bundle
from softmax_ops.artifacts.cubin import Absent, built_for
from softmax_ops.planning.launch_plan import LaunchPlan
from tests.support.cases import cases
from tests.support.engines import DriverEngine, NoRoom, Operands, Outcome, gpu_architecture
from tests.support.outcomes import judge
from tests.support.watchdog import limited

CHECKOUT = Path(__file__).resolve().parents[1]

SHARD = 15
"""Variants that one process begins with."""

START_S = 60.0
"""Time that a process may need besides the limits of its variants."""


class Engine(Protocol):
    """One of tests/support/engines.py."""

    def run(self, plan: LaunchPlan, operands: Operands) -> Outcome: ...


Engines = Callable[[str], Engine]
"""The engine for a variant. Raises Absent."""


@dataclass(frozen=True)
class Verdict:
    """The number of a variant's cases that ran, and of those that the GPU has no room for. What is wrong in one line,
    or "". `lost` means that the process can run nothing more."""

    variant: str
    cases: int
    failure: str = ""
    lost: bool = False
    without_room: int = 0


def verdict(variant: str, engines: Engines) -> Verdict:
    """Runs all cases of a variant."""
    ran, without_room, failures = 0, 0, []
    try:
        engine = engines(variant)
        for case in cases(variants.by_name()[variant]):
            call = case.call()
            ran += 1
            try:
                judge(call, engine.run(call.plan, call.operands))
            except NoRoom:
                ran, without_room = ran - 1, without_room + 1
            except driver.DriverError as error:
                failures.append(f"{case.why}: {_line(error)}")
                if not _answers():
                    return Verdict(variant, ran, failures[-1], lost=True)
            except Exception as error:  # whatever it is, other cases may fail as well
                failures.append(_line(error))
    except (Absent, driver.DriverError) as error:
        return Verdict(variant, ran, _line(error))
    why = f"{len(failures)} of {ran} cases; {failures[0]}" if failures else ""
    return Verdict(variant, ran, why, without_room=without_room)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def _answers() -> bool:
    """Whether the context is usable; after an illegal access every call returns its error."""
    from cuda.bindings import driver as cuda

    (status,) = cuda.cuCtxSynchronize()
    return status == cuda.CUresult.CUDA_SUCCESS


def here(
    names: Iterable[str], engines: Engines, limit_s: float, last_words: Callable[[Verdict], object]
) -> Iterator[Verdict]:
    """Verdicts from this process, until it is lost. A variant that exceeds its limit ends it, after last words."""
    for name in names:
        hung = Verdict(name, 0, f"not finished in {limit_s:g} s", lost=True)
        with limited(limit_s, partial(last_words, hung)):
            found = verdict(name, engines)
        yield found
        if found.lost:
            return


def apart(names: Sequence[str], command: Sequence[str], limit_s: float) -> list[Verdict]:
    """Verdicts from processes that take names on standard input and print a verdict per line, in order.

    When a process ends early, the variant that it was at has failed, and another process goes on with the next one.
    """
    found: list[Verdict] = []
    while left := list(names[len(found) :]):
        out, why = _ended(command, left, len(left) * limit_s + START_S)
        told = [Verdict(**json.loads(line)) for line in out.split("\n")[:-1]]
        found += told
        if len(told) < len(left) and not (told and told[-1].lost):
            found.append(Verdict(left[len(told)], 0, why, lost=True))
    return found


def _ended(command: Sequence[str], names: Iterable[str], limit_s: float) -> tuple[str, str]:
    """The output of a process, and how it ended."""
    process = subprocess.Popen(
        command, cwd=CHECKOUT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        out, error = process.communicate("\n".join(names), timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0], f"its process was not finished in {limit_s:g} s"
    return out, f"its process ended with status {process.returncode}: {''.join(error.splitlines()[-1:])}"


def in_processes(names: Sequence[str], command: Sequence[str], limit_s: float, jobs: int) -> Iterator[Verdict]:
    """Verdicts from this many processes at a time, as they end."""
    shards = [names[start : start + SHARD] for start in range(0, len(names), SHARD)]
    with ThreadPoolExecutor(jobs) as pool:
        for told in as_completed([pool.submit(apart, shard, command, limit_s) for shard in shards]):
            yield from told.result()


def from_bundle(bundle: Bundle, arch: str, variant: str) -> DriverEngine:
    """The GPU, with the cubin of a variant. Raises Absent if the bundle has none from the current source."""
    source = catalog.load().variants[variant].source
    return DriverEngine({variant: bundle.find(variant, arch, source=source)})


def chosen(arch: str, only: str = "", first: int | None = None, sample: int | None = None) -> list[str]:
    """The variants shipped for an architecture whose names contain a match: all, the first, or some spread evenly."""
    every = [spec.name for spec in variants.shipped() if arch in variants.architectures(spec)]
    found = [name for name in every if re.search(only, name)][:first]
    count = len(found) if sample is None else min(sample, len(found))
    return [found[number * len(found) // count] for number in range(count)]


def main(arguments: Sequence[str] | None = None) -> int:
    options, gpu = _parser().parse_args(arguments), gpu_architecture()
    path = options.bundle or settings.read("SOFTMAX_OPS_BUNDLE")
    if gpu is None or path is None:
        print("error: no GPU here" if gpu is None else "error: no bundle: name one with --bundle", file=sys.stderr)
        return 1
    bundle = Bundle(Path(path).resolve())
    try:
        arch = built_for(gpu, bundle.architectures()) or gpu
    except Absent as absence:
        print(f"error: {absence.reason}", file=sys.stderr)
        return 1
    engines = partial(from_bundle, bundle, arch)
    if options.worker or options.jobs == 1:
        driver.ensure_context(DriverEngine.DEVICE)  # takes seconds if many processes begin, of nobody's limit
    if options.worker:
        for found in here(sys.stdin.read().split(), engines, options.limit, _tell):
            _tell(found)
        return 0
    names = chosen(arch, options.only, options.first, options.sample)
    if options.jobs == 1:
        return _summary(names, here(names, engines, options.limit, _report), arch, options.json)
    command = [sys.executable, "-m", "tests.on_gpu", "--worker", f"--bundle={bundle.path}", f"--limit={options.limit}"]
    return _summary(names, in_processes(names, command, options.limit, options.jobs), arch, options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.on_gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", type=Path, help="default: SOFTMAX_OPS_BUNDLE")
    parser.add_argument("--only", default="", metavar="REGEX", help="only variants whose names contain a match")
    parser.add_argument("--first", type=int, metavar="N", help="only the first N of them")
    parser.add_argument("--sample", type=int, metavar="N", help="only N of them, spread evenly")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes; 1, the default: this one")
    parser.add_argument("--limit", type=float, default=60.0, metavar="SECONDS", help="of a variant; default: 60")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a summary there")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # the processes of --jobs
    return parser


def _tell(found: Verdict) -> None:
    print(json.dumps(asdict(found)), flush=True)


def _report(found: Verdict) -> None:
    if found.failure:
        print(f"FAILED {found.variant}: {found.failure}", flush=True)


def _summary(names: Sequence[str], verdicts: Iterable[Verdict], arch: str, path: Path | None) -> int:
    """Prints failures as they are found and counts at the end, and writes both each time; returns the exit status."""
    found: list[Verdict] = []
    start = time.monotonic()

    def told() -> tuple[dict[str, Any], dict[str, str], list[str]]:
        failed = {each.variant: each.failure for each in found if each.failure}
        left = sorted({*names} - {each.variant for each in found})
        facts: dict[str, Any] = {"arch": arch, "right": len(found) - len(failed)}
        facts |= {"cases": sum(each.cases for each in found), "without_room": sum(each.without_room for each in found)}
        facts |= {"seconds": round(time.monotonic() - start, 1)}
        if path is not None:
            partial_file = path.with_suffix(".part")
            partial_file.write_text(json.dumps({**facts, "failed": failed, "left": left}, indent=1) + "\n")
            partial_file.replace(path)
        return facts, failed, left

    for each in verdicts:
        _report(each)
        found.append(each)
        told()
    facts, failed, left = told()
    print(f"{arch}: {facts['right']} of {len(names)} variants right, {facts['cases']} cases, {facts['seconds']} s")
    if facts["without_room"]:
        print(f"{facts['without_room']} cases were not run: their clusters have more CTAs than this GPU has room for")
    if left:
        print(f"{len(left)} were not run, since this process is lost: --jobs 2 goes on in another one")
    return int(bool(failed or left or not names))


if __name__ == "__main__":
    sys.exit(main())
