"""Fixtures for all tests: tiny models of every family in every class of this leg, the embedded model, the shared data.

Models are loaded once per session and shared: treat them as read-only and leave no hooks behind. A test that writes
weights takes `fresh_tiny`. `TL_ROME_LEG` says which TransformerLens the run is about ("3.9" or "4"); a run that got
another one stops instead of skipping the tests that it was made for. Tests that both legs would only repeat are
marked with `leg("3.9")` or `leg("4")` and left out on the other one; without `TL_ROME_LEG` all are run. The leg
"lowest" is the former with the oldest packages that are allowed, on a part of the quick tests that uses each of them.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import N_CTX, N_LAYERS, build_family, transformer_lens_major

torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parents[1]
LEGS = ("3.9", "4", "lowest")
LOWEST = {
    *("test_blocks.py", "test_dependencies.py", "test_forward.py", "test_scoring.py", "test_sites.py"),
    *("test_cli_covariance.py", "test_cli_errors.py", "test_rome.py", "test_tokens.py", "test_trace.py"),
    *("dataset", "metrics", "models", "plots", "report", "storage"),
}
"""Files and folders of tests that the leg "lowest" runs, but for the slow ones."""


def pytest_configure(config: pytest.Config) -> None:
    """Stop if the installed TransformerLens is not the one that this leg is about."""
    config.addinivalue_line("markers", "leg(name): says nothing new on the other leg")
    leg = os.environ.get("TL_ROME_LEG")
    if leg is None:
        return
    if leg not in LEGS:
        raise pytest.UsageError(f"TL_ROME_LEG is {leg!r}; use one of {', '.join(LEGS)}")
    if leg != "4":
        try:
            from transformer_lens import HookedTransformer  # noqa: F401
        except ImportError as error:
            raise pytest.UsageError(f"TL_ROME_LEG={leg}, but HookedTransformer cannot be imported: {error}") from error
    elif transformer_lens_major() != 4:
        raise pytest.UsageError(f"TL_ROME_LEG=4, but transformer_lens has major version {transformer_lens_major()}")


@pytest.fixture(scope="session")
def family_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give `family_dir(family)`: the folder of a tiny model in Hugging Face layout, saved once per worker."""
    folders: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in folders:
            folders[family] = build_family(family, tmp_path_factory.mktemp("families") / f"tiny-{family}")
        return folders[family]

    return get


def _load_tiny(folder: Path, kind: str, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    from tl_rome.models.loading import load_model

    model = load_model(str(folder), model_class=kind, dtype=dtype, device="cpu", progress=False, **options)
    size = sum(p.numel() for p in model.parameters())
    assert size < 200_000, f"{folder.name} is not tiny: {size} parameters"
    assert model.cfg.n_ctx == N_CTX
    assert model.cfg.n_layers == N_LAYERS
    return model


@pytest.fixture(scope="session")
def tiny(family_dir: Callable[[str], Path]) -> Callable[..., Any]:
    """Give `tiny(family, kind, dtype=torch.float32)`: a shared tiny model, to be left as it was found."""
    models: dict[tuple[str, str, torch.dtype], Any] = {}

    def get(family: str, kind: str, dtype: torch.dtype = torch.float32) -> Any:
        key = (family, kind, dtype)
        if key not in models:
            models[key] = _load_tiny(family_dir(family), kind, dtype, {})
        return models[key]

    return get


@pytest.fixture
def fresh_tiny(family_dir: Callable[[str], Path]) -> Callable[..., Any]:
    """Give `fresh_tiny(family, kind, dtype=torch.float32, **load_model_options)`: a new model to write to."""

    def get(family: str, kind: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
        return _load_tiny(family_dir(family), kind, dtype, options)

    return get


@pytest.fixture(scope="session")
def smollm2() -> Callable[[str], Any]:
    """Give `smollm2(kind)`: the real embedded model, shared. Tests that use it are marked slow."""
    models: dict[str, Any] = {}

    def get(kind: str) -> Any:
        from tl_rome.models.loading import load_model

        if kind not in models:
            models[kind] = load_model("smollm2-135m", model_class=kind, device="cpu", progress=False)
        return models[kind]

    return get


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """An empty hub on this machine, which the hub's client asks with a token of its own and an empty cache."""
    from support.hub_server import TOKEN, FakeHub

    server = FakeHub()
    settings = {
        "ENDPOINT": server.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }
    for name, value in settings.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", server.address)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # made anew, with the address of now
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark every test that takes the real model as slow, and leave out those of the other legs."""
    leg, others = os.environ.get("TL_ROME_LEG"), []
    for item in items:
        if "smollm2" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
        marker = item.get_closest_marker("leg")
        named = marker is None or leg in (None, *marker.args)
        in_part = leg != "lowest" or (LOWEST & {*item.path.parts} and item.get_closest_marker("slow") is None)
        if not (named and in_part):
            others.append(item)
    config.hook.pytest_deselected(items=others)
    left_out = {*others}
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Give the folder with the reference data, `shared` beside the checkout or `TL_ROME_SHARED`.

    Without it a test is skipped, or fails if `TL_ROME_REQUIRE_SHARED` is set.
    """
    folder = Path(os.environ.get("TL_ROME_SHARED") or REPOSITORY.parent / "shared")
    if not folder.is_dir():
        missing = f"no reference data: {folder} does not exist (set TL_ROME_SHARED)"
        if os.environ.get("TL_ROME_REQUIRE_SHARED"):
            pytest.fail(f"{missing}, and TL_ROME_REQUIRE_SHARED asks for it")
        pytest.skip(missing)
    return folder
