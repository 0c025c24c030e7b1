"""The sample that ships is what the builder makes, and a model that reads it knows most of it."""

from importlib import resources

import pytest
from support.families import KINDS

from tl_rome.counterfact import load_counterfact, load_references
from tl_rome.counterfact.dataset.sample import build_sample, write_sample
from tl_rome.scoring import score_targets


def test_rebuilding_gives_the_shipped_file(tmp_path):
    shipped = resources.files("tl_rome.data").joinpath("counterfact_sample.jsonl").read_bytes()
    assert write_sample(tmp_path / "sample.jsonl").read_bytes() == shipped
    assert load_counterfact("sample") == list(build_sample().records)


def test_size_and_tests_of_the_sample():
    records = load_counterfact()
    assert len(records) >= 60
    assert len({record.requested_rewrite.relation_id for record in records}) >= 8
    for record in records:
        groups = record.paraphrase_prompts, record.neighborhood_prompts, record.generation_prompts
        assert [len(prompts) for prompts in groups] == [2, 10, 10]


def test_every_new_object_has_reference_texts():
    references = load_references("sample")
    for record in load_counterfact("sample"):
        texts = references.about(record.requested_rewrite)
        assert len(texts) >= 3, record.requested_rewrite
        assert len(set(texts)) == len(texts)


@pytest.mark.leg("4")
@pytest.mark.parametrize("kind", KINDS[-1:])
def test_smollm2_knows_the_facts_and_their_neighbours(smollm2, kind):
    asked, expected = [], []
    for record in load_counterfact("sample"):
        request = record.request
        for prompt in (*record.prompts("rewrite"), *record.prompts("neighborhood")[:1]):
            asked += [prompt, prompt]
            expected += [request.target_true, request.target_new]
    true, new = score_targets(smollm2(kind), asked, expected).nll.view(-1, 2).unbind(dim=1)
    assert (true < new).double().mean() > 0.95
