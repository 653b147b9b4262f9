"""The HTTP gateway in front of the smoothing runtime and the language model."""
