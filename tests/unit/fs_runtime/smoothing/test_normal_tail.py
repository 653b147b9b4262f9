"""The tail has the normal law's shape and mass, as far out as anybody may draw."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fs_runtime.engine import MAX_CONFIDENCE
from fs_runtime.options import DEFAULT_MAX_PIXELS
from fs_runtime.smoothing.noise import NoiseStream
from fs_runtime.smoothing.normal_tail import TAIL_START, mass_beyond_reach, replace_tail, tail_values
from server.settings.request import RequestSettings

CPU = torch.device("cpu")
MASS = 2 * stats.norm.sf(TAIL_START)
PLAIN_END = math.sqrt(2 * 24 * math.log(2))  # of normals made of 24-bit uniforms: 5.768
LAST = 1 - 2.0**-53  # the largest word


def drawn(version: int, samples: int = 60, side: int = 400) -> torch.Tensor:
    out = torch.empty(samples, 3, side, side)  # 29 million values
    NoiseStream(2026, CPU, version).draw(out)
    return out


def test_only_what_lies_beyond_the_start_is_replaced_and_keeps_its_side() -> None:
    plain, whole = drawn(1, 4), drawn(2, 4)
    beyond = plain.abs() > TAIL_START
    assert 300 < int(beyond.sum()) < 1500  # 893 expected
    assert torch.equal(plain[~beyond], whole[~beyond])
    assert torch.equal(plain[beyond].sign(), whole[beyond].sign())
    assert bool((whole[beyond].abs() >= np.float32(TAIL_START)).all())
    assert not torch.any(plain[beyond] == whole[beyond])


def test_the_tail_has_the_normal_laws_mass_and_shape() -> None:
    """Each of the four tests fails for an exact law with a probability of 1e-4 or less; the seed is fixed."""
    values = drawn(2).double().numpy().ravel()
    tail = np.sort(np.abs(values[np.abs(values) > TAIL_START]))
    assert stats.binomtest(len(tail), len(values), MASS).pvalue > 1e-4
    assert stats.binomtest(int((tail > 4.5).sum()), len(tail), 2 * stats.norm.sf(4.5) / MASS).pvalue > 1e-4
    assert stats.kstest(2 * stats.norm.sf(tail) / MASS, "uniform").pvalue > 1e-4
    positive = int((values > TAIL_START).sum())
    assert stats.binomtest(positive, len(tail), 0.5).pvalue > 1e-4


def test_values_come_that_24_bits_cannot_give() -> None:
    """34 are expected of two million, and 5 or fewer have the probability 1e-9."""
    z = torch.full((2_000_000,), 4.0)
    replace_tail(z, torch.Generator().manual_seed(1))
    share = 2 * stats.norm.sf(PLAIN_END) / MASS
    count = int((z > PLAIN_END).sum())
    assert count > 5
    assert stats.binomtest(count, len(z), share).pvalue > 1e-4
    assert float(drawn(1).abs().max()) < PLAIN_END + 1e-6  # the control


def test_the_largest_and_the_smallest_uniforms() -> None:
    smallest, one_word, start = tail_values(np.array([[0.0, LAST], [0.0, 0.0], [LAST, 0.0]]))
    assert smallest == pytest.approx(stats.norm.isf(2.0**-106 * MASS / 2), rel=1e-12)
    assert one_word == pytest.approx(stats.norm.isf(2.0**-53 * MASS / 2), rel=1e-12)
    assert start == pytest.approx(TAIL_START, rel=1e-12)
    assert 12.4 < smallest < 12.6 < math.inf
    z = torch.tensor([PLAIN_END, -PLAIN_END, math.inf, -math.inf, TAIL_START, 0.0])
    replace_tail(z, torch.Generator().manual_seed(3))
    assert bool(z.isfinite().all())
    assert z.sign().tolist() == [1, -1, 1, -1, 1, 0]
    assert z[4:].tolist() == [TAIL_START, 0.0]


def test_what_cannot_be_drawn_is_far_below_any_alpha() -> None:
    """At the largest picture and the most samples that a server takes unless told otherwise, and a million times both;
    preprocessing may enlarge a picture, or read it in several views."""
    settings = RequestSettings()
    largest = 3 * max(settings.max_image_pixels, DEFAULT_MAX_PIXELS)
    least_alpha = 1 - MAX_CONFIDENCE
    assert mass_beyond_reach(largest, settings.max_samples) < 1e-12 * least_alpha
    assert mass_beyond_reach(10**6 * largest, 10**6 * settings.max_samples) < least_alpha
    assert mass_beyond_reach(1, 1) == pytest.approx(MASS * 2.0**-106)
    plain = 2 * stats.norm.sf(PLAIN_END) * 3 * 336**2
    assert plain * settings.samples > 1 - settings.confidence  # without the tail it would not be
