"""A report holds what `causal_trace` and `evaluate` say of each fact at each layer, and goes on where it stopped."""

import math
from dataclasses import replace

import pytest
import torch
from support.edits import LAYER, covariance
from support.evaluation import RECORDS, RandomEdit
from support.families import KINDS
from support.known import known_to

from tl_rome.counterfact import evaluate, known_records, localization_report
from tl_rome.counterfact.experiments.localization.scores import SCORES
from tl_rome.counterfact.experiments.sweep import SCORES_ONLY
from tl_rome.counterfact.records import CounterFactRecord, RequestedRewrite, Target
from tl_rome.editors import FineTune, Rome
from tl_rome.editors.layers import choose_layer
from tl_rome.errors import InputError
from tl_rome.facts import Fact
from tl_rome.patching import GaussianNoise, TraceConfig, causal_trace
from tl_rome.patching.averaging.trace_facts import prompt_seed
from tl_rome.tokens import encode_fact, encode_target

KIND = KINDS[0]
NOISE = GaussianNoise(0.7, samples=2)
CONFIG = TraceConfig(corruption=NOISE)
EDITORS = {layer: RandomEdit(layer, strength=1.0 + layer) for layer in (2, 0)}


def report_of(model, records=RECORDS, editors=EDITORS, **options):
    return localization_report(model, records, editors, **{"config": CONFIG, "progress": False, **options})


def plain_score(before, after):
    """The rewrite score, from the probability of o* before and after."""
    return max(0.0, (after - before) / (1 - before))


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_has_the_effects_of_traces_and_the_scores_of_edits(tiny, kind):
    model = tiny("llama", kind)
    report = report_of(model)
    assert (report.layers, report.components, report.windows) == ((0, 2), ("mlp_out", "resid_post"), (10, 1))
    assert report.cases == tuple(record.case_id for record in RECORDS)
    assert report.effects.shape == (2, 5, 2)
    for component, effects in zip(report.components, report.effects, strict=True):
        record, request = RECORDS[0], RECORDS[0].request
        fact = Fact(request.template, request.subject, record.requested_rewrite.target_true.str, " ")
        generator = torch.Generator().manual_seed(prompt_seed(0, fact))
        trace = causal_trace(model, fact, component, generator=generator, corruption=NOISE, progress=False)
        torch.testing.assert_close(effects[0], trace.effects[[0, 2], trace.subject.last])
    named = {"0": EDITORS[0], "2": EDITORS[2]}
    found = iter(evaluate(model, RECORDS, named, config=SCORES_ONLY, progress=False))
    for place in range(2):
        for fact in range(len(RECORDS)):
            result = next(found)
            probs = [math.exp(-each.rewrite.loss("new", "released")[0]) for each in (result.before, result.after)]
            assert report.scores[0, fact, place].item() == pytest.approx(plain_score(*probs))
    assert report.scores[SCORES.index("neighborhood"), 1].isnan().all()  # the record has no neighbours
    assert not report.scores[SCORES.index("overall")].isnan().any()


def test_a_report_chooses_its_layer_on_held_out_facts_and_editors_take_it(tiny):
    model = tiny("gpt2", KIND)
    report = report_of(model, held_out=0.4)
    assert int(report.held_out.sum()) == 2
    means = report.scores[-1][report.held_out].mean(0)
    assert report.layer == report.layers[int(means.argmax())]
    layer, why = choose_layer(model, report)
    assert (layer, why) == (report.layer, f"suggested: {report}")
    assert "2 held-out facts" in why


def test_rome_is_edited_at_the_layer_of_a_report(tiny):
    model = tiny("gpt2", KIND)
    report = report_of(model, editors={LAYER: RandomEdit(LAYER)})
    ready = Rome.prepare(model, layer=report, covariance=covariance(model), contexts=[""], progress=False)
    assert (ready.layer, ready.layer_choice) == (LAYER, f"suggested: {report}")
    assert FineTune.prepare(model, layer=report).layer == LAYER


