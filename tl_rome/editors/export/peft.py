"""An edit as a LoRA adapter of the Hugging Face model, for the PEFT library and for servers that read its format.

An update of low rank is one already: x @ left @ right.T is LoRA's B A x with A = left.T and B = right. Updates of one
linear map, of which a sequence may have several, stand side by side, so their ranks add up. The scaling, alpha / rank,
is 1 everywhere, so readers that know of one rank and one alpha only get every map right too.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from tl_rome.editors.export.card import edit_card
from tl_rome.editors.export.portable import Change, Portable
from tl_rome.editors.export.stored import Stored, check_same_logits, stored_matrices
from tl_rome.errors import InputError, UnsupportedModelError
from tl_rome.models.hugging_face import load_hugging_face
from tl_rome.running.matrices import MlpMatrix, w_out
from tl_rome.sites import HookedModel
from tl_rome.storage.files import fingerprint
from tl_rome.storage.writing import whole_folder


@dataclass(frozen=True, eq=False)
class _Adapter:
    """What LoRA adds to one linear map: x A^T B^T."""

    module: nn.Module
    """The map: `nn.Linear`, or transformers' Conv1D, which keeps its weight transposed."""
    a: Float[Tensor, "rank d_in"]
    """float64, on the CPU, as b is."""
    b: Float[Tensor, "d_out rank"]
    """Over all outputs of the map."""

    @property
    def transposed(self) -> bool:
        """Whether the weight is [d_in, d_out]."""
        return not isinstance(self.module, nn.Linear)

    def merge(self) -> None:
        """Add it to the map's weight."""
        weight, delta = self.module.get_parameter("weight"), self.b @ self.a
        weight.copy_(weight.double() + (delta.T if self.transposed else delta))


@torch.no_grad()
def export_peft(edit: Portable, model: HookedModel, source: str, folder: str | Path) -> Path:
    """Write an edit as a LoRA adapter, which `peft.PeftModel.from_pretrained(base, folder)` puts on a plain model.

    Args:
        edit: Its updates must be of low rank, as those of ROME are.
        model: What it was made on, without it, unprocessed; left as found.
        source: Name or folder that the model was loaded from, as `load_model` takes it.
        folder: Where `adapter_config.json`, `adapter_model.safetensors` and a README appear once all are written.

    Returns:
        The folder.

    Raises:
        InputError: If an update is a full matrix.
        UnsupportedModelError: If a matrix cannot be told apart from others in the checkpoint, or is not in a map that
            LoRA knows.
        EditStateError: If the edit is applied to the model.
        ModelMismatchError: If the edit is for another model, or the source with the adapter gives other logits.
        ModelUnavailableError: If the source cannot be read.
        StorageError: If the folder cannot be written.
    """
    updates = list(edit.updates)
    for update in updates:
        if not update.tensors.keys() >= {"left", "right"}:
            raise InputError(
                f"the update of {update.place} is a full matrix, which no adapter of low rank holds; apply the edit "
                "and write the whole model with export_model"
            )
    plain, _ = load_hugging_face(source, w_out(model, 0).dtype, None, False)
    adapters = _adapters(updates, stored_matrices(plain, model, {update.place for update in updates}))
    for adapter in adapters.values():
        adapter.merge()
    with edit.applied(model):
        check_same_logits(plain, model, source)
    tensors = {
        f"base_model.model.{name}.lora_{letter}.weight": part.float().contiguous()
        for name, adapter in adapters.items()
        for letter, part in (("A", adapter.a), ("B", adapter.b))
    }
    with whole_folder(Path(folder)) as written:
        save_file(tensors, written / "adapter_model.safetensors", {"format": "pt"})
        (written / "adapter_config.json").write_text(json.dumps(_config(adapters, source), indent=2), encoding="utf-8")
        (written / "README.md").write_text(
            edit_card(edit, fingerprint(model), source=source, adapter=True), encoding="utf-8"
        )
    return Path(folder)


def _adapters(updates: Iterable[Change], stored: Mapping[MlpMatrix, Stored]) -> dict[str, _Adapter]:
    """By name of the module, the sum of all updates of it.

    Raises:
        UnsupportedModelError: If it is no linear map that LoRA knows.
    """
    from transformers.pytorch_utils import Conv1D

    found: dict[str, _Adapter] = {}
    for update in updates:
        place = stored[update.place]
        if not isinstance(place.module, nn.Linear | Conv1D):
            raise UnsupportedModelError(
                f"{update.place} is in a {type(place.module).__name__}, which LoRA adapters do not cover; apply the "
                "edit and write the whole model with export_model"
            )
        outputs = place.module.get_parameter("weight").shape[0 if isinstance(place.module, nn.Linear) else 1]
        left, right = (update.tensors[name].double().cpu() for name in ("left", "right"))
        b = torch.zeros(outputs, right.shape[1], dtype=torch.float64)
        b[place.start : place.start + len(right)] = right
        a = left.T
        if place.name in found:
            a, b = torch.cat([found[place.name].a, a]), torch.cat([found[place.name].b, b], 1)
        found[place.name] = _Adapter(place.module, a, b)
    return found


def _config(adapters: Mapping[str, _Adapter], source: str) -> dict[str, Any]:
    """What PEFT calls a `LoraConfig`."""
    ranks = {name: len(adapter.a) for name, adapter in adapters.items()}
    most = max(ranks.values())
    others = {name: rank for name, rank in ranks.items() if rank != most}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": source,
        "inference_mode": True,
        "target_modules": sorted(ranks),
        "r": most,
        "lora_alpha": most,
        "rank_pattern": others,
        "alpha_pattern": others,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(adapter.transposed for adapter in adapters.values()),
    }
