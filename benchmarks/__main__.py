"""`python -m benchmarks`: run the cells on a GPU, draw what was measured, measure costs, predict without a GPU."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from softmax_ops.artifacts.terminal import prepare_output
from tests.support.watchdog import LOST

from . import costs, report
from .cells import Cell, cells
from .providers import PEERS
from .results import FILE, FOLDER, PATIENCE, TURN_LIMIT_S, Results, folder_of


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return options.command(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    gpu = commands.add_parser("gpu", help="fail where there is no GPU to measure")
    gpu.set_defaults(command=_gpu)

    run = commands.add_parser("run", help="measure what is not measured yet, in rank order")
    run.add_argument("--budget", type=_seconds, default=480.0, metavar="480s", help="then no new cell is begun")
    run.add_argument("--first", type=int, default=len(cells()), metavar="N", help="only the first N cells")
    run.add_argument("--only", default="", metavar="TEXT", help="only cells with this in their names")
    run.add_argument("--skip", action="append", default=[], choices=PEERS, help="leave this peer out")
    limit = f"a provider's turn in a cell that takes longer ends the run, with status {LOST}"
    run.add_argument("--limit", type=_seconds, default=TURN_LIMIT_S, metavar=f"{TURN_LIMIT_S:g}s", help=limit)
    patience = "stop after so many of our kernels have failed in a row"
    run.add_argument("--patience", type=int, default=PATIENCE, metavar=f"{PATIENCE}", help=patience)
    run.add_argument("--results", type=Path, help=f"default: {FOLDER.name}/<device>/{FILE}")
    run.set_defaults(command=_run)

    profiled = commands.add_parser("profile", help="the hardware's counters of our kernel in some cells; needs ncu")
    profiled.add_argument("only", metavar="TEXT", help="cells with this in their names")
    profiled.set_defaults(command=_profile)

    once = commands.add_parser("once", help="compute one cell once, for a profiler to look at")
    once.add_argument("cell", type=_cell, help="its name, as `list` prints it")
    once.set_defaults(command=_once)

    listed = commands.add_parser("list", help="the cells by rank")
    listed.set_defaults(command=_list)

    drawn = commands.add_parser("report", help="README's table, docs/benchmarks.md and pictures from the results")
    drawn.set_defaults(command=_report)

    cost = commands.add_parser("costs", help="what compiling and loading cost; needs no GPU")
    cost.add_argument("which", nargs="+", choices=sorted(costs.MEASURES))
    cost.add_argument("--results", type=Path, default=FOLDER / costs.FILE, help=f"default: {FOLDER.name}/{costs.FILE}")
    cost.set_defaults(command=_costs)
    quack = commands.add_parser("quack", help="compile QuACK's softmax for a GPU machine that cannot install it")
    quack.add_argument("--first", type=int, default=len(cells()), metavar="N", help="for the first N cells")
    quack.set_defaults(command=_quack)

    predicted = commands.add_parser("predict", help="what an H200 would do, from instructions and bytes; needs no GPU")
    predicted.set_defaults(command=_predict)

    compared = commands.add_parser("compare", help="predictions against results of a device")
    compared.add_argument("results", type=_results_of, metavar="device", help=f"a folder of {FOLDER.name}/")
    compared.set_defaults(command=_compare)
    return parser


def _seconds(text: str) -> float:
    """
    >>> _seconds("480s"), _seconds("2")
    (480.0, 2.0)
    """
    return float(text.removesuffix("s"))


def _cell(key: str) -> Cell:
    for cell in cells():
        if cell.key == key:
            return cell
    raise argparse.ArgumentTypeError(f"no cell has the name {key!r}; `python -m benchmarks list` prints the names")


def _results_of(device: str) -> Path:
    path = FOLDER / device / FILE
    if path.is_file():
        return path
    measured = ", ".join(sorted(found.parent.name for found in FOLDER.glob(f"*/{FILE}")))
    there = f"there are those of {measured}" if measured else "there are none: `python -m benchmarks run` makes them"
    raise argparse.ArgumentTypeError(f"there are no results of {device!r} in {FOLDER}; {there}")


def _gpu(options: argparse.Namespace) -> int:
    from .device import Cuda, NoDevice

    try:
        print(Cuda().name)
    except NoDevice as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> int:
    from .device import Cuda, NoDevice
    from .measure import DeviceLost
    from .providers import every, without
    from .run import run

    try:
        device = Cuda()
        chosen = [cell for cell in cells()[: options.first] if options.only in cell.key]
        path = options.results or FOLDER / folder_of(device.name) / FILE
        providers = [without(each) if each.name in options.skip else each for each in every()]
        more = {"limit_s": options.limit, "patience": options.patience}
        results = run(chosen, device, providers, path, options.budget, **more)
    except NoDevice as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        if isinstance(error, DeviceLost):
            os._exit(LOST)  # not through destructors, which end a process in another way when its device is lost
        return 1
    failures = [cell.key for cell in chosen if (row := results.row(cell)) and row.is_failure]
    if failures:
        print(f"{len(failures)} cells failed: {'; '.join(failures)}", file=sys.stderr)
    return int(bool(failures))


def _profile(options: argparse.Namespace) -> int:
    from .profile import NoProfile, profile
    from .run import tell

    chosen = [cell for cell in cells() if options.only in cell.key]
    try:
        for cell in chosen:
            tell(str(profile(cell)))
    except NoProfile as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return int(not chosen)


def _once(options: argparse.Namespace) -> int:
    from .profile import once

    once(options.cell)
    return 0


def _list(options: argparse.Namespace) -> int:
    for rank, cell in enumerate(cells(), 1):
        print(f"{rank:4} {cell.key:60} {cell.bytes >> 20:6} MiB")
    return 0


def _report(options: argparse.Namespace) -> int:
    for path in report.write():
        print(path)
    return 0


def _quack(options: argparse.Namespace) -> int:
    from . import quack_objects

    failed = quack_objects.build(cells()[: options.first])
    for name, why in failed.items():
        print(f"no {name}: {why}", file=sys.stderr)
    print(f"{quack_objects.LIBRARY}: {quack_objects.LIBRARY.stat().st_size} bytes, {quack_objects.TARGET}")
    return 0


def _predict(options: argparse.Namespace) -> int:
    from . import predict, predict_page

    predict.save(predict.predict(cells()))
    date, predictions = predict.load()
    predict_page.write(date, predictions)
    print(f"{len(predictions)} cells, {sum(each.falls_short for each in predictions)} predicted to fall short")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from . import predict, predict_page

    _, predictions = predict.load()
    print(predict_page.compare(predictions, Results.load(options.results)))
    for key in predict.stale(predictions, cells()):
        print(f"stale: {key}: `make predictions` counts its kernel anew")
    return 0


def _costs(options: argparse.Namespace) -> int:
    from .run import tell

    status = 0
    for which in options.which:
        known = costs.Costs.load(options.results)
        before = dict(known.figures)
        try:
            costs.MEASURES[which](known)
        except Exception as error:  # whatever a measurement raises, the others can do without its figure
            print(f"error: {which}: {type(error).__name__}: {error}", file=sys.stderr)
            status = 1
            continue
        known.save(options.results)
        for name, figure in known.figures.items():
            if before.get(name) is not figure:
                tell(f"{name} {figure.value:,} ({figure.note})")
    return status


if __name__ == "__main__":
    prepare_output()
    sys.exit(main())
