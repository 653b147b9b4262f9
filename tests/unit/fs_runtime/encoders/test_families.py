"""Adapters of all families, against transformers' code on the tiny checkpoints of the parity tests."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

from fs_runtime.attacks.pipeline import FeaturePipeline
from fs_runtime.embedded import EmbeddedModel, Generation, Prompt, load_embedded_model
from fs_runtime.encoders import FAMILIES, CheckpointError, VisionEncoder, load_encoder
from fs_runtime.encoders.families import family_of
from fs_runtime.engine.sketch_limit import SketchLimit
from fs_runtime.psm.mapper import MapperConfig, SmoothnessMapper
from fs_runtime.psm.unet import UNetConfig, UNetPurifier
from fs_runtime.smoothing.feature_map import FeatureMap
from fs_runtime.smoothing.smoother import Smoother
from tests.asked import asked
from tests.integration.families import CASES, FamilyCase
from tests.integration.families.case import VISION_PREFIXES


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.model_type)
def case(request: pytest.FixtureRequest) -> FamilyCase:
    found: FamilyCase = request.param
    return found


@pytest.fixture(scope="module")
def folder(case: FamilyCase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(case.model_type) / "model"
    case.build(folder)
    return folder


@pytest.fixture(scope="module")
def family(folder: Path) -> VisionEncoder:
    return load_encoder(str(folder))


def random_picture(size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def bare(encoder: VisionEncoder, picture: NDArray[np.uint8], stage: Any = "encoder") -> torch.Tensor:
    """Embeddings without noise, as they are sent."""
    smoother = Smoother(encoder)
    image = encoder.prepare(picture)
    state = smoother.start(image, 0.0, 0, FeatureMap(stage))
    smoother.step([(state, 1)])
    return torch.from_numpy(encoder.payload(smoother.finish(state).embeddings, image)["image_embeds"])


def test_embeddings_equal_transformers(case: FamilyCase, folder: Path, family: VisionEncoder) -> None:
    model: Any = case.reference.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    for size in case.sizes:
        picture = random_picture(size)
        inputs = processor(picture, return_tensors="pt", **case.options)
        with torch.inference_mode():
            if case.image_features:
                outputs = case.image_features(model, inputs)
            else:
                outputs = model.get_image_features(**{name: inputs[name] for name in case.inputs})
        expected = case.embeddings(outputs)
        for stage in ("encoder", "projector"):
            ours = bare(family, picture, stage)
            torch.testing.assert_close(ours, expected.float(), atol=2e-4, rtol=1e-3)


def sent(encoder: VisionEncoder, picture: NDArray[np.uint8]) -> dict[str, NDArray[np.generic]]:
    """The payload without noise."""
    smoother = Smoother(encoder)
    image = encoder.prepare(picture)
    state = smoother.start(image, 0.0, 0)
    smoother.step([(state, 1)])
    return encoder.payload(smoother.finish(state).embeddings, image)


def transformers_inputs(
    case: FamilyCase, folder: Path, text: str, pictures: list[NDArray[np.uint8]], counts: list[int]
) -> dict[str, Any]:
    """What the family's own processor makes of a rendered conversation; ``counts`` are the images' embeddings."""
    if not case.written:
        processor = AutoProcessor.from_pretrained(folder)
        return dict(processor(text=[text], images=[pictures], return_tensors="pt", add_special_tokens=False))
    options = case.options | ({"return_row_col_info": True} if "pixel_attention_mask" in case.inputs else {})
    inputs = AutoImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt", **options)
    between = text.split(case.mark)
    written = [case.written(inputs, index, count) for index, count in enumerate(counts)]
    text = between[0] + "".join(image + rest for image, rest in zip(written, between[1:], strict=True))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = dict(tokenizer(text, return_tensors="pt", add_special_tokens=False))
    if "image_grid_thw" in case.inputs:
        ids["mm_token_type_ids"] = (ids["input_ids"] == tokenizer.convert_tokens_to_ids(case.mark)).int()
    return {**ids, **{name: inputs[name] for name in case.inputs}}


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if "embedded" in FAMILIES[case.model_type].language_models],
    ids=lambda case: case.model_type,
    indirect=True,
    scope="module",
)
@pytest.mark.parametrize("count", [1, 2])
def test_the_embedded_language_model_answers_as_transformers(
    case: FamilyCase, folder: Path, family: VisionEncoder, count: int
) -> None:
    whole: Any = case.reference.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pictures = [random_picture(size, seed) for seed, size in enumerate(case.sizes[:count])]
    turns = [[{"type": "image"}, {"type": "text", "text": "What is this?"}], [{"type": "text", "text": "Dark."}]]
    messages = [
        {"role": "user", "content": turns[0]},
        {"role": "assistant", "content": turns[1]},
        {"role": "user", "content": turns[0] if count == 2 else turns[0][1:]},
    ]
    model = load_embedded_model(str(folder))
    payloads = [sent(family, picture) for picture in pictures]
    prompt = model.prompt(messages, payloads)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = transformers_inputs(case, folder, text, pictures, [len(payload["image_embeds"]) for payload in payloads])
    length = inputs["input_ids"].shape[1]
    assert prompt.length == length
    if case.mend:
        case.mend(whole, inputs)
    with torch.inference_mode():
        expected = whole(**inputs).logits[0, -1].log_softmax(-1)
        ours = next_token(model, prompt)
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)
        if count == 2:  # the test would notice images that are mixed up
            swapped = model.prompt(messages, payloads[::-1])
            assert float((next_token(model, swapped) - expected).abs().max()) > 5e-3
        out = whole.generate(**inputs, max_new_tokens=12, do_sample=False)
    answer = "".join(piece.text for piece in model.generate(prompt, Generation(12, temperature=0), threading.Event()))
    assert answer == tokenizer.decode(out[0, length:], skip_special_tokens=True)
    assert answer


def next_token(model: EmbeddedModel, prompt: Prompt) -> torch.Tensor:
    """Log-probabilities of the answer's first token."""
    inputs = {"inputs_embeds": prompt.embeddings} | prompt.inputs
    logits: torch.Tensor = model._model(**inputs, use_cache=True, logits_to_keep=1).logits[0, -1]
    return logits.log_softmax(-1)


