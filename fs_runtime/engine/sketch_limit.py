"""Which images have their spread bounded: those whose sketch is not too large, which is known before they are drawn."""

from __future__ import annotations

from collections.abc import Iterable

from fs_runtime.encoders import PreparedImage
from fs_runtime.engine.request import SmoothingRequest
from fs_runtime.options import Stage
from fs_runtime.smoothing.feature_map import FeatureMap
from fs_runtime.smoothing.feature_statistics import STAGES
from fs_runtime.smoothing.smoother import Smoother
from fs_runtime.smoothing.spread_sketch import SpreadSketch


class SketchLimit:
    """A ceiling on the memory of one image's sketch (:class:`SpreadSketch`).

    Args:
        smoother: Whose features they are; draws one sample of each stage to learn their width.
        image: Any image, as the encoder reads it.
        max_bytes: The ceiling; 0 for none.
    """

    def __init__(self, smoother: Smoother, image: PreparedImage, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._widths = {stage: _width(smoother, image, stage) for stage in STAGES} if max_bytes else {}

    def applied(self, request: SmoothingRequest, token_grids: Iterable[tuple[int, int]]) -> SmoothingRequest:
        """The request, without ``spectral`` where its sketch would be above the ceiling.

        It is the shape of the features that decides, hence model and size of the image, and nothing that is drawn: the
        statement that takes all of α is chosen before the samples, and is the same whenever this image comes.

        Args:
            request: What is asked.
            token_grids: Rows and columns of the rectangles that the tokens of its stage fill.
        """
        if not self.max_bytes or not request.terms.bounds_spread:
            return request
        tokens = sum(rows * columns for rows, columns in token_grids)
        if SpreadSketch.most_bytes(tokens * self._widths[request.terms.feature_map.stage]) <= self.max_bytes:
            return request
        return request.without_spread()


def _width(smoother: Smoother, image: PreparedImage, stage: Stage) -> int:
    return int(smoother.draw(smoother.start(image, 0.0, 0, FeatureMap(stage)), 1).shape[-1])
