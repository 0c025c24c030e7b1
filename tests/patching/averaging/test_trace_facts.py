"""Many traces: equal to single ones, kept at once, resumed after a kill, shared between processes, never mixed."""

import json
import logging
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.families import KINDS
from support.traces import NOISE

from tl_rome.errors import InputError, ModelMismatchError, StorageError
from tl_rome.facts import Fact
from tl_rome.patching import GaussianNoise, causal_trace, noise_scale
from tl_rome.patching.averaging import trace_facts as module
from tl_rome.patching.averaging.trace_facts import prompt_seed, trace_facts
from tl_rome.patching.averaging.trace_store import TraceStore, fact_id, load_traces
from tl_rome.patching.config import TraceConfig
from tl_rome.running.matrices import w_out
from tl_rome.storage.files import load, save

each_kind = pytest.mark.parametrize("kind", KINDS)
CONFIG = TraceConfig(corruption=NOISE, window=2)
FACTS = [
    Fact("In {} is", "Eiffel Tower"),
    Fact("The {} is in", "Louvre", "Paris"),
    Fact("{} speaks", "Danielle Darrieux", "French"),
    Fact("{} plays the", "Miles Davis"),
]
BAD = Fact("in {}s is", "Pari", "France")


def trace_all(model, store, facts=FACTS, components=("mlp_out",), **options):
    return trace_facts(model, facts, components, store=store, **{"config": CONFIG, "progress": False, **options})


def files(store):
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in Path(store).glob("*/*.safetensors")}


@pytest.mark.parametrize(("batch_size", "kind"), [(1, KINDS[0]), (3, KINDS[-1])])
def test_each_trace_is_that_of_the_prompt_alone(tiny, tmp_path, kind, batch_size):
    model = tiny("llama", kind)
    found = trace_all(model, tmp_path, components=("resid_post", "attn_out"), batch_size=batch_size, seed=5)
    assert list(found) == ["resid_post", "attn_out"]
    for component, results in found.items():
        for fact, result in zip(FACTS, results, strict=True):
            draws = torch.Generator().manual_seed(prompt_seed(5, fact))
            alone = causal_trace(
                model, fact, component, generator=draws, corruption=NOISE, window=2, method="plain", progress=False
            )
            torch.testing.assert_close(result.scores, alone.scores, rtol=1e-4, atol=1e-8)
            assert (result.prompt, result.answer) == (fact.prompt, alone.answer)


@each_kind
def test_order_company_and_company_at_once_change_nothing(tiny, tmp_path, kind):
    model = tiny("gpt2", kind)
    first = trace_all(model, tmp_path / "a")["mlp_out"]
    second = trace_all(model, tmp_path / "b", [FACTS[2], FACTS[0], FACTS[2]])["mlp_out"]
    assert len(second) == 2, "a fact counts once"
    assert torch.equal(second[0].scores, first[2].scores)
    assert torch.equal(second[1].scores, first[0].scores)
    assert len({prompt_seed(0, fact) for fact in FACTS} | {prompt_seed(1, fact) for fact in FACTS}) == 8
    assert prompt_seed(0, FACTS[1]) == prompt_seed(0, replace(FACTS[1], target="Rome")), "the answer is not the noise"


def test_what_is_there_is_not_done_again(tiny, tmp_path, monkeypatch):
    model = tiny("gpt2", KINDS[0])
    trace_all(model, tmp_path, FACTS[:2])
    before, calls = files(tmp_path), []
    traced = module.trace_by_metrics
    monkeypatch.setattr(module, "trace_by_metrics", lambda *a, **k: calls.append(a[1:3]) or traced(*a, **k))
    trace_all(model, tmp_path, FACTS, ("mlp_out", "attn_out"))
    assert len(calls) == 6
    assert ([FACTS[0]], "mlp_out") not in calls
    assert before.items() <= files(tmp_path).items()
    calls.clear()
    assert trace_all(model, tmp_path).keys() == {"mlp_out"}
    assert not calls


METRICS = {"P": "prob", "log P": "logprob", "mean": lambda logits: logits.mean()}


