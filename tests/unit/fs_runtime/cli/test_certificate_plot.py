"""The plots of a certificate: files that open, with what the certificate holds."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fs_runtime.certificate import Spread, spectral_similarity, tight_similarity
from fs_runtime.certificate.curve import curve_of
from fs_runtime.cli.certificate_plot import plot_certificate
from fs_runtime.options import CertificateQuery
from fs_runtime.robustness import Fingerprints, ImageRobustness, certify
from tests.unit.fs_runtime.test_robustness import a_result


def a_certificate(*, tokens: bool = True) -> ImageRobustness:
    result = a_result(spread=Spread(0.01, 0.03), token_norm_lower=np.linspace(0.8, 0.95, 6) if tokens else None)
    return certify(result, CertificateQuery(0.125, curve=True), Fingerprints("sha256:x", None, None))


def test_writes_png_and_svg(tmp_path: Path) -> None:
    picture = np.zeros((3, 40, 60), np.float32)
    png, svg = plot_certificate(a_certificate(), picture, tmp_path / "certificate.png")
    with Image.open(png) as image:
        assert image.width > 1000
    text = svg.read_text()
    assert "<svg" in text
    assert png.suffix == ".png"
    narrow = plot_certificate(a_certificate(tokens=False), picture, tmp_path / "narrow")
    tiled = plot_certificate(a_certificate(), None, tmp_path / "tiled")
    for path in (narrow[0], tiled[0]):
        with Image.open(path) as image:
            assert image.width < 1100


def test_curve_holds_every_bound_at_every_radius() -> None:
    spread = Spread(0.01, 0.04)
    curve = curve_of(0.9, spread, None, 0.25, 0.5)
    assert (curve.radius_model[0], curve.radius_model[-1]) == (0.0, 0.75)
    assert curve.radius_client[-1] == pytest.approx(1.5)
    assert curve.certified.best == curve.certified.spectral
    assert curve.certified.best[20] == pytest.approx(spectral_similarity(0.9, spread, 0.25, 0.25), abs=1e-9)
    assert curve.certified.tight[20] == tight_similarity(0.9, 0.25, 0.25)
    assert curve.estimate is None
    assert max(curve_of(0.0, None, None, 0.25, 1.0).certified.best) == 0.0
