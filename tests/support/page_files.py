"""What pages of the documentation read that is not part of the project: models, records, statistics, texts."""

import json

import numpy as np

from support.edits import covariance
from support.families import SENTENCES
from support.known import known_to

HUB = {"Qwen/Qwen2.5-1.5B": ("qwen2", 8), "gpt2-xl": ("gpt2", 18)}
"""Names on the hub that pages load, and what stands in for each: a family and as many layers as the page uses."""
TEMPLATES = ("In {} is", "{} stands in", "People in {} speak", "The headquarters of {} is in", "{} was born in")


def write_corpus(path):
    path.write_text("\n".join(SENTENCES), encoding="utf-8")


def write_counterfact(path, model):
    """Records in COUNTERFACT's format, whose true objects the model says."""
    records = [
        {
            "case_id": number,
            "requested_rewrite": {
                "prompt": fact.template,
                "subject": fact.subject,
                "relation_id": "P131",
                "target_new": {"str": "Glasgow"},
                "target_true": {"str": fact.target},
            },
            "paraphrase_prompts": [f"Where is {fact.subject}? It is in"],
            "neighborhood_prompts": ["In London is"],
            "generation_prompts": [f"{fact.subject} is"],
        }
        for number, fact in enumerate(known_to(model, 4, TEMPLATES))
    ]
    path.write_text(json.dumps(records), encoding="utf-8")


def write_statistics(folder, model, layer):
    """Key statistics in the format of the authors and in ours."""
    own = covariance(model, layer)
    sums = (own.second_moment * own.count).float().numpy()
    name = f"transformer.h.{layer}.mlp.c_proj_float32_mom2_100000.npz"
    np.savez(folder / name, **{"mom2.mom2": sums, "mom2.count": np.array(own.count)})
    own.save(folder / f"gpt2-xl-{layer}.safetensors")
