"""What the training loop and the editors ask of a network that makes edits: MEND's transforms, and KE's."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from tl_rome.editors.trained.passes.products import OuterProducts


class EditNetwork(nn.Module, ABC):
    """Turns gradients of the edited matrices into changes of them.

    Gradients and changes come as `OuterProducts`, one per matrix, in the order of the editor's list of matrices. All
    state, running statistics included, is in `state_dict()`.
    """

    @abstractmethod
    def count(self, gradients: Sequence[OuterProducts]) -> None:
        """Take gradients into the running statistics, if the network has any; done in training only.

        Args:
            gradients: Of one or several edits, for each matrix.
        """

    @abstractmethod
    def forward(
        self, gradients: Sequence[OuterProducts], conditions: Sequence[Int[Tensor, " _"]]
    ) -> list[OuterProducts]:
        """What is added to each matrix: W <- W + sum of left (x) right over the rows of an edit.

        Args:
            gradients: Of each edit's loss, for each matrix; constants.
            conditions: Tokens of each edit's prompt and target.
        """

    @abstractmethod
    def groups(self) -> list[dict[str, Any]]:
        """Parameters with their learning rates, as torch's optimisers take them: each trained parameter once."""
