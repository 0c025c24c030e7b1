"""Token roles, by which positions of different prompts are compared (figure 2)."""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_rome.errors import InputError
from tl_rome.tokens import SubjectSpan

Role = Literal[
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
]
ROLES: tuple[Role, ...] = get_args(Role)


def role_positions(subject: SubjectSpan, length: int) -> tuple[range, ...]:
    """Positions of each role, in the order of `ROLES`; a role that a prompt lacks has none.

    A one-token subject is first and last subject token, and a single following token is first subsequent and last
    token. "last token" is always the prompt's last one, even where the subject ends the prompt. Positions before the
    subject, a BOS token among them, have no role: nothing can be restored there.

    Args:
        subject: Positions of the subject.
        length: Positions of the prompt.
    """
    start, last, end = subject.start, subject.last, length - 1
    return (
        range(start, start + 1),
        range(start + 1, last),
        range(last, last + 1),
        range(last + 1, min(last + 2, length)),
        range(last + 2, end),
        range(end, length),
    )


def by_role(
    effects: Float[Tensor, "layer pos"], subject: SubjectSpan
) -> tuple[Float[Tensor, "layer role"], Bool[Tensor, " role"]]:
    """Mean over the positions of each role, 0 for those that the prompt lacks, and which it has."""
    positions = role_positions(subject, effects.shape[1])
    columns = [effects[:, p.start : p.stop].mean(dim=1) if p else effects.new_zeros(len(effects)) for p in positions]
    return torch.stack(columns, dim=1), torch.tensor([len(p) > 0 for p in positions])


def role_index(role: str) -> int:
    """Place of a role in `ROLES`.

    Raises:
        InputError: If the role is unknown.
    """
    if role not in ROLES:
        raise InputError(f"role {role!r} is unknown; choose one of {', '.join(map(repr, ROLES))}")
    return ROLES.index(role)
