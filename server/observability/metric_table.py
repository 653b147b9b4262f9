"""Every metric that the gateway exports, one row for each, beside those of its process (``process_…``)."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram, Info

from server.observability.metric_rows import OPEN, Counted, Scraped, Table

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_UPSTREAM_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
# Denser towards 1, where certificates live.
_SIMILARITY = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 1.0)
_SAMPLES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_RADII = (0.0, 0.025, 0.05, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)

# A request that chooses its own sigma, samples or radius says little about its images: alerts take each alone.
_PARAMETERS = ("default", "own")
_LANGUAGE_MODEL_ERRORS = tuple(
    f"language_model_{cause}" for cause in ("unavailable", "timeout", "broken_off", "failed", "refused")
)

# Labels of what is read at each scrape.
_MODEL = ("model",)
_SERVER = ("model", "server")
_GPU = ("device", "gpu")


class MetricTable(Table):
    """The table. Series of rows with a label ``model`` come and go with each model."""

    # --- the gateway ---------------------------------------------------------------------------------------------

    requests = Counted(Counter, "fs_requests", "Requests by route and status.", {"route": OPEN, "status": OPEN})
    request_seconds = Counted(
        Histogram,
        "fs_request_duration_seconds",
        "Time from the first byte in to the last byte out.",
        {"route": OPEN},
        buckets=_SECONDS,
    )
    requests_in_flight = Counted(Gauge, "fs_requests_in_flight", "Requests being answered.")
    errors = Counted(
        Counter,
        "fs_request_errors",
        "Error answers, also those in the midst of a stream, by code and by whose fault: client or server.",
        {"code": OPEN, "fault": OPEN},
        also=(
            ("internal_error", "server"),
            ("language_model_unavailable", "server"),
            ("certificate_below_minimum", "client"),
        ),
    )
    shed = Counted(
        Counter,
        "fs_requests_shed",
        "Requests turned away because of load, limits or shutdown, by reason.",
        {"reason": ("overloaded", "shutting_down")},
    )
    refused_images = Counted(Counter, "fs_refused_images", "Images that were not read, by error code.", {"code": OPEN})
    rate_limited = Counted(
        Counter,
        "fs_rate_limited",
        "Requests answered 429 by a tenant's limit: requests, images, samples, votes.",
        {"limit": ("requests", "images", "samples", "votes")},
    )
    # Only where a Redis is set: elsewhere 0 would look like a fault, and 1 be untrue.
    limits_shared = Counted(
        Gauge,
        "fs_rate_limits_shared",
        "1 while Redis counts the rate limits, 0 while this process does so by itself.",
        registered=False,
    )
    limits_errors = Counted(
        Counter, "fs_rate_limit_storage_errors", "Failed calls of the Redis that counts rate limits."
    )
    access_reloads = Counted(
        Counter,
        "fs_access_reloads",
        "Changes of the access file, by outcome: loaded, refused.",
        {"outcome": ("loaded", "refused")},
    )
    access_file_current = Counted(
        Gauge,
        "fs_access_file_current",
        "1 while the access file on disk is the one in force; 0 while a broken one waits to be mended.",
    )
    audit_records = Counted(
        Counter, "fs_audit_records", "Audit records by outcome: written, lost.", {"outcome": ("written", "lost")}
    )
    audit_up = Counted(Gauge, "fs_audit_log_up", "1 while the latest record of the audit log was written.")
    models_file_reloads = Counted(
        Counter,
        "fs_models_file_reloads",
        "Changes of the models file, by outcome: loaded, refused.",
        {"outcome": ("loaded", "refused")},
    )
    models_file_current = Counted(
        Gauge,
        "fs_models_file_current",
        "1 while the models file on disk is the one in force; 0 while a broken one waits to be mended.",
    )
    model_loads = Counted(
        Counter, "fs_model_loads", "Models loaded, by outcome: loaded, failed.", {"outcome": ("loaded", "failed")}
    )
    model_unloads = Counted(Counter, "fs_model_unloads", "Models whose memory was freed after their last request.")
    # Once the version is set.
    build = Counted(Info, "fs_build", "Version of the gateway.", registered=False)

    # --- requests of each model ----------------------------------------------------------------------------------

    stage_seconds = Counted(
        Histogram,
        "fs_stage_duration_seconds",
        "Time by stage: fetch and decode (model is empty), queue, smoothing, certificate, votes (on a certified "
        "answer, smoothing included), first_token, language_model.",
        {"stage": ("queue", "smoothing", "certificate", "votes", "first_token", "language_model"), "model": OPEN},
        also=(("fetch", ""), ("decode", "")),
        buckets=_SECONDS,
    )
    model_requests = Counted(
        Counter, "fs_model_requests", "Requests that a model was found for, by route.", {"route": OPEN, "model": OPEN}
    )
    tokens = Counted(
        Counter,
        "fs_language_model_tokens",
        "Tokens that the language model reported, by direction: input, output.",
        {"direction": ("input", "output"), "model": OPEN},
    )
    images = Counted(
        Counter,
        "fs_images",
        "Images smoothed, by whether a similarity was certified (off: without noise), and by whether the request "
        "left the parameters to the operator (default) or gave some itself (own).",
        {"parameters": _PARAMETERS, "certified": ("true", "false", "off"), "model": OPEN},
    )
    samples_per_image = Counted(
        Histogram,
        "fs_samples_per_image",
        "Noise samples behind one image, those that were drawn for earlier requests included.",
        {"model": OPEN},
        buckets=_SAMPLES,
    )
    endings = Counted(
        Counter,
        "fs_sampling_endings",
        "Images by why sampling ended: samples (all drawn), reached, out_of_reach, votes (that on the answer ended).",
        {"ended": ("samples", "reached", "out_of_reach", "votes"), "model": OPEN},
    )
    similarity = Counted(
        Histogram,
        "fs_certified_similarity",
        "Certified cosine similarity at the asked radius; 0 for none. Images smoothed with noise only.",
        {"parameters": _PARAMETERS, "model": OPEN},
        buckets=_SIMILARITY,
    )
    norm_lower = Counted(
        Histogram,
        "fs_norm_lower",
        "Lower bound of rho, the norm of the smoothed feature. Images smoothed with noise only.",
        {"parameters": _PARAMETERS, "model": OPEN},
        buckets=_SIMILARITY,
    )
    fidelity = Counted(
        Histogram,
        "fs_fidelity",
        "Cosine similarity of the smoothed features with those of the picture as sent; 0 for a negative one. "
        "Images smoothed with noise only.",
        {"parameters": _PARAMETERS, "model": OPEN},
        buckets=_SIMILARITY,
    )
    answers = Counted(
        Counter,
        "fs_answers",
        "Answers that were voted on, by whether they are certified at the asked radius (certified), at a smaller one "
        "alone (smaller_radius), or at none (uncertified).",
        {"parameters": _PARAMETERS, "outcome": ("certified", "smaller_radius", "uncertified"), "model": OPEN},
    )
    answer_abstentions = Counted(
        Counter,
        "fs_answer_abstentions",
        "Answers that are not certified at the asked radius, by reason: split (the first copies chose none), agreement "
        "(too little of it), samples (more copies would do), time (the votes ran out of it).",
        {"reason": ("split", "agreement", "samples", "time"), "model": OPEN},
    )
    answer_radius = Counted(
        Histogram,
        "fs_answer_radius",
        "Certified l2 radius of answers on the encoder's images, in pixels of [0, 1]; 0 for none.",
        {"parameters": _PARAMETERS, "model": OPEN},
        buckets=_RADII,
    )
    answer_agreement = Counted(
        Histogram,
        "fs_answer_agreement",
        "Share of the votes for the winner, the least over fields; answers that have one.",
        {"model": OPEN},
        buckets=_SIMILARITY,
    )
    copies_per_answer = Counted(
        Histogram,
        "fs_copies_per_answer",
        "Noisy copies that were asked about for one answer.",
        {"model": OPEN},
        buckets=_SAMPLES,
    )
    votes = Counted(
        Counter,
        "fs_votes",
        "Noisy copies that were asked about, by outcome: answered, failed (no answer came).",
        {"outcome": ("answered", "failed"), "model": OPEN},
    )
    policy_decisions = Counted(
        Counter,
        "fs_policy_decisions",
        "Requests that something was required of (similarity, fidelity, a certified answer), by decision: pass, flag, "
        "withhold, reject.",
        {"decision": ("pass", "flag", "withhold", "reject"), "model": OPEN},
    )
    cache_requests = Counted(
        Counter,
        "fs_cache_requests",
        "Images by what the cache did: hit (nothing was drawn), extended (samples were added), miss, off.",
        {"outcome": ("hit", "extended", "miss", "off"), "model": OPEN},
    )
    language_model_errors = Counted(
        Counter,
        "fs_language_model_errors",
        "Failures of the language model, by code.",
        {"code": _LANGUAGE_MODEL_ERRORS, "model": OPEN},
    )

    # --- vLLM servers of each model: host and port, as many as the operator has configured ------------------------

    upstream_requests = Counted(
        Counter,
        "fs_upstream_requests",
        "Requests sent to a vLLM server, by outcome: answered, refused, unreachable, busy, failed, broken_off, "
        "timed_out, withdrawn.",
        {"model": OPEN, "server": OPEN, "outcome": OPEN},
    )
    upstream_seconds = Counted(
        Histogram,
        "fs_upstream_duration_seconds",
        "Time from sending a request to a vLLM server to the end of its answer, for those answered.",
        {"model": OPEN, "server": OPEN},
        buckets=_UPSTREAM_SECONDS,
    )
    upstream_retries = Counted(
        Counter,
        "fs_upstream_retries",
        "Requests sent once more, by the outcome of the attempt before.",
        {"model": OPEN, "reason": OPEN},
    )
    upstream_sheds = Counted(
        Counter,
        "fs_upstream_sheds",
        "Requests turned away for want of a free vLLM server: queue_full, no_place (in time).",
        {"model": OPEN, "reason": OPEN},
    )
    upstream_in_flight = Scraped(Gauge, "fs_upstream_in_flight", "Requests at a vLLM server.", _SERVER)
    upstream_healthy = Scraped(Gauge, "fs_upstream_healthy", "Whether a vLLM server is healthy.", _SERVER)
    upstream_breaker_state = Scraped(
        Gauge, "fs_upstream_breaker_state", "Circuit breaker of a vLLM server: 0 closed, 1 half open, 2 open.", _SERVER
    )
    upstream_waiting = Scraped(Gauge, "fs_upstream_waiting", "Requests that wait for a vLLM server.", _MODEL)
    upstream_retry_budget = Scraped(Gauge, "fs_upstream_retry_budget", "Retries at hand.", _MODEL)

    # --- models, their engines and devices -----------------------------------------------------------------------

    model_state = Scraped(
        Gauge,
        "fs_model_state",
        "1 for the state of each model: ready, loading, failed (an earlier version may go on to run), leaving (its "
        "last requests are under way).",
        ("model", "state"),
    )
    model_info = Scraped(
        Info,
        "fs_model",
        "The models that are served, and digests of what is smoothed.",
        ("model", "family", "fingerprint", "device"),
    )
    engine_alive = Scraped(
        Gauge, "fs_engine_alive", "1 while the thread that runs the smoothing passes is alive.", _MODEL
    )
    engine_heartbeat_age = Scraped(
        Gauge, "fs_engine_heartbeat_age_seconds", "Seconds since that thread last said that it is there.", _MODEL
    )
    queued_samples = Scraped(Gauge, "fs_queued_samples", "Noise samples asked for and not yet drawn.", _MODEL)
    queue_limit = Scraped(
        Gauge, "fs_queue_limit_samples", "Noise samples that may wait before requests are shed.", _MODEL
    )
    batch_size = Scraped(Gauge, "fs_batch_size_samples", "Noise samples that one batch holds.", _MODEL)
    queued_images = Scraped(Gauge, "fs_queued_images", "Images waiting or being smoothed.", _MODEL)
    estimated_wait = Scraped(
        Gauge, "fs_estimated_wait_seconds", "Time until all that waits is done, at the rate of late.", _MODEL
    )
    cache_bytes = Scraped(Gauge, "fs_cache_bytes", "Memory that cached images take.", _MODEL)
    cache_images = Scraped(Gauge, "fs_cache_images", "Images in the cache.", _MODEL)
    # How full batches are is the ratio of their increases, whatever the shapes of the images.
    batches = Scraped(Counter, "fs_batches", "Batches run.", _MODEL)
    batch_fill = Scraped(Counter, "fs_batch_fill", "Sum over the batches of the part that was used.", _MODEL)
    samples = Scraped(Counter, "fs_samples", "Noise samples drawn.", _MODEL)
    engine_faults = Scraped(
        Counter,
        "fs_engine_faults",
        "Batches that did not fit into memory, and faults of the scheduler.",
        ("model", "kind"),
    )
    shared_cache_up = Scraped(
        Gauge, "fs_shared_cache_up", "1 while the Redis that replicas share images in answers.", _MODEL
    )
    shared_cache_lookups = Scraped(
        Counter,
        "fs_shared_cache_lookups",
        "Images looked up there: found, claimed (nothing was there), expired, unusable (forged, damaged), failed "
        "(Redis), busy (all connections), skipped (Redis failed lately).",
        ("model", "outcome"),
    )
    shared_cache_writes = Scraped(
        Counter,
        "fs_shared_cache_writes",
        "Images to be written there: stored, kept (as many samples are there), other (other draws are there), "
        "expired, too_large, refused (Redis is full), failed, dropped (too many wait), skipped (it failed lately).",
        ("model", "outcome"),
    )
    gpu_memory_total = Scraped(Gauge, "fs_gpu_memory_total_bytes", "Memory of the GPU.", _GPU)
    gpu_memory_used = Scraped(Gauge, "fs_gpu_memory_used_bytes", "GPU memory taken by all processes.", _GPU)
    gpu_memory_reserved = Scraped(Gauge, "fs_gpu_memory_reserved_bytes", "GPU memory taken by the gateway.", _GPU)
    gpu_memory_limit = Scraped(Gauge, "fs_gpu_memory_limit_bytes", "GPU memory that the gateway may take.", _GPU)
    gpu_utilization = Scraped(Gauge, "fs_gpu_utilization_ratio", "Part of the time that the GPU worked.", _GPU)
