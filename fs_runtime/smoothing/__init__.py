"""The noise pass: noisy copies of an image through purifier, encoder and mapper."""

from fs_runtime.smoothing.feature_map import ENCODER_FEATURES, FeatureMap
from fs_runtime.smoothing.smoother import Smoother

__all__ = ["ENCODER_FEATURES", "FeatureMap", "Smoother"]