@each_kind
def test_several_metrics_are_scored_in_one_sweep_and_are_as_if_alone(tiny, tmp_path, monkeypatch, kind):
    model, calls, traced = tiny("gpt2", kind), [], module.trace_by_metrics
    components = ("mlp_out", "resid_post")
    with monkeypatch.context() as patched:
        patched.setattr(module, "trace_by_metrics", lambda *a, **k: calls.append(a[1:3]) or traced(*a, **k))
        found = trace_all(model, tmp_path / "all", components=components, metric=METRICS)
    assert len(calls) == len(FACTS) * len(components)
    assert list(found) == list(METRICS)
    for name, metric in METRICS.items():
        alone = trace_all(model, tmp_path / name, components=components, config=replace(CONFIG, metric=metric))
        assert list(found[name]) == list(alone) == list(components)
        for component in components:
            for one, other in zip(found[name][component], alone[component], strict=True):
                assert torch.equal(one.scores, other.scores)
                assert (one.prompt, one.metric, one.clean_score) == (other.prompt, other.metric, other.clean_score)
        assert load_traces(tmp_path / "all" / name).keys() == set(components)


def test_a_list_of_metrics_keeps_its_order_and_its_stores_go_on(tiny, tmp_path, monkeypatch):
    model, calls, traced = tiny("gpt2", KINDS[0]), [], module.trace_by_metrics
    [first] = trace_all(model, tmp_path, FACTS[:2], metric=["logprob"])
    kept = files(tmp_path / "0")
    monkeypatch.setattr(module, "trace_by_metrics", lambda *a, **k: calls.append((a[1], len(a[3]))) or traced(*a, **k))
    both = trace_all(model, tmp_path, FACTS[:3], metric=["logprob", "prob"])
    assert [each["mlp_out"][0].metric for each in both] == ["logprob", "prob"]
    assert calls == [([FACTS[0]], 1), ([FACTS[1]], 1), ([FACTS[2]], 2)]
    assert kept.items() <= files(tmp_path / "0").items()
    assert torch.equal(both[0]["mlp_out"][1].scores, first["mlp_out"][1].scores)
    with pytest.raises(StorageError, match="metric 'logprob', not 'prob'"):
        trace_all(model, tmp_path, metric=["prob", "logprob"])
    for metric, message in (([], "there are no metrics"), ({"../P": "prob"}, "cannot be a folder's name")):
        with pytest.raises(InputError, match=message):
            trace_all(model, tmp_path / "new", metric=metric)
    assert not (tmp_path / "new").exists()


def test_what_one_metric_cannot_score_is_left_out_by_all(tiny, tmp_path):
    model = tiny("gpt2", KINDS[0])
    picky = {"P": "prob", "wrong": lambda logits: logits.new_full((logits.shape[0],), float("nan"))}
    assert trace_all(model, tmp_path, FACTS[:1], metric=picky) == {"P": {"mlp_out": []}, "wrong": {"mlp_out": []}}
    for name in picky:
        assert [fact for fact, _ in TraceStore(tmp_path / name).failures()] == FACTS[:1]


def test_a_store_of_the_methods_earlier_name_goes_on(tiny, tmp_path):
    model = tiny("gpt2", KINDS[0])
    before = trace_all(model, tmp_path, FACTS[:1])["mlp_out"][0]
    (path,) = tmp_path.glob("mlp_out/*.safetensors")
    tensors, header = load(path, "trace")
    save(path, "trace", tensors, {**header, "method": "sweep"})
    old, new = trace_all(model, tmp_path, FACTS[:2])["mlp_out"]
    assert (old.method, new.method) == ("incremental", "incremental")
    assert torch.equal(old.scores, before.scores)


def test_components_of_every_spelling_share_a_store(tiny, tmp_path):
    model = tiny("gpt2", KINDS[0])
    first = trace_all(model, tmp_path, FACTS[:1], components=("z", "hook_mlp_out", "attn.hook_z"))
    kept = files(tmp_path)
    assert list(first) == ["attn.hook_z", "mlp_out"]
    assert list(trace_all(model, tmp_path, FACTS[:1], components=("hook_z",))) == ["attn.hook_z"]
    assert files(tmp_path) == kept


def test_traces_are_read_without_a_model(tiny, tmp_path):
    found = trace_all(tiny("gpt2", KINDS[0]), tmp_path, components=("mlp_out", "attn.hook_z"))
    read = load_traces(tmp_path)
    assert read.keys() == found.keys()
    for component, results in found.items():
        assert {result.prompt for result in read[component]} == {fact.prompt for fact in FACTS}
        assert sum(result.scores.sum() for result in read[component]) == pytest.approx(
            sum(result.scores.sum() for result in results)
        )


