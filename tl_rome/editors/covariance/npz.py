"""Key statistics as the authors' code writes and publishes them, in `.npz` files.

Their files hold sums, `mom2.mom2` (k k^T, float32) and `mom2.count` (tokens), and name the model and layer only
in their path, as in `gpt2-xl/wikipedia_stats/transformer.h.17.mlp.c_proj_float32_mom2_100000.npz`. Texts in them begin
without a BOS token.
"""

from pathlib import Path

import numpy as np
import torch

from tl_rome.editors.covariance.key_covariance import KeyCovariance
from tl_rome.errors import StorageError
from tl_rome.running.matrices import MlpMatrix
from tl_rome.running.packed import check_matrix
from tl_rome.sites import HookedModel
from tl_rome.storage.files import fingerprint
from tl_rome.storage.text import brief
from tl_rome.storage.writing import regular

_NAMES = (("mom2.mom2", "mom2.count"), ("mom2_sum", "count"))
"""Names of the sum and of its count: as published, and without the prefix."""


def import_npz(
    path: str | Path, model: HookedModel, layer: int, *, source: str | None = None, prepend_bos: bool = False
) -> KeyCovariance:
    """Read the authors' statistics for a model and layer, which the caller vouches for.

    Args:
        path: The `.npz` file.
        model: The model they are of; only their size is checked. They are bound to its fingerprint from here on.
        layer: The layer they are of.
        source: Name of the texts; the file's name if None.
        prepend_bos: Whether the texts began with a BOS token; the authors' do not.

    Raises:
        InputError: If the layer is out of range.
        StorageError: If the file is damaged, is not such a file, or its matrix has another size.
    """
    path, size = Path(path), check_matrix(model, MlpMatrix(layer))[0]
    regular(path)
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            if damaged := file.zip.testzip():  # numpy reads no further than it needs, which leaves checksums unread
                raise ValueError(f"{damaged} is not what its checksum says")
            total, tokens = next((file[a], file[b]) for a, b in _NAMES if a in file and b in file)
        count = int(tokens)
    except StopIteration as error:
        raise StorageError(f"{path} holds no second moment under any of {_NAMES}") from error
    except Exception as error:  # those of numpy, zip files and zlib share no base class
        reason = f"{type(error).__name__}: {brief(error, str)}"
        raise StorageError(f"{path} is damaged or is not an .npz file ({reason}); fetch it again") from error
    real = np.issubdtype(total.dtype, np.floating) and tokens.dtype.kind in "iuf" and count == tokens
    if total.shape != (size, size) or not real or count <= 0 or not np.isfinite(total).all():
        raise StorageError(
            f"{path} holds a matrix {total.shape} of {brief(tokens, str)} tokens; layer {layer} of this model needs "
            f"{(size, size)}, of real and finite numbers (these are {total.dtype}), and of at least one token"
        )
    moment = torch.from_numpy(total.astype(np.float64)) / count
    return KeyCovariance(
        (moment + moment.T) / 2,
        layer,
        count,
        source or path.name,
        prepend_bos,
        fingerprint(model),
        None,
        total.dtype.name,
    )
