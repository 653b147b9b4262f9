"""Every file has its room: what import-linter does not check of the two packages (CONTRIBUTING.md)."""

import ast
import importlib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("fs_runtime", "server")
MOST_LOOSE_MODULES = 6


@pytest.mark.parametrize("package", PACKAGES)
def test_few_modules_lie_loose_at_the_top(package: str) -> None:
    loose = [file.name for file in (ROOT / package).glob("*.py") if file.name != "__init__.py"]
    assert len(loose) <= MOST_LOOSE_MODULES, loose


@pytest.mark.parametrize("package", PACKAGES)
def test_no_two_classes_have_one_name(package: str) -> None:
    names: Counter[str] = Counter()
    for file in (ROOT / package).rglob("*.py"):
        names.update(node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef))
    assert names.total() > 50
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("folder", ["fs_runtime", "server"])
def test_folders_of_unit_tests_are_those_of_the_code(folder: str) -> None:
    for tests in (ROOT / "tests/unit" / folder).rglob("test_*.py"):
        assert (ROOT / tests.parent.relative_to(ROOT / "tests/unit")).is_dir(), tests


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("fs_runtime.certificate", ["tight_similarity", "NormConfidenceSequence"]),
        ("fs_runtime.encoders", ["load_encoder", "VisionEncoder"]),
        ("fs_runtime.engine", ["SmoothingEngine"]),
        ("fs_runtime.loading", ["load_engine", "load_smoother", "psm_folder", "resolve_device", "resolve_dtype"]),
        ("fs_runtime.reference", ["reference_model_path", "example_images"]),
        ("fs_runtime.smoothing", ["Smoother", "FeatureMap", "ENCODER_FEATURES"]),
        ("server.cli", ["main"]),
        ("server.settings", ["Settings"]),
    ],
)
def test_names_that_documents_use_stay_where_they_are(module: str, names: list[str]) -> None:
    face = importlib.import_module(module)
    assert [name for name in names if not hasattr(face, name)] == []