def test_preprocessing_is_the_familys_own_up_to_its_rounding(case: FamilyCase, tmp_path: Path) -> None:
    case.build(tmp_path / "model", resample=case.filter)
    encoder = load_encoder(str(tmp_path / "model"))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    for size in case.sizes:
        # Without extremes, so that nothing is clipped between the two axes: which of them comes first differs between
        # Pillow's versions and torchvision, and shows only there.
        picture = 64 + random_picture(size) // 2
        inputs = processor(picture, return_tensors="pt", **case.options)
        mean, std = (torch.tensor(getattr(processor, f"image_{part}")).view(3, 1, 1) for part in ("mean", "std"))
        theirs = case.pixels(inputs) * std + mean
        ours = encoder.prepare(picture).pixels
        assert ours.shape == theirs.shape
        assert float((ours - theirs).abs().max()) < case.rounding / 255
        assert float((ours - theirs).abs().mean()) < 0.4 / 255


@pytest.mark.parametrize("size", [(20, 31), (33, 12), (60, 8)])
def test_spectral_norm_bounds_the_whole_map(case: FamilyCase, tmp_path: Path, size: tuple[int, int]) -> None:
    """The map's matrix, column by column, on one channel: all channels have the same one and do not mix."""
    case.build(tmp_path / "model", resample=case.filter)
    encoder = load_encoder(str(tmp_path / "model"))
    columns = []
    for place in range(size[0] * size[1]):
        change = np.zeros(size, np.uint8).reshape(-1)
        change[place] = 40
        change = change.reshape(*size, 1)
        grey = np.full((*size, 3), 128, np.uint8)
        difference = encoder.prepare(grey + change).pixels - encoder.prepare(grey - change).pixels
        columns.append(difference[..., 0, :, :].flatten() * (255 / 80))
    exact = float(torch.linalg.matrix_norm(torch.stack(columns, 1), 2))
    bound = encoder.prepare(grey).spectral_norm
    assert exact <= bound * (1 + 1e-5)
    assert bound <= exact * 1.05


def test_the_grid_follows_from_the_size_alone(case: FamilyCase, family: VisionEncoder) -> None:
    for size in case.sizes:
        one, other = (family.prepare(random_picture(size, seed)) for seed in range(2))
        black = family.prepare(np.zeros((*size, 3), np.uint8))
        assert one.grid == other.grid == black.grid
        assert one.pixels.shape == other.pixels.shape == black.pixels.shape
        assert one.spectral_norm == other.spectral_norm == black.spectral_norm
        assert not torch.equal(one.pixels, other.pixels)


def test_an_attack_on_the_picture_stays_within_the_bound(case: FamilyCase, family: VisionEncoder) -> None:
    rng = np.random.default_rng(3)
    for size in case.sizes:
        picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        other = np.clip(picture + rng.normal(0, 30, picture.shape), 0, 255).astype(np.uint8)
        one, two = family.prepare(picture), family.prepare(other)
        moved = np.linalg.norm((picture.astype(float) - other) / 255)
        assert float((one.pixels - two.pixels).norm()) <= one.spectral_norm * moved * (1 + 1e-6)


@pytest.mark.parametrize("stage", ["encoder", "projector"])
def test_token_grids_hold_all_tokens(family: VisionEncoder, case: FamilyCase, stage: Any) -> None:
    smoother = Smoother(family)
    for size in case.sizes:
        image = family.prepare(random_picture(size))
        state = smoother.start(image, 0.1, 0, FeatureMap(stage))
        products = smoother.step([(state, 3)])[0]
        assert products.tokens.shape[-1] == sum(r * c for r, c in family.token_grids(image.grid, stage))


