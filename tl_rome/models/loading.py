"""Getting a model: by the name of the embedded default, by a hub name, or from a local folder.

Every model takes the same way: Hugging Face weights and tokenizer are loaded (`hugging_face.py`; `smollm2.py` makes the
folder of the embedded one), checked for missing and non-finite weights, and turned into a raw HookedTransformer or
TransformerBridge (`conversion.py`). Whether prompts begin with a BOS token is decided here once and recorded in
`model.cfg.default_prepend_bos`: TransformerLens' own default prepends one for most models, the authors' GPT-2 code does
not, and the probability of a fact can differ by a factor of three between the two.
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch

from tl_rome.annotations import conform
from tl_rome.arguments import guarded
from tl_rome.errors import InputError, NumericsError, UnsupportedModelError
from tl_rome.models import smollm2
from tl_rome.models.hugging_face import expanded, load_hugging_face

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge

_ModelClass = Literal["hooked", "bridge"]


@overload
def load_model(
    name: str = smollm2.NAME,
    *,
    model_class: Literal["hooked"],
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    prepend_bos: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    device_map: str | Mapping[str, Any] | None = None,
    quantization_config: Any = None,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> "HookedTransformer": ...
@overload
def load_model(
    name: str = smollm2.NAME,
    *,
    model_class: Literal["bridge"],
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    prepend_bos: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    device_map: str | Mapping[str, Any] | None = None,
    quantization_config: Any = None,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> "TransformerBridge": ...
@overload
def load_model(
    name: str = smollm2.NAME,
    *,
    model_class: _ModelClass | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    prepend_bos: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    device_map: str | Mapping[str, Any] | None = None,
    quantization_config: Any = None,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> "HookedTransformer | TransformerBridge": ...
@guarded
def load_model(
    name: str = smollm2.NAME,
    *,
    model_class: _ModelClass | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    prepend_bos: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    device_map: str | Mapping[str, Any] | None = None,
    quantization_config: Any = None,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> Any:
    """Load a language model as a raw HookedTransformer or TransformerBridge: eval mode, frozen, weights unprocessed.

    Args:
        name: `"smollm2-135m"` (embedded, needs no model hub), a local folder in Hugging Face layout, or a hub name such
            as `"gpt2-xl"` or `"EleutherAI/gpt-j-6B"`; hub names also come from the hub's cache (`HF_HUB_OFFLINE=1`).
        model_class: TransformerLens class; None takes HookedTransformer where the installed TransformerLens has it and
            the model is neither quantised nor spread by `device_map`. Converting to it needs memory for the weights
            twice, a bridge needs it once.
        dtype: Floating-point type of the weights.
        device: Where the model goes; None is the best that TransformerLens trusts (CUDA, else the CPU).
        prepend_bos: Whether prompts begin with a BOS token; None follows the tokenizer's own default encoding.
        revision: Branch, tag or commit of a hub name; by default the main branch.
        token: Access token for a hub name, or whether to use the one that is stored; by default it is where there is
            one.
        trust_remote_code: Whether to run model code that comes with the weights. It can do anything that you can.
        device_map: Where the parts of the model go, as transformers takes it ("auto" for several GPUs), in place of
            `device`; for bridges only.
        quantization_config: How transformers quantises the weights, such as a `BitsAndBytesConfig`; for bridges only.
            Quantised weights are run but cannot be written: edits of them run as hooks.
        cache_dir: Cache folder in place of the package's own (embedded model) or the hub's (hub names).
        progress: Show progress bars and the warnings of transformers.

    Returns:
        The model; `model.cfg.default_prepend_bos` holds the BOS policy and `model.cfg.model_name` the name.

    Raises:
        InputError: If an argument has an unknown value, the device does not exist on this machine, arguments exclude
            each other, or BOS is asked of a tokenizer that has none.
        ModelUnavailableError: If the model cannot be found, downloaded or read.
        NumericsError: If a weight is NaN or infinite.
        UnsupportedModelError: If TransformerLens cannot convert the model, or lacks the class asked for.
    """
    if model_class not in (None, "hooked", "bridge"):
        raise InputError(f"model_class is {model_class!r}; use 'hooked', 'bridge' or None")
    if not name.strip():
        raise InputError(f"model name is empty ({name!r}); give {smollm2.NAME!r}, a hub name or a folder")
    conform("name", name, Path)  # a name that no file could have would confuse what looks for one
    if not dtype.is_floating_point:
        raise InputError(f"dtype is {dtype}; use a floating-point type such as torch.float32 or torch.bfloat16")
    with quiet(progress), torch.random.fork_rng(devices=[]):  # weights are drawn before they are read
        from transformer_lens.utilities.devices import get_device

        from tl_rome.models.conversion import convert, has_hooked_transformer

        target = _usable_device(device if device is not None else get_device())
        if device_map is not None and device is not None:
            raise InputError(f"device {str(device)!r} and a device_map are given; give one of them")
        if model_class == "hooked" and not has_hooked_transformer():
            raise UnsupportedModelError(
                "the installed TransformerLens has no HookedTransformer (it was removed in 4.0); "
                "use model_class='bridge' or model_class=None, or pip install 'transformer-lens<4'"
            )
        place = None if cache_dir is None else expanded(cache_dir)
        access = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
        if quantization_config is not None and device_map is None:
            device_map = {"": str(target)}  # packed weights may not be moved afterwards
        placing = {"device_map": device_map, "quantization_config": quantization_config}
        hf_model, tokenizer = load_hugging_face(name, dtype, place, progress, access, placing)
        _check_finite(hf_model, name)
        placed = device_map is not None or _is_quantised(hf_model)
        if placed and model_class == "hooked":
            raise UnsupportedModelError(
                f"{name!r} is quantised or spread by a device_map, which HookedTransformer cannot take over; use "
                "model_class='bridge'"
            )
        if model_class is None:
            model_class = "hooked" if has_hooked_transformer() and not placed else "bridge"
        policy = _bos_policy(tokenizer, prepend_bos, name)
        model: Any = convert(hf_model, tokenizer, _short_name(name), model_class)
        if target != torch.device("cpu") and not placed:
            model = model.to(target, print_details=False)
    model.cfg.default_prepend_bos = policy
    model.tokenizer.padding_side = "right"  # left-padded tokens without a mask give wrong logits in every class
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def _usable_device(device: str | torch.device) -> torch.device:
    """The device, once a tensor could be put there."""
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, ImportError) as error:  # what torch raises depends on the kind of device
        cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        devices = ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]
        raise InputError(
            f"device {str(device)!r} cannot be used ({str(error).splitlines()[0][:100]}); "
            f"this machine has {', '.join(devices)}"
        ) from error
    return target


def _check_finite(hf_model: Any, name: str) -> None:
    for parameter_name, parameter in hf_model.named_parameters():
        if not parameter.is_floating_point() or parameter.dtype.itemsize < 2:
            continue  # packed, or without its scales
        # A sum is finite only if every term is, and costs no second tensor; it is looked into where it is not.
        if not parameter.sum(dtype=torch.float64).isfinite():
            bad = int((~parameter.isfinite()).sum())
            raise NumericsError(
                f"parameter {parameter_name!r} of {name!r} has {bad} NaN or infinite values out of "
                f"{parameter.numel()} as {parameter.dtype}; fetch the weights again, or load them in a wider dtype"
            )


def _is_quantised(hf_model: Any) -> bool:
    return getattr(hf_model.config, "quantization_config", None) is not None


def _bos_policy(tokenizer: Any, prepend_bos: bool | None, name: str) -> bool:
    """Decide whether prompts begin with BOS; must see the tokenizer before TransformerLens gives it tokens it lacks."""
    if prepend_bos is None:
        encoded = tokenizer("a")["input_ids"]
        return tokenizer.bos_token_id is not None and encoded[:1] == [tokenizer.bos_token_id]
    if prepend_bos and tokenizer.bos_token_id is None:
        raise InputError(f"prepend_bos=True, but the tokenizer of {name!r} has no BOS token; use False or None")
    return prepend_bos


def _short_name(name: str) -> str:
    return expanded(name).resolve().name if expanded(name).is_dir() else name.split("/")[-1]


@contextlib.contextmanager
def quiet(progress: bool) -> Iterator[None]:
    """Silence TransformerLens' deprecation warnings, and transformers where no progress is wanted; then restore all."""
    from huggingface_hub import utils as hub
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars, hub_bars = transformers_logging.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if not progress:
                transformers_logging.set_verbosity_error()
                transformers_logging.disable_progress_bar()
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            if not progress:
                if bars:
                    transformers_logging.enable_progress_bar()
                (hub.enable_progress_bars if hub_bars else hub.disable_progress_bars)()
