"""Which models there should be: those of the models file, or the one that the settings name themselves."""

from __future__ import annotations

from server.models.file import ModelsFileError, parse_models
from server.settings.files import WatchedFile
from server.settings.gateway import Settings


class ConfiguredModels:
    """The settings of each model that there should be.

    Args:
        settings: The gateway's: its one model, or the models file.

    Attributes:
        by_name: The models' settings, in the order of the file.
        file: The models file; None without one.

    Raises:
        ModelsFileError: The file cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.file = WatchedFile(settings.models_file) if settings.models_file else None
        self.by_name = {settings.model_name: settings} if self.file is None else self._parse(self.file)

    async def has_changed(self) -> bool:
        """Looks at the file again; whether :attr:`by_name` is something else from now on.

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
        return parse_models(contents, self._settings)
