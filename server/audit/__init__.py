"""The audit log: one JSON line for each decision about a request's images."""
