"""The language model behind the gateway: a vLLM server, or one inside this process."""
