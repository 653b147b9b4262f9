"""A pool of vLLM servers that answer: places, health, retries, exchanges."""
