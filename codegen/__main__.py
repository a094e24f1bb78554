"""`python -m codegen`: list, render, inspect, compile, bundle the kernels; draw their plans; look after the cache."""

import json
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

import click
from rich.console import Console
from rich.table import Table

from softmax_ops.artifacts import signature
from softmax_ops.artifacts.bundle import Bundle, write_bundle
from softmax_ops.artifacts.terminal import prepare_output

from . import build as builder
from . import catalog, disassembly, inspection, plan_picture, plan_tables, toolchain, tuning, variants
from .axes import Direction, DType
from .cache_commands import cache, json_option, settings_cache
from .devices import default_architectures
from .render import render as render_spec
from .spec import ANY_K, Spec

console = Console()


def _spec(name: str, architectures: Iterable[str] = variants.ARCHITECTURES) -> Spec:
    spec = variants.by_name().get(name)
    if spec is None:
        raise click.ClickException(f"{name!r} is not a shipped variant: `python -m codegen list` prints them all.")
    if not set(variants.architectures(spec)) & set(architectures):
        shipped = ", ".join(variants.architectures(spec))
        raise click.ClickException(f"{name} ships for {shipped}, not for {', '.join(architectures)}.")
    return spec


architectures_option = click.option(
    "--arch",
    "architectures",
    multiple=True,
    metavar="sm_NN",
    help="Architecture; repeat for several.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Generator of fused softmax kernels."""


main.add_command(cache)


@main.command("list")
@json_option
def list_variants(as_json: bool) -> None:
    """Print every shipped variant."""
    rows = [_row(spec) for spec in variants.shipped()]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(str, row.values()))
    (console if console.is_terminal else Console(width=200)).print(table)
    click.echo(f"{len(rows)} variants")


def _row(spec: Spec) -> dict[str, object]:
    return {
        "name": spec.name,
        "direction": spec.direction.label,
        "dtype": spec.dtype.value,
        "mask": spec.mask.label,
        "plan": spec.plan.label,
        "bucket": "any K" if spec.max_k == ANY_K else f"K <= {spec.max_k}",
        "vec": spec.vec,
        "threads_per_row": spec.threads_per_row,
        "threads": spec.threads,
        "rows": spec.rows,
        "cluster": spec.cluster,
    }


@main.command()
@click.argument("name")
def render(name: str) -> None:
    """Print the source of one variant."""
    click.echo(render_spec(_spec(name)), nl=False)


@main.command()
def check() -> None:
    """Fail, with a diff, when generated/ is not what the templates render."""
    difference = catalog.differences()
    if difference:
        click.echo(difference, nl=False)
        raise click.ClickException("generated/ is stale: run `make generate` and commit what it writes.")
    click.echo(f"generated/ is current: {len(variants.shipped())} variants")


@main.command()
def write() -> None:
    """Render every shipped variant and the catalog into generated/."""
    written, removed = catalog.write()
    click.echo(f"generated/: {len(variants.shipped())} variants, {written} files written, {removed} removed")


@main.command()
@click.option("--write", is_flag=True, help="Bring docs/plans.md and docs/plans.svg up to date; needs matplotlib.")
def plans(write: bool) -> None:
    """Print which plan serves which row length on which architecture."""
    if write:
        plan_tables.write()
        plan_picture.write()
    click.echo(plan_tables.table(), nl=False)


@main.command()
@click.option("--direction", type=click.Choice([each.label for each in Direction]), default="fwd", show_default=True)
@click.option("--dtype", type=click.Choice(["f16", "bf16", "f32"]), default="f16", show_default=True)
@click.option("--bundle", type=click.Path(path_type=Path), help="Take the candidates from this file; compile nothing.")
@click.option("--prepare", metavar="sm_NN", help="Compile the candidates for this GPU into the bundle; time nothing.")
@click.argument("lengths", metavar="K...", type=click.IntRange(1), nargs=-1, required=True)
def tune(direction: str, dtype: str, bundle: Path | None, prepare: str | None, lengths: tuple[int, ...]) -> None:
    """Time candidate tiles for rows of K columns on the GPU here, and propose rows of plans.py."""
    chosen = next(each for each in Direction if each.label == direction)
    if prepare is not None or bundle is None:
        settings_cache()  # where compiled kernels will be looked up: a setting that cannot be used is reported first
    if prepare is not None:
        if bundle is None:
            raise click.UsageError("--prepare writes the file that --bundle names")
        _check_writable(bundle)
        specs = {spec: None for k in lengths for spec in tuning.compared(chosen, DType(dtype), k, prepare)}
        click.echo(tuning.prepare(specs, prepare, bundle))
        return
    try:
        from benchmarks import tuning as timing  # imports torch, which nothing else here needs
        from benchmarks.device import NoDevice
    except ModuleNotFoundError as error:
        raise click.ClickException(f"tune needs {error.name}: run it with the environment of `make bench`") from None

    prepared = None if bundle is None else Bundle(bundle)
    for k in lengths:
        try:
            click.echo(f"K = {k}\n{timing.tune(chosen, DType(dtype), k, prepared)}")
        except NoDevice as error:
            raise click.ClickException(str(error)) from None


