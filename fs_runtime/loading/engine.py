"""Makes a running engine from the names in a configuration."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from fs_runtime.encoders import CheckpointError, ImageSizeError, VisionEncoder, load_encoder
from fs_runtime.engine import SmoothingEngine
from fs_runtime.engine.cache.shared import SharedCache
from fs_runtime.options import DEFAULT_MAX_PIXELS, LEAST_FIDELITY, CompileMode, Dtype, Precision, Quantization
from fs_runtime.psm.pretrained import is_pretrained, load_pretrained
from fs_runtime.psm.shipped import DEFAULT, shipped_purifiers
from fs_runtime.psm.storage import load_psm
from fs_runtime.reference import reference_model_path, reference_psm_path
from fs_runtime.robustness import Fingerprints
from fs_runtime.smoothing.compilation import check_mode
from fs_runtime.smoothing.feature_map import ENCODER_FEATURES
from fs_runtime.smoothing.feature_statistics import FILE_NAME, FeatureStatistics, StatisticsError
from fs_runtime.smoothing.smoother import Smoother
from fs_runtime.system.gpu import limit_memory

log = logging.getLogger("fs_runtime.loading")

_SQUARE, _WIDE = (336, 336), (168, 672)
PRECISIONS = get_args(Precision)


def resolve_device(device: str) -> str:
    """``auto`` is ``cuda`` where there is a GPU, else ``cpu``.

    Raises:
        CheckpointError: There is no such device here.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise CheckpointError(f"device is auto, cpu, cuda or cuda:<index>, not {device!r}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise CheckpointError(f"device {device} is wanted, and torch finds {torch.cuda.device_count()} such here")
    return device


def resolve_dtype(dtype: str, device: str) -> str:
    """``auto`` is ``bfloat16`` on a GPU, else ``float32``.

    Raises:
        CheckpointError: The dtype is unknown.
    """
    if dtype == "auto":
        return "float32" if device.startswith("cpu") else "bfloat16"
    if dtype not in PRECISIONS:
        raise CheckpointError(f"dtype is auto or one of {', '.join(PRECISIONS)}, not {dtype!r}")
    return dtype


def psm_folder(psm: str, model: str) -> Path | None:
    """Folder that a ``psm`` setting selects; None for no purifier and mapper, or for a denoiser of another project.

    Args:
        psm: A folder, ``none``, a denoiser of another project (:mod:`fs_runtime.psm.pretrained`), the name of a shipped
            purifier, or ``auto``: the PSM that ships for this model, else
            the small purifier for photographs. Every encoder reads three colours
            (:meth:`VisionEncoder.prepare`), so it fits all of them.
        model: Folder or hub id of the model.
    """
    if psm == "none" or is_pretrained(psm):
        return None
    shipped = shipped_purifiers()
    if psm != "auto":
        return shipped.get(psm, Path(psm))
    return reference_psm_path() if model == str(reference_model_path()) else shipped.get(DEFAULT)


def load_smoother(
    model: str,
    *,
    psm: str = "auto",
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    quantization: Quantization | None = None,
    feature_statistics: Path | None = None,
    without_statistics: bool = False,
) -> Smoother:
    """Loads the vision part of ``model``, a folder or hub id, with the purifier and mapper that ``psm`` selects.

    ``psm`` is as for :func:`psm_folder`, or a denoiser of another project (:mod:`fs_runtime.psm.pretrained`).

    ``max_pixels`` caps x in families that read any resolution (:meth:`VisionEncoder.cap`); 0 keeps the model's own cap.
    ``quantization`` is the format of products in the encoder's linear layers (:meth:`VisionEncoder.in_float8`);
    purifier, mapper and feature statistics stay those of the unquantised encoder. ``feature_statistics`` is a file of
    ``fs-serve evaluate features``; by default the one beside the PSM or in the model's folder. The default noise level
    is the largest of that file's at which the fidelity of tokens is :data:`LEAST_FIDELITY`, else the PSM's.
    ``without_statistics`` loads none, to measure new ones.

    Raises:
        CheckpointError: The file of statistics is missing, damaged or of another encoder, the cap is too small, or the
            device cannot compute in that format; else as :func:`fs_runtime.encoders.load_encoder` and
            :func:`fs_runtime.psm.storage.load_psm`.
    """
    device = resolve_device(device)
    # Inner products and norms need float32. TF32, which an environment variable can switch on, errs by up to 1e-3.
    torch.set_float32_matmul_precision("highest")
    encoder = load_encoder(model, revision=revision, device=device, dtype=resolve_dtype(dtype, device))
    if max_pixels:
        try:
            encoder.cap(max_pixels)
        except ValueError as error:
            raise CheckpointError(f"{model}: {error}") from None
    folder = psm_folder(psm, model)
    smoother = Smoother(encoder)
    if folder is not None or is_pretrained(psm):
        loaded = load_pretrained(psm, encoder) if folder is None else load_psm(folder, encoder)
        smoother = Smoother(encoder, loaded.purifier, loaded.mapper, loaded.sigma, psm=loaded.facts)
    # A purifier for any encoder comes without feature statistics; they are in the model's folder.
    beside_psm = smoother.psm is not None and smoother.psm.encoder == "this"
    if not without_statistics:
        _add_statistics(smoother, feature_statistics, (folder if folder and beside_psm else Path(model)) / FILE_NAME)
    if quantization == "fp8":
        smoother.encoder = encoder.in_float8()
    return smoother


def _add_statistics(smoother: Smoother, feature_statistics: Path | None, found: Path) -> None:
    """Gives a smoother its feature statistics, and the default noise level that follows from them."""
    if feature_statistics is not None and not feature_statistics.is_file():
        raise CheckpointError(f"feature_statistics: there is no file {feature_statistics}")
    smoother.statistics = load_statistics(feature_statistics or found, smoother)
    _choose_sigma(smoother)


def _choose_sigma(smoother: Smoother) -> None:
    """Sets the default noise level by what smoothing leaves of pictures, where that was measured."""
    statistics = smoother.statistics
    if statistics is None or not statistics.levels:
        log.info("default sigma %g, for lack of statistics that say what smoothing leaves", smoother.sigma)
        return
    smallest = statistics.levels[0]
    best = statistics.largest_sigma(LEAST_FIDELITY)
    if best is None:
        log.warning(
            "default sigma %g, the smallest that was measured: even there tokens keep a fidelity of %.3f only",
            smallest.sigma,
            smallest.token_fidelity,
        )
    else:
        log.info("default sigma %g, the largest measured that leaves tokens a fidelity of %g", best, LEAST_FIDELITY)
    smoother.sigma = best or smallest.sigma


def load_statistics(path: Path, smoother: Smoother) -> FeatureStatistics | None:
    """Feature statistics of a file, if it is there and of this purifier and mapper; else a warning says so.

    Raises:
        CheckpointError: They are damaged, or of another encoder.
    """
    if not path.is_file():
        return None
    try:
        statistics = FeatureStatistics.load(path)
    except StatisticsError as error:
        raise CheckpointError(str(error)) from None
    here = Fingerprints.of(smoother, ENCODER_FEATURES)
    card = statistics.card
    again = f"make it again with `fs-serve evaluate features --output {path}`"
    if card.encoder != here.model:
        raise CheckpointError(f"{path} was made with another encoder; {again}")
    if (card.purifier, card.mapper) != (here.purifier, here.mapper):
        log.warning("%s was made with another purifier or mapper and is not used; %s", path, again)
        return None
    return statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Options of an engine; the gateway's settings of a model have the same names.

    Attributes:
        psm: As for :func:`load_smoother`.
        feature_statistics: File of ``fs-serve evaluate features``; None for the one beside the PSM or the model.
        revision: Hub revision of the checkpoint; None for the newest.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<index>``.
        dtype: Arithmetic of the encoder.
        encoder_max_pixels: Cap on the pixels of an image in families that read any resolution; 0 for the model's own.
        quantization: Format of the products of the encoder's linear layers; ``none`` for that of ``dtype``.
        compile: Mode of ``torch.compile`` for the networks; ``none`` runs them eagerly. A model that reads images at
            several sizes always runs eagerly, and a warning says so.
        gpu_memory_fraction: Most of the GPU's memory that this process may allocate; 1 or None for no limit.
        batch_size: Noise samples of a batch; None picks a number that suits the device.
        max_queued_samples: As in :class:`SmoothingEngine`, like the rest.
    """

    psm: str = "auto"
    feature_statistics: Path | None = None
    revision: str | None = None
    device: str = "auto"
    dtype: Dtype = "auto"
    encoder_max_pixels: int = DEFAULT_MAX_PIXELS
    quantization: Literal["none", Quantization] = "none"
    compile: Literal["none", CompileMode] = "none"
    gpu_memory_fraction: float | None = None
    batch_size: int | None = None
    max_queued_samples: int = 65536
    max_queued_images: int = 1024
    cache_bytes: int = 0
    max_sketch_bytes: int = 0
    max_copy_bytes: int = 2**28

    @classmethod
    def of(cls, settings: object) -> EngineOptions:
        """Options read from an object's attributes of the same names."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})


def load_engine(
    model: str, options: EngineOptions | None = None, shared_cache: SharedCache | None = None
) -> SmoothingEngine:
    """Loads ``model``, a folder or hub id, and starts the engine.

    Args:
        model: Folder or hub id.
        options: Of the engine; None for the defaults.
        shared_cache: Cache that replicas share; None for none.

    Raises:
        CheckpointError: As :func:`load_smoother`, a share of GPU memory is given and the device is no GPU, or the mode
            does not work with this version of torch.
    """
    chosen = options or EngineOptions()
    fraction = chosen.gpu_memory_fraction
    if fraction is not None and fraction != 1:
        try:
            limit_memory(torch.device(resolve_device(chosen.device)), fraction)
        except ValueError as error:
            raise CheckpointError(f"gpu_memory_fraction: {error}; leave it out, or set 1") from None
    smoother = load_smoother(
        model,
        psm=chosen.psm,
        revision=chosen.revision,
        device=chosen.device,
        dtype=chosen.dtype,
        max_pixels=chosen.encoder_max_pixels,
        quantization=None if chosen.quantization == "none" else chosen.quantization,
        feature_statistics=chosen.feature_statistics,
    )
    batch_size = chosen.batch_size
    if batch_size is None:
        batch_size = 32 if smoother.encoder.device.type == "cpu" else 128
    if chosen.compile != "none":
        check_mode(chosen.compile, smoother.encoder.device)
        shape = fixed_shape(smoother.encoder)
        if shape is None:
            log.warning("%s reads images at several sizes: its networks are not compiled", model)
        else:
            smoother.compile(chosen.compile, shape, batch_size)
    return SmoothingEngine(
        smoother,
        batch_size=batch_size,
        max_queued_samples=chosen.max_queued_samples,
        max_queued_images=chosen.max_queued_images,
        cache_bytes=chosen.cache_bytes,
        shared_cache=shared_cache,
        max_sketch_bytes=chosen.max_sketch_bytes,
        max_copy_bytes=chosen.max_copy_bytes,
    )


def fixed_shape(encoder: VisionEncoder) -> tuple[int, ...] | None:
    """``(C, H, W)`` of every image or tile that an encoder reads; None if it depends on the picture's size."""
    shapes = set()
    for height, width in (_SQUARE, _WIDE):
        try:
            pixels = encoder.prepare(np.zeros((height, width, 3), np.uint8)).pixels
        except ImageSizeError:
            return None
        shapes.add(tuple(pixels.shape[-3:]))
    return shapes.pop() if len(shapes) == 1 else None