def test_a_report_continues_where_it_stopped(tiny, tmp_path, monkeypatch):
    model, made = tiny("gpt2", KIND), []

    class Counting(RandomEdit):
        def identity(self):
            return {"layer": self.layer}

        def __call__(self, model, request):
            made.append((self.layer, request.subject))
            return super().__call__(model, request)

    first = report_of(model, editors={1: Counting(1)}, store=tmp_path)
    assert len(made) == len(RECORDS)
    monkeypatch.setattr("tl_rome.counterfact.experiments.localization.effects.trace_together", None)  # all are there
    both = report_of(model, editors={1: Counting(1), 2: Counting(2)}, store=tmp_path)
    assert [layer for layer, _ in made] == [1] * len(RECORDS) + [2] * len(RECORDS)
    assert both.effects[..., 0].equal(first.effects[..., 0])
    torch.testing.assert_close(both.scores[..., 0], first.scores[..., 0], equal_nan=True, rtol=0, atol=0)


def test_facts_that_fail_at_a_layer_are_left_out_with_the_reason(tiny):
    refused = RECORDS[2].request.subject
    report = report_of(tiny("gpt2", KIND), editors={0: RandomEdit(0), 1: RandomEdit(1, refused=(refused,))})
    assert report.n == 4
    assert report.left_out == ((5, f"layer 1: NumericsError: no edit of {refused}"),)
    assert 5 not in report.cases


def test_facts_that_cannot_be_traced_are_left_out(tiny):
    rewrite = replace(RECORDS[0].requested_rewrite, subject="x y " * 200)
    long = replace(RECORDS[0], case_id=9, requested_rewrite=rewrite, paraphrase_prompts=(), generation_prompts=())
    report = report_of(tiny("gpt2", KIND), [*RECORDS, long])
    [(case, reason)] = report.left_out
    assert case == 9
    assert "tokens" in reason


def test_impossible_reports_are_refused(tiny):
    model = tiny("gpt2", KIND)
    with pytest.raises(InputError, match="layer 4 is out of range"):
        report_of(model, editors={4: RandomEdit()})
    with pytest.raises(InputError, match="3 facts, 2 of them held out, at 2 layers; give at least 4"):
        report_of(model, RECORDS[:3])
    with pytest.raises(InputError, match="leave units out"):
        report_of(model, config=replace(CONFIG, units="heads"))
    with pytest.raises(InputError, match="not traced at every layer"):
        report_of(model, components=["blocks.1.hook_resid_post"])
    with pytest.raises(InputError, match="no fact could be traced and edited"):
        report_of(model, editors={1: RandomEdit(refused=tuple(record.request.subject for record in RECORDS))})


@pytest.mark.parametrize("kind", KINDS)
def test_known_records_are_those_whose_object_the_model_says(tiny, kind):
    family = next(name for name in ("gpt2", "llama", "qwen2", "neox") if known_to(tiny(name, kind), 3))
    model = tiny(family, kind)
    facts = known_to(model, 3)
    said = [
        CounterFactRecord(
            case_id=100 + number,
            requested_rewrite=RequestedRewrite(
                fact.template, "P1", Target(fact.target + "x"), Target(fact.target), fact.subject
            ),
            paraphrase_prompts=(),
            neighborhood_prompts=(),
        )
        for number, fact in enumerate(facts)
    ]
    found = known_records(model, [*RECORDS, *said], progress=False)
    for record in said:  # greedily, without a word between
        tokens = encode_fact(model, record.request.fact).tokens
        first = encode_target(model, record.requested_rewrite.target_true.str, record.request.fact.prompt, " ")[0]
        assert (model(tokens[None])[0, -1].argmax().item() == first) >= (record in found)
    assert not {*found} & {*RECORDS}
    assert found == known_records(model, [*RECORDS, *said], limit=len(said), progress=False)
