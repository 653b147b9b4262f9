"""The models to serve: those of the models file, or the single model of the settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from server.access.tenants import Tenant, contradiction_of
from server.models.file import ModelsFileError, parse_models
from server.settings.files import WatchedFile
from server.settings.gateway import Settings


class ConfiguredModels:
    """The models to serve, by name, and their settings.

    Args:
        settings: The gateway's settings, with a single model or a models file.

    Attributes:
        by_name: The models' settings, in the order of the file.
        file: The models file; None without one.
        tenants: Gives the tenants, with whose settings those of a changed file must fit.

    Raises:
        ModelsFileError: The file cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.tenants: Callable[[], Iterable[Tenant]] = tuple
        self.file = WatchedFile(settings.models_file) if settings.models_file else None
        self.by_name = {settings.model_name: settings} if self.file is None else self._parse(self.file)

    async def has_changed(self) -> bool:
        """Reads the file again. Returns whether :attr:`by_name` has changed.

        Raises:
            ModelsFileError: The new version cannot be used; the former one stays in force.
        """
        if self.file is None or not await self.file.has_changed():
            return False
        self.by_name = self._parse(self.file)
        return True

    def _parse(self, file: WatchedFile) -> dict[str, Settings]:
        try:
            contents = file.contents()
        except OSError as error:
            raise ModelsFileError(str(error)) from None
        models = parse_models(contents, self._settings)
        if problem := contradiction_of(self.tenants(), models):
            raise ModelsFileError(problem)
        return models
