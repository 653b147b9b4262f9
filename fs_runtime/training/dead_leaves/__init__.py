"""Synthetic pictures with the statistics of photographs: *dead leaves*, seen by a camera.

Overlapping shapes of all sizes (Matheron 1968; Lee, Mumford, Huang 2001) have the edges, scale invariance
and long-range order of photographs. Networks that are trained to denoise them denoise photographs almost
as well as networks that are trained on photographs (Achddou, Gousseau, Ladjal 2021; richer shapes, textures and depth:
arXiv 2504.10201). So a purifier needs no data set.
"""

from fs_runtime.training.dead_leaves.picture import VERSION, contact_sheet, leaves_picture
from fs_runtime.training.dead_leaves.stream import LeavesStream

__all__ = ["VERSION", "LeavesStream", "contact_sheet", "leaves_picture"]
