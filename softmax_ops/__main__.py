"""`python -m softmax_ops`: what would run, and how the package is set up. Needs neither a GPU nor torch."""

import argparse
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from . import doctor
from .artifacts import settings
from .artifacts.bundle import Bundle
from .artifacts.catalog import CatalogError
from .artifacts.constants import DTYPE_BYTES
from .artifacts.cubin import Absent
from .artifacts.terminal import prepare_output
from .explanation import explain_geometry
from .planning.geometry import DTYPE_NAMES, WITH_A_TENSOR, contiguous_geometry
from .planning.launch_plan import TooManyDimensions
from .planning.selection import NoVariant


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (NoVariant, CatalogError, Absent, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m softmax_ops", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    explain = commands.add_parser("explain", help="which kernel a shape runs, and why")
    explain.add_argument("--shape", required=True, type=_shape, help="of the scores, such as 4,16,1024,1024")
    explain.add_argument("--dtype", required=True, type=_dtype, choices=sorted(DTYPE_BYTES), help="or torch's name")
    explain.add_argument(
        "--mask",
        default="none",
        choices=("none", "causal", *WITH_A_TENSOR, "band", "general"),
        help="like: of the scores' dtype; bias: a bias alone, of their dtype; general: what attention_inputs.md adds; "
        "band: what of it changes no score",
    )
    explain.add_argument("--mask-shape", type=_shape, help="such as 4,1,1,1024; default: the last two dimensions")
    explain.add_argument("--backward", action="store_true", help="of dy and y of that shape")
    explain.add_argument("--causal-offset", type=int, help="default: K - Q")
    explain.add_argument("--arch", default="sm_90", help="default: %(default)s")
    explain.add_argument("--json", action="store_true")
    explain.set_defaults(run=_explain)

    config = commands.add_parser("config", help="each setting, its value and where it comes from")
    config.add_argument("--json", action="store_true")
    config.set_defaults(run=_config)

    report = commands.add_parser(
        "doctor",
        help="driver, devices, compiler, kernels and cache, for a bug report",
        description="Exit status 1 if a device here lacks kernels and nothing would compile them.",
    )
    report.add_argument("--json", action="store_true")
    report.set_defaults(run=_doctor)

    actions = commands.add_parser("bundle", help="look into a bundle of kernels, or verify it").add_subparsers(
        required=True, metavar="action"
    )
    inspect = actions.add_parser("inspect", help="what it holds, by its indexes")
    inspect.add_argument("file", type=Path)
    inspect.add_argument("--json", action="store_true")
    inspect.set_defaults(run=_inspect)
    verify = actions.add_parser("verify", help="read every byte and check every hash")
    verify.add_argument("file", type=Path)
    verify.add_argument("--key", type=Path, metavar="PUB", help="a public key (PEM): it must be validly signed too")
    verify.add_argument("--signature", type=Path, metavar="SIG", help="default: the file's name with .sig after it")
    verify.set_defaults(run=_verify)
    return parser


def _dtype(text: str) -> str:
    name = text.removeprefix("torch.")
    return DTYPE_NAMES.get(name, name)


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of sizes such as 4,16,1024,1024") from None
    if min(shape) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} has a negative size")
    return shape


def _explain(options: argparse.Namespace) -> int:
    shape = options.shape if len(options.shape) > 1 else (1, *options.shape)
    if options.causal_offset is not None and options.mask not in ("causal", "boolcausal"):
        raise ValueError("--causal-offset goes with --mask causal or boolcausal")
    if options.backward and options.mask in WITH_A_TENSOR:
        raise ValueError("--backward takes no mask and no bias: y is 0 where one hid; leave out --mask, or pass causal")
    if options.dtype.startswith("f32to") and not options.backward:
        raise ValueError(f"--dtype {options.dtype} goes with --backward: a forward reads 16 bits and may write f32")
    if options.mask_shape is not None and options.mask not in WITH_A_TENSOR:
        raise ValueError("--mask-shape goes with --mask bool, boolcausal, like or bias")
    queries, columns = shape[-2:]
    offset = options.causal_offset
    geometry = partial(
        contiguous_geometry,
        *(shape, options.dtype, options.mask),
        direction="bwd" if options.backward else "fwd",
        causal_offset=None if offset is None else max(-queries, min(offset, columns)),
    )
    try:
        explanation = explain_geometry(geometry(mask_shape=options.mask_shape or shape[-2:]), options.arch)
    except TooManyDimensions:  # a call copies such a mask
        copied = "bias" if options.mask == "bias" else "mask"
        explanation = replace(explain_geometry(geometry(mask_shape=shape), options.arch), copied=(copied,))
    print(json.dumps(explanation.as_dict(), indent=1) if options.json else explanation)
    return 0


def _config(options: argparse.Namespace) -> int:
    rows = settings.table()
    if options.json:
        print(
            json.dumps(
                [{**vars(row), "value": None if row.value is None else str(row.value)} for row in rows], indent=1
            )
        )
    else:
        for row in rows:
            print(f"{row.name:28} {row.value!s:40} ({row.source})  {row.problem or row.description}")
    return int(any(row.problem for row in rows))


def _doctor(options: argparse.Namespace) -> int:
    parts = doctor.report()
    print(json.dumps(parts, indent=1) if options.json else doctor.as_text(parts))
    return int(doctor.lacks_kernels(parts))


def _inspect(options: argparse.Namespace) -> int:
    facts = vars(Bundle(options.file).facts())
    if options.json:
        print(json.dumps(facts, indent=1))
        return 0
    held = ", ".join(f"{arch} {count}" for arch, count in facts.pop("per_architecture"))
    for key, value in {**facts, "per architecture": held}.items():
        print(f"{key.replace('_', ' '):20} {value}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    if options.signature and not options.key:
        raise ValueError("--signature goes with --key, the public key to check it by")
    findings = Bundle(options.file, key=options.key, signature=options.signature).verify()
    print("\n".join(findings) or f"{options.file}: intact" + (", validly signed" if options.key else ""))
    return int(bool(findings))


if __name__ == "__main__":
    prepare_output()
    sys.exit(main())
