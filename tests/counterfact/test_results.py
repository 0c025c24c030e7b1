"""Results survive JSON unchanged, and say what is wrong with a damaged one."""

import dataclasses
import json

import pytest
import torch
from support.results import case, measurement, scores

from tl_rome.counterfact.results import CaseResult, Divergence, Generation, PromptScores
from tl_rome.errors import StorageError
from tl_rome.scoring import TargetScores

FULL = case(
    7,
    before=measurement(False, [], [True]),
    after=measurement(
        True,
        [True, False],
        [True],
        neighborhood_plus=scores((0.1, 0.2)),
        attribute=dataclasses.replace(scores((0.1, 0.2)), argmax_new=(True,), argmax_true=(False,)),
        generations=(Generation("It is", " in \u2028Glasgow"),),
        essence_nll=3.5,
    ),
    divergence=Divergence((0.1,), (0.2,), 0.3),
    seconds=1.25,
    verdict="partly",
)


@pytest.mark.parametrize("result", [FULL, case(8, None, error="the edit diverged")])
def test_a_trip_through_json_changes_nothing(result):
    assert CaseResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


@pytest.mark.parametrize(
    ("path", "value"),
    [(("case_id",), None), (("after", "rewrite"), None), (("rewrite", "prompt"), None), (("unknown",), 1)],
)
def test_damaged_results_are_refused(path, value):
    data = json.loads(json.dumps(FULL.to_dict()))
    place = data
    for step in path[:-1]:
        place = place[step]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    with pytest.raises(StorageError, match="run it again"):
        CaseResult.from_dict(data)


def test_scores_of_both_targets_are_paired():
    new = TargetScores(
        torch.tensor([-2.0, -3.0], dtype=torch.float64), torch.tensor([2, 1]), torch.tensor([True, False])
    )
    true = TargetScores(
        torch.tensor([-1.0, -6.0], dtype=torch.float64), torch.tensor([1, 3]), torch.tensor([False, False])
    )
    paired = PromptScores.pair(new, true)
    assert paired == PromptScores((-2.0, -3.0), (-1.0, -6.0), (2, 1), (1, 3), (True, False), (False, False))
    assert (paired.loss("new", "released"), paired.loss("true", "released")) == ((1.0, 3.0), (1.0, 2.0))
    assert (paired.loss("new", "draft"), paired.loss("true", "draft")) == ((2.0, 3.0), (1.0, 6.0))