@each_kind
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_bad_fact_is_logged_and_recorded_and_ends_nothing(tiny, tmp_path, caplog, kind, batch_size):
    model = tiny("llama", kind)
    with caplog.at_level(logging.WARNING):
        found = trace_all(model, tmp_path, [FACTS[0], BAD, FACTS[1]], batch_size=batch_size)["mlp_out"]
    assert [result.prompt for result in found] == [FACTS[0].prompt, FACTS[1].prompt]
    assert "left out 'in Paris is': subject 'Pari' ends inside the token" in caplog.text
    ((fact, why),) = TraceStore(tmp_path).failures()
    assert fact == BAD
    assert why.startswith("SubjectError: subject 'Pari'")


def test_a_fact_that_failed_is_tried_again_and_its_record_goes(tiny, tmp_path, monkeypatch):
    model = tiny("gpt2", KINDS[0])

    def fail(*args, **options):
        raise InputError("not today")

    with monkeypatch.context() as patched:
        patched.setattr(module, "trace_by_metrics", fail)
        assert trace_all(model, tmp_path, FACTS[:1]) == {"mlp_out": []}
    assert TraceStore(tmp_path).failures() == [(FACTS[0], "InputError: not today")]
    assert len(trace_all(model, tmp_path, FACTS[:1])["mlp_out"]) == 1
    assert TraceStore(tmp_path).failures() == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), MemoryError(), StorageError("disk full")])
def test_what_is_no_facts_fault_ends_the_run_and_frees_its_locks(tiny, tmp_path, monkeypatch, failure):
    model = tiny("gpt2", KINDS[0])

    def fail(*args, **options):
        raise failure

    with monkeypatch.context() as patched:
        patched.setattr(module, "trace_by_metrics", fail)
        with pytest.raises(type(failure)) as caught:
            trace_all(model, tmp_path)
    assert len(trace_all(model, tmp_path)["mlp_out"]) == len(FACTS)
    assert caught.value is failure, "the failure, and with it its frames, lived until here"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed 0, not 1"),
        ({"config": replace(CONFIG, window=3)}, "window 2, not 3"),
        ({"config": replace(CONFIG, clipping="draft")}, "clipping 'released', not 'draft'"),
        ({"config": replace(CONFIG, corruption=replace(NOISE, sigma=0.8))}, "sigma=0.7.* not .*sigma=0.8"),
        ({"config": replace(CONFIG, metric="logprob")}, "metric 'prob', not 'logprob'"),
    ],
)
def test_other_settings_are_refused(tiny, tmp_path, change, message):
    model = tiny("gpt2", KINDS[0])
    trace_all(model, tmp_path, FACTS[:1])
    before = files(tmp_path)
    with pytest.raises(StorageError, match=message):
        trace_all(model, tmp_path, **change)
    assert files(tmp_path) == before


def test_settings_that_change_no_number_may_change(tiny, tmp_path):
    model = tiny("gpt2", KINDS[0])
    trace_all(model, tmp_path, FACTS[:1])
    assert len(trace_all(model, tmp_path, config=replace(CONFIG, max_batch_tokens=7, method="plain"))["mlp_out"]) == 4


@each_kind
def test_other_models_and_edited_ones_are_refused(tiny, fresh_tiny, tmp_path, kind):
    model = fresh_tiny("gpt2", kind)
    trace_all(model, tmp_path, FACTS[:1])
    with pytest.raises(ModelMismatchError):
        trace_all(tiny("llama", kind), tmp_path)
    with torch.no_grad():
        w_out(model, 1).add_(0.1)
    with pytest.raises(ModelMismatchError, match="weights"):
        trace_all(model, tmp_path)


@pytest.mark.skipif(len(KINDS) < 2, reason="this TransformerLens has one class")
def test_both_classes_share_a_store(tiny, tmp_path):
    hooked, bridge = (tiny("gpt2", kind) for kind in KINDS)
    first = trace_all(hooked, tmp_path, FACTS[:2])["mlp_out"]
    second = trace_all(bridge, tmp_path, FACTS)["mlp_out"]
    assert torch.equal(first[1].scores, second[1].scores)
    assert len(second) == 4


@pytest.mark.parametrize(("corruption", "samples"), [(None, 10), (GaussianNoise(samples=2), 2)])
def test_noise_at_the_models_scale_is_measured_and_rounded(tiny, tmp_path, corruption, samples):
    model = tiny("gpt2", KINDS[0])
    trace_all(model, tmp_path, FACTS[:1], config=TraceConfig(window=1, corruption=corruption))
    sigma = float(f"{noise_scale(model):.6g}")
    assert sigma != noise_scale(model)
    assert TraceStore(tmp_path).settings["corruption"] == f"GaussianNoise(sigma={sigma}, samples={samples})"


