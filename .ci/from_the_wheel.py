"""What a user does with the installed package, and nothing but it: `.ci/release` runs this outside the repository.

Arguments: the environment that tl_rome has to come from, and a list of the files that it has to have.
"""

import re
import sys
from importlib.metadata import metadata, version
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import tl_rome
from tl_rome import Edit, EditRequest, Fact, KeyCovariance, Rome, causal_trace, load_model
from tl_rome.counterfact import load_counterfact
from tl_rome.models.smollm2 import smollm2_folder
from tl_rome.patching import GaussianNoise

environment, files = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).read_text("utf-8").splitlines()
home = Path(tl_rome.__file__).resolve().parent
assert home.is_relative_to(environment), f"tl_rome comes from {home}, not from the wheel"
assert tl_rome.__version__ == version("tl_rome")
missing = [name for name in files if not (home.parent / name).is_file()]
assert not missing, f"the wheel lacks {missing}"
assert metadata("tl_rome")["Requires-Python"]
targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)", str(metadata("tl_rome").json["description"]))
relative = [path for path in map("".join, targets) if not path.startswith("https://")]
assert targets, "the wheel has no description"
assert not relative, f"a package index cannot follow {relative}"
assert load_counterfact("sample")

fact = Fact("{} is located in the city of", "The Eiffel Tower", "Paris")
model = load_model("smollm2-135m", device="cpu", progress=False)
noise, rng = GaussianNoise(samples=2), torch.Generator().manual_seed(0)
trace = causal_trace(model, fact, "resid_post", corruption=noise, generator=rng, progress=False)
print("strongest:", trace.strongest())

covariance = KeyCovariance.shipped(model)
assert covariance is not None
contexts = ("", "He said that. ", "In the morning, people came. ")
edit = Rome(covariance, contexts)(model, EditRequest(fact.template, fact.subject, "Rome", "Paris"))
path = edit.save("eiffel.safetensors")
Edit.load(path, model).to_peft("adapter", model, "smollm2-135m")

base = smollm2_folder()
tokenizer = AutoTokenizer.from_pretrained(base)
plain = AutoModelForCausalLM.from_pretrained(base).eval()


def answer(model) -> str:
    tokens = tokenizer(fact.prompt, return_tensors="pt")
    said = model.generate(**tokens, max_new_tokens=1, do_sample=False, pad_token_id=0)
    return tokenizer.decode(said[0, tokens["input_ids"].shape[1] :]).strip()


before = answer(plain)
after = answer(PeftModel.from_pretrained(plain, "adapter").eval())
print(f"plain transformers: {fact.prompt!r} -> {before!r}; with the adapter: {after!r}")
assert (before, after) == ("Paris", "Rome")
