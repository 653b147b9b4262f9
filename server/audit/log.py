"""Writes decisions where the operator wants them, and says so when it cannot."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import structlog

from server.audit.file import LineFile
from server.errors import ApiError
from server.observability.metrics import Metrics
from server.robustness.answer import Robustness
from server.robustness.answer_entry import AnswerEntry
from server.robustness.entry import ImageEntry
from server.settings.gateway import Settings

log = structlog.get_logger("server.audit")

WRITE_SECONDS = 2.0
_MAX_PENDING = 1000  # records that wait for a disk that hangs; more are lost, and counted


class AuditLog:
    """The audit log of one gateway.

    A record is on its way to the disk before the answer that it speaks of leaves. One that cannot be written within
    2 s is counted and reported; the request is answered all the same, unless the operator requires the log.

    Args:
        settings: Where to write, and whether requests are refused when that fails.
        metrics: Counts records.

    Raises:
        OSError: The log is required and cannot be written at start.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._metrics = metrics
        self._required = settings.audit_required
        self._file = None
        self._thread: ThreadPoolExecutor | None = None
        self._pending = 0
        self._works = True
        metrics.audit_up.set(1)
        if settings.audit_log is None:
            return
        self._file = LineFile(settings.audit_log, settings.audit_max_bytes, settings.audit_backups)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="audit")
        started = {"time": _now(), "event": "start"}
        try:
            self._file.write(json.dumps(started).encode())
        except OSError as error:
            if self._required:
                raise
            self._failed(error)

    @property
    def enabled(self) -> bool:
        """Whether there is one."""
        return self._file is not None

    async def record(
        self, robustness: Robustness, digests: list[str], *, request_id: str, tenant: str, model: str
    ) -> None:
        """Writes what was decided about a request's images.

        Args:
            robustness: Certificates, requirements and decision.
            digests: Of the images' pixels, as receipts have them.
            request_id: Of the request.
            tenant: Whose request it is.
            model: Which model it is for.

        Raises:
            ApiError: 503: the record could not be written, and the operator requires it.
        """
        if self._file is None or self._thread is None:
            return
        entry = _entry(robustness, digests, request_id, tenant, model)
        try:
            if self._pending >= _MAX_PENDING:
                raise BlockingIOError("too many records wait for the disk")
            self._pending += 1
            done = asyncio.get_running_loop().run_in_executor(self._thread, self._write, entry)
            done.add_done_callback(self._written)
            async with asyncio.timeout(WRITE_SECONDS):
                await asyncio.shield(done)
        except (OSError, TimeoutError) as error:
            self._failed(error)
            if self._required:
                raise ApiError(
                    503,
                    "this server may not answer without an audit log, and cannot write it now; try another one",
                    code="audit_unavailable",
                    headers={"retry-after": "5"},
                ) from None
        else:
            self._succeeded()

    async def close(self) -> None:
        """Waits for what is being written, unless the disk hangs."""
        if self._thread is not None and self._file is not None:
            self._thread.shutdown(wait=self._pending == 0, cancel_futures=True)
            if self._pending == 0:
                self._file.close()

    def _write(self, entry: dict[str, Any]) -> None:
        assert self._file is not None  # noqa: S101 (record looked)
        self._file.write(json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode())

    def _written(self, done: asyncio.Future[None]) -> None:
        self._pending -= 1
        if not done.cancelled():
            done.exception()  # retrieved: record reports it, or has already given up waiting

    def _succeeded(self) -> None:
        self._metrics.audit_records.labels(outcome="written").inc()
        self._metrics.audit_up.set(1)
        if not self._works:
            self._works = True
            log.warning("the audit log is written again")

    def _failed(self, error: Exception) -> None:
        self._metrics.audit_records.labels(outcome="lost").inc()
        self._metrics.audit_up.set(0)
        if self._works:  # once, not for every request until the disk has room again
            self._works = False
            log.error("the audit log cannot be written; records are lost", problem=str(error) or type(error).__name__)


def _entry(robustness: Robustness, digests: list[str], request_id: str, tenant: str, model: str) -> dict[str, Any]:
    return {
        "time": _now(),
        "event": "decision",
        "request_id": request_id,
        "tenant": tenant,
        "model": model,
        "decision": robustness.decision,
        "detail": robustness.detail,
        "requirements": [dataclasses.asdict(item) for item in robustness.requirements],
        "answer": None if robustness.answer is None else _answer(robustness.answer),
        "images": [_image(image, digest) for image, digest in zip(robustness.images, digests, strict=True)],
    }


def _answer(answer: AnswerEntry) -> dict[str, Any]:
    """What was certified of the answer, but not what it said."""
    return {
        "function": answer.function,
        "certified": answer.certified,
        "satisfied": answer.satisfied,
        "radius": dataclasses.asdict(answer.radius),
        "asked_radius": dataclasses.asdict(answer.asked_radius),
        "confidence": answer.confidence,
        "samples": answer.samples,
        "failed": answer.failed,
        "returned": answer.returned,
        "verdicts": list(answer.verdicts),
        "values": [
            {"radius": value.radius.model, "agreement": value.agreement, "shortfall": value.shortfall}
            for value in answer.values
        ],
    }


def _image(image: ImageEntry, digest: str) -> dict[str, Any]:
    return {
        "digest": digest,
        "sigma": image.sigma,
        "samples": image.samples,
        "ended": image.ended,
        "confidence": image.confidence,
        "radius": dataclasses.asdict(image.radius),
        "norm": dataclasses.asdict(image.norm),
        "smoothed": image.smoothed.best,
        "served": image.served.best,
        "fingerprints": dataclasses.asdict(image.fingerprints),
        "judgements": [dataclasses.asdict(item) for item in image.judgements],
        "withheld": image.withheld,
        "receipt": image.receipt.model_dump(mode="json") if image.receipt else None,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
