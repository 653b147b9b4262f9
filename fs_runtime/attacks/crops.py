"""Random crops, enlarged back to the full image, as a differentiable map.

Source: M-Attack, Li et al., "A Frustratingly Simple Yet Highly Effective Attack Baseline", arXiv 2503.10635: crops of
half to nine tenths of the area.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CROP_AREA = (0.5, 0.9)
_LARGEST_LOG_RATIO = math.log(4 / 3)  # of width to height


def random_boxes(count: int, generator: torch.Generator) -> Tensor:
    """``(count, 2, 3)`` affine maps from the coordinates of random crops to those of their images, in [-1, 1]."""
    device = generator.device
    area, aspect, across, down = torch.rand((4, count), generator=generator, device=device)
    area = CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * area
    ratio = torch.exp(_LARGEST_LOG_RATIO * (2 * aspect - 1))
    width = (area * ratio).sqrt().clamp_max(1)  # as a fraction of the image's side
    height = (area / ratio).sqrt().clamp_max(1)
    boxes = torch.zeros((count, 2, 3), device=device)
    boxes[:, 0, 0], boxes[:, 1, 1] = width, height
    boxes[:, 0, 2] = (1 - width) * (2 * across - 1)
    boxes[:, 1, 2] = (1 - height) * (2 * down - 1)
    return boxes


def crop(x: Tensor, boxes: Tensor) -> Tensor:
    """Crops each ``(B, C, H, W)`` image to its box and enlarges it bilinearly to ``(H, W)``.

    In ``(B, N, C, H, W)`` stacks of tiles, each tile is cropped to its image's box, since tiles are encoded separately.
    """
    if x.dim() == 5:
        return crop(x.flatten(0, 1), boxes.repeat_interleave(x.shape[1], dim=0)).view(x.shape)
    places = torch.nn.functional.affine_grid(boxes, list(x.shape), align_corners=False)
    return torch.nn.functional.grid_sample(x, places, padding_mode="border", align_corners=False)
