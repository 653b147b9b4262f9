import pytest
import torch

from fs_runtime.attacks import FeaturePipeline
from fs_runtime.attacks.similarity import stacked_cosine, token_cosine


def lower(features, reference):
    return -token_cosine(features, reference)


def test_undefended_features_are_the_encoders(undefended, smoother, images):
    with torch.no_grad():
        plain = torch.nn.functional.normalize(smoother.encoder.encode(images), dim=-1)
    assert torch.allclose(undefended.features(images), plain, atol=1e-6)


def test_smoothed_features_are_the_servers(smoother, prepared):
    """With many draws the attacker's mean feature has the direction of the server's."""
    image = prepared[0]
    pipeline = FeaturePipeline(smoother, 0.1, image.grid, draws=256)
    state = smoother.start(image, 0.1, seed=5)
    smoother.step([(state, 256)])
    served = smoother.finish(state).features[None]
    assert float(token_cosine(pipeline.features(image.pixels[None]), served)) > 0.995


def test_each_copy_has_embeddings_of_its_own(smoother, defended, images):
    """Those of the copies, in the order of the draws; nothing is averaged."""
    pipeline = defended.with_options(fixed=True, seed=3).by_copy()
    found = pipeline.features(images)
    generator = torch.Generator().manual_seed(3)
    copies = images.repeat_interleave(8, dim=0)
    copies = copies + 0.1 * torch.empty_like(copies).normal_(generator=generator)
    with torch.no_grad():
        expected = smoother.encoder.project(smoother.encoder.encode(copies), pipeline.grid)
    assert found.shape == (3, 8, *expected.shape[1:])
    assert torch.allclose(found.flatten(0, 1), expected, atol=1e-4)


def test_fresh_and_fixed_draws(defended, images):
    fresh = [defended.features(images) for _ in range(2)]
    assert not torch.equal(*fresh)
    gradients = [defended.value_and_gradient(images, fresh[0], lower)[1] for _ in range(2)]
    assert not torch.equal(*gradients)
    fixed = defended.with_options(fixed=True)
    assert torch.equal(fixed.features(images), fixed.features(images))
    assert not fixed.stochastic


def test_memory_is_bounded_and_the_cut_changes_nothing(smoother, prepared, images):
    sizes = []

    class Watched(type(smoother)):
        def features(self, x, sigma, grid, *, noisy):
            sizes.append(len(x))
            return super().features(x, sigma, grid, noisy=noisy)

    options = {"draws": 4, "fixed": True}
    whole = FeaturePipeline(smoother, 0.1, prepared[0].grid, batch_size=64, **options)
    cut = FeaturePipeline(Watched(smoother.encoder), 0.1, prepared[0].grid, batch_size=4, **options)
    reference = whole.features(images.flip(0))
    for one, other in zip(
        whole.value_and_gradient(images, reference, lower),
        cut.value_and_gradient(images, reference, lower),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-5)
    assert sizes == [4, 4, 4]


def test_gradient_by_differences(defended, images):
    pipeline = defended.with_options(fixed=True)
    reference = pipeline.features(images.flip(0))
    _, gradient = pipeline.value_and_gradient(images, reference, lower)
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    step = 1e-3
    up, down = (pipeline.value_and_gradient(images + sign * step * direction, reference, lower)[0] for sign in (1, -1))
    expected = (gradient * direction).sum(dim=(1, 2, 3))
    assert torch.allclose((up - down) / (2 * step), expected, rtol=0.03, atol=2e-3)


def test_gradients_go_through_purifier_and_mapper(smoother, prepared, images):
    """A purifier that shrinks its input by half halves the gradient; a mapper that turns all tokens alike keeps it."""

    class Half:
        fingerprint = "half"

        def __call__(self, x, sigma):
            return 0.5 * x

    class Turn:
        fingerprint = "turn"

        def __call__(self, features, sigma, grid):
            return features.flip(-1)

    plain = FeaturePipeline(smoother, 1e-6, prepared[0].grid, fixed=True)
    both = FeaturePipeline(type(smoother)(smoother.encoder, Half(), Turn()), 1e-6, prepared[0].grid, fixed=True)
    reference = plain.features(images.flip(0))
    value, gradient = plain.value_and_gradient(0.5 * images, reference, lower)
    turned_value, halved = both.value_and_gradient(images, reference.flip(-1), lower)
    assert torch.allclose(turned_value, value, atol=1e-4)
    assert torch.allclose(halved, 0.5 * gradient, atol=1e-3 * float(gradient.abs().max()))


def test_two_cosines():
    first = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
    second = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    assert float(token_cosine(first, second)) == pytest.approx(0.5)
    assert float(stacked_cosine(first, second)) == pytest.approx(2 / 10**0.5)


@pytest.mark.parametrize("options", [{"draws": 0}, {"batch_size": 0}])
def test_bad_counts(smoother, options):
    with pytest.raises(ValueError, match="at least 1"):
        FeaturePipeline(smoother, 0.1, (8, 8), **options)


def test_negative_noise(smoother):
    with pytest.raises(ValueError, match="sigma"):
        FeaturePipeline(smoother, -0.1, (8, 8))
