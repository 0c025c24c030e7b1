"""Which matrices are edited, in which order: one list, stored with the editor.

The order numbers the modes and rates of MEND's networks and the heads of KE's, and is the one in which running
statistics see the matrices. The released list has W_out before W_in for GPT-2 and W_in first for all others; here it is
always the order of `mlp_matrices`, unless another is given, which changes nothing but the numbering.
"""

from collections.abc import Sequence

from tl_rome.errors import InputError
from tl_rome.running.matrices import MlpMatrix, mlp_matrices
from tl_rome.sites import HookedModel

BLOCKS = 3
"""Blocks that are edited, the last ones; as released for all models."""


def choose_matrices(model: HookedModel, matrices: Sequence[MlpMatrix] | None = None) -> tuple[MlpMatrix, ...]:
    """The matrices to edit: those given, or all of the MLPs of the last three blocks, block by block.

    Raises:
        InputError: If a matrix is given twice, none is, or a layer is out of range.
        UnsupportedModelError: If the model has no such plain matrix: only dense MLPs can be edited.
    """
    if matrices is None:
        layers = range(max(0, model.cfg.n_layers - BLOCKS), model.cfg.n_layers)
        return tuple(matrix for layer in layers for matrix in mlp_matrices(model, layer))
    if not matrices or len(set(matrices)) < len(matrices):
        raise InputError(f"matrices to edit are {', '.join(map(str, matrices)) or 'none'}; name each one once")
    for matrix in matrices:
        matrix.weight(model)
    return tuple(matrices)
