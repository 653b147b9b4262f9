"""Runs the gateway under uvicorn: reads the files that settings name, loads the models and serves."""

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
from server.models.policy_checks import warn_about_tenants
from server.observability.logs import configure_logging
from server.observability.tracing import TracingError, configure_tracing, flush_spans
from server.settings.environment import CLIENT_KEY_VARIABLE
from server.settings.gateway import Settings
from server.settings.model import CHECKPOINT_SETTINGS

log = structlog.get_logger("server")

_SHUTDOWN_SECONDS = 5  # for sending errors to requests that did not finish within drain_timeout


def warn_if_exposed(settings: Settings) -> None:
    """Warns if the server listens beyond this machine without any API keys."""
    if settings.api_keys or settings.access_file or _is_loopback(settings.host):
        return
    structlog.get_logger("server").warning(
        "everyone who reaches this address may use the server: set access_file or api_keys, or listen on 127.0.0.1",
        host=settings.host,
    )


def warn_about_client_key(settings: Settings) -> None:
    """Warns if FS_API_KEY, which only clients read, is set while the gateway itself has no keys."""
    if CLIENT_KEY_VARIABLE in os.environ and not settings.api_keys and settings.access_file is None:
        log.warning(f"{CLIENT_KEY_VARIABLE} is what clients send, and protects nothing; set api_keys (FS_API_KEYS)")


def warn_about_unused_settings(settings: Settings) -> None:
    """Warns of settings of a single model that have no effect because models_file is set."""
    unused = [name for name in CHECKPOINT_SETTINGS if name in settings.model_fields_set]
    if settings.models_file is not None and unused:
        log.warning("models_file names the models and what belongs to each; these settings are not used", unused=unused)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class SettingError(ValueError):
    """The file or value of a setting cannot be used.

    Attributes:
        setting: Name of the setting; the message says what is wrong.
    """

    def __init__(self, setting: str, problem: Exception) -> None:
        super().__init__(str(problem))
        self.setting = setting


def read_files(settings: Settings) -> tuple[AccessDirectory, ConfiguredModels]:
    """Reads keys, access file and models file, so that errors show at start and not at the first request.

    Raises:
        SettingError: One of them cannot be used.
    """
    try:
        configured = ConfiguredModels(settings)
        access = AccessDirectory(settings, lambda: configured.by_name)
        configured.tenants = lambda: access.tenants
        return access, configured
    except KeyFormatError as error:
        raise SettingError("api_keys", error) from None
    except AccessFileError as error:
        raise SettingError("access_file", error) from None
    except ModelsFileError as error:
        raise SettingError("models_file", error) from None


def run(settings: Settings) -> int:
    """Serves until a signal stops it. Returns the exit status of the process."""
    configure_logging(settings)
    warn_if_exposed(settings)
    warn_about_client_key(settings)
    warn_about_unused_settings(settings)
    loaded: list[LoadedModel] = []
    try:
        access, configured = read_files(settings)
        configure_tracing()
        loaded.extend(map(load_model, configured.by_name.values()))  # if one fails, _refuse closes those before it
        for model in loaded:
            warn_about_tenants(access.tenants, model.settings, model.engine.smoother)
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
        ws="none",  # WebSocket upgrades would bypass the middleware, and uvicorn would log their query strings
        log_config=None,
        server_header=False,
        timeout_keep_alive=settings.client_idle_timeout,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
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
