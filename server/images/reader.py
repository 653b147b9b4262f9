"""Reads and decodes the images of requests, and turns every failure into an error response."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from server.errors import ApiError, invalid
from server.images.data_urls import decode_data_url
from server.images.decode import FORMATS, MAX_SIDE
from server.images.faults import Fault, ImageFaultError
from server.images.limits import ImageLimits
from server.images.picture import Descriptions
from server.images.pool import DecodePool, DecodersBusyError
from server.images.process import DecoderDiedError
from server.images.remote import AddressRefusedError, RemoteImageError, RemoteImageFetcher
from server.images.remote_urls import UrlPolicy, UrlRefusedError
from server.observability.metrics import Metrics
from server.observability.tracing import stage
from server.settings.gateway import Settings

# Base64 up to this many characters decodes within a millisecond; more is decoded on a thread.
_INLINE_CHARACTERS = 2**20


class ImageReader:
    """Reads the images of requests.

    Args:
        settings: Limits, and the hosts that images may be fetched from.
        metrics: Counts refused images and observes durations.
        remote: Replaces the fetcher of remote images, in tests.

    Attributes:
        descriptions: Of the files that were decoded last.
    """

    def __init__(self, settings: Settings, metrics: Metrics, remote: RemoteImageFetcher | None = None) -> None:
        self._seconds = settings.decode_timeout
        self._metrics = metrics
        self._pool = DecodePool(settings.decode_processes, settings.decode_timeout)
        self._remote = remote or remote_image_fetcher(settings)
        self._fetch_seconds = settings.remote_image_timeout
        self.descriptions = Descriptions()

    async def start(self) -> None:
        """Starts the first decoder process.

        Raises:
            DecoderDiedError: Images cannot be decoded on this machine.
        """
        await self._pool.start()

    async def close(self) -> None:
        """Ends the decoder processes."""
        await self._pool.close()
        if self._remote is not None:
            await self._remote.close()

    async def file(self, url: str, param: str, limits: ImageLimits) -> bytes:
        """Returns the file at a data URL, or at a remote URL if the operator allows it.

        Args:
            url: From the request.
            param: Path of the URL in the request, for errors.
            limits: Size limits.

        Raises:
            ApiError: The file cannot be read or fetched.
        """
        with self._errors_reported(param, limits):
            if url[:5].lower() != "data:":
                with stage(self._metrics, "fetch"):
                    return await self._fetch(url, param, limits.max_bytes)
            if len(url) <= _INLINE_CHARACTERS:
                return decode_data_url(url, limits, param)
            return await asyncio.to_thread(decode_data_url, url, limits, param)

    async def decode(self, file: bytes, param: str, limits: ImageLimits) -> NDArray[np.uint8]:
        """Decodes a file to ``(H, W, 3)`` uint8 sRGB, rotated upright, with transparency rendered on white.

        Raises:
            ApiError: It is not an image, or it exceeds a limit.
        """
        with stage(self._metrics, "decode") as span, self._errors_reported(param, limits):
            pixels = await self._pool.decode(file, limits)
            span.set_attributes({"fs.image.height": pixels.shape[0], "fs.image.width": pixels.shape[1]})
        return pixels

    @contextmanager
    def _errors_reported(self, param: str, limits: ImageLimits) -> Iterator[None]:
        """Turns the block's failures into error responses, and counts them."""
        try:
            try:
                yield
            except ImageFaultError as fault:
                raise self._api_error(fault, param, limits) from None
            except DecodersBusyError:
                raise ApiError(
                    429,
                    "the server has more images than it can decode in time; try again later",
                    code="overloaded",
                    headers={"retry-after": "1"},
                ) from None
            except DecoderDiedError:
                raise ApiError(
                    503,
                    "the server cannot start its image decoder; try again later",
                    code="decoder_unavailable",
                    headers={"retry-after": "5"},
                ) from None
        except ApiError as error:
            self._metrics.refused_images.labels(code=error.code).inc()
            raise

    async def _fetch(self, url: str, param: str, max_bytes: int) -> bytes:
        if self._remote is None:
            raise invalid(
                "this is not a data URL, and images elsewhere are not fetched; send the image as "
                "data:image/png;base64,…",
                param,
                "remote_image_disabled",
            )
        try:
            return await self._remote.fetch(url, max_bytes)
        except UrlRefusedError as error:
            raise invalid(f"the URL is not fetched: {error}", param, "remote_image_refused") from None
        except AddressRefusedError:  # the same text for unknown and private names, so that nobody can map our network
            raise invalid(
                "the URL is not fetched: its host is not found on the public internet", param, "remote_image_refused"
            ) from None
        except RemoteImageError as error:
            raise ApiError(
                400 if error.is_client_error else 502,
                f"the server that the image is on {error}; check the URL, or send the image as a data URL",
                code="remote_image_failed",
                param=param,
            ) from None
        except TimeoutError:
            raise ApiError(
                504,
                f"the server that the image is on did not send it within {self._fetch_seconds:g} s; "
                "send the image as a data URL",
                code="remote_image_timeout",
                param=param,
            ) from None

    def _api_error(self, error: ImageFaultError, param: str, limits: ImageLimits) -> ApiError:
        """Makes the error response of a fault."""
        size = f"{error.width} x {error.height} pixels"
        status, message, code = {
            Fault.TOO_MANY_BYTES: (
                413,
                f"the image has more than {limits.max_bytes} bytes: scale it down or compress it",
                "image_too_large",
            ),
            Fault.NOT_AN_IMAGE: (
                415,
                f"this is not an image in one of the formats {', '.join(FORMATS)}",
                "not_an_image",
            ),
            Fault.TOO_MANY_PIXELS: (
                413,
                f"the image has {size}; at most {limits.max_pixels}, and {MAX_SIDE} a side, are allowed: scale it down",
                "image_too_large",
            ),
            Fault.TOO_SMALL: (
                400,
                f"the image has {size}; each side must have at least {limits.min_side}",
                "image_too_small",
            ),
            Fault.ANIMATED: (400, "the image is animated; send one frame as a still image", "animated_image"),
            Fault.DAMAGED: (400, "the image is damaged or cut off; send the whole file", "invalid_image"),
            Fault.TOO_COMPRESSED: (
                413,
                f"the image has {size} in a file far too small for them: scale it down",
                "image_too_costly",
            ),
            Fault.TOO_COMPLEX: (
                413,
                "the image takes too much work or memory to decode: save it again as a plain PNG or JPEG",
                "image_too_costly",
            ),
            Fault.TOO_SLOW: (
                413,
                f"the image takes more than {self._seconds:g} s to decode: scale it down, or save it as a plain JPEG",
                "image_too_costly",
            ),
        }[error.fault]
        return ApiError(status, f"{param}: {message}", code=code, param=param)


def remote_image_fetcher(settings: Settings) -> RemoteImageFetcher | None:
    """Makes the fetcher of remote images; None if the operator allows no hosts."""
    if not settings.remote_image_hosts:
        return None
    policy = UrlPolicy(
        tuple(settings.remote_image_hosts), tuple(settings.remote_image_schemes), tuple(settings.remote_image_ports)
    )
    return RemoteImageFetcher(policy, settings.remote_image_timeout)
