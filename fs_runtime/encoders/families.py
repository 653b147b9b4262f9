"""Table of the known model families and how each is served; finds a family by ``config.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fs_runtime.options import LanguageModelKind

_CLIP = "fs_runtime.encoders.clip:ClipEncoder"
_NO_EMBEDDINGS = "vLLM takes no image embeddings for it"
OPEN_FLAMINGO = (
    "its checkpoints hold what lies behind the vision encoder, which is OpenAI's CLIP ViT-L/14 unchanged: certify that "
    "one, with --model openai/clip-vit-large-patch14 --language-model none"
)
_REMOTE_CODE = "its code comes with the checkpoint, and such code is not run here"
_UNEQUAL_SLICES = "it has no adapter yet: its slices differ in size from the whole image"
_NO_IMAGES = '{"image":0,"video":0}'


@dataclass(frozen=True, slots=True)
class Family:
    """A model family, and how it is served.

    Attributes:
        name: Name shown to people.
        model_type: As in its ``config.json``.
        architectures: Names of the whole model in its ``config.json`` and in vLLM.
        adapter: ``module:class`` of its vision encoder; None if the family is known but not supported.
        language_models: Back ends that can answer from its embeddings; without any, only ``/v1/certify`` works.
        vllm_limit: ``--limit-mm-per-prompt`` of vLLM, beside ``--enable-mm-embeds``. An image limit of 0 allows any
            number of embeddings and loads no vision tower; any other is the most images of one request.
        vllm_plugin: Whether vLLM needs ``deploy/vllm-plugin``. Without it, vLLM's engine crashes when a batch has
            images with different numbers of tokens, or its processor loses embeddings.
        note: What users should know, for example why it is not supported.
        embedded: ``module:class`` of its language model in this process, for the ``embedded`` back end.
    """

    name: str
    model_type: str
    architectures: tuple[str, ...]
    adapter: str | None = None
    language_models: tuple[LanguageModelKind, ...] = ()
    vllm_limit: str = _NO_IMAGES
    vllm_plugin: bool = False
    note: str = ""
    embedded: str = "fs_runtime.embedded.model:EmbeddedModel"

    @property
    def vllm_tower(self) -> bool:
        """Whether vLLM has to load its vision tower, although it reads embeddings."""
        return int(json.loads(self.vllm_limit)["image"]) > 0

    @property
    def served(self) -> str:
        """How it is served, in words."""
        if self.adapter is None:
            return "not supported"
        if not self.language_models:
            return "certify only"
        return " or ".join({"vllm": "vLLM", "embedded": "embedded"}[kind] for kind in self.language_models)


_ALL = (
    Family(
        "LLaVA-1.5",
        "llava",
        ("LlavaForConditionalGeneration",),
        "fs_runtime.encoders.llava:LlavaEncoder",
        ("vllm", "embedded"),
        note="CLIP or SigLIP tower at a fixed resolution",
    ),
    Family(
        "LLaVA-NeXT",
        "llava_next",
        ("LlavaNextForConditionalGeneration",),
        "fs_runtime.encoders.llava_next:LlavaNextEncoder",
        ("vllm", "embedded"),
        vllm_plugin=True,
        note="whole image and tiles; LLaVA-1.6",
    ),
    Family(
        "LLaVA-OneVision",
        "llava_onevision",
        ("LlavaOnevisionForConditionalGeneration",),
        "fs_runtime.encoders.llava_onevision:LlavaOnevisionEncoder",
        ("vllm", "embedded"),
        vllm_plugin=True,
        note="whole image and tiles, of every image; no video",
    ),
    Family(
        "Qwen2-VL",
        "qwen2_vl",
        ("Qwen2VLForConditionalGeneration",),
        "fs_runtime.encoders.qwen2_vl:Qwen2VLEncoder",
        ("vllm", "embedded"),
        note="any resolution",
        embedded="fs_runtime.embedded.qwen:QwenModel",
    ),
    Family(
        "Qwen2.5-VL",
        "qwen2_5_vl",
        ("Qwen2_5_VLForConditionalGeneration",),
        "fs_runtime.encoders.qwen2_5_vl:Qwen25VLEncoder",
        ("vllm", "embedded"),
        note="any resolution",
        embedded="fs_runtime.embedded.qwen:QwenModel",
    ),
    Family(
        "Qwen3-VL",
        "qwen3_vl",
        ("Qwen3VLForConditionalGeneration",),
        "fs_runtime.encoders.qwen3_vl:Qwen3VLEncoder",
        ("vllm", "embedded"),
        vllm_limit='{"image":8,"video":0}',  # 8 is the gateway's own limit (max_images)
        note="any resolution; vLLM's image limit is that of one request, and 0 would switch DeepStack off",
        embedded="fs_runtime.embedded.qwen:QwenModel",
    ),
    Family(
        "InternVL",
        "internvl",
        ("InternVLForConditionalGeneration",),
        "fs_runtime.encoders.internvl:InternVLEncoder",
        ("vllm", "embedded"),
        vllm_plugin=True,
        note="tiles and whole image; checkpoints in transformers' own format (…-hf)",
        embedded="fs_runtime.embedded.internvl:InternVLModel",
    ),
    Family(
        "Gemma 3",
        "gemma3",
        ("Gemma3ForConditionalGeneration",),
        "fs_runtime.encoders.gemma3:Gemma3Encoder",
        ("embedded",),
        note=f"{_NO_EMBEDDINGS}; no pan and scan",
        embedded="fs_runtime.embedded.gemma3:Gemma3Model",
    ),
    Family(
        "Idefics3",
        "idefics3",
        ("Idefics3ForConditionalGeneration",),
        "fs_runtime.encoders.idefics3:Idefics3Encoder",
        ("embedded",),
        note=f"tiles and whole image; {_NO_EMBEDDINGS}",
        embedded="fs_runtime.embedded.idefics3:Idefics3Model",
    ),
    Family(
        "SmolVLM",
        "smolvlm",
        ("SmolVLMForConditionalGeneration",),
        "fs_runtime.encoders.idefics3:Idefics3Encoder",
        ("embedded",),
        note=f"tiles and whole image; {_NO_EMBEDDINGS}",
        embedded="fs_runtime.embedded.idefics3:Idefics3Model",
    ),
    Family(
        "Pixtral",
        "pixtral",
        ("LlavaForConditionalGeneration",),
        "fs_runtime.encoders.pixtral:PixtralEncoder",
        ("embedded",),
        note=f"any resolution; in transformers' format, a llava whose vision_config is a pixtral's; {_NO_EMBEDDINGS}",
        embedded="fs_runtime.embedded.pixtral:PixtralModel",
    ),
    Family(
        "Llama 3.2 Vision",
        "mllama",
        ("MllamaForConditionalGeneration",),
        "fs_runtime.encoders.mllama:MllamaEncoder",
        ("embedded",),
        note="tiles; its language model reads images by cross-attention, and vLLM no longer serves it",
        embedded="fs_runtime.embedded.mllama:MllamaModel",
    ),
    Family(
        "PaliGemma",
        "paligemma",
        ("PaliGemmaForConditionalGeneration",),
        "fs_runtime.encoders.paligemma:PaliGemmaEncoder",
        ("vllm",),
        vllm_plugin=True,
        note="fixed resolution, one image in a request; PaliGemma 2 too",
    ),
    *(
        Family(
            f"{name} encoder", model_type, architectures, _CLIP, note="an encoder alone, no chat: --language-model none"
        )
        for name, model_type, architectures in (
            ("CLIP", "clip", ("CLIPModel",)),
            ("CLIP", "clip_vision_model", ("CLIPVisionModel", "CLIPVisionModelWithProjection")),
            ("SigLIP", "siglip", ("SiglipModel",)),
            ("SigLIP", "siglip_vision_model", ("SiglipVisionModel",)),
        )
    ),
    # Known, but not supported; the note is the reason.
    Family("Phi-3-Vision", "phi3_v", ("Phi3VForCausalLM",), note=_REMOTE_CODE),
    Family("MiniCPM-V", "minicpmv", ("MiniCPMV",), note=_REMOTE_CODE),
    *(
        Family("MiniCPM-V", model_type, (f"MiniCPMV4_{minor}ForConditionalGeneration",), note=_UNEQUAL_SLICES)
        for model_type, minor in (("minicpmv4_6", 6), ("minicpmv4_7", 7))
    ),
    Family("OpenFlamingo", "flamingo", ("FlamingoForConditionalGeneration",), note=OPEN_FLAMINGO),
)

FAMILIES: dict[str, Family] = {family.model_type: family for family in _ALL}
"""By ``model_type``."""


def family_of(config: dict[str, Any]) -> Family | None:
    """The family of a ``config.json`` by its ``model_type``, or by its ``architectures`` if it has none.

    Pixtral in transformers' format says that it is a LLaVA; its vision tower tells it apart.
    """
    named = set(config.get("architectures") or ())
    tower = (config.get("vision_config") or {}).get("model_type")
    if "model_type" in config:
        model_type = str(config["model_type"])
        return FAMILIES.get("pixtral" if (model_type, tower) == ("llava", "pixtral") else model_type)
    if tower == "pixtral" and named & set(FAMILIES["pixtral"].architectures):
        return FAMILIES["pixtral"]
    return next((family for family in _ALL if named & set(family.architectures)), None)


def supported_family(config: dict[str, Any], source: str) -> Family:
    """The supported family of a ``config.json``.

    Raises:
        ValueError: It is not supported; the message gives the reason, and lists the families that are.
    """
    family = family_of(config)
    architectures = config.get("architectures") or ()
    if family is None:
        fault = f"{source} is of family {config.get('model_type')!r}, which is not supported"
    elif family.adapter is None:
        fault = f"{source} is of family {family.name}, which is not supported: {family.note}"
    elif architectures and not set(architectures) & set(family.architectures):
        fault = (
            f"{source} is a {family.model_type} whose architecture is {architectures[0]}, which is not supported; "
            f"convert it to {family.architectures[0]}, or take a checkpoint that is"
        )
    else:
        return family
    listed = ", ".join(f"{known.name} ({known.model_type})" for known in _ALL if known.adapter is not None)
    raise ValueError(f"{fault}. Supported: {listed}; `fs-serve models` says how")
