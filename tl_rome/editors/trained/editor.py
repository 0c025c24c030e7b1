"""A trained editor as a value: its network, the list of matrices that it edits, and how it came to be."""

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_rome.arguments import Count
from tl_rome.editors.edits.edit import Edit
from tl_rome.editors.edits.finish import finish_edit
from tl_rome.editors.edits.receipts.outcome import probe_requests
from tl_rome.editors.edits.receipts.receipt import UpdateFigures
from tl_rome.editors.edits.receipts.verdict import first_context
from tl_rome.editors.edits.update import LowRankUpdate
from tl_rome.editors.gradients import borrowed_for_gradients
from tl_rome.editors.sharing.shared import Shared
from tl_rome.editors.trained.config import TrainingConfig
from tl_rome.editors.trained.convergence import training_doubt
from tl_rome.editors.trained.log import TrainingLog
from tl_rome.editors.trained.network import EditNetwork
from tl_rome.editors.trained.passes.inner import inner_gradients
from tl_rome.editors.trained.passes.products import OuterProducts
from tl_rome.editors.trained.passes.texts import TargetText
from tl_rome.editors.trained.passes.upper import RememberedTexts, UpperBlocks
from tl_rome.errors import ModelMismatchError
from tl_rome.facts import EditRequest, check_requests
from tl_rome.running.blocks import frozen
from tl_rome.running.forward import device_of
from tl_rome.running.matrices import MlpMatrix
from tl_rome.sites import HookedModel
from tl_rome.storage.files import check_fingerprint, load, save
from tl_rome.storage.hub import local_path
from tl_rome.storage.parts import read_as, reading

_Editor = TypeVar("_Editor", bound="TrainedEditor")


