"""A plugin for vLLM 0.32: accepts image embeddings of different lengths, and rejects values that are not finite.

vLLM batches all images of a step, also of different requests. Its LLaVA-NeXT, LLaVA-OneVision and InternVL demand that
their embeddings have the same number of tokens, so two images of different shapes crash its engine. Nothing after that
check needs it. Its PaliGemma processor drops embeddings. Put this folder on vLLM's PYTHONPATH:

    PYTHONPATH=deploy/vllm-plugin vllm serve …

vLLM finds the plugin by the folder beside this file and loads it in each of its processes.
"""

from __future__ import annotations

from typing import Any

# Names of the dimensions of image embeddings in vLLM's models, and which of them is the number of tokens.
_TOKENS = {("bn", "ifs", "hs"): "ifs", ("n", "f", "h"): "f", ("ni", "tifs", "hs"): "tifs"}


def register() -> None:
    """Patches vLLM. vLLM calls it before it imports a model; further calls do nothing."""
    from vllm.multimodal.parse import ImageEmbeddingItems
    from vllm.utils.tensor_schema import TensorShape

    if getattr(TensorShape, "any_length", False):
        return
    TensorShape.any_length = True
    declare, take = TensorShape.__init__, ImageEmbeddingItems.__init__

    def declare_any_length(shape: Any, *dims: int | str, dynamic_dims: set[str] | None = None) -> None:
        tokens = {_TOKENS[dims]} if dims in _TOKENS else set()
        declare(shape, *dims, dynamic_dims=(dynamic_dims or set()) | tokens)

    def take_if_finite(items: Any, *arguments: Any, **named: Any) -> None:
        take(items, *arguments, **named)
        if not all(bool(embeddings.isfinite().all()) for embeddings in items.data):
            raise ValueError("image embeddings hold values that are not finite")

    TensorShape.__init__ = declare_any_length
    ImageEmbeddingItems.__init__ = take_if_finite
    _let_paligemma_take_embeddings()


def _let_paligemma_take_embeddings() -> None:
    """Makes the processor pass embeddings on, which it drops although the model accepts them."""
    from vllm.model_executor.models.paligemma import PaliGemmaMultiModalProcessor
    from vllm.multimodal.inputs import MultiModalFieldConfig

    fields = PaliGemmaMultiModalProcessor._get_mm_fields_config

    def with_embeddings(processor: Any, *arguments: Any) -> dict[str, Any]:
        return {**fields(processor, *arguments), "image_embeds": MultiModalFieldConfig.batched("image")}

    PaliGemmaMultiModalProcessor._get_mm_fields_config = with_embeddings
