"""The sketch: never below the exact eigenvalue, exact while it holds all rows, near it afterwards."""

import pytest
import torch

from fs_runtime.smoothing.spread_sketch import SpreadSketch


def exact(deviations: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(deviations.double(), 2) ** 2 / len(deviations))


@pytest.mark.parametrize("batch", [1, 7, 32, 200])
@pytest.mark.parametrize("law", ["flat", "one direction", "zero"])
def test_bounds_the_largest_eigenvalue(batch: int, law: str) -> None:
    deviations = torch.randn(200, 300, generator=torch.Generator().manual_seed(0)) * 0.02
    if law == "one direction":
        deviations[:, 0] *= 30
    if law == "zero":
        deviations.zero_()
    sketch = SpreadSketch()
    for start in range(0, 200, batch):
        part = deviations[start : start + batch]
        sketch.update(part)
        seen = deviations[: start + len(part)]
        trace = float(seen.square().sum()) / len(seen)
        assert sketch.count == len(seen)
        assert exact(seen) <= sketch.largest <= exact(seen) + trace / 32 + 1e-4 * trace
    if law == "one direction":
        assert sketch.largest < 1.05 * exact(deviations)


def test_is_exact_while_nothing_is_dropped() -> None:
    deviations = torch.randn(20, 50, generator=torch.Generator().manual_seed(1))
    sketch = SpreadSketch()
    sketch.update(deviations[:8])
    sketch.update(deviations[8:8])
    sketch.update(deviations[8:])
    assert sketch.largest == pytest.approx(exact(deviations), rel=1e-3)
    assert SpreadSketch().largest == 0.0


def test_most_bytes_is_what_it_comes_to() -> None:
    deviations = torch.randn(150, 400, generator=torch.Generator().manual_seed(1))
    sketch, seen = SpreadSketch(), []
    for part in deviations.split(5):
        sketch.update(part)
        seen.append(sketch.nbytes)
    assert 0.9 * SpreadSketch.most_bytes(400) < max(seen) <= SpreadSketch.most_bytes(400)


def test_does_not_depend_on_the_batches() -> None:
    deviations = torch.randn(150, 400, generator=torch.Generator().manual_seed(2)) * 0.05
    found = []
    for batch in (1, 13, 64, 150):
        sketch = SpreadSketch()
        for part in deviations.split(batch):
            sketch.update(part)
        found.append(sketch.largest)
    assert found == pytest.approx([found[0]] * 4, rel=1e-5)


def test_a_copy_goes_on_by_itself() -> None:
    deviations = torch.randn(150, 400, generator=torch.Generator().manual_seed(2)) * 0.05
    whole, sketch = SpreadSketch(), SpreadSketch()
    whole.update(deviations)
    sketch.update(deviations[:70])
    before, copied = sketch.largest, sketch.to("cpu")
    copied.update(deviations[70:])
    assert copied.largest == pytest.approx(whole.largest, rel=1e-5)
    assert (sketch.largest, sketch.count) == (before, 70)
    assert 32 * 400 * 4 <= copied.nbytes < 64 * 400 * 4


def test_rounding_does_not_add_up() -> None:
    """Deviations along one direction are all that is kept, and rounded every time that the sketch shrinks."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.linalg.qr(torch.randn(64, 1, generator=generator))[0]
    deviations = 0.3 * torch.randn(100_000, 1, generator=generator) @ direction.T
    sketch = SpreadSketch()
    sketch.update(deviations)
    assert exact(deviations) <= sketch.largest < 1.001 * exact(deviations)