@dataclass(frozen=True, eq=False, repr=False)
class TrainedEditor(Shared, ABC):
    """What MEND and KE have in common; call one with a model and a request to get an `Edit`."""

    network: EditNetwork
    """Parameters and running statistics; not trained any further, so that an edit never depends on earlier ones."""
    matrices: tuple[MlpMatrix, ...]
    """What it edits, in the order of its modes, rates or heads."""
    model: str
    """Fingerprint of the model that it was trained on."""
    prepend_bos: bool
    """Whether texts began with a BOS token in training."""
    config: TrainingConfig
    """Settings of the training."""
    log: TrainingLog
    """How the training went, and what it was of."""

    settings: ClassVar[type[TrainingConfig]]
    """Class of its settings."""

    @classmethod
    @abstractmethod
    def empty_network(
        cls, config: Any, shapes: Sequence[tuple[int, int]], tensors: Mapping[str, Tensor]
    ) -> EditNetwork:
        """A network that can take these tensors by `load_state_dict`.

        Args:
            config: Settings of the training.
            shapes: (d_in, d_out) of each matrix.
            tensors: Of the network, for sizes that neither of these tell.
        """

    def __repr__(self) -> str:
        best = self.log.best
        return (
            f"<{self.config.preset} of {len(self.matrices)} matrices, best of {self.log.steps} steps at "
            f"{best.step}: l_edit {best.edit_loss:.3f}, l_loc {best.locality_loss:.3f}>"
        )

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that identify the network, its statistics included."""
        found = hashlib.sha256(", ".join(map(str, self.matrices)).encode())
        for name, tensor in self.network.state_dict().items():
            found.update(name.encode() + tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:16]

    def identity(self) -> dict[str, Any]:
        """What decides the edits, JSON-serialisable."""
        return {"editor": type(self).__qualname__, "network": self.digest}

    def check(self, model: HookedModel) -> None:
        """Refuse a model that the editor was not trained on.

        Raises:
            ModelMismatchError: If it is another one, or its texts begin otherwise.
        """
        check_fingerprint(model, self.model, f"this {self.config.preset} editor")
        if self.prepend_bos != bool(model.cfg.default_prepend_bos):
            raise ModelMismatchError(
                f"this {self.config.preset} editor was trained with prepend_bos={self.prepend_bos}, this model has "
                f"{not self.prepend_bos}; load the model with the same policy, or train an editor for this one"
            )

    def __call__(self, model: HookedModel, request: EditRequest, *, progress: bool = False) -> Edit:
        """Make an edit; the model is left as found.

        Args:
            model: The one that the editor was trained on, in any class.
            request: The fact to write.
            progress: Whether to show a progress bar.

        Raises:
            InputError: If the prompt is longer than the context.
            ModelMismatchError: If the editor is for another model.
            NumericsError: If the edit is not finite.
        """
        return self.each(model, [request], progress=progress)[0]

    def each(
        self, model: HookedModel, requests: Sequence[EditRequest], *, batch_size: Count = 16, progress: bool = False
    ) -> list[Edit]:
        """Make an edit for each request as if alone; the model is left as found.

        Args:
            model: The one that the editor was trained on, in any class.
            requests: The facts to write, each in a model of its own.
            batch_size: Requests that pass the model at once.
            progress: Whether to show a progress bar over requests.

        Returns:
            One edit per request, in order.

        Raises:
            InputError: If a prompt is longer than the context.
            ModelMismatchError: If the editor is for another model.
            NumericsError: If an edit is not finite.
        """
        check_requests(requests)
        self.check(model)
        self.network.to(device_of(model))
        edits, unedited = list[Edit](), dict[MlpMatrix, str]()
        doubt = training_doubt(self.log, self.config)
        cautions = [f"the editor did not converge: {doubt}"] if doubt else []
        with (
            borrowed_for_gradients(model),
            torch.no_grad(),
            frozen(model),
            tqdm(total=len(requests), desc=self.config.preset, unit="edit", disable=not progress) as bar,
        ):
            texts = RememberedTexts(UpperBlocks(model, min(matrix.layer for matrix in self.matrices)))
            for first in range(0, len(requests), batch_size):
                chunk = requests[first : first + batch_size]
                started = time.perf_counter()
                outcomes = probe_requests(model, chunk, first_context(()), run=texts.run)
                losses, changes = self.changes(texts, chunk)
                shared = (time.perf_counter() - started) / len(chunk)
                for edit, (request, before) in enumerate(zip(chunk, outcomes, strict=True)):
                    started = time.perf_counter() - shared
                    edits.append(
                        finish_edit(
                            model,
                            request,
                            self._updates(changes, edit),
                            self._figures(losses[edit].item()),
                            before=before,
                            provenance=self._provenance(),
                            started=started,
                            remedy="an editor that was trained for longer, or on facts that are more like this one",
                            cautions=cautions,
                            unedited=unedited,
                            run=texts.run,
                        )
                    )
                    bar.update()
        return edits

    def changes(
        self, texts: RememberedTexts, requests: Sequence[EditRequest]
    ) -> tuple[Float[Tensor, " edits"], list[OuterProducts]]:
        """The loss of each request in the unedited model, in nats, and what is added to each matrix.

        Args:
            texts: Of the blocks that have the matrices.
            requests: The facts to write.
        """
        model = texts.upper.model
        facts = [TargetText.of(model, each.fact.prompt, each.target_new, each.joiner) for each in requests]
        streams = texts.streams([fact.read for fact in facts])
        gradients, losses = inner_gradients(texts.upper, self.matrices, facts, streams)
        return losses, self.network(gradients, [fact.whole for fact in facts])

    def _updates(self, changes: Sequence[OuterProducts], edit: int) -> list[LowRankUpdate]:
        updates = []
        for matrix, change in zip(self.matrices, changes, strict=True):
            left, right = (part.T.contiguous().cpu() for part in change.of(edit))
            if left.shape[1]:  # where the target is certain already, nothing is to be changed
                updates.append(LowRankUpdate(matrix.layer, left, right, matrix.name))
        return updates

    def _figures(self, loss: float) -> UpdateFigures:
        return UpdateFigures(preset=self.config.preset, layer_choice="as trained", losses=(loss,))

    def _provenance(self) -> dict[str, Any]:
        return {
            "editor": type(self).__name__,
            "network": self.digest,
            "config": asdict(self.config),
            "prepend_bos": self.prepend_bos,
            "best": asdict(self.log.best),
        }

    @property
    def file_name(self) -> str:
        """What tells this editor from all others."""
        return f"{self.model}-{self.kind}-{self.digest}.safetensors"

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file with parameters, statistics, and all that is known of the training.

        Raises:
            StorageError: If the file cannot be written.
        """
        header = {
            "matrices": [[matrix.layer, matrix.name] for matrix in self.matrices],
            "model": self.model,
            "prepend_bos": self.prepend_bos,
            "config": asdict(self.config),
            "log": asdict(self.log),
        }
        return save(path, self.kind, self.network.state_dict(), header)

    @classmethod
    def load(cls: type[_Editor], path: str | Path, model: HookedModel) -> _Editor:
        """Read an editor that `save` wrote.

        Args:
            path: The file, or `hf://owner/name/file` for one that is shared in a repository of the model hub.
            model: The model that it was trained on, in any class.

        Raises:
            StorageError: If the file is damaged, holds something else, or cannot be fetched.
            ModelMismatchError: If the editor is for another model.
        """
        tensors, header = load(local_path(path), cls.kind)
        with reading(path, f"a {cls.kind} editor"):
            matrices = read_as(tuple[MlpMatrix, ...], [_matrix(pair) for pair in header["matrices"]], "matrices")
            config = read_as(cls.settings, header["config"], "config")
            log = read_as(TrainingLog, header["log"], "log")
            fingerprint = read_as(str, header["model"], "model")
            prepend_bos = read_as(bool, header["prepend_bos"], "prepend_bos")
        check_fingerprint(model, fingerprint, str(path))
        shapes = [(int(weight.shape[0]), int(weight.shape[1])) for weight in (m.weight(model) for m in matrices)]
        with reading(path, f"the network of a {cls.kind} editor for {', '.join(map(str, matrices))}"):
            network = cls.empty_network(config, shapes, tensors)
            network.load_state_dict(tensors)
        editor = cls(network.eval().requires_grad_(False), matrices, fingerprint, prepend_bos, config, log)
        editor.check(model)
        return editor


def _matrix(pair: Any) -> dict[str, Any]:
    layer, name = pair
    return {"layer": layer, "name": name}
