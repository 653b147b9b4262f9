"""The smoothing runtime: certificate, encoders, smoothing pass and engine. Importable without the server."""

__version__ = "0.1.0"
