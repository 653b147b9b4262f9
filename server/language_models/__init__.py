"""Language model back ends: vLLM servers, a model in this process, or none."""
