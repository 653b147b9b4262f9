"""Runs the gateway under uvicorn, and says where it is and how to use it."""

from __future__ import annotations

import ipaddress
import os
import sys

import structlog
import uvicorn

from fs_runtime.encoders import CheckpointError
from server.access.directory import AccessDirectory
from server.access.keys import KeyFormatError
from server.access.tenants import AccessFileError
from server.app import create_app
from server.http.protocol import HttpProtocol
from server.http.server import GatewayServer
from server.models.configured import ConfiguredModels
from server.models.file import ModelsFileError
from server.models.loading import LoadedModel, load_model
from server.observability.logs import configure_logging
from server.observability.tracing import TracingError, configure_tracing, flush_spans
from server.settings.environment import CLIENT_KEY_VARIABLE
from server.settings.gateway import Settings
from server.settings.model import CHECKPOINT_SETTINGS

log = structlog.get_logger("server")

_TIME_FOR_LAST_WORDS = 5  # seconds for the errors that end what was not finished in time


def warn_if_exposed(settings: Settings) -> None:
    """Says so where anybody who reaches the port may use the server."""
    if settings.api_keys or settings.access_file or _is_loopback(settings.host):
        return
    structlog.get_logger("server").warning(
        "everyone who reaches this address may use the server: set access_file or api_keys, or listen on 127.0.0.1",
        host=settings.host,
    )


def warn_about_client_key(settings: Settings) -> None:
    """Says so where the key of a client is set and no key that the gateway would accept."""
    if CLIENT_KEY_VARIABLE in os.environ and not settings.api_keys and settings.access_file is None:
        log.warning(f"{CLIENT_KEY_VARIABLE} is what clients send, and protects nothing; set api_keys (FS_API_KEYS)")


def warn_about_unused_settings(settings: Settings) -> None:
    """Names settings of the one model that there is not where a file names several."""
    unused = [name for name in CHECKPOINT_SETTINGS if name in settings.model_fields_set]
    if settings.models_file is not None and unused:
        log.warning("models_file names the models and what belongs to each; these settings are not used", unused=unused)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class SettingError(ValueError):
    """What a setting names cannot be used.

    Attributes:
        setting: Its name; the message has the rest.
    """

    def __init__(self, setting: str, problem: Exception) -> None:
        super().__init__(str(problem))
        self.setting = setting


def read_files(settings: Settings) -> tuple[AccessDirectory, ConfiguredModels]:
    """Reads keys, access file and models file, so that a wrong one is found at start and not by the first client.

    Raises:
        SettingError: One of them cannot be used.
    """
    try:
        return AccessDirectory(settings), ConfiguredModels(settings)
    except KeyFormatError as error:
        raise SettingError("api_keys", error) from None
    except AccessFileError as error:
        raise SettingError("access_file", error) from None
    except ModelsFileError as error:
        raise SettingError("models_file", error) from None


def run(settings: Settings) -> int:
    """Serves until it is told to stop. Returns the process's exit status."""
    configure_logging(settings)
    warn_if_exposed(settings)
    warn_about_client_key(settings)
    warn_about_unused_settings(settings)
    loaded: list[LoadedModel] = []
    try:
        access, configured = read_files(settings)
        configure_tracing()
        loaded.extend(map(load_model, configured.by_name.values()))  # one that fails leaves those before it
        app = create_app(settings, access, configured, loaded)
    except SettingError as error:
        return _refuse(f"setting {error.setting}", error, loaded)
    except TracingError as error:
        return _refuse("cannot send traces", error, loaded)
    except CheckpointError as error:
        return _refuse("cannot load the model", error, loaded)
    except (OSError, ValueError) as error:
        return _refuse("cannot start", error, loaded)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=HttpProtocol,
        ws="none",  # uvicorn would serve an upgrade past the middleware, and log its path with the query
        log_config=None,
        server_header=False,
        timeout_keep_alive=settings.client_idle_timeout,
        timeout_graceful_shutdown=_TIME_FOR_LAST_WORDS,
    )
    server = GatewayServer(config, settings, [model.settings.model_name for model in loaded], app.state.drain)
    server.run()
    flush_spans()
    return 0 if server.started else 3


def _refuse(what: str, error: Exception, loaded: list[LoadedModel]) -> int:
    print(f"{what}: {error}", file=sys.stderr)
    for model in loaded:
        model.close()
    return 2
