"""The public names of the certificate package."""

import fs_runtime.certificate as certificate


def test_exported_members() -> None:
    assert certificate.__all__ == sorted(
        [
            "NormConfidenceSequence",
            "Spread",
            "SpreadConfidenceSequence",
            "StoppingRule",
            "VoteCount",
            "certified_radius",
            "chi_squared_similarity",
            "continued",
            "fcsb",
            "fcsb_radius",
            "most_vote_radius",
            "required_norm",
            "score_from_norm",
            "served_similarity",
            "spectral_radius",
            "spectral_similarity",
            "tight_similarity",
            "vote_radius",
            "worst_case_feature",
        ]
    )
    for name in certificate.__all__:
        assert getattr(certificate, name).__module__.startswith("fs_runtime.certificate.")
