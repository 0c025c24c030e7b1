"""A model and its tokenizer as transformers loads them: from the hub, a folder, or the one of the embedded model."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from tl_rome.errors import InputError, ModelUnavailableError, UnsupportedModelError
from tl_rome.models import smollm2
from tl_rome.storage.hub import hub_silence


def load_hugging_face(
    name: str,
    dtype: torch.dtype,
    cache_dir: Path | None,
    progress: bool,
    access: Mapping[str, Any] = MappingProxyType({"trust_remote_code": False}),
    placing: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Any, Any]:
    """Return the Hugging Face model (CPU, eval mode, eager attention) and its tokenizer.

    Args:
        name: As in `load_model`.
        dtype: Of the weights.
        cache_dir: As in `load_model`.
        progress: Whether to show progress.
        access: `revision`, `token` and `trust_remote_code`, for all that is read.
        placing: `device_map` and `quantization_config`, for the weights.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where = _source(name, cache_dir, progress)
    given = {option: value for option, value in access.items() if value is not None}
    if "local_files_only" in where and (hub := sorted(given.keys() & {"revision", "token"})):
        raise InputError(f"{hub[0]} is for names on the hub, but {name!r} is on this machine; leave it out")
    where |= given
    silence = _silence(where)
    if silence is not None:
        where["local_files_only"] = True
    try:
        config = AutoConfig.from_pretrained(**where)
    except ValueError as error:  # transformers' answer to a kind of model that it does not know
        if "trust_remote_code" in str(error):
            raise UnsupportedModelError(
                f"{name!r} comes with code of its own; read it, and give trust_remote_code=True to let it run"
            ) from error
        raise UnsupportedModelError(f"transformers cannot load {name!r}: {_one_line(error)}") from error
    except Exception as error:  # hub, network and file errors share no base class
        raise ModelUnavailableError(_unavailable(name, error, silence)) from error
    brought = given.get("trust_remote_code") and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not brought:
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
            **where,
            **{option: value for option, value in placing.items() if value is not None},
            dtype=dtype,
            attn_implementation="eager",
            output_loading_info=True,
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
    folder = expanded(name)
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


def expanded(path: str | Path) -> Path:
    """A path without `~`."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # there is no such user
        raise ModelUnavailableError(f"folder {str(path)!r} cannot be found: {error}; name an existing one") from error


def _silence(where: dict[str, Any]) -> str | None:
    """Why the hub cannot be asked for a model that it should have; see `hub_silence`."""
    if "local_files_only" in where:
        return None
    return hub_silence(f"{where['pretrained_model_name_or_path']}/resolve/{where.get('revision', 'main')}/config.json")


def _unavailable(name: str, error: Exception, silence: str | None) -> str:
    """Say what was tried and what to do about it."""
    reason = silence or f"{type(error).__name__}: {_one_line(error)}"
    if expanded(name).is_dir() or name == smollm2.NAME:
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
