"""Arguments that work for every public callable, which an attack then changes one by one."""

import json
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from support.attacked import Attacked
from support.average_example import average_of, made_trace
from support.edits import CONTEXTS, REQUEST
from support.evaluation import QUICK, RECORDS, RandomEdit
from support.families import SENTENCES
from support.known import known_to
from support.localization import made_report
from support.public_calls import PublicCall
from support.results import case, measurement, scores
from support.trace_example import RESULT
from support.training import EXAMPLES, LOCALITY, SMALL, SMALL_KE, trained, trained_ke
from tl_rome import counterfact as cf
from tl_rome import editors as ed
from tl_rome import patching as pa
from tl_rome.facts import Fact
from tl_rome.scoring import score_targets
from tl_rome.tokens import SubjectSpan

NOWHERE = "http://127.0.0.1:9"
FACT = Fact("In {} is", "Eiffel Tower", "Paris")
RELATION = cf.Relation(
    "P131",
    ("{} is in", "{} stands in"),
    tuple(cf.StatedFact(f"Subject {n}", cf.Target(("Paris", "Rome")[n % 2]), n) for n in range(4)),
    ("{} is",),
)
ROW = {"relation_id": "P131", "target_id": "Q90", "name": "Louvre", "text": "The Louvre is in Paris."}
RESULTS = [case(n, measurement(True, [True], [False]), measurement(False, [False], [True])) for n in (1, 2, 3)]


