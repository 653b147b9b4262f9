"""One tiny checkpoint for each model family: what the tests of families run over. A new family adds one entry."""

from .case import FamilyCase
from .gemma3 import GEMMA3
from .idefics3 import IDEFICS3, SMOLVLM
from .internvl import INTERNVL
from .llava import LLAVA
from .llava_next import LLAVA_NEXT
from .llava_onevision import LLAVA_ONEVISION
from .mllama import MLLAMA
from .paligemma import PALIGEMMA
from .pixtral import PIXTRAL
from .qwen import QWEN2_5_VL, QWEN2_VL, QWEN3_VL

CASES: tuple[FamilyCase, ...] = (
    LLAVA,
    LLAVA_NEXT,
    LLAVA_ONEVISION,
    QWEN2_VL,
    QWEN2_5_VL,
    QWEN3_VL,
    INTERNVL,
    GEMMA3,
    IDEFICS3,
    SMOLVLM,
    PIXTRAL,
    MLLAMA,
    PALIGEMMA,
)
