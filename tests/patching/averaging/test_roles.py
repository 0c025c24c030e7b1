import pytest
import torch

from tl_rome.errors import InputError
from tl_rome.patching.averaging.roles import ROLES, by_role, role_index, role_positions
from tl_rome.tokens import SubjectSpan


@pytest.mark.parametrize(
    ("start", "end", "length", "expected"),
    [
        (1, 5, 9, [[1], [2, 3], [4], [5], [6, 7], [8]]),
        (0, 2, 5, [[0], [], [1], [2], [3], [4]]),
        (2, 3, 6, [[2], [], [2], [3], [4], [5]]),  # a one-token subject is first and last
        (0, 3, 4, [[0], [1], [2], [3], [], [3]]),  # a single following token is first subsequent and last
        (0, 3, 5, [[0], [1], [2], [3], [], [4]]),
        (1, 3, 3, [[1], [], [2], [], [], [2]]),  # the subject ends the prompt
    ],
)
def test_positions_of_each_role(start, end, length, expected):
    assert [list(positions) for positions in role_positions(SubjectSpan(start, end), length)] == expected


def test_effects_of_a_role_are_means_over_its_positions():
    effects = torch.arange(18, dtype=torch.float64).view(2, 9)
    values, present = by_role(effects, SubjectSpan(1, 5))
    assert values.tolist() == [[1, 2.5, 4, 5, 6.5, 8], [10, 11.5, 13, 14, 15.5, 17]]
    assert present.all()
    values, present = by_role(effects[:, :3], SubjectSpan(1, 3))
    assert present.tolist() == [True, False, True, False, False, True]
    assert values[0].tolist() == [1, 0, 2, 0, 0, 2]


def test_roles_have_names():
    assert [role_index(role) for role in ROLES] == list(range(6))
    with pytest.raises(InputError, match="role 'subject' is unknown; choose one of 'first subject token', 'middle"):
        role_index("subject")
