"""What the host keeps of an image's draws."""

from dataclasses import replace

import pytest
import torch

from fs_runtime.engine import CertificateTerms
from fs_runtime.engine.draws import Draws
from fs_runtime.smoothing.sums import InnerProducts

TERMS = CertificateTerms(0.25, 0.999)


def products(count: int) -> InnerProducts:
    return InnerProducts(
        image=torch.full((count,), 0.9), tokens=torch.full((count, 4), 0.8), clean=torch.full((count,), 0.7)
    )


@pytest.mark.parametrize("part", ["image", "tokens", "clean"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_block_with_a_number_that_is_not_finite_is_taken_in_not_at_all(part: str, value: float) -> None:
    draws = Draws(0.999)
    draws.add(products(8), 8)
    before = draws.fidelity_sequence(TERMS), draws.norm_sequence(TERMS)
    assert before[0] is not None
    lower = float(before[0].lower), float(before[1].lower)
    spoilt = getattr(products(8), part).clone()
    spoilt.flatten()[3] = value
    with pytest.raises(ValueError, match="not finite"):
        draws.add(replace(products(8), **{part: spoilt}), 16)
    after = draws.fidelity_sequence(TERMS), draws.norm_sequence(TERMS)
    assert after[0] is not None
    assert draws.count == 8
    assert draws.token_sequence is not None
    assert draws.token_sequence.count == 8
    assert (float(after[0].lower), float(after[1].lower)) == lower
    draws.add(products(8), 16)
    assert draws.fidelity_sequence(TERMS).count == 16  # type: ignore[union-attr]
