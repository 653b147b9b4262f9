"""Qwen2.5-VL: as Qwen2-VL, with attention in windows in most blocks (arXiv 2502.13923, section 2.1.1)."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from typing_extensions import override

from fs_runtime.encoders.qwen2_vl import Qwen2VLEncoder
from fs_runtime.encoders.qwen_vision import VisionBlocks


class Qwen25VLEncoder(Qwen2VLEncoder):
    """Vision transformer and merger of a Qwen2.5-VL checkpoint; arguments and errors as :class:`Qwen2VLEncoder`."""

    family = "qwen2_5_vl"
    _tower_class: ClassVar[Any] = Qwen2_5_VisionTransformerPretrainedModel

    @override
    def _vision_blocks(
        self, vision: PreTrainedConfig, window: int | None = None, full: tuple[int, ...] = ()
    ) -> VisionBlocks:
        # A window holds whole merged blocks.
        side = int(vision.window_size) // self._merge // self._patch * self._merge
        return super()._vision_blocks(vision, side, tuple(vision.fullatt_block_indexes))
