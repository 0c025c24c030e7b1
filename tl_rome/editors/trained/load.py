"""Reading a trained editor of whichever kind a file holds."""

from pathlib import Path

from tl_rome.editors.trained.ke.editor import Ke
from tl_rome.editors.trained.mend.editor import Mend
from tl_rome.errors import StorageError
from tl_rome.sites import HookedModel


def load_trained(path: str | Path, model: HookedModel) -> Mend | Ke:
    """Read an editor that `tl-rome train`, or its own `save`, wrote.

    Args:
        path: The file, or `hf://owner/name/file` for one that is shared in a repository of the model hub.
        model: The model that it was trained on, in any class.

    Raises:
        StorageError: If the file is damaged, holds something else, or cannot be fetched.
        ModelMismatchError: If the editor is for another model.
    """
    try:
        return Mend.load(path, model)
    except StorageError as error:
        if f"holds {Ke.kind!r}" not in str(error):
            raise
    return Ke.load(path, model)
