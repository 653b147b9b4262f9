"""``fs-serve api-key``: makes API keys, and checks the access file."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from server.access.keys import digest_of, new_key

api_key = typer.Typer(no_args_is_help=True, help="API keys: make them, and check the access file.")

NameOption = Annotated[str | None, typer.Option(help="What the key is for; a note in the file.")]
ExpiresOption = Annotated[
    datetime | None,
    typer.Option(help="When the key expires, in UTC.", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M"]),
]


@api_key.command("new")
def new(
    tenant: Annotated[str, typer.Option(help="Tenant that the key belongs to.")],
    name: NameOption = None,
    expires: ExpiresOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Make a key. It is shown only once; the access file stores its digest."""
    from pydantic import TypeAdapter, ValidationError

    from server.access.tenants import TenantName

    try:
        TypeAdapter(TenantName).validate_python(tenant)
    except ValidationError:
        raise typer.BadParameter(
            "a name has up to 64 letters, digits, dots, dashes and underscores, and begins with a letter or digit",
            param_hint="--tenant",
        ) from None
    key = new_key()
    entry = _entry(key, name, expires)
    if as_json:
        typer.echo(json.dumps({"tenant": tenant, "key": key, "entry": entry}))
        return
    typer.echo("# The client's key, shown this once:", err=True)
    typer.echo(key)
    typer.echo(f"# For the access file, under tenants: {tenant}: keys:", err=True)
    typer.echo(_line(entry))


@api_key.command("hash")
def hash_key(name: NameOption = None, expires: ExpiresOption = None) -> None:
    """Read an existing key from standard input, and print its line for the access file."""
    key = sys.stdin.readline().strip()
    if len(key) < 32:  # a fast digest protects only keys that cannot be guessed
        raise typer.BadParameter("a key needs at least 32 characters, all of them random; `api-key new` makes one")
    typer.echo(_line(_entry(key, name, expires)))


@api_key.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="Access file.")],
) -> None:
    """Check an access file together with the server's settings, and list the valid keys of each tenant."""
    from server.access.tenants import AccessFileError, read_access
    from server.settings.gateway import Settings

    try:
        access = read_access(file, Settings(access_file=None))
    except AccessFileError as error:
        typer.echo(f"{file}: {error}", err=True)
        raise typer.Exit(1) from None
    now = datetime.now(UTC)
    for name in access.tenants:
        keys = [key for key in access.keys if key.tenant == name]
        valid = sum(key.expires is None or key.expires > now for key in keys)
        typer.echo(f"{name}: {valid} of {len(keys)} keys valid")


def _entry(key: str, name: str | None, expires: datetime | None) -> dict[str, str]:
    """Makes the key's entry in the access file.

    Raises:
        BadParameter: The key would have expired already.
    """
    entry = {"sha256": digest_of(key).hex()}
    if name:
        entry["name"] = name
    if expires:
        expires = expires.replace(tzinfo=UTC)
        if expires <= datetime.now(UTC):
            raise typer.BadParameter(f"{expires:%Y-%m-%d %H:%M} UTC is in the past", param_hint="--expires")
        entry["expires"] = expires.isoformat()
    return entry


def _line(entry: dict[str, str]) -> str:
    return f"      - {json.dumps(entry, ensure_ascii=False)}"  # JSON is valid YAML, and quotes special characters
