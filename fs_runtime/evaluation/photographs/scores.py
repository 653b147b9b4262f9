"""The values of one served picture: classes, fidelity, certificate, and whether it finds itself among clean ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from fs_runtime.certificate import tight_similarity
from fs_runtime.encoders.base import Grid
from fs_runtime.evaluation.photographs.serve import ServedPicture
from fs_runtime.options import radius_for


class Gallery:
    """The clean features of all pictures, among which smoothed ones are looked for.

    Args:
        features: ``(T, D)`` unit features of each picture.
        grids: The token grid of each; only pictures with equal ones can be compared.
    """

    def __init__(self, features: Sequence[Tensor], grids: Sequence[Grid]) -> None:
        self.features = list(features)
        self._grids = list(grids)
        self._numbers = {
            grid: [number for number, of in enumerate(self._grids) if of == grid] for grid in set(self._grids)
        }

    def nearest(self, mean: Tensor, number: int) -> int:
        """The picture whose clean features are most similar to ``mean``, ``(T, D)`` of picture ``number``.

        Similar by the cosine of the stacked features; those of clean pictures all have the same length.
        """
        among = self._numbers[self._grids[number]]
        products = torch.stack([(self.features[other] * mean).sum() for other in among])
        return among[int(products.argmax())]


def scores_of(
    served: ServedPicture,
    sigma: float,
    number: int,
    gallery: Gallery,
    *,
    label: int | None,
    class_token: bool,
    attacked: bool,
) -> dict[str, float]:
    """All values that the picture has, by the names of ``MEASURES``.

    Args:
        served: The picture, smoothed or not.
        sigma: σ that it was served at; 0 without smoothing.
        number: Of the picture in the gallery.
        gallery: Of the clean pictures.
        label: Its class; None if that is not known or the encoder does not classify.
        class_token: Whether the first token stands for the whole picture.
        attacked: Whether the picture as sent is not the clean one.
    """
    values: dict[str, float] = {}
    if label is not None:
        guesses = served.copies.flatten(1).argmax(dim=1).tolist()
        values["top1_copy"] = guesses.count(label) / len(guesses)
        values["top1_smoothed"] = float(int(served.embedding.flatten().argmax()) == label)
        values["top1_vote"] = float(vote(guesses) == label)
    if sigma > 0:
        values |= _fidelities("", served.mean, served.clean, class_token)
    if attacked:
        values |= _fidelities("clean_", served.mean, gallery.features[number], class_token)
    if served.norm_estimate is not None and served.norm_lower is not None:
        values["norm"] = served.norm_estimate
        radius = radius_for(sigma)
        values["certified"] = tight_similarity(served.norm_lower, radius, sigma)
        values["certified_estimate"] = tight_similarity(served.norm_estimate, radius, sigma)
    values["retrieval"] = float(gallery.nearest(served.mean, number) == number)
    return values


def vote(guesses: Sequence[int]) -> int:
    """The most frequent class; of several, the one that came first."""
    return Counter(guesses).most_common(1)[0][0]


def _fidelities(prefix: str, mean: Tensor, clean: Tensor, class_token: bool) -> dict[str, float]:
    """Cosines of the mean with clean features: stacked, mean over the tokens of places, and of the class token."""
    by_token = torch.nn.functional.cosine_similarity(mean, clean, dim=-1)
    stacked = torch.nn.functional.cosine_similarity(mean.flatten(), clean.flatten(), dim=0)
    places = by_token[1:] if class_token else by_token
    values = {f"{prefix}fidelity": float(stacked), f"{prefix}token_fidelity": float(places.mean())}
    return values | ({f"{prefix}class_token_fidelity": float(by_token[0])} if class_token else {})
