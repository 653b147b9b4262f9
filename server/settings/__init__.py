"""What operators set: names, defaults, bounds and help of every setting."""

from server.settings.gateway import Settings

__all__ = ["Settings"]
