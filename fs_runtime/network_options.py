"""Faster ways of computing the networks, by name, for settings and receipts, which do without torch."""

from typing import Literal, get_args

CompileMode = Literal["default", "max-autotune-no-cudagraphs", "reduce-overhead", "max-autotune"]
"""Modes of ``torch.compile``; the last two replay CUDA graphs on a GPU."""

COMPILE_MODES: tuple[CompileMode, ...] = get_args(CompileMode)

Quantization = Literal["fp8"]
"""In which format the encoder's linear layers take their products, where that is not the encoder's dtype."""

QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
