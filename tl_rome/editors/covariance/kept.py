"""Key statistics of several layers without being asked for text: shipped, or kept from before, or made now and kept.

    <cache>/covariances/<model>-layer<n>-<digest>.covariance.safetensors     one layer, written by `KeyCovariance.save`
    <cache>/covariances/<model>.lock                                         held while some are made

The digest is of all that decides the statistics beside the layer: the model's fingerprint, what edits can change of its
weights, whether texts begin with a BOS token, how many tokens, and the seed. What is missing is made in one pass over
the same text, so a layer gets the same statistics whichever others are asked for. Everything here can be made again, so
a damaged file is replaced with a logged warning, and where nothing can be written the work is not lost but not kept.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock

from tl_rome.arguments import Count, Seed
from tl_rome.editors.covariance.estimation import covariances_from_samples
from tl_rome.editors.covariance.key_covariance import KeyCovariance
from tl_rome.errors import InputError, StorageError
from tl_rome.models.smollm2 import cache_root
from tl_rome.running.matrices import MlpMatrix
from tl_rome.running.packed import check_matrix
from tl_rome.sites import HookedModel
from tl_rome.storage.files import digest
from tl_rome.storage.ledger import model_settings

TOKENS = 65_536
"""Sampled where nothing is said."""
Paths = dict[int, Path]
"""By layer."""
_log = logging.getLogger(__name__)


def covariances_for(
    model: HookedModel,
    layers: Sequence[int],
    *,
    tokens: Count = TOKENS,
    seed: Seed = 0,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> dict[int, KeyCovariance]:
    """Statistics of layers: those shipped with the package, else those kept, else an estimate that is then kept.

    The estimate is from text that the model samples itself and takes minutes, once.

    Args:
        model: Left as found.
        layers: Layers whose keys are wanted.
        tokens: Behind each, at least; must well exceed d_mlp.
        seed: Of the samples.
        cache_dir: Folder to keep them in; by default `TL_ROME_CACHE`, else the user's cache folder.
        progress: Whether to show progress bars while some are made.

    Returns:
        By layer, in the order asked for.

    Raises:
        InputError: If there is no layer, or one is out of range.
        UnsupportedModelError: If a layer has no plain MLP.
        NumericsError: If a key is not finite.
    """
    if not layers:
        raise InputError("there are no layers to find key statistics of; give at least one")
    for layer in layers:
        check_matrix(model, MlpMatrix(layer))  # says before any work that there is none
    settings = model_settings(model)
    folder = cache_root(None if cache_dir is None else Path(cache_dir)) / "covariances"
    name, code = settings["model"], digest([settings, "own samples", tokens, seed])
    paths = {layer: folder / f"{name}-layer{layer}-{code}.covariance.safetensors" for layer in layers}
    shipped = KeyCovariance.shipped(model)
    found = {shipped.layer: shipped} if shipped is not None and shipped.count >= tokens else {}
    found |= _read(model, _without(paths, found), warn=False)
    if _without(paths, found):
        with _locked(folder / f"{name}.lock"):
            found |= _read(model, _without(paths, found), warn=True)  # another process may have made some meanwhile
            if missing := _without(paths, found):
                generator = torch.Generator().manual_seed(seed)
                options = {"generator": generator, "tokens": tokens, "progress": progress}
                made = covariances_from_samples(model, [*missing], **options)
                found |= {layer: _keep(each, paths[layer]) for layer, each in made.items()}
    return {layer: found[layer] for layer in layers}


def _without(paths: Paths, found: Mapping[int, KeyCovariance]) -> Paths:
    return {layer: path for layer, path in paths.items() if layer not in found}


def _read(model: HookedModel, paths: Paths, *, warn: bool) -> dict[int, KeyCovariance]:
    """What is kept in good order."""
    found = {}
    for layer, path in paths.items():
        try:
            if path.exists():
                statistics = KeyCovariance.load(path)
                statistics.check(model, layer)
                found[layer] = statistics
        except (OSError, StorageError, InputError) as error:
            if warn:
                _log.warning("kept key statistics cannot be used (%s); making them again", error)
    return found


def _keep(made: KeyCovariance, path: Path) -> KeyCovariance:
    """Write statistics, and give them as every later call will read them; what cannot be written is given as it is."""
    try:
        return KeyCovariance.load(made.save(path))
    except StorageError as error:
        _log.warning("key statistics are not kept for the next time: %s; set TL_ROME_CACHE, or save them", error)
        return made


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock if there can be one; without it several processes do the same work, to the same result."""
    with ExitStack() as stack:
        with suppress(OSError, NotImplementedError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path))
        yield


def check_covariances(model: HookedModel, layers: Sequence[int], covariances: Mapping[int, KeyCovariance]) -> None:
    """Refuse statistics that lack a layer, or are of another model or BOS policy.

    Raises:
        InputError: If a layer has none, or the model's prompts begin otherwise.
        ModelMismatchError: If they are of another model.
    """
    if missing := [layer for layer in layers if layer not in covariances]:
        known = ", ".join(map(str, covariances)) or "no layer"
        raise InputError(
            f"there are no key statistics of layer {', '.join(map(str, missing))} (only of {known}); "
            "make them with estimate_covariances, or give other layers"
        )
    for layer in layers:
        covariances[layer].check(model, layer)
