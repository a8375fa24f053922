"""`gr migrate`: brings a store that an older version wrote to the format of this one."""

from pathlib import Path

import click

from gr_components.errors import ConfigError


@click.command("migrate", short_help="Upgrade a store that an older version wrote.")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--store", type=click.Path(path_type=Path), help="Folder of the store; the same as FOLDER.")
def command(folder: Path | None, store: Path | None) -> None:
    """
    Upgrade the store in FOLDER to the format of this version. A store that is current is left as it is.

    Documents and their numbers stay. It happens wholly or not at all, also if it is interrupted.
    """
    from gr_components.document_stores.local_migration import migrate

    if (folder is None) == (store is None):
        msg = "Name one store: gr migrate --store DIR"
        raise ConfigError(msg)
    chosen = folder or store
    assert chosen is not None
    done = migrate(chosen)
    if done.before == done.after:
        click.echo(f"The store '{chosen}' has format {done.after}, which is current. Nothing was changed.")
    else:
        click.echo(f"The store '{chosen}' was upgraded from format {done.before} to {done.after}.")
