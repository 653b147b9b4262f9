import numpy as np
import pytest
from scipy.stats import ttest_rel

from fs_runtime.evaluation.intervals import proportion
from fs_runtime.evaluation.photographs.cells import PhotographCell, PhotographKey
from fs_runtime.evaluation.photographs.summary import UNSMOOTHED, estimates_of, paired_differences

CLEAN = PhotographCell(PhotographKey("e", "none", 0.0), {"top1_smoothed": [1, 1, 1, 1, 0], "retrieval": [1] * 5})
NONE = PhotographCell(
    PhotographKey("e", "none", 0.1),
    {"top1_smoothed": [1, 0, 0, 1, 0], "token_fidelity": [0.5, 0.6, 0.4, 0.7, 0.55], "retrieval": [1, 0, 1, 1, 1]},
)
SMALL = PhotographCell(
    PhotographKey("e", "small", 0.1),
    {"top1_smoothed": [1, 1, 0, 1, 0], "token_fidelity": [0.8, 0.82, 0.75, 0.9, 0.7], "retrieval": [1] * 5},
)
NEW = PhotographCell(
    PhotographKey("e", "new", 0.1), {"top1_smoothed": [1, 1, 1, 1, 0], "token_fidelity": [0.9, 0.9, 0.8, 0.9, 0.8]}
)
ELSEWHERE = PhotographCell(PhotographKey("e", "small", 0.2), {"token_fidelity": [0.1] * 5})


def test_differences_are_paired_by_picture() -> None:
    found = {
        (one.key.purifier, one.other): one.values for one in paired_differences([CLEAN, NONE, SMALL, NEW, ELSEWHERE])
    }
    assert list(found) == [
        ("none", UNSMOOTHED),
        ("small", UNSMOOTHED),
        ("small", "none"),
        ("new", UNSMOOTHED),
        ("new", "none"),
        ("new", "small"),
    ]
    got = found["small", "none"]["token_fidelity"]
    test = ttest_rel(SMALL.values["token_fidelity"], NONE.values["token_fidelity"])
    interval = test.confidence_interval(0.95)
    assert (got.value, got.low, got.high) == pytest.approx((0.244, interval.low, interval.high))
    assert found["new", "none"]["top1_smoothed"].value == pytest.approx(0.4)
    assert found["none", UNSMOOTHED]["top1_smoothed"].value == pytest.approx(-0.4)
    assert "retrieval" not in found["none", UNSMOOTHED]
    assert found["small", "none"]["retrieval"].value == pytest.approx(0.2)
    assert all(-1 <= one.low <= one.high <= 1 for values in found.values() for one in values.values())


def test_rows_are_compared_under_the_same_attack_only() -> None:
    attacked = PhotographCell(PhotographKey("e", "none", 0.1, "fixed", "l2", 0.1), NONE.values)
    other = PhotographCell(PhotographKey("e", "small", 0.1, "fixed", "l2", 0.05), SMALL.values)
    assert paired_differences([attacked, other, SMALL, CLEAN]) == paired_differences([SMALL, CLEAN])
    same = PhotographCell(PhotographKey("e", "small", 0.1, "fixed", "l2", 0.1), SMALL.values)
    (pair,) = paired_differences([attacked, same])
    assert (pair.key, pair.other, pair.pictures) == (same.key, "none", 5)


def test_estimates_have_their_intervals() -> None:
    cell = PhotographCell(SMALL.key, SMALL.values | {"top1_copy": [1.0, 1.0, 0.5, 1.0, 0.0]})
    found = estimates_of(cell).values
    assert found["top1_smoothed"] == proportion(3, 5)
    assert found["top1_copy"].value == pytest.approx(0.7)
    assert found["top1_copy"].high == 1.0  # a share, whatever Student's interval says
    assert found["token_fidelity"].value == pytest.approx(np.mean(SMALL.values["token_fidelity"]))
    assert "norm" not in found
