import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fs_runtime.encoders import PreparedImage, VisionEncoder
from fs_runtime.smoothing.noise import NoiseStream
from fs_runtime.smoothing.smoother import Smoother
from fs_runtime.smoothing.sums import InnerProducts, SmoothingState


def plain_smoothing(
    encoder: VisionEncoder, image: PreparedImage, sigma: float, seed: int, n: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The definition, sample by sample: unit features (n, T, D), lengths (n, T), and both kinds of inner product."""
    noise = NoiseStream(seed, torch.device("cpu"))
    unit, lengths = [], []
    for _ in range(n):
        delta = torch.empty(1, *image.pixels.shape)
        noise.draw(delta)
        with torch.inference_mode():
            z = encoder.encode(image.pixels[None] + sigma * delta)[0].double()
        lengths.append(z.norm(dim=-1))
        unit.append(z / lengths[-1][:, None])
    f = torch.stack(unit)
    tokens, images = [], []
    for i in range(1, n):
        total = f[:i].sum(0)
        tokens.append((f[i] * total).sum(-1) / total.norm(dim=-1))
        images.append((f[i] * total).sum() / total.norm() / f.shape[1] ** 0.5)  # stacked features are over √T
    return f, torch.stack(lengths), torch.stack(images), torch.stack(tokens)


def run(smoother: Smoother, state: SmoothingState, blocks: list[int]) -> InnerProducts:
    found = [smoother.step([(state, size)])[0] for size in blocks]
    clean = [p.clean for p in found if p.clean is not None]
    return InnerProducts(
        torch.cat([p.image for p in found]), torch.cat([p.tokens for p in found]), torch.cat(clean) if clean else None
    )


@pytest.mark.parametrize("blocks", [[12], [1, 11], [5, 1, 6], [1] * 12])
def test_pass_equals_the_definition_however_it_is_cut(
    encoder: VisionEncoder, picture: NDArray[np.uint8], blocks: list[int]
) -> None:
    image = encoder.prepare(picture)
    f, lengths, by_image, by_token = plain_smoothing(encoder, image, 0.3, 9, 12)
    smoother = Smoother(encoder)
    state = smoother.start(image, 0.3, 9)
    products = run(smoother, state, blocks)
    torch.testing.assert_close(products.image.double(), by_image, atol=2e-5, rtol=0)
    torch.testing.assert_close(products.tokens.double(), by_token, atol=2e-5, rtol=0)
    smoothed = smoother.finish(state)
    with torch.inference_mode():
        clean = torch.nn.functional.normalize(encoder.encode(image.pixels[None])[0].double(), dim=-1)
    assert products.clean is not None
    torch.testing.assert_close(products.clean.double(), (f * clean).sum(-1).mean(-1), atol=2e-5, rtol=0)
    mean = f.mean(0)
    assert smoothed.fidelity == pytest.approx(float((mean * clean).sum() / mean.norm() / clean.norm()), abs=2e-5)
    assert smoothed.token_fidelity is not None
    by_token_fidelity = (mean * clean).sum(-1) / mean.norm(dim=-1)
    torch.testing.assert_close(smoothed.token_fidelity.double(), by_token_fidelity, atol=2e-5, rtol=0)
    expected = mean / mean.norm(dim=-1, keepdim=True) * lengths.mean(0)[:, None]
    torch.testing.assert_close(smoothed.features.double(), expected, atol=2e-4, rtol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(smoothed.embeddings, encoder.project(expected.float(), (4, 4)), atol=1e-3, rtol=1e-3)


def test_images_that_share_batches_are_as_if_alone(encoder: VisionEncoder, picture: NDArray[np.uint8]) -> None:
    smoother = Smoother(encoder)
    images = [encoder.prepare(picture), encoder.prepare(255 - picture)]

    def fresh() -> list[SmoothingState]:
        return [
            smoother.start(image, sigma, seed) for image, sigma, seed in zip(images, (0.1, 0.4), (1, 2), strict=True)
        ]

    together, alone = fresh(), fresh()
    found: list[list[InnerProducts]] = [[], []]
    for sizes in [(3, 5), (6, 1), (1, 4)]:
        for index, products in enumerate(smoother.step(list(zip(together, sizes, strict=True)))):
            found[index].append(products)
    for index, state in enumerate(alone):
        expected = run(smoother, state, [10])
        torch.testing.assert_close(torch.cat([p.image for p in found[index]]), expected.image, atol=2e-5, rtol=0)
        clean = [p.clean for p in found[index] if p.clean is not None]
        torch.testing.assert_close(torch.cat(clean), expected.clean, atol=2e-5, rtol=0)
        torch.testing.assert_close(
            smoother.finish(together[index]).embeddings, smoother.finish(state).embeddings, atol=1e-4, rtol=1e-4
        )


def test_without_noise_the_features_are_the_encoders(encoder: VisionEncoder, picture: NDArray[np.uint8]) -> None:
    smoother = Smoother(encoder)
    image = encoder.prepare(picture)
    state = smoother.start(image, 0.0, 1)
    smoother.step([(state, 1)])
    smoothed = smoother.finish(state)
    with torch.inference_mode():
        torch.testing.assert_close(smoothed.features, encoder.encode(image.pixels[None])[0], atol=1e-5, rtol=1e-5)
    assert smoothed.norm_estimate is smoothed.fidelity is smoothed.token_fidelity is None


def test_estimate_of_the_norm_is_unbiased_for_its_square(encoder: VisionEncoder, picture: NDArray[np.uint8]) -> None:
    smoother = Smoother(encoder)
    image = encoder.prepare(picture)
    f, *_ = plain_smoothing(encoder, image, 0.3, 123, 1500)
    truth = float((f.mean(0).square().sum() / f.shape[1]).sqrt())
    squares = []
    for seed in range(150):
        state = smoother.start(image, 0.3, seed)
        smoother.step([(state, 8)])
        estimate = smoother.finish(state).norm_estimate
        assert estimate is not None
        squares.append(estimate**2)
    error = np.std(squares) / len(squares) ** 0.5
    assert abs(np.mean(squares) - truth**2) < 4 * error + 1e-3


class Halve:
    """A purifier with a known effect that depends on σ."""

    fingerprint = "sha256:test"

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma.view(-1, 1, 1, 1))


class Shift:
    """A mapper with a known effect that depends on σ and the grid."""

    fingerprint = "sha256:test"

    def __call__(self, features: Tensor, sigma: Tensor, grid: tuple[int, int]) -> Tensor:
        return features + sigma.view(-1, 1, 1) * grid[0]


def test_purifier_and_mapper_are_part_of_f(encoder: VisionEncoder, picture: NDArray[np.uint8]) -> None:
    image = encoder.prepare(picture)
    smoother = Smoother(encoder, purifier=Halve(), mapper=Shift())
    states = [smoother.start(image, 0.5, 4), smoother.start(image, 0.25, 5)]
    smoother.step([(states[0], 1), (states[1], 1)])
    for state, sigma, seed in zip(states, (0.5, 0.25), (4, 5), strict=True):
        delta = torch.empty(1, *image.pixels.shape)
        NoiseStream(seed, torch.device("cpu")).draw(delta)
        with torch.inference_mode():
            expected = encoder.encode((image.pixels[None] + sigma * delta) / (1 + sigma))[0] + sigma * 4
        torch.testing.assert_close(smoother.finish(state).features, expected, atol=1e-4, rtol=1e-4)
        # The clean features know neither of them.
        with torch.inference_mode():
            plain = torch.nn.functional.normalize(encoder.encode(image.pixels[None])[0], dim=-1)
        assert state.clean is not None
        torch.testing.assert_close(state.clean, plain, atol=1e-5, rtol=1e-5)


def test_a_failing_encoder_leaves_the_state_as_it_was(encoder: VisionEncoder, picture: NDArray[np.uint8]) -> None:
    image = encoder.prepare(picture)
    smoother = Smoother(encoder)
    state, other = smoother.start(image, 0.3, 9), smoother.start(image, 0.3, 9)
    smoother.step([(state, 4)])

    class Broken(Halve):
        def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
            raise RuntimeError("broken")

    smoother.purifier = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        smoother.step([(state, 4)])
    smoother.purifier = None
    smoother.step([(state, 4)])
    smoother.step([(other, 8)])
    torch.testing.assert_close(smoother.finish(state).features, smoother.finish(other).features, atol=1e-4, rtol=1e-4)


def test_values_that_are_not_finite_are_an_error(encoder: VisionEncoder, picture: NDArray[np.uint8]) -> None:
    class Nan(Halve):
        def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
            return x * float("nan")

    smoother = Smoother(encoder, purifier=Nan())
    state = smoother.start(encoder.prepare(picture), 0.3, 9)
    smoother.step([(state, 2)])
    with pytest.raises(ValueError, match="not finite"):
        smoother.finish(state)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 3e-2)])
def test_cuda_agrees_with_the_cpu(tiny_llava: object, picture: NDArray[np.uint8], dtype: str, tolerance: float) -> None:
    from fs_runtime.encoders import load_encoder

    norms = []
    for device, kind in (("cpu", "float32"), ("cuda", dtype)):
        smoother = Smoother(load_encoder(str(tiny_llava), device=device, dtype=kind))
        image = smoother.encoder.prepare(picture)
        state = smoother.start(image, 0.0, 1)
        smoother.step([(state, 1)])
        plain = smoother.finish(state).features.float().cpu()
        noisy = smoother.start(image, 0.2, 1)
        for _ in range(8):
            smoother.step([(noisy, 128)])
        norms.append((plain, smoother.finish(noisy).norm_estimate))
    torch.testing.assert_close(norms[0][0], norms[1][0], atol=10 * tolerance, rtol=10 * tolerance)
    assert norms[0][1] == pytest.approx(norms[1][1], abs=max(tolerance, 5e-3))  # the draws differ
