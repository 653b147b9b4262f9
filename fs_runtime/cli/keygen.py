"""``fs-serve keygen``: makes a key that signs receipts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fs_runtime.receipts import ReceiptKeyError
from fs_runtime.receipts.signing import write_new_key


def keygen(
    file: Annotated[Path, typer.Argument(help="New file for the private key; its owner alone may read it.")],
) -> None:
    """Make an Ed25519 key that signs receipts, and print its public part for those who verify."""
    try:
        key = write_new_key(file)
    except ReceiptKeyError as error:
        raise typer.BadParameter(str(error), param_hint="FILE") from None
    typer.echo(f"{file}: keep it secret; its id is {key.key_id}", err=True)
    typer.echo(key.public_pem(), nl=False)
