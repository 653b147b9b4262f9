"""One tiny checkpoint for each model family: what the tests of families run over. A new family adds one entry."""

from .case import FamilyCase
from .llava_next import LLAVA_NEXT
from .llava_onevision import LLAVA_ONEVISION

CASES: tuple[FamilyCase, ...] = (LLAVA_NEXT, LLAVA_ONEVISION)
