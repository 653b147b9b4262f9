"""``fs-serve models``: lists the supported model families."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table.")] = False,
) -> None:
    """List the model families that are supported, and how each is served."""
    from fs_runtime.encoders.families import FAMILIES

    if as_json:
        rows = [
            dataclasses.asdict(family)
            | {"served": family.served, "vllm_limit": family.vllm_limit if "vllm" in family.language_models else None}
            for family in FAMILIES.values()
        ]
        typer.echo(json.dumps([{name: row[name] for name in row if name != "adapter"} for row in rows], indent=2))
        return
    table = Table("family", "model_type", "served through", "notes")
    for family in FAMILIES.values():
        table.add_row(family.name, family.model_type, family.served, family.note)
    Console().print(table)
    through_vllm = [family for family in FAMILIES.values() if "vllm" in family.language_models]
    for limit, plugin in dict.fromkeys((family.vllm_limit, family.vllm_plugin) for family in through_vllm):
        alike = [family.name for family in through_vllm if (family.vllm_limit, family.vllm_plugin) == (limit, plugin)]
        further = ", and deploy/vllm-plugin on its PYTHONPATH" if plugin else ""
        typer.echo(f"vLLM for {', '.join(alike)}:\n  --enable-mm-embeds --limit-mm-per-prompt '{limit}'{further}")
