"""The vLLM back end: a pool of servers with queueing, health checks, retries and circuit breakers."""
