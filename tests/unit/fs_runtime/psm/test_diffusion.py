import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    ScoreSdeVeScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from torch import Tensor, nn

from fs_runtime.psm.diffusion import DiffusionPurifier
from fs_runtime.system.files import TrainingError


class Oracle(nn.Module):
    """Knows the clean image y and predicts like a perfect model; records the timesteps that it gets."""

    def __init__(self, y: Tensor, alphas: Tensor, prediction: str) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.y, self.alphas, self.prediction = y, alphas, prediction

    def forward(self, noisy: Tensor, timesteps: Tensor) -> SimpleNamespace:
        self.told = timesteps
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        noise = (noisy - alpha.sqrt() * self.y) / (1 - alpha).sqrt()
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * self.y
        answers = {"epsilon": noise, "sample": self.y, "v_prediction": velocity}
        return SimpleNamespace(sample=answers[self.prediction])


def description(prediction: str = "epsilon") -> dict[str, object]:
    return {"unet": {"block_out_channels": [8, 8]}, "prediction": prediction, "timesteps": 1000}


def tiny_unet(**more: object) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), **more,
    )  # fmt: skip


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.25, 0.5, 1.0])
def test_timestep_has_the_noise_of_the_image(sigma: float) -> None:
    alphas = DDPMScheduler(beta_schedule="linear").alphas_cumprod
    purifier = DiffusionPurifier(nn.Identity(), description(), alphas)
    t = int(purifier.timesteps(torch.tensor([sigma])))
    ratios = [math.sqrt((1 - float(a)) / float(a)) for a in alphas.double()]
    assert t == min(range(1000), key=lambda i: abs(math.log(ratios[i] / (2 * sigma))))
    # Closed form: ᾱ = 1 / (1 + 4 σ²), and one timestep of 1,000 changes it by little.
    assert float(alphas[t]) == pytest.approx(1 / (1 + 4 * sigma**2), rel=0.01)


def test_closed_form_on_a_schedule_made_for_it() -> None:
    levels = torch.linspace(0.05, 1.5, 30)
    purifier = DiffusionPurifier(nn.Identity(), description(), 1 / (1 + 4 * levels.double() ** 2))
    assert purifier.timesteps(levels).tolist() == list(range(30))
    assert purifier.timesteps(torch.tensor([0.0, 9.0])).tolist() == [0, 29]  # beyond the ends


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_model_gives_the_clean_image_back(prediction: str) -> None:
    levels = torch.linspace(0.05, 1.5, 30)
    alphas = 1 / (1 + 4 * levels.double() ** 2)
    x = torch.rand(3, 3, 8, 8)
    oracle = Oracle(2 * x - 1, alphas.float(), prediction)
    purifier = DiffusionPurifier(oracle, description(prediction), alphas)
    sigma = levels[[3, 10, 20]]
    noisy = x + sigma.view(-1, 1, 1, 1) * torch.randn(x.shape)
    torch.testing.assert_close(purifier(noisy, sigma), x, atol=2e-5, rtol=0)
    assert oracle.told.tolist() == [3, 10, 20]


@pytest.mark.parametrize("pipeline", [True, False])
def test_a_diffusers_checkpoint_loads_and_can_be_stored(tmp_path: Path, pipeline: bool) -> None:
    unet, scheduler = tiny_unet(), DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    if pipeline:
        DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(tmp_path)
    else:
        unet.save_pretrained(tmp_path)
        scheduler.save_pretrained(tmp_path)
    purifier = DiffusionPurifier.from_pretrained(str(tmp_path))
    x, sigma = torch.rand(2, 3, 21, 16), torch.tensor([0.1, 0.25])
    out = purifier(x, sigma)
    assert out.shape == x.shape
    assert torch.equal(out, purifier(x, sigma))  # draws nothing
    again = DiffusionPurifier.from_description(purifier.describe())
    again.load_state_dict(purifier.state_dict())
    assert torch.equal(out, again(x, sigma))


def test_it_can_be_tuned() -> None:
    unet = tiny_unet()
    purifier = DiffusionPurifier(unet, description() | {"unet": dict(unet.config)}, DDPMScheduler().alphas_cumprod)
    x = torch.rand(1, 3, 16, 16, requires_grad=True)
    purifier(x, torch.tensor([0.25])).square().sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is not None for parameter in unet.parameters())


def test_what_is_not_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no diffusers UNet2DModel"):
        DiffusionPurifier.from_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="'flow'"):
        DiffusionPurifier(nn.Identity(), description("flow"), torch.tensor([0.5]))


SAME_NOISE = [
    DDPMScheduler,
    DDIMScheduler,
    PNDMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    DEISMultistepScheduler,
    UniPCMultistepScheduler,
]


@pytest.mark.parametrize("kind", SAME_NOISE)
def test_schedulers_of_one_family_give_one_noise(tmp_path: Path, kind: type[SchedulerMixin]) -> None:
    tiny_unet().save_pretrained(tmp_path)
    kind(beta_schedule="linear", beta_start=0.001, beta_end=0.01).save_pretrained(tmp_path)
    purifier = DiffusionPurifier.from_pretrained(str(tmp_path))
    alphas = torch.cumprod(1 - torch.linspace(0.001, 0.01, 1000, dtype=torch.float64), 0)
    torch.testing.assert_close(purifier.noise_levels, ((1 - alphas) / alphas).sqrt().float(), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "scheduler",
    [
        ScoreSdeVeScheduler(),
        CMStochasticIterativeScheduler(),
        EDMEulerScheduler(),
        EulerDiscreteScheduler(timestep_type="continuous"),
    ],
)
def test_schedulers_with_other_noise_are_refused(tmp_path: Path, scheduler: SchedulerMixin) -> None:
    tiny_unet().save_pretrained(tmp_path)
    scheduler.save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match=f"its scheduler is {type(scheduler).__name__}"):
        DiffusionPurifier.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"in_channels": 1}, "reads 1 channels"),
        ({"out_channels": 4}, "predicts 4 channels"),
        ({"num_class_embeds": 10}, "a class"),
        ({"time_embedding_type": "fourier"}, "a noise level"),
        ({"center_input_sample": True}, r"in \[0, 1\]"),
    ],
)
def test_models_that_read_something_else_are_refused(tmp_path: Path, more: dict[str, object], words: str) -> None:
    tiny_unet(**more).save_pretrained(tmp_path)
    DDPMScheduler().save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match=words):
        DiffusionPurifier.from_pretrained(str(tmp_path))


def test_models_of_flows_are_refused(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path)
    UniPCMultistepScheduler(use_flow_sigmas=True).save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match="flow"):
        DiffusionPurifier.from_pretrained(str(tmp_path))
    DPMSolverMultistepScheduler(prediction_type="flow_prediction").save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match="predicts 'flow_prediction'"):
        DiffusionPurifier.from_pretrained(str(tmp_path))
