"""How an edit, or several, leave this package: as a LoRA adapter, and to the model hub with one beside it."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tl_rome.editors.sharing.shared import Shared
from tl_rome.errors import InputError
from tl_rome.sites import HookedModel


class PortableEdit(Shared):
    """What edits and sequences of edits have in common: `updates`, `model`, `applied` and `save`."""

    @property
    def file_name(self) -> str:
        """How its file is named in a repository, which is its own."""
        return "edit.safetensors"

    def to_peft(self, folder: str | Path, model: HookedModel, source: str) -> Path:
        """Write it as one LoRA adapter for plain transformers.

        Args:
            folder: Where the adapter is to be; load it with `peft.PeftModel.from_pretrained(base, folder)`.
            model: What it was made on, without any of it; left as found.
            source: Name or folder that the model was loaded from, as `load_model` takes it.

        Raises:
            InputError: If an update is a full matrix.
            UnsupportedModelError: If a matrix cannot be told apart from others in the checkpoint.
            EditStateError: If it is applied to the model.
            ModelMismatchError: If it is for another model, or the source with the adapter gives other logits.
            ModelUnavailableError: If the source cannot be read.
            StorageError: If the folder cannot be written.
        """
        from tl_rome.editors.export.peft import export_peft

        edit: Any = self
        return export_peft(edit, model, source, folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        model: HookedModel | None = None,
        source: str | None = None,
        file: str | None = None,
        private: bool = False,
        replace: bool = False,
        dry_run: str | Path | None = None,
        token: str | None = None,
    ) -> str:
        """Write it into a repository of the model hub, with a card that shows its receipt and warnings.

        With a model and its source, a LoRA adapter is written beside it, so that others can load the repository by
        `peft.PeftModel.from_pretrained(base, repo_id)` too.

        Args:
            repo_id: As in owner/name; it is made if need be, and is for this edit alone.
            model: What it was made on, without any of it; left as found. Only for the adapter.
            source: Name or folder that the model was loaded from; the card names it.
            file: Name of the file.
            private: Whether a new repository is seen by its owner alone; one that is public already is refused then.
            replace: Whether another edit of the same model in the repository may be replaced.
            dry_run: Folder in which the files are written that would be sent; the hub is not asked.
            token: Of the hub; None for the one of `hf auth login` or HF_TOKEN.

        Returns:
            `hf://owner/name/file`, which `load` takes.

        Raises:
            InputError: If the name of the repository or of the file is none, a model is given without its source, or
                there is a model and an update is a full matrix.
            NetworkError: If the hub does not answer, or its client has been told to stay offline.
            StorageError: If there is no token, the hub refuses, or the repository holds something else. Nothing is sent
                then, as where the adapter cannot be made, for the reasons that `to_peft` names.
        """
        from tl_rome.editors.export.card import edit_card
        from tl_rome.editors.sharing.push import CARD, file_called, push_file

        edit: Any = self
        if model is not None and source is None:
            raise InputError("the adapter is of the model that source names; give source, or leave out the model")

        def beside(folder: Path, location: str) -> None:
            if model is not None and source is not None:
                self.to_peft(folder, model, source)
            card = edit_card(edit, edit.model, source=source, adapter=model is not None, location=location)
            (folder / CARD).write_text(card, encoding="utf-8")

        with TemporaryDirectory() as temporary:
            path = self.save(Path(temporary) / file_called(file, self.file_name))
            options: dict[str, Any] = {"private": private, "replace": replace, "dry_run": dry_run, "token": token}
            return push_file(path, repo_id, beside=beside, **options)
