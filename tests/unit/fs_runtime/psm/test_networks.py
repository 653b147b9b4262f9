import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fs_runtime.benchmarks.flops import flops
from fs_runtime.encoders import VisionEncoder
from fs_runtime.psm.denoiser import Denoiser
from fs_runtime.psm.mapper import MapperConfig, SmoothnessMapper
from fs_runtime.psm.residual_unet import SIZES, ResidualUNetConfig, ResidualUNetPurifier
from fs_runtime.psm.unet import UNetConfig, UNetPurifier
from fs_runtime.training.losses import LossWeights, mapper_loss, purifier_loss, robustness_loss

SMALL = UNetConfig(widths=(8, 16))
PURIFIERS = {
    "unet": lambda: UNetPurifier(SMALL),
    "residual-unet": lambda: ResidualUNetPurifier(ResidualUNetConfig(widths=(8, 16), blocks=(1, 2))),
}
every_purifier = pytest.mark.parametrize("fresh", PURIFIERS.values(), ids=PURIFIERS.keys())


Fresh = Callable[[], Denoiser]


def random_weights(network: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every weight a value, also those that start at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval().requires_grad_(False)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_sizes_for_the_reference_model() -> None:
    assert parameters(UNetPurifier(UNetConfig())) == pytest.approx(0.95e6, rel=0.1)
    assert parameters(SmoothnessMapper(MapperConfig(features=128))) == pytest.approx(0.33e6, rel=0.1)


@every_purifier
@pytest.mark.parametrize("size", [(64, 64), (336, 336), (30, 17), (1, 5)])
def test_purifier_takes_any_size(size: tuple[int, int], fresh: Fresh) -> None:
    purifier = random_weights(fresh())
    x = torch.rand(2, 3, *size)
    out = purifier(x, torch.tensor([0.1, 0.3]))
    assert out.shape == x.shape
    assert bool(torch.isfinite(out).all())


def test_padding_leaves_the_picture_in_its_place() -> None:
    purifier = random_weights(UNetPurifier(UNetConfig(widths=(8,), patch=2)))
    x = torch.rand(1, 3, 33, 33)
    sigma = torch.tensor([0.2])
    whole = purifier(nn.functional.pad(x, (0, 1, 0, 1), mode="replicate"), sigma)
    torch.testing.assert_close(purifier(x, sigma), whole[..., :33, :33])


@every_purifier
def test_untrained_purifier_is_the_best_linear_guess_and_nothing_at_no_noise(fresh: Fresh) -> None:
    purifier = fresh()
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(purifier(x, torch.zeros(1)), x)
    keep = 0.25**2 / (0.25**2 + 0.5**2)
    torch.testing.assert_close(purifier(x, torch.tensor([0.5])), 0.5 + keep * (x - 0.5))


@every_purifier
def test_any_purifier_is_the_identity_at_no_noise(fresh: Fresh) -> None:
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(random_weights(fresh())(x, torch.zeros(1)), x)


@every_purifier
def test_purifier_is_told_the_noise_level(fresh: Fresh) -> None:
    purifier = random_weights(fresh())
    x = torch.rand(1, 3, 16, 16).expand(2, -1, -1, -1)
    out = purifier(x, torch.tensor([0.25, 0.26]))
    alone = purifier(x[:1], torch.tensor([0.25]))
    torch.testing.assert_close(out[:1], alone)  # each image has its own level
    nn.init.zeros_(purifier.embed.linear_2.weight)
    assert not torch.allclose(purifier(x[:1], torch.tensor([0.25])), alone)


@every_purifier
def test_one_image_is_purified_alike_alone_and_in_a_batch(fresh: Fresh) -> None:
    purifier = random_weights(fresh())
    x, sigma = torch.rand(5, 3, 24, 24), torch.linspace(0.1, 0.5, 5)
    alone = torch.cat([purifier(x[n : n + 1], sigma[n : n + 1]) for n in range(5)])
    torch.testing.assert_close(purifier(x, sigma), alone)
    assert torch.equal(purifier(x, sigma), purifier(x, sigma))


def test_what_a_crop_shows_is_purified_as_in_the_whole() -> None:
    """Far from its border; a network with statistics over the picture would fail this."""
    purifier = random_weights(PURIFIERS["residual-unet"]())
    x, sigma = torch.rand(1, 3, 96, 96), torch.tensor([0.25])
    whole, crop = purifier(x, sigma), purifier(x[..., :64, :64], sigma)
    torch.testing.assert_close(crop[..., :32, :32], whole[..., :32, :32])


def test_photo_purifiers_cost_what_they_may_beside_the_encoder() -> None:
    """At 336 x 336 the small one at most a twentieth of CLIP ViT-L/14-336, the large one a quarter."""
    encoder = 0.36e12
    for size, share in (("small", 0.05), ("large", 0.25)):
        purifier = ResidualUNetPurifier(SIZES[size])
        cost = flops(lambda: purifier(torch.rand(1, 3, 336, 336), torch.tensor([0.25])))  # noqa: B023 (called at once)
        assert cost <= share * encoder


def test_a_purifier_grows_without_changing_what_it_does() -> None:
    shallow = random_weights(ResidualUNetPurifier(ResidualUNetConfig(widths=(8, 16), blocks=(1, 2))))
    assert isinstance(shallow, ResidualUNetPurifier)
    deeper = shallow.grown(ResidualUNetConfig(widths=(8, 16), blocks=(3, 3)))
    x, sigma = torch.rand(2, 3, 24, 28), torch.tensor([0.1, 0.5])
    torch.testing.assert_close(deeper(x, sigma), shallow(x, sigma))
    deeper(x, sigma).square().sum().backward()
    gradient = deeper.down[0].blocks[-1].conv_2.weight.grad  # type: ignore[union-attr,index]
    assert gradient.abs().sum() > 0  # what is new can learn
    assert not torch.allclose(random_weights(deeper)(x, sigma), shallow(x, sigma), atol=1e-3)


@pytest.mark.parametrize(
    "config",
    [
        ResidualUNetConfig(widths=(8, 16), blocks=(2, 1)),
        ResidualUNetConfig(widths=(8, 24), blocks=(2, 3)),
        ResidualUNetConfig(widths=(8, 16), blocks=(2, 3), data_std=0.3),
    ],
)
def test_a_purifier_grows_only_into_a_deeper_one(config: ResidualUNetConfig) -> None:
    with pytest.raises(ValueError, match="cannot grow"):
        ResidualUNetPurifier(ResidualUNetConfig(widths=(8, 16), blocks=(1, 2))).grown(config)


@pytest.mark.parametrize("grid", [(4, 4), (24, 24), (3, 5)])
@pytest.mark.parametrize("before", [0, 1])
def test_untrained_mapper_is_the_identity_on_any_grid(grid: tuple[int, int], before: int) -> None:
    mapper = SmoothnessMapper(MapperConfig(features=12, width=16))
    z = torch.randn(2, grid[0] * grid[1] + before, 12)
    mapper.calibrate(z)
    assert torch.equal(mapper(z, torch.tensor([0.1, 0.3]), grid), z)
    assert not torch.equal(random_weights(mapper)(z, torch.tensor([0.1, 0.3]), grid), z)


def test_mapper_wants_the_whole_grid() -> None:
    mapper = SmoothnessMapper(MapperConfig(features=12, width=16))
    with pytest.raises(ValueError, match="8 tokens do not fill a grid of 3 x 3"):
        mapper(torch.zeros(1, 8, 12), torch.zeros(1), (3, 3))


def test_mapper_does_not_depend_on_the_features_unit() -> None:
    z = torch.randn(4, 16, 12)
    sigma = torch.full((4,), 0.25)
    mapper = SmoothnessMapper(MapperConfig(features=12, width=16))
    mapper.calibrate(z)
    out = random_weights(mapper)(z, sigma, (4, 4))
    mapper.calibrate(100 * z)
    torch.testing.assert_close(mapper(100 * z, sigma, (4, 4)), 100 * out, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("part", ["purifier", "mapper"])
def test_bfloat16_stays_close(part: str) -> None:
    sigma = torch.tensor([0.1, 0.25])
    x, z = torch.rand(2, 3, 32, 32), torch.randn(2, 16, 12)
    if part == "purifier":
        network, arguments = random_weights(UNetPurifier(SMALL)), (x, sigma)
    else:
        network, arguments = random_weights(SmoothnessMapper(MapperConfig(12, width=16))), (z, sigma, (4, 4))
    exact = network(*arguments)
    half = network.bfloat16()(arguments[0].bfloat16(), *arguments[1:])
    assert half.dtype == torch.bfloat16
    assert float((half - exact).norm() / exact.norm()) < 0.02


def test_gradients_reach_the_image(encoder: VisionEncoder) -> None:
    purifier = random_weights(UNetPurifier(SMALL))
    size = encoder.prepare(torch.zeros(40, 40, 3, dtype=torch.uint8).numpy()).pixels.shape
    x = torch.rand(2, *size, requires_grad=True)
    sigma = torch.full((2,), 0.25)
    features = encoder.encode(purifier(x, sigma))
    mapper = random_weights(SmoothnessMapper(MapperConfig(features.shape[-1], width=16)))
    direction = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((mapper(features, sigma, (4, 4)) * direction).sum(), x)
    with torch.no_grad():
        step = 1e-2 * gradient / gradient.norm()
        low, high = (
            float((mapper(encoder.encode(purifier(y, sigma)), sigma, (4, 4)) * direction).sum())
            for y in (x - step, x + step)
        )
    assert (high - low) / 2e-2 == pytest.approx(float(gradient.norm()), rel=0.05)


def test_one_batch_can_be_learned_by_heart(encoder: VisionEncoder) -> None:
    """Both losses fall far on one fixed noisy batch, so that nothing in the way stops the gradient."""
    torch.manual_seed(0)
    size = encoder.prepare(torch.zeros(40, 40, 3, dtype=torch.uint8).numpy()).pixels.shape
    x = nn.functional.interpolate(torch.rand(4, 3, 7, 7), size=size[1:], mode="bicubic").clamp(0, 1)
    sigma = torch.full((4,), 0.25)
    noisy = x + 0.25 * torch.randn(x.shape)
    weights = LossWeights()
    clean = encoder.encode(x)
    purifier = UNetPurifier(UNetConfig(widths=(16, 32)))
    optimizer = torch.optim.AdamW(purifier.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        purified = purifier(noisy, sigma)
        loss = purifier_loss(purified, x, sigma, encoder.encode(purified), clean, weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    features = encoder.encode(purified).detach()
    unit = math.sqrt(float(clean.square().sum(-1).mean()))
    mapper = SmoothnessMapper(MapperConfig(clean.shape[-1], width=32))
    mapper.calibrate(clean)
    before = float(robustness_loss(features, clean))
    optimizer = torch.optim.AdamW(mapper.parameters(), lr=3e-3)
    for _ in range(100):
        mapped, same = mapper(torch.cat([features, clean]), torch.cat([sigma, 0 * sigma]), (4, 4)).chunk(2)
        loss = mapper_loss(mapped / unit, same / unit, clean / unit, weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(robustness_loss(mapped, clean).detach()) < 0.2 * before