def test_impossible_requests_are_refused_before_anything_is_written(tiny, tmp_path):
    model = tiny("gpt2", KINDS[0])
    for options in ({"components": ()}, {"batch_size": 0}, {"components": ("mlp_outt",)}):
        with pytest.raises(InputError):
            trace_all(model, tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def test_a_folder_that_is_no_store_is_refused(tiny, tmp_path):
    with pytest.raises(StorageError, match="is not a store of traces"):
        load_traces(tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps({"kind": "other", "schema": 1, "settings": {}}))
    with pytest.raises(StorageError, match="holds 'other' in schema 1"):
        trace_all(tiny("gpt2", KINDS[0]), tmp_path)


def test_progress_is_shown_only_when_asked_for(tiny, tmp_path, capsys):
    model = tiny("gpt2", KINDS[0])
    trace_all(model, tmp_path, FACTS[:1])
    assert capsys.readouterr() == ("", "")
    trace_all(model, tmp_path, FACTS[:2], progress=True)
    assert "trace facts" in capsys.readouterr().err


CHILD = """
import sys, time
import torch
sys.path[:0] = [{tests!r}, {folder_of_test!r}]
import test_trace_facts as test
from tl_rome.models.loading import load_model
from tl_rome.patching.averaging import trace_facts as module

torch.set_num_threads(1)
traced = module.trace_by_metrics

def slowly(*args, **options):
    results = traced(*args, **options)
    print("traced", flush=True)
    time.sleep({pause})
    return results

module.trace_by_metrics = slowly
model = load_model({folder!r}, model_class={kind!r}, device="cpu", progress=False)
test.trace_all(model, {store!r}, components=("mlp_out", "attn_out"))
"""


def start(folder, kind, store, pause):
    here, root = Path(__file__).parent, Path(__file__).parents[3]
    names = {"tests": str(root / "tests"), "folder_of_test": str(here), "folder": str(folder), "kind": kind}
    code = CHILD.format(**names, store=str(store), pause=pause)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)


def kill_after(process, traces):
    """Kill a process once it has announced this many traces; it is then about to keep the last of them."""
    with process:
        for _ in range(traces):
            assert process.stdout.readline() == "traced\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[:1])
def test_a_killed_run_goes_on_and_loses_at_most_the_prompt_in_hand(tiny, family_dir, tmp_path, kind):
    # Killed while the fourth trace, the second component of the second prompt, is made but not kept.
    kill_after(start(family_dir("gpt2"), kind, tmp_path / "killed", pause=1), traces=4)
    kept = files(tmp_path / "killed")
    assert len(kept) == 3
    model = tiny("gpt2", kind)
    components = ("mlp_out", "attn_out")
    found = trace_all(model, tmp_path / "killed", components=components)
    whole = trace_all(model, tmp_path / "whole", components=components)
    assert kept.items() <= files(tmp_path / "killed").items(), "what was kept is as it was"
    for component in components:
        for resumed, expected in zip(found[component], whole[component], strict=True):
            torch.testing.assert_close(resumed.scores, expected.scores, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.leg("4")
def test_two_processes_share_the_work_and_one_takes_over_when_the_other_dies(tiny, family_dir, tmp_path):
    model, kind = tiny("gpt2", KINDS[-1]), KINDS[-1]
    other = start(family_dir("gpt2"), kind, tmp_path, pause=2)
    assert other.stdout.readline() == "traced\n"  # it is tracing the first prompt
    waited = []
    do = module._Work.do

    def kill_first(self, facts, batch_size, *, wait, tick):
        if wait:
            waited.extend(facts)
            other.kill()
        do(self, facts, batch_size, wait=wait, tick=tick)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module._Work, "do", kill_first)
        found = trace_all(model, tmp_path, components=("mlp_out", "attn_out"))
    other.communicate()
    assert FACTS[0] in waited
    assert [len(results) for results in found.values()] == [4, 4]


def test_a_prompt_in_another_hand_is_left_to_it(tiny, tmp_path):
    model = tiny("gpt2", KINDS[0])
    trace_all(model, tmp_path, FACTS[:1])
    store = TraceStore(tmp_path)
    with store.claim(FACTS[1], wait=False) as ours, store.claim(FACTS[1], wait=False) as theirs:
        assert (ours, theirs) == (True, False)
    with store.claim(FACTS[1], wait=False) as again:
        assert again
    assert fact_id(FACTS[1]) != fact_id(replace(FACTS[1], target="Rome"))