class Each:
    """A value that is made anew for each call."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


class World:
    """Values that work: an object of each class, and a value for each name of a parameter."""

    def __init__(self, attacked: Attacked, folder: Path) -> None:
        self.attacked, self.folder, self._count = attacked, folder, 0
        self.objects = {type(value): value for value in self._objects()}
        self.named: dict[str, Any] = {**self._values(), **self._objects_by_name(), **self._files()}

    def _objects(self) -> Iterator[Any]:
        model, edit, covariance = self.attacked.model, self.attacked.edit, self.attacked.covariance
        summary = cf.summarize(RESULTS, resamples=20)
        curve = cf.Curve.of(summary, "rome", "layer", {1: "rome"})
        average = average_of([made_trace(seed=seed) for seed in range(3)])
        finetune = ed.FineTuneConfig(preset="ft", max_steps=2)
        short = replace(ed.RELEASED, max_evaluations=2, context_lengths=((3, 2),))
        yield from (model, FACT, REQUEST, RECORDS[0], RECORDS[0].requested_rewrite, RELATION, RELATION.facts[0])
        yield from (edit, edit.receipt, edit.updates[0], self.attacked.sequence, RESULT, summary, curve, average)
        yield from (RESULTS[0], RESULTS[0].after, RESULTS[0].divergence, scores((1.0, 2.0)), QUICK, cf.Target("Paris"))
        yield from (self.attacked.covariance, finetune, ed.FineTune(1, finetune), short, ed.SharedValues())
        yield from (ed.Rome(self.attacked.covariance, CONTEXTS, short), ed.VirtualEdits(model, [edit]))
        yield from (pa.TraceConfig(corruption=pa.GaussianNoise(0.7, 2)), cf.BuilderConfig(neighbors=1, attributes=1))
        yield from (pa.GaussianNoise(0.7, 2), pa.HeavyTailedNoise(0.7, 2), pa.UniformNoise(0.7, 2))
        yield from (pa.ReleasedNoise(0.7, 2), pa.AddedNoise(torch.zeros(2, 2, 32)), pa.TargetLogprob((5,)))
        yield from (pa.ReplacedSubject(torch.zeros(2, 32), "x"), pa.TargetProbability((5,)), pa.LogitDifference(5, 6))
        yield from (pa.Agreement(0.5, 0.5, 8), cf.Generation("In", " is"), ed.DenseUpdate(1, torch.zeros(128, 32)))
        yield from (ed.Convergence((10, 20), torch.rand(2, 1), torch.rand(2, 1)), cf.ReferenceTexts.from_rows([ROW]))
        yield from (
            cf.SequentialResult(curve, (1.0, 1.0), (2.0, 2.0), (0.0, 0.1), {}),
            cf.SideBySide(("In",), {"ft": (" x",)}),
        )
        yield from (pa.suggest_layer(average, resamples=20), pa.KnownFact(FACT, FACT, " Paris", 0.5), SubjectSpan(0, 2))
        report = made_report(5, resamples=20)
        yield from (report, report.choices[0], report.explained[0], report.correlations[0])
        quick = replace(ed.KN_CORRECTED, steps=2)
        yield from (quick, ed.KnowledgeNeurons(quick), ed.attribute_neurons(model, "In", "Paris", steps=2))
        yield ed.Neuron(0, 1)
        mend, ke = trained(model, replace(SMALL, max_steps=1)), trained_ke(model, replace(SMALL_KE, max_steps=1))
        yield from (mend, ke, mend.config, ke.config, ke.log, ke.log.best, EXAMPLES[0])
        yield from (ed.TrainingParts(tuple(EXAMPLES[:6]), (), ()), ed.Passages(tuple(EXAMPLES[:2]), {}))
        yield cf.WikiDataNeighbors(cache=self.folder / "wikidata", endpoint=NOWHERE, interval=0.0, retries=0)
        yield score_targets(model, ["In"], ["Paris"])
        mass = ed.MassEditor({covariance.layer: covariance}, CONTEXTS, replace(ed.MEMIT_SEQ, max_evaluations=2))
        batch = mass(model, [REQUEST])
        yield from (mass, mass.config, ed.KeyMemory.empty(model, mass.layers))
        yield from (batch, batch.receipt, batch.receipt.facts[0], batch.receipt.layers[0])
        yield from (cf.PromptAnswer("In", ("Paris",)), cf.AnswerScores(((-1.0,),), ((1,),), ((True,),)))

    @staticmethod
    def _values() -> dict[str, Any]:
        """Numbers and texts, small ones where there is a choice."""
        numbers = {"layer": 1, "layers": [1], "rows": [0, 0], "width": 3, "n_layers": 4, "points": 2, "tokens": 400}
        few = {"resamples": 20, "count": 2, "new_tokens": 3, "max_new_tokens": 3, "max_tokens": 400, "counts": (1, 2)}
        texts = {"prompts": ["In Paris", "In Rome"], "targets": ["Paris", "Rome"], "texts": SENTENCES}
        words = {"subject": "Eiffel Tower", "target": "Paris", "target_new": "Rome", "prompt": "The Eiffel Tower is in"}
        names = {"component": "mlp_out", "components": ["mlp_out"], "names": ["ft"], "source": "x", "relation_id": "P1"}
        more = {"other": "Space Needle", "find_layer.prompts": 2, "Curve.of.name": "rome"}
        alone = {"rome.subject": None, "rome.target_new": None, "rome.target_true": None}
        more["Summary.difference.editor"] = "rome"
        more["SequentialResult.figures.column"] = "S"
        groups = {"group": "rewrite", "conventions": "released", "PromptScores.loss.target": "new", "along": "layer"}
        tensors = {"embeddings": torch.zeros(2, 32), "logits": torch.zeros(2, 1, 600), "key": torch.ones(128)}
        rest = {"keys": torch.ones(1, 128), "unit": 0, "shape": (2, 2, 32), "progress": False, "epsilons": [0.1, 0.2]}
        here = {"WikiDataNeighbors.endpoint": NOWHERE, "retries": 0, "interval": 0.0, "workers": 1}
        here["energy_share"] = 0.1
        here["contexts"] = CONTEXTS
        here |= {"u": torch.ones(128), "v": torch.ones(32)}
        here |= {"kept": ["Rome"], "split_examples.train": 4, "split_examples.validation": 2, "check": 1}
        here |= {"locality": LOCALITY, "sizes": (4, 6), "target_tokens": 2, "more_words_than": 0, "checkpoint": None}
        return numbers | few | texts | words | names | more | alone | groups | tensors | rest | here

    def _objects_by_name(self) -> dict[str, Any]:
        objects, edit, model = self.objects, self.attacked.edit, self.attacked.model

        refused = {"Summary.save.records": None, "write_report.records": None, "average": objects[pa.AverageTrace]}
        return refused | {
            **{"model": model, "facts": [FACT], "requests": [REQUEST], "request": REQUEST, "relations": [RELATION]},
            **{"edits": [edit], "records": RECORDS[:2], "editors": RandomEdit(1), "editor": RandomEdit(1)},
            **{"generator": Each(lambda: torch.Generator().manual_seed(0)), "load": lambda: self.attacked.model},
            **{"results": RESULTS, "averages": [objects[pa.AverageTrace]], "result": RESULT, "find_values": None},
            **{"covariance": self.attacked.covariance, "target": "Paris", "RequestedRewrite.target": None},
            **{"WikiDataNeighbors.__call__.target": cf.Target("Paris", "Q90"), "subjects": ["Rome", "Paris"]},
            **{"TraceConfig.metric_for.target": torch.tensor([5]), "find_layer.facts": known_to(model, 3)},
            **{"generators": Each(lambda: [torch.Generator().manual_seed(0)]), "export_model.model": model},
            **{"average_traces.results": [made_trace(seed=1), made_trace(seed=2)], "approximate": RESULT},
            **{"plot_sequential.results": {"rome": objects[cf.SequentialResult]}, "Curve.of.rows": {1: "rome"}},
            **{"null_space_leak.first": self.attacked.covariance, "null_space_leak.second": self.attacked.covariance},
            **{"covariances": [self.attacked.covariance], "rome.request": REQUEST, "editors_by_name.names": ["ft"]},
            **{"sweep_editors.editors": {1: RandomEdit(1)}, "continue_side_by_side.edits": {"x": edit}, "ax": None},
            **{"localization_report.editors": {1: RandomEdit(1)}, "localization_report.records": RECORDS[:4]},
            **{"plot_localization.component": "mlp_out", "plot_localization_by_layer.component": "mlp_out"},
            **{"evaluate_in_processes.editors": None, "Curve.from_dict.data": Each(objects[cf.Curve].to_dict)},
            **{"SequentialResult.from_dict.data": Each(objects[cf.SequentialResult].to_dict)},
            **{"summary": objects[cf.Summary], "shared_neurons.several": [objects[ed.NeuronScores]]},
            **{"plot_neurons.scores": objects[ed.NeuronScores], "log": objects[ed.TrainingLog]},
            **{"examples": EXAMPLES[:6], "train_ke.validation": EXAMPLES[6:], "train_mend.validation": EXAMPLES[6:]},
            **{"split_examples.examples": EXAMPLES, "training_doubt.config": objects[ed.KeConfig]},
            **{"CaseResult.from_dict.data": Each(RESULTS[0].to_dict), "ReferenceTexts.from_rows.rows": [ROW]},
            **{"CounterFactRecord.from_dict.data": Each(RECORDS[0].to_dict), "rewrite": RECORDS[0].requested_rewrite},
            **{"Edit.from_file.tensors": Each(lambda: edit.to_file()[0])},
            **{"BatchEdit.from_file.tensors": Each(lambda: objects[ed.BatchEdit].to_file()[0])},
            **{"BatchEdit.from_file.header": Each(lambda: objects[ed.BatchEdit].to_file()[1])},
            **{"KeyMemory.grown.keys": {1: torch.ones(128, 2)}, "KeyMemory.grown.digests": {1: "0" * 16}},
            **{"MassConfig.weight_for.facts": 2, "MassConfig.weight_for.d_mlp": 128},
            **{"MassEditor.prepare.covariances": {1: self.attacked.covariance}, "memory": objects[ed.KeyMemory]},
            **{"MassEditor.prepare.config": objects[ed.MassConfig]},
            **{"SharedValues.__call__.config": objects[ed.RomeConfig]},
            **{"Edit.from_file.header": Each(lambda: edit.to_file()[1]), "found": None},
        }

    def _files(self) -> dict[str, Any]:
        """Paths to write to, and files of every kind to read."""
        model, folder = self.attacked.model, self.folder
        facts, pararel, references = folder / "facts.jsonl", folder / "pararel", folder / "references"
        traces, results = folder / "traces", folder / "results"
        pa.save_facts(facts, [FACT])
        pa.trace_facts(model, [FACT], ["mlp_out"], store=traces, config=self.objects[pa.TraceConfig], progress=False)
        cf.evaluate(model, RECORDS[:1], RandomEdit(1), store=results, config=QUICK, progress=False)
        rows = {"patterns": {"pattern": "[X] is in [Y] ."}, "facts": {"sub_label": "A", "obj_label": "B"}}
        for place, row in rows.items():
            (pararel / place).mkdir(parents=True)
            (pararel / place / "P131.jsonl").write_text(json.dumps(row) + "\n")
        (references / "P131" / "Q90").mkdir(parents=True)
        (references / "P131" / "Q90" / "Louvre.txt").write_text("The Louvre is in Paris.")
        requests = folder / "requests.jsonl"
        requests.write_text(json.dumps({"template": "{} is in", "subject": "A", "target_new": "B"}))
        np.savez(folder / "sums.npz", **{"mom2.mom2": np.eye(128, dtype=np.float32), "mom2.count": np.array(5)})
        new = Each(self.new_path)
        tensors, header = RESULT.to_file()
        saved = {
            f"{cls.__name__}.load.path": Each(lambda cls=cls: self.objects[cls].save(self.new_path()))
            for cls in (
                *(ed.Edit, ed.BatchEdit, ed.EditSequence, ed.KeyCovariance, ed.KeyMemory, ed.Mend, ed.Ke),
                *(pa.TraceResult, pa.AverageTrace),
                cf.LocalizationReport,
            )
        }
        return saved | {
            **{"TraceResult.from_file.tensors": tensors, "TraceResult.from_file.header": header},
            **{"path": new, "store": new, "folder": new, "cache": new, "cache_dir": folder / "cache"},
            **{"repo_id": "somebody/something", "dry_run": new, "kind": ed.KeyCovariance},
            **{"push_file.path": Each(lambda: self.objects[ed.KeyCovariance].save(self.new_path()))},
            **self._other_layouts(),
            **{
                "load_facts.path": facts,
                "load_requests.path": requests,
                "load_traces.folder": traces,
                "load_results.store": results,
            },
            **{"import_npz.path": folder / "sums.npz", "load_pararel.folder": pararel},
            **{"load_pararel.relations": ["P131"]},
            **{"ReferenceTexts.from_folder.folder": references},
            **{"load_model.name": self.attacked.folder, "device": "cpu"},
            **{"load_counterfact.source": "sample", "load_references.source": "sample"},
            **{"export_model.source": self.attacked.folder},
            **{f"{cls}.to_peft.source": self.attacked.folder for cls in ("Edit", "BatchEdit", "EditSequence")},
        }

    def _other_layouts(self) -> dict[str, Any]:
        """Files of one record each."""
        rewrite = {"prompt": "{} is in", "relation_id": "P1", "subject": "Louvre", "question": "Where is it?"}
        targets = {name: {"str": city} for name, city in (("target_new", "Rome"), ("target_true", "Paris"))}
        more = {"questions": [], "answer": "a", "new_answer": "b", "new_single_hops": []}
        fact = {"prompt": "The seat of Louvre is Rome.", "subject_id": "Q1", "relation": "SEAT", "target_id": "Q2"}
        edit = {**fact, "previous_fact": {**fact, "prompt": "The seat of Louvre is Paris."}}
        asked = {"prompt": "Louvre is in", "subject": "Louvre", "target_new": "Rome", "ground_truth": "Paris"}
        rows = {
            "knowedit": {**asked, "portability": {}, "locality": {}},
            "mquake": {"case_id": 1, "requested_rewrite": [{**rewrite, **targets}], **more},
            "rippleedits": {"example_type": "popular", "edit": edit},
        }
        for name, row in rows.items():
            (self.folder / f"{name}.json").write_text(json.dumps([row]))
        return {f"load_{name}.path": self.folder / f"{name}.json" for name in rows} | {
            "load_rippleedits.subjects": {"Q1": "Louvre"}
        }

    def new_path(self) -> Path:
        """One that nothing has used."""
        self._count += 1
        return self.folder / f"new-{self._count}"

    def good(self, call: PublicCall, name: str) -> Any:
        """A value of a parameter that works.

        Raises:
            LookupError: If none is known.
        """
        parameter, made = call.parameters[name], call.name == getattr(call.cls, "__name__", None)
        if made and hasattr(self.objects[call.cls], name):
            return getattr(self.objects[call.cls], name)
        for key in (f"{call.name}.{name}", name):
            if key in self.named:
                value = self.named[key]
                return value.make() if isinstance(value, Each) else value
        for known in (parameter.annotation, *get_args(parameter.annotation)):
            if isinstance(known, Hashable) and known in self.objects:
                return self.objects[known]
        if parameter.default is not parameter.empty:
            return parameter.default
        raise LookupError(f"no value is known for {name}: {parameter.annotation} of {call.name}; add one in {__file__}")

    def arguments(self, call: PublicCall) -> dict[str, Any]:
        """Values that work for all parameters."""
        return {name: self.good(call, name) for name in call.parameters}

    def call(self, call: PublicCall, arguments: Mapping[str, Any]) -> Any:
        """Make the call, and enter and leave what it returns if that is a context.

        Raises:
            BaseException: As the call does.
        """
        given = dict(arguments)
        first = () if call.bound else (self.objects[call.cls],)
        positional = [
            given.pop(name)
            for name, parameter in call.parameters.items()
            if name in given and parameter.kind is parameter.POSITIONAL_ONLY
        ]
        result = call.function(*first, *positional, **given)
        if isinstance(result, AbstractContextManager) and not isinstance(result, Path):
            with result:
                pass
        return result