@pytest.mark.parametrize("stage", ["encoder", "projector"])
def test_the_size_of_the_sketch_is_known_beforehand(family: VisionEncoder, case: FamilyCase, stage: Any) -> None:
    smoother, sizes = Smoother(family), case.sizes
    for size, other in zip(sizes, sizes[1:] + sizes[:1], strict=True):
        picture = random_picture(size)
        image = family.prepare(picture)
        state = smoother.start(image, 0.1, 0, FeatureMap(stage), spectral=True)
        smoother.step([(state, 2)])
        assert state.sketch is not None
        full = 64 * state.sketch.nbytes  # it has one vector now, and 64 at most
        request, _ = asked(picture, 0.1, 2, 0.9, feature_map=FeatureMap(stage), spectral=True)
        grids, another = family.token_grids(image.grid, stage), family.prepare(random_picture(other))
        for ceiling, kept in ((full, True), (full - 1, False), (0, True)):
            assert SketchLimit(smoother, another, ceiling).applied(request, grids).terms.bounds_spread is kept


def test_samples_do_not_depend_on_the_batch(family: VisionEncoder, case: FamilyCase) -> None:
    smoother = Smoother(family)
    image = family.prepare(random_picture(case.sizes[0]))
    together, apart, other = (smoother.start(image, 0.1, seed) for seed in (1, 1, 2))
    smoother.step([(together, 4), (other, 2)])
    for _ in range(4):
        smoother.step([(apart, 1)])
    assert together.feature_sum is not None
    assert apart.feature_sum is not None
    torch.testing.assert_close(together.feature_sum, apart.feature_sum, atol=1e-4, rtol=1e-4)


def test_purifier_and_mapper_attach_and_gradients_flow(family: VisionEncoder, case: FamilyCase) -> None:
    image = family.prepare(random_picture(case.sizes[0]))
    torch.manual_seed(0)
    tile = image.pixels if image.pixels.dim() == 3 else image.pixels[0]
    width = family.encode(tile[None]).shape[-1]
    purifier, mapper = UNetPurifier(UNetConfig(widths=(8, 16))), SmoothnessMapper(MapperConfig(width, width=8))
    for network in (purifier, mapper):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    smoother = Smoother(family, purifier, mapper)
    state = smoother.start(image, 0.2, 0)
    smoother.step([(state, 4)])
    sent = family.payload(smoother.finish(state).embeddings, image)
    assert sent["image_embeds"].shape == tuple(bare(family, random_picture(case.sizes[0])).shape)
    pipeline = FeaturePipeline(smoother, 0.2, image.grid, draws=2)
    x = image.pixels[None]
    reference = pipeline.features(x * 0.9)
    value, gradient = pipeline.value_and_gradient(x, reference, lambda a, b: -(a * b).sum((-1, -2)))
    assert gradient.shape == x.shape
    assert bool(torch.isfinite(gradient).all())
    assert bool(torch.isfinite(value).all())
    parts = gradient[0] if gradient.dim() == 5 else gradient
    assert all(float(part.abs().max()) > 0 for part in parts)
    for network in (purifier, mapper):
        assert any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("fault", ["width", "one token more", "one token less", "nan", "inf"])
def test_a_payload_that_could_stop_vllm_is_refused(family: VisionEncoder, case: FamilyCase, fault: str) -> None:
    image = family.prepare(random_picture(case.sizes[0]))
    smoother = Smoother(family)
    state = smoother.start(image, 0.0, 0)
    smoother.step([(state, 1)])
    embeddings = smoother.finish(state).embeddings.clone()
    if fault == "width":
        embeddings = embeddings[:, :-1]
    elif fault == "one token more":
        embeddings = torch.cat([embeddings, embeddings[:1]])
    elif fault == "one token less":
        embeddings = embeddings[1:]
    else:
        embeddings[1, 2] = float(fault)
    with pytest.raises(ValueError, match=r"shape|finite"):
        family.payload(embeddings, image)


def test_language_weights_are_not_read_and_vision_weights_count(case: FamilyCase, folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    language = [name for name in weights if not name.startswith((*VISION_PREFIXES, *case.constants))]
    assert language
    without = tmp_path / "model"
    case.build(without)
    save_file({name: weights[name] for name in weights.keys() - set(language)}, without / "model.safetensors")
    original = load_encoder(str(folder)).fingerprint
    assert load_encoder(str(without)).fingerprint == original
    for name in case.constants:
        changed = {**weights, name: weights[name] + 1}
        save_file(changed, without / "model.safetensors")
        assert load_encoder(str(without)).fingerprint != original
        save_file({key: weights[key] for key in weights.keys() - {name}}, without / "model.safetensors")
        with pytest.raises(CheckpointError, match="lacks 1 weights"):
            load_encoder(str(without))


def test_half_precision_has_the_same_fingerprint_and_close_features(folder: Path, family: VisionEncoder) -> None:
    half = load_encoder(str(folder), dtype="bfloat16")
    assert half.fingerprint == family.fingerprint
    picture = random_picture((70, 60))
    one, other = bare(half, picture), bare(family, picture)
    assert float(torch.nn.functional.cosine_similarity(one, other, dim=-1).mean()) > 0.98


def test_families_are_recognised_and_listed(case: FamilyCase, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    family = family_of(config)
    assert family is FAMILIES[case.model_type]
    assert set(config["architectures"]) <= set(family.architectures)
    config.pop("model_type")
    assert family_of(config) is family
