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
from fs_runtime.certificate.worst_case import worst_case_feature

__all__ = [
    "NormConfidenceSequence",
    "Spread",
    "SpreadConfidenceSequence",
    "StoppingRule",
    "certified_radius",
    "chi_squared_similarity",
    "continued",
    "fcsb",
    "fcsb_radius",
    "required_norm",
    "score_from_norm",
    "served_similarity",
    "spectral_radius",
    "spectral_similarity",
    "tight_similarity",
    "worst_case_feature",
]
