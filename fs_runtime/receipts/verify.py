"""All checks of a receipt, from the cheapest to the replay, and what they say together."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fs_runtime.preprocessing.pictures import digest
from fs_runtime.receipts.comparison import differences, unknown_fields
from fs_runtime.receipts.document import Receipt
from fs_runtime.receipts.ending import impossible_ending, unsupported_ending
from fs_runtime.receipts.issue import arithmetic_of
from fs_runtime.receipts.replay import replay, tolerance
from fs_runtime.receipts.signing import SignatureError, check_signature
from fs_runtime.robustness import Fingerprints
from fs_runtime.smoothing.feature_map import FeatureMap
from fs_runtime.smoothing.noise import NOISE_VERSION
from fs_runtime.smoothing.smoother import Smoother
from fs_runtime.system.provenance import library_versions

Verdict = Literal["reproduced", "not_reproduced", "cannot_be_checked"]

_NOT_COMPARED = frozenset({"timings", "psm"})  # psm is a label; the weights are compared by their fingerprints


@dataclass(slots=True)
class Verification:
    """What came of checking a receipt.

    Attributes:
        verdict: ``reproduced`` if every check passed and every number lies within the tolerance.
        signature: ``unsigned``, ``valid`` (by the key that the receipt brings), ``trusted`` (by the key that was
            given) or ``invalid``.
        key_id: Of the key that signed; None without a valid signature.
        problems: Why it was not reproduced or cannot be checked.
        warnings: What differs without being a fault.
        tolerance: τ of ρ that the comparison allowed; None where nothing was replayed.
        replayed: Certified similarity at the asked radius as replayed, at ρ - τ, ρ and ρ + τ: what the receipt says may
            lie between the first and the last. None where nothing was replayed.
    """

    verdict: Verdict = "reproduced"
    signature: Literal["unsigned", "valid", "trusted", "invalid"] = "unsigned"
    key_id: str | None = None
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tolerance: float | None = None
    replayed: list[float | None] | None = None


class CannotReplayError(Exception):
    """The receipt cannot be replayed here, with the reason."""


def verify(
    receipt: Receipt,
    image: NDArray[np.uint8],
    load_smoother: Callable[[], Smoother],
    public_key: bytes | None = None,
) -> Verification:
    """Checks a receipt against an image and weights.

    Args:
        receipt: As parsed.
        image: ``(H, W, 3)`` uint8 RGB.
        load_smoother: Gives the weights to check against; not called if the receipt fails before. It may raise
            :class:`CannotReplayError`.
        public_key: Raw key that must have signed the receipt; None accepts any key, and unsigned receipts.
    """
    found = Verification()
    _check_signature(receipt, public_key, found)
    _check_image(receipt, image, found)
    found.problems += impossible_ending(receipt)
    if found.problems:  # a receipt that is known to be wrong is not worth its samples
        found.verdict = "not_reproduced"
        return found
    try:
        smoother = load_smoother()
        _check_device(receipt, smoother, found)
    except CannotReplayError as error:
        found.verdict = "cannot_be_checked"
        found.problems.append(str(error))
        return found
    _check_weights(receipt, smoother, found)
    _compare_versions(receipt, found)
    try:
        if not found.problems:
            _check_numbers(receipt, image, smoother, found)
    except CannotReplayError as error:
        found.verdict = "cannot_be_checked"
        found.problems.append(str(error))
        return found
    if found.problems:
        found.verdict = "not_reproduced"
    return found


def _check_signature(receipt: Receipt, public_key: bytes | None, found: Verification) -> None:
    try:
        found.key_id = check_signature(receipt, public_key)
    except SignatureError as error:
        found.signature = "unsigned" if receipt.signer is None else "invalid"
        found.problems.append(str(error))
        return
    if found.key_id is None:
        found.warnings.append(
            "unsigned: nothing shows who made the receipt; its time, request id and versions are claims only"
        )
    elif public_key is None:
        found.signature = "valid"
        found.warnings.append("signed by a key that was not compared with one you trust; give --public-key")
    else:
        found.signature = "trusted"


def _check_image(receipt: Receipt, image: NDArray[np.uint8], found: Verification) -> None:
    size = (receipt.image.height, receipt.image.width)
    if image.shape[:2] != size:
        found.problems.append(
            f"the image has {image.shape[0]} x {image.shape[1]} pixels (height x width), the receipt speaks of "
            f"{size[0]} x {size[1]}"
        )
    if digest(image) != receipt.image.digest:
        found.problems.append(f"the image is another one: {digest(image)} instead of {receipt.image.digest}")


def _check_device(receipt: Receipt, smoother: Smoother, found: Verification) -> None:
    made, here = receipt.arithmetic, arithmetic_of(smoother, receipt.arithmetic.batch_size)
    if made.device != here.device:
        raise CannotReplayError(
            f"the draws were made on {made.device} and cannot be replayed on {here.device}: the two draw different "
            f"noise from one seed; verify on a machine with {made.device}"
        )
    if (receipt.draws.noise_version or 1) > NOISE_VERSION:
        raise CannotReplayError(
            f"draws.noise_version {receipt.draws.noise_version} is not known here; update fs-serve (the receipt was "
            f"made with fs-serve {receipt.versions.get('fs-serve')})"
        )
    if made.device_name != here.device_name:
        found.warnings.append(f"made on {made.device_name}, replayed on {here.device_name}")
    if made.dtype != here.dtype:
        found.warnings.append(f"made in {made.dtype}, replayed in {here.dtype}: the tolerance is wider")
    if made.compiled != here.compiled:
        found.warnings.append(f"made with {_networks(made.compiled)}, replayed with {_networks(here.compiled)}")


def _networks(mode: str | None) -> str:
    return "networks as they are" if mode is None else f"networks compiled in mode {mode}"


def _check_weights(receipt: Receipt, smoother: Smoother, found: Verification) -> None:
    here = Fingerprints.of(smoother, FeatureMap(receipt.draws.stage, receipt.draws.centred))
    for part in ("model", "purifier", "mapper", "centre"):
        made, loaded = getattr(receipt.fingerprints, part), getattr(here, part)
        if made != loaded:
            remedy = f"; give --psm {'none' if made is None else 'FOLDER, the one that it was made with'}"
            found.problems.append(
                f"the {part} is another one: {loaded or 'none'} was loaded, the receipt speaks of {made or 'none'}"
                f"{remedy if part in ('purifier', 'mapper') else ''}"
            )
    if receipt.preprocessing.steps != json.loads(json.dumps(smoother.encoder.preprocessing)):
        found.problems.append("preprocessing.steps are not those of the model")


def _compare_versions(receipt: Receipt, found: Verification) -> None:
    for name, here in library_versions().items():
        made = receipt.versions.get(name)
        if made != here:
            found.warnings.append(f"made with {name} {made}, replayed with {here}")


def _check_numbers(receipt: Receipt, image: NDArray[np.uint8], smoother: Smoother, found: Verification) -> None:
    here = arithmetic_of(smoother, receipt.arithmetic.batch_size)
    found.tolerance = tolerance(here.device, receipt.arithmetic.dtype, here.dtype, float8=here.quantization is not None)
    replayed = replay(receipt, image, smoother, found.tolerance)
    low, middle, high = (certificate["smoothed"]["best"] for certificate in replayed.certificates)
    found.replayed = [low, middle, high]
    if not math.isclose(receipt.preprocessing.spectral_norm, replayed.spectral_norm, rel_tol=1e-9):
        found.problems.append(
            f"preprocessing.spectral_norm is {receipt.preprocessing.spectral_norm!r}, the image and the model give "
            f"{replayed.spectral_norm!r}"
        )
    recorded = {name: value for name, value in receipt.certificate.items() if name not in _NOT_COMPARED}
    replays = [
        {name: value for name, value in certificate.items() if name not in _NOT_COMPARED}
        for certificate in replayed.certificates
    ]
    unknown = unknown_fields(recorded, replays[1])
    if unknown:
        raise CannotReplayError(
            f"{', '.join(unknown)}: this fs-serve does not know the field, so it cannot check the receipt; "
            f"update it (the receipt was made with fs-serve {receipt.versions.get('fs-serve')})"
        )
    found.problems += map(str, differences(recorded, replays, found.tolerance))
    if not found.problems:  # so the certificate's numbers are numbers, and those of the draws
        found.problems += unsupported_ending(receipt)
