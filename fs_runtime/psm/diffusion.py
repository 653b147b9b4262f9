"""A pretrained diffusion model as purifier: one denoising step at the timestep that matches the image's noise level."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from fs_runtime.psm.guided_diffusion import alphas_cumprod, is_guided_diffusion, renamed, unet_config
from fs_runtime.psm.network import PsmNetwork
from fs_runtime.psm.weight_file import read_weights
from fs_runtime.system.files import TrainingError

_PREDICTIONS = ("epsilon", "v_prediction", "sample")
# Schedulers whose model reads √ᾱ y + √(1 − ᾱ) ε and an integer timestep, with ᾱ from the betas of the configuration.
_SCHEDULERS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
)


class DiffusionPurifier(PsmNetwork):
    """One-step denoising with a diffusers ``UNet2DModel`` (Carlini et al. 2023, arXiv 2206.10550, algorithm 1).

    Such a model is trained on images y = 2 x − 1 in [−1, 1] with noise, √ᾱ y + √(1 − ᾱ) ε. A noisy image x + σ ε
    becomes y + 2σ ε, so the timestep is the one with √((1 − ᾱ) / ᾱ) = 2σ, and the image is scaled by
    √ᾱ = 1 / √(1 + 4σ²). The network gets the nearest timestep in log noise, which for very large or small noise is the
    schedule's first or last; the scaling is exact. It draws no random numbers, so it is a fixed function.

    Args:
        unet: A ``UNet2DModel``, or a module with the same call signature.
        description: ``unet``: its configuration; ``prediction``: what it predicts; ``timesteps``: their number.
        alphas_cumprod: ``(timesteps,)`` ᾱ of the schedule, falling.
    """

    kind = "diffusion"
    noise_levels: Tensor

    def __init__(self, unet: nn.Module, description: dict[str, Any], alphas_cumprod: Tensor) -> None:
        super().__init__()
        if description["prediction"] not in _PREDICTIONS:
            raise ValueError(f"unknown prediction {description['prediction']!r}; known are {', '.join(_PREDICTIONS)}")
        self.unet = unet
        self._description = description
        alphas = alphas_cumprod.double()
        self.register_buffer("noise_levels", ((1 - alphas) / alphas).sqrt().float())  # of images in [-1, 1], rising

    @classmethod
    def from_pretrained(cls, source: str) -> Self:
        """Loads a pipeline (``unet`` and ``scheduler`` subfolders), a bare model with its scheduler, or a single file.

        Args:
            source: Folder or hub id; or a file of guided diffusion (:mod:`fs_runtime.psm.guided_diffusion`).

        Raises:
            TrainingError: diffusers is not installed, ``source`` has no such model, or its model cannot be used here.
            CheckpointError: ``source`` is a file that cannot be read.
        """
        try:
            import diffusers
        except ModuleNotFoundError as error:
            raise TrainingError("a diffusion purifier needs diffusers: pip install 'fs-serve[diffusion]'") from error
        if Path(source).is_file():
            return cls._from_file(Path(source))
        pipeline = not Path(source).is_dir() or (Path(source) / "unet").is_dir()
        parts = {"unet": "unet", "scheduler": "scheduler"} if pipeline else {"unet": None, "scheduler": None}
        try:
            scheduler_config = diffusers.DDPMScheduler.load_config(source, subfolder=parts["scheduler"])
            name = scheduler_config.get("_class_name")
            _check(name in _SCHEDULERS, source, f"its scheduler is {name}")
            scheduler = getattr(diffusers, name).from_pretrained(source, subfolder=parts["scheduler"])
            unet = diffusers.UNet2DModel.from_pretrained(source, subfolder=parts["unet"])  # type: ignore[no-untyped-call]
        except TrainingError:
            raise
        except (OSError, ValueError, HFValidationError, HfHubHTTPError) as error:
            raise TrainingError(f"{source} is no diffusers UNet2DModel: {error}") from error
        config = {name: value for name, value in dict(unet.config).items() if not name.startswith("_")}
        prediction = scheduler.config.prediction_type
        _check(prediction in _PREDICTIONS, source, f"it predicts {prediction!r}")
        _check(not scheduler.config.get("use_flow_sigmas"), source, "its noise follows a flow")
        _check(config["in_channels"] == 3, source, f"it reads {config['in_channels']} channels")
        _check(config["out_channels"] in (3, 6), source, f"it predicts {config['out_channels']} channels")
        classes = (config["class_embed_type"], config["num_class_embeds"])
        _check(classes == (None, None), source, "it needs a class label")
        _check(config["time_embedding_type"] != "fourier", source, "it takes a noise level instead of a timestep")
        _check(not config["center_input_sample"], source, "it reads images in [0, 1]")
        description = {
            "unet": config,
            "prediction": prediction,
            "timesteps": len(scheduler.alphas_cumprod),
        }
        return cls(unet, description, scheduler.alphas_cumprod)

    @classmethod
    def _from_file(cls, path: Path) -> Self:
        """The U-Net of a file of guided diffusion."""
        from diffusers import UNet2DModel

        weights = read_weights(path)
        _check(is_guided_diffusion(weights), str(path), "the file is not of guided diffusion at 256 pixels, no classes")
        try:
            config = unet_config(weights)
            unet = UNet2DModel.from_config(config)  # type: ignore[no-untyped-call]
            unet.load_state_dict(renamed(weights, config["layers_per_block"]))
        except (ValueError, KeyError, RuntimeError) as error:
            raise TrainingError(f"the diffusion model {path} has another layout: {error}") from None
        alphas = alphas_cumprod()
        return cls(unet, {"unet": config, "prediction": "epsilon", "timesteps": len(alphas)}, alphas)

    @classmethod
    @override
    def from_description(cls, description: dict[str, Any]) -> Self:
        from diffusers import UNet2DModel

        unet = UNet2DModel.from_config(description["unet"])  # type: ignore[no-untyped-call]
        return cls(unet, description, torch.full((int(description["timesteps"]),), 0.5))

    @override
    def describe(self) -> dict[str, Any]:
        return self._description

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Noise levels of the first and the last timestep, in pixels of [0, 1]."""
        return float(self.noise_levels[0]) / 2, float(self.noise_levels[-1]) / 2

    def timesteps(self, sigma: Tensor) -> Tensor:
        """The ``(B,)`` timesteps whose noise, on images in [−1, 1], is nearest to 2σ."""
        levels = self.noise_levels.clamp_min(torch.finfo(torch.float32).tiny).log()
        wanted = (2 * sigma.float()).clamp_min(torch.finfo(torch.float32).tiny).log()
        return (wanted.unsqueeze(-1) - levels).abs().argmin(-1)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Purifies ``(B, C, H, W)`` pixels with ``(B,)`` noise levels: x̂₀; the result has the dtype of ``x``."""
        height, width = x.shape[-2:]
        stride = 2 ** (len(self._description["unet"]["block_out_channels"]) - 1)
        y = functional.pad(2 * x.float() - 1, (0, -width % stride, 0, -height % stride), mode="replicate")
        noise = 2 * sigma.float().view(-1, 1, 1, 1)
        scale = (1 + noise.square()).rsqrt()  # √ᾱ
        parameter = next(self.unet.parameters())
        predicted = self.unet((y * scale).to(parameter.dtype), self.timesteps(sigma)).sample.float()
        predicted = predicted[:, : y.shape[1]]  # some models predict a variance as well
        prediction = self._description["prediction"]
        if prediction == "epsilon":
            clean = y - noise * predicted
        elif prediction == "v_prediction":  # v = √ᾱ ε − √(1 − ᾱ) y₀ (Salimans and Ho 2022, appendix D)
            clean = scale * (scale * y) - noise * scale * predicted
        else:
            clean = predicted
        purified: Tensor = ((clean[..., :height, :width] + 1) / 2).to(x.dtype)
        return purified


def _check(fits: bool, source: str, why: str) -> None:
    if not fits:
        raise TrainingError(
            f"the diffusion model {source} cannot be a purifier: {why}. A purifier needs a model of RGB images in "
            f"[-1, 1] without classes whose scheduler is one of {', '.join(_SCHEDULERS)}"
        )
