"""Writes settings.yml and the gateway's part of .env.example from the settings themselves.

Run it after a setting was added: python deploy/compose/write_settings.py.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from server.settings.gateway import Settings  # noqa: E402 (found by the line above)

ENV_EXAMPLE = ROOT / ".env.example"
SETTINGS_FILE = Path(__file__).parent / "settings.yml"
# The image and docker-compose.yml set these. docker-compose.yml uses vllm_urls even for one server.
FIXED = {"host", "port", "model", "language_model", "vllm_url", "vllm_urls", "gpu_memory_fraction"}
MARK = "# --- Settings of the gateway, as fs-serve serve --help lists them; a # in front leaves the default ---\n"
CONFIG = """
# YAML file of settings, named as above in lower case and without FS_ (samples: 128); what is set here wins. Its place
# is SECRETS_FOLDER: /run/secrets/fs-serve/settings.yaml.
#FS_CONFIG=
"""
HUB = """
# --- The model hub, for the gateway and for vLLM ---

# Token for models that are not open to everybody.
#HF_TOKEN=

# A mirror of the hub, for example https://hub.example.com.
#HF_ENDPOINT=

# Proxy that both reach it by, and the hosts that need none. Requests to vLLM never go through it.
#HTTPS_PROXY=
#NO_PROXY=
"""
TRACING = """
# --- Traces ---

# OpenTelemetry: where to send traces, for example http://collector:4318; none are sent without it.
#OTEL_EXPORTER_OTLP_ENDPOINT=

# Headers that the collector wants, as name=value,name=value.
#OTEL_EXPORTER_OTLP_HEADERS=

# Name of this service in traces.
#OTEL_SERVICE_NAME=fs-serve

# Further attributes of it, as name=value,name=value, for example deployment.environment.name=production.
#OTEL_RESOURCE_ATTRIBUTES=

# Which traces are kept, for example parentbased_traceidratio with an argument of 0.1.
#OTEL_TRACES_SAMPLER=parentbased_always_on
#OTEL_TRACES_SAMPLER_ARG=
"""


def commented_variables(text: str) -> list[str]:
    """Returns the environment variables that a part of .env.example lists commented out."""
    return re.findall(r"^#([A-Z_]+)=", text, re.MULTILINE)


def names() -> list[str]:
    """Returns the environment variables that the gateway's container gets from .env or the shell."""
    settings = [f"FS_{name.upper()}" for name in Settings.model_fields if name not in FIXED]
    return settings + commented_variables(CONFIG + HUB + TRACING)


def settings_file() -> str:
    """Makes settings.yml: the services that docker-compose.yml extends."""
    lines = [
        "# Written by write_settings.py. Names without a value are taken from .env or the shell, or else left out.",
        "services:",
    ]
    for service, passed in (("settings", names()), ("hub", commented_variables(HUB))):
        lines += [f"  {service}:", "    environment:", *(f"      - {name}" for name in passed)]
    return "\n".join(lines) + "\n"


def env_example() -> str:
    """Makes .env.example; the part above the mark is kept."""
    head = ENV_EXAMPLE.read_text(encoding="utf-8").partition(MARK)[0]
    entries = []
    for name, field in Settings.model_fields.items():
        if name not in FIXED:
            description = textwrap.fill(field.description or "", 110, initial_indent="# ", subsequent_indent="# ")
            entries.append(
                f"\n{description}\n#FS_{name.upper()}={_written(field.get_default(call_default_factory=True))}\n"
            )
    return head + MARK + "".join(entries) + CONFIG + HUB + TRACING


def _written(default: Any) -> str:
    if default is None:
        return ""
    if isinstance(default, list):
        return ",".join(map(str, default))
    return json.dumps(default) if isinstance(default, bool | dict) else str(default)


if __name__ == "__main__":
    SETTINGS_FILE.write_text(settings_file(), encoding="utf-8")
    ENV_EXAMPLE.write_text(env_example(), encoding="utf-8")
