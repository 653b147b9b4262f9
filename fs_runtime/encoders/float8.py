"""Linear layers that multiply in 8-bit floating point (float8, e4m3), which NVIDIA GPUs support since Ada and Hopper.

f must be a fixed function of its own noisy picture (docs/guarantee.md section 1). So every activation is scaled by the
largest value of **its own row**: one token of one sample. The common choice of one scale for the whole tensor would
depend on the sample with the largest value in the batch; samples would depend on one another, and no certificate
would hold. Weights have a scale for each output channel. The format is that of Micikevicius et al., arXiv 2209.05433.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from fs_runtime.encoders.checkpoint import CheckpointError

SCHEME = "float8_e4m3fn: weights scaled by output channel, activations by token"
"""Part of the fingerprint of an encoder with float8 layers, which is another function than the original."""

_FLOAT8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FLOAT8).max  # 448
_SMALLEST_SCALE = 1e-12  # of a row of zeros
_STEP = 16  # the kernels need sides that are multiples of this


class Float8Linear(nn.Module):
    """A linear layer in float8: ``(…, inputs)`` to ``(…, outputs)`` in the input's dtype.

    Args:
        linear: The layer to convert; both sides must be multiples of 16.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = _quantised(linear.weight.detach())
        self.register_buffer("weight", weight)  # (outputs, inputs)
        self.register_buffer("weight_scale", scale.T.contiguous())  # (1, outputs)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    @override
    def forward(self, x: Tensor) -> Tensor:
        rows, scale = _quantised(x.flatten(0, -2))
        # With scales by row, the kernels on GPUs support bfloat16 output only.
        dtype = torch.bfloat16 if x.is_cuda else torch.float32
        out = torch._scaled_mm(
            rows, self.weight.t(), scale_a=scale, scale_b=self.weight_scale, out_dtype=dtype, use_fast_accum=True
        )
        out = out.to(x.dtype).view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


def _quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """``(R, K)`` in float8, and the ``(R, 1)`` float32 scales to multiply it by."""
    values = rows.float()
    scale = (values.abs().amax(-1, keepdim=True) / _LARGEST).clamp_min(_SMALLEST_SCALE)
    return (values / scale).clamp(-_LARGEST, _LARGEST).to(_FLOAT8), scale


def use_float8(module: nn.Module) -> int:
    """Replaces a module's linear layers by float8 layers, and returns how many.

    Layers whose sides are not multiples of 16 stay. So do subclasses of ``nn.Linear``, whose weights other code reads
    directly.
    """
    replaced = 0
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            if not (child.in_features % _STEP or child.out_features % _STEP):
                setattr(module, name, Float8Linear(child))
                replaced += 1
        else:
            replaced += use_float8(child)
    return replaced


def check_float8(device: torch.device) -> None:
    """Checks that a device multiplies in float8, by trying one product.

    Raises:
        CheckpointError: The device, or this version of torch on it, does not.
    """
    try:
        layer = Float8Linear(nn.Linear(_STEP, _STEP, device=device))
        with torch.inference_mode():
            finite = bool(layer(torch.ones(_STEP, _STEP, device=device)).isfinite().all())
    except (RuntimeError, NotImplementedError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{_name(device)} does not multiply in float8 with scales by row ({reason}); that takes an NVIDIA GPU of "
            "compute capability 8.9 or later, or torch 2.13 on a CPU: leave quantization out"
        ) from error
    if not finite:
        raise CheckpointError(f"{_name(device)} gives wrong products in float8: leave quantization out")


def _name(device: torch.device) -> str:
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else str(device)
