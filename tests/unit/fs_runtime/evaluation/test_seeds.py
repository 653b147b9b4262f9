import zlib

from fs_runtime.evaluation.seeds import seed_of


def test_small_seeds_stay_what_they_were_and_large_ones_differ() -> None:
    assert seed_of(3, "noise", "FS", 4) == 3 * 2**40 + zlib.crc32(b"('noise', 'FS', 4)") * 2**8
    seeds = [seed_of(seed, "noise", "FS", 4) for seed in (3, 3 + 2**23, 3 + 2**24, 3 + 2**40, 2**23 - 1)]
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) < 2**63
