"""Getting a model: by the name of the embedded default, by a hub name, or from a local folder.

Every model takes the same way: Hugging Face weights and tokenizer are loaded (`smollm2.py` makes the folder of the
embedded one), checked for missing and non-finite weights, and turned into a raw HookedTransformer or TransformerBridge
(`conversion.py`). Whether prompts begin with a BOS token is decided here once and recorded in
`model.cfg.default_prepend_bos`: TransformerLens' own default prepends one for most models, the authors' GPT-2 code does
not, and the probability of a fact can differ by a factor of three between the two.
"""

import contextlib
import difflib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch

from tl_rome.annotations import conform
from tl_rome.arguments import guarded
from tl_rome.errors import InputError, ModelUnavailableError, NumericsError, UnsupportedModelError
from tl_rome.models import smollm2
from tl_rome.storage.hub import hub_silence

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
    cache_dir: Path | None = None,
    progress: bool = True,
) -> Any:
    """Load a language model as a raw HookedTransformer or TransformerBridge: eval mode, frozen, weights unprocessed.

    Args:
        name: `"smollm2-135m"` (embedded, needs no model hub), a local folder in Hugging Face layout, or a hub name such
            as `"gpt2-xl"` or `"EleutherAI/gpt-j-6B"`; hub names also come from the hub's cache (`HF_HUB_OFFLINE=1`).
        model_class: TransformerLens class; None takes HookedTransformer where the installed TransformerLens has it.
            Converting to it needs memory for the weights twice, a bridge needs it once.
        dtype: Floating-point type of the weights.
        device: Where the model goes; None is the best that TransformerLens trusts (CUDA, else the CPU).
        prepend_bos: Whether prompts begin with a BOS token; None follows the tokenizer's own default encoding.
        cache_dir: Cache folder in place of the package's own (embedded model) or the hub's (hub names).
        progress: Show progress bars and the warnings of transformers.

    Returns:
        The model; `model.cfg.default_prepend_bos` holds the BOS policy and `model.cfg.model_name` the name.

    Raises:
        InputError: If an argument has an unknown value, the device does not exist on this machine, or BOS is asked of a
            tokenizer that has none.
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
        if model_class is None:
            model_class = "hooked" if has_hooked_transformer() else "bridge"
        elif model_class == "hooked" and not has_hooked_transformer():
            raise UnsupportedModelError(
                "the installed TransformerLens has no HookedTransformer (it was removed in 4.0); "
                "use model_class='bridge' or model_class=None, or pip install 'transformer-lens<4'"
            )
        place = None if cache_dir is None else _expanded(cache_dir)
        hf_model, tokenizer = load_hugging_face(name, dtype, place, progress)
        _check_finite(hf_model, name)
        policy = _bos_policy(tokenizer, prepend_bos, name)
        model: Any = convert(hf_model, tokenizer, _short_name(name), model_class)
        if target != torch.device("cpu"):
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


def load_hugging_face(name: str, dtype: torch.dtype, cache_dir: Path | None, progress: bool) -> tuple[Any, Any]:
    """Return the Hugging Face model (CPU, eval mode, eager attention) and its tokenizer."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where = _source(name, cache_dir, progress)
    silence = _silence(where)
    if silence is not None:
        where["local_files_only"] = True
    try:
        config = AutoConfig.from_pretrained(**where)
    except ValueError as error:  # transformers' answer to a kind of model that it does not know
        raise UnsupportedModelError(f"transformers cannot load {name!r}: {_one_line(error)}") from error
    except Exception as error:  # hub, network and file errors share no base class
        raise ModelUnavailableError(_unavailable(name, error, silence)) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModelError(
            f"{name!r} is a {config.model_type} model, which is not a causal language model in transformers; "
            "use one that continues text from left to right"
        )
    if config.get_text_config() is not config:
        raise UnsupportedModelError(
            f"{name!r} is a {config.model_type} model of text and something else, such as images; load its language "
            "model by itself with transformers, save that with its tokenizer, and name the folder"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        # Eager attention is what TransformerBridge hooks, and what Gemma 2's soft caps need.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **where, dtype=dtype, attn_implementation="eager", output_loading_info=True
        )
    except Exception as error:  # as above, and those of safetensors and torch
        raise ModelUnavailableError(_unavailable(name, error, silence)) from error
    hf_model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelUnavailableError(
            f"the weights of {name!r} lack {len(missing)} tensors that its config asks for, {missing[0]!r} among them; "
            "the download or the folder is incomplete: delete it and fetch it again"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return hf_model.eval(), tokenizer


def _source(name: str, cache_dir: Path | None, progress: bool) -> dict[str, Any]:
    """Return the arguments that tell transformers where the model is."""
    if name == smollm2.NAME:
        folder = smollm2.smollm2_folder(cache_dir, progress=progress)
        return {"pretrained_model_name_or_path": str(folder), "local_files_only": True}
    folder = _expanded(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelUnavailableError(
                f"folder {str(folder)!r} has no config.json; name a folder in Hugging Face layout "
                "(config.json, model.safetensors, tokenizer files), as save_pretrained writes it"
            )
        return {"pretrained_model_name_or_path": str(folder), "local_files_only": True}
    if name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        raise ModelUnavailableError(f"folder {str(folder)!r} does not exist; give an existing folder or a hub name")
    return {"pretrained_model_name_or_path": name, "cache_dir": cache_dir}


def _expanded(path: str | Path) -> Path:
    """A path without `~`."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # there is no such user
        raise ModelUnavailableError(f"folder {str(path)!r} cannot be found: {error}; name an existing one") from error


def _silence(where: dict[str, Any]) -> str | None:
    """Why the hub cannot be asked for a model that it should have; see `hub_silence`."""
    if "local_files_only" in where:
        return None
    return hub_silence(f"{where['pretrained_model_name_or_path']}/resolve/main/config.json")


def _unavailable(name: str, error: Exception, silence: str | None) -> str:
    """Say what was tried and what to do about it."""
    reason = silence or f"{type(error).__name__}: {_one_line(error)}"
    if _expanded(name).is_dir() or name == smollm2.NAME:
        return (
            f"cannot read the model in {name!r}: {reason}; its folder is damaged or "
            "incomplete: delete it and fetch it again"
        )
    from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES

    close = difflib.get_close_matches(name, [smollm2.NAME, *OFFICIAL_MODEL_NAMES], n=3)
    return (
        f"no model {name!r}: it is not the embedded {smollm2.NAME!r}, not a local folder, and the model hub or its "
        f"cache did not give it ({reason}); "
        + (f"did you mean {', '.join(map(repr, close))}? " if close else "")
        + f"Check the name and the network; load_model({smollm2.NAME!r}) needs no hub"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or "no message"


def _check_finite(hf_model: Any, name: str) -> None:
    for parameter_name, parameter in hf_model.named_parameters():
        # A sum is finite only if every term is, and costs no second tensor; it is looked into where it is not.
        if not parameter.sum(dtype=torch.float64).isfinite():
            bad = int((~parameter.isfinite()).sum())
            raise NumericsError(
                f"parameter {parameter_name!r} of {name!r} has {bad} NaN or infinite values out of "
                f"{parameter.numel()} as {parameter.dtype}; fetch the weights again, or load them in a wider dtype"
            )


def _bos_policy(tokenizer: Any, prepend_bos: bool | None, name: str) -> bool:
    """Decide whether prompts begin with BOS; must see the tokenizer before TransformerLens gives it tokens it lacks."""
    if prepend_bos is None:
        encoded = tokenizer("a")["input_ids"]
        return tokenizer.bos_token_id is not None and encoded[:1] == [tokenizer.bos_token_id]
    if prepend_bos and tokenizer.bos_token_id is None:
        raise InputError(f"prepend_bos=True, but the tokenizer of {name!r} has no BOS token; use False or None")
    return prepend_bos


def _short_name(name: str) -> str:
    return _expanded(name).resolve().name if _expanded(name).is_dir() else name.split("/")[-1]


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
