"""Adversarial attacks on features and answers; checks of a defence and its certificate by attacks."""

from fs_runtime.attacks.certificate_attack import CertificateAttackResult, attack_certificate
from fs_runtime.attacks.masking import MaskingReport, check_gradient_masking
from fs_runtime.attacks.methods import ATTACKS, Attack, run_attack
from fs_runtime.attacks.pipeline import FeaturePipeline
from fs_runtime.attacks.threat_model import ThreatModel
from fs_runtime.options import Norm

__all__ = [
    "ATTACKS",
    "Attack",
    "CertificateAttackResult",
    "FeaturePipeline",
    "MaskingReport",
    "Norm",
    "ThreatModel",
    "attack_certificate",
    "check_gradient_masking",
    "run_attack",
]
