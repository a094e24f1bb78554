"""`python -m codegen cache`: the cache of compiled kernels, for people."""

import json
from datetime import UTC, datetime

import click

from softmax_ops.artifacts.cache import Cache, Swept, user_cache

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def settings_cache() -> Cache:
    """The cache that the settings name; one that cannot be used is a message, not a traceback."""
    try:
        return user_cache()
    except ValueError as error:
        raise click.ClickException(str(error)) from None


@click.group()
def cache() -> None:
    """List, verify, trim or empty the cache of compiled kernels."""


@cache.command("list")
@json_option
def cache_list(as_json: bool) -> None:
    """One line per entry, the latest used first: bytes, last use, file name."""
    kept = settings_cache()
    entries = kept.entries()
    if as_json:
        click.echo(json.dumps([vars(entry) for entry in entries], indent=1))
        return
    for entry in entries:
        used = datetime.fromtimestamp(entry.used_ns / 1e9, UTC)
        click.echo(f"{entry.stored_bytes:8}  {used:%Y-%m-%d %H:%M}  {entry.name}")
    if kept.root is None:
        click.echo("nothing is kept: there is no home directory, and SOFTMAX_OPS_CACHE_DIR is not set")
        return
    total = sum(entry.stored_bytes for entry in entries)
    click.echo(f"{len(entries)} entries, {total} bytes of at most {kept.max_bytes}, in {kept.root}")


@cache.command()
def verify() -> None:
    """Read every entry and check its hash; nothing is changed."""
    kept = settings_cache()
    findings = kept.verify()
    for finding in findings:
        click.echo(finding)
    if findings:
        advice = "; `cache clear` removes every entry" if kept.entries() else ""  # none of a cache that is refused
        raise click.ClickException(f"{len(findings)} findings in {kept.root}{advice}")
    click.echo(f"{len(kept.entries())} entries in {kept.root}, every one intact")


@cache.command()
def gc() -> None:
    """Remove the least recently used entries until the size cap is kept, and what dead writers left."""
    _tell(settings_cache().gc())


@cache.command()
def clear() -> None:
    """Remove every entry and every file set aside."""
    _tell(settings_cache().clear())


def _tell(swept: Swept) -> None:
    click.echo(f"{swept.files} files removed, {swept.freed_bytes} bytes; {swept.kept_bytes} bytes stay")
    if swept.stuck:
        raise click.ClickException(f"could not be removed: {', '.join(swept.stuck)}")
