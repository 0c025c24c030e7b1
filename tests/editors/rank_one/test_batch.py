"""Many rewrites laid out as one batch, and made as one."""

import pytest
import torch
from support.edits import CONTEXTS, REQUEST, editor
from support.families import KINDS

from tl_rome.editors import Edit
from tl_rome.editors.rank_one.batch import Rewrite, RewriteBatch
from tl_rome.facts import EditRequest, Fact
from tl_rome.tokens import encode, encode_target

KIND = KINDS[0]
INSIDE = Fact("The mother tongue of {} is", "Marie Curie", "French Italian")
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
def test_rows_are_aligned_at_the_subject_and_what_is_read_is_in_its_place(tiny, kind):
    model = tiny("llama", kind)
    rewrites = [Rewrite.make(model, fact, CONTEXTS, "{} is a") for fact in (REQUEST.fact, INSIDE)]
    batch = RewriteBatch.make(model, rewrites)
    layout = batch.layout
    # The first prompt begins with its subject, as the essence prompt does, so it needs no row for that.
    assert layout.owner.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert (layout.first.tolist(), layout.essence.tolist()) == ([0, 3], [0, 6])
    for row, (tokens, last) in enumerate([*rewrites[0].rows, *rewrites[1].rows]):
        left = int(batch.padding[row])
        assert left + last == batch.start
        assert torch.equal(batch.tokens[row, left : left + len(tokens)], tokens)
    for fact, rows in ((REQUEST.fact, (0, 1, 2)), (INSIDE, (3, 4, 5))):
        target = encode_target(model, fact.target, fact.prompt)
        for row in rows:
            chosen = layout.row == row
            assert layout.token[chosen].tolist() == target.tolist()
            assert layout.share[chosen].sum().item() == pytest.approx(1)
            positions = layout.position[chosen] + batch.start
            prompt_end = batch.padding[row] + len(encode(model, CONTEXTS[row % 3] + fact.prompt)) - 1
            assert positions.tolist() == [int(prompt_end) + i for i in range(len(target))]


def test_keeping_some_requests_keeps_their_rows(tiny):
    model = tiny("llama", KIND)
    rewrites = [Rewrite.make(model, fact, CONTEXTS, "{} is a") for fact in (INSIDE, REQUEST.fact, INSIDE)]
    layout = RewriteBatch.make(model, rewrites).layout
    kept, rows = layout.keep(torch.tensor([1, 2]))
    alone = RewriteBatch.make(model, rewrites[1:]).layout
    assert rows.tolist() == list(range(4, 11))
    assert all(torch.equal(getattr(kept, name), value) for name, value in vars(alone).items())


@each_kind
def test_edits_made_together_are_those_made_one_by_one(tiny, kind):
    model = tiny("gpt2", kind)
    requests = [REQUEST, EditRequest(INSIDE.template, INSIDE.subject, "French Italian"), REQUEST]
    rome = editor(model)
    together = rome.each(model, requests)
    for request, found in zip(requests, together, strict=True):
        alone = rome(model, request)
        assert isinstance(found, Edit)
        assert found.request == request
        assert found.receipt.prob_new == pytest.approx(alone.receipt.prob_new, rel=0.02)
        delta = alone.updates[0].delta
        assert (found.updates[0].delta - delta).norm() < 0.01 * delta.norm()
    assert rome.each(model, []) == []
