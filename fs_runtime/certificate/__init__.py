"""The certificate: pure functions of ρ, r and σ, and the confidence sequence that bounds ρ from samples.

Every bound is a cosine similarity; a positive value is a certified statement, and 0.0 means "no certificate". The
symbols are those of docs/guarantee.md.
"""

from fs_runtime.certificate.closed_forms import chi_squared_similarity, fcsb, fcsb_radius, score_from_norm
from fs_runtime.certificate.confidence_sequence import NormConfidenceSequence
from fs_runtime.certificate.served_bound import continued, served_similarity
from fs_runtime.certificate.spectral_bound import spectral_radius, spectral_similarity
from fs_runtime.certificate.spread_bound import Spread, SpreadConfidenceSequence
from fs_runtime.certificate.stopping import StoppingRule, required_norm
from fs_runtime.certificate.tight_bound import certified_radius, tight_similarity
from fs_runtime.certificate.vote_bound import VoteCount, most_vote_radius, vote_radius
from fs_runtime.certificate.worst_case import worst_case_feature

__all__ = [
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