@main.command("compile")
@architectures_option
@click.option("--kind", type=click.Choice(["cubin", "ptx"]), default="cubin", show_default=True)
@click.option("--jobs", type=click.IntRange(1), help="Processes; default one per core.")
@click.argument("names", nargs=-1)
def compile_variants(architectures: tuple[str, ...], kind: str, jobs: int | None, names: tuple[str, ...]) -> None:
    """Compile variants (default: all) into the cache, for the GPUs found here (else sm_90) unless architectures are
    named. Nothing is compiled twice.
    """
    start = time.monotonic()
    chosen, why = default_architectures(architectures)
    specs = [_spec(name, chosen) for name in names] or list(variants.shipped())
    report = builder.build(specs, chosen, settings_cache(), kind=kind, jobs=jobs)
    sizes = sorted(len(cubin.code) for cubin in report.cubins)
    click.echo(
        f"{', '.join(chosen)} ({why}): {len(report.cubins)} kernels, {report.compiled} compiled, "
        f"median {sizes[len(sizes) // 2]} bytes, largest {sizes[-1]}, {time.monotonic() - start:.1f} s"
    )
    if report.unstored:
        click.echo(f"{report.unstored} could not be stored: `python -m softmax_ops config` names the cache", err=True)
        sys.exit(1)


@main.command()
@click.argument("name")
@click.option("--arch", default=toolchain.DEFAULT_ARCHITECTURE, show_default=True, metavar="sm_NN")
@click.option("--sass", is_flag=True, help="Print the disassembly instead.")
@json_option
def inspect(name: str, arch: str, sass: bool, as_json: bool) -> None:
    """Registers, shared memory, size and instruction counts of one variant."""
    (cubin,) = builder.build([_spec(name, [arch])], [arch], settings_cache(), progress=False).cubins
    if sass:
        click.echo(disassembly.disassemble(cubin.code, "-c"))
        return
    facts = inspection.inspect(cubin).as_dict()
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    counts: dict[str, int] = facts.pop("sass")  # type: ignore[assignment]
    for key, value in facts.items():
        click.echo(f"{key.replace('_', ' '):18} {value}")
    for opcode, count in sorted(counts.items(), key=lambda item: -item[1]):
        click.echo(f"{count:7} {opcode}")


@main.command()
@architectures_option
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/softmax_ops.bundle"), show_default=True)
@click.option("--sign", type=click.Path(path_type=Path), metavar="KEY", help="Sign with this Ed25519 key (PEM).")
@click.option("--jobs", type=click.IntRange(1), help="Processes; default one per core.")
def bundle(architectures: tuple[str, ...], output: Path, sign: Path | None, jobs: int | None) -> None:
    """Compile every variant and write one file that deploys without a compiler. Default: all architectures in reach."""
    start = time.monotonic()
    private_key = _private_key(sign)  # fails before minutes of work, not after
    chosen = toolchain.check_architectures(architectures or toolchain.supported_architectures())
    kept = settings_cache()
    _check_writable(output)
    report = builder.build(variants.shipped(), chosen, kept, jobs=jobs)
    shipped = catalog.build_catalog({f"{spec.name}.cu": render_spec(spec) for spec in variants.shipped()})
    facts = write_bundle(
        output, report.cubins, catalog=shipped.to_json().encode(), toolchain=toolchain.compiler_build()
    )
    signed = _sign(output, private_key)
    click.echo(
        f"{output}: {facts.cubins} cubins ({facts.variants} variants, {', '.join(chosen)}), {facts.file_bytes} bytes; "
        f"median cubin {facts.median_cubin_bytes}, largest {facts.largest_cubin_bytes} bytes "
        f"({facts.largest_cubin}); {report.compiled} compiled, {time.monotonic() - start:.1f} s{signed}"
    )


def _check_writable(path: Path) -> None:
    """Create the folder of a file that is written after minutes of work, and fail before them if it cannot be."""
    try:
        with suppress(FileExistsError):  # if it is not a folder, that is reported below
            path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            wrong = "it is a directory" if path.is_dir() else ""
    except OSError as error:
        wrong = error.strerror or str(error)
    if wrong:
        raise click.ClickException(f"{path} cannot be written: {wrong}; --output or --bundle names another file")


def _private_key(path: Path | None) -> object:
    try:
        return None if path is None else signature.load_private(path)
    except signature.SignatureError as error:
        raise click.ClickException(str(error)) from None


def _sign(bundle: Path, private_key: object) -> str:
    """Write the signature beside the bundle; without a key remove the one of what was there before."""
    beside = signature.beside(bundle)
    if private_key is None:
        beside.unlink(missing_ok=True)
        return ""
    beside.write_bytes(signature.sign(Bundle(bundle).digest(), private_key))
    return f"; signed: {beside}"


def run() -> None:
    """The command line; a toolchain's refusal is printed as one message, without a traceback."""
    try:
        main(prog_name="python -m codegen")
    except toolchain.ToolchainError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    prepare_output()
    run()
