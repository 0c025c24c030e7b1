# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Where is a fact?
#
# A small language model completes *The Eiffel Tower is located in the city of* with *Paris*. Where, among its 30 layers and
# the tokens of the prompt, does that answer come from? We look with **causal tracing**, then change the fact with one
# **rank-one edit** and read what the model says afterwards.
#
# Everything here runs on a CPU in about three minutes. The model is SmolLM2-135M, which tl_rome fetches on first use.

# %%
import torch

import tl_rome

model = tl_rome.load_model("smollm2-135m", progress=False)
fact = tl_rome.Fact("{} is located in the city of", "The Eiffel Tower", target="Paris")

# %% [markdown]
# `model` is an ordinary TransformerLens model, with all its hooks. What does it say?

# %%
scores = tl_rome.score_targets(model, [fact.prompt] * 3, ["Paris", "Rome", "London"])
dict(zip(["Paris", "Rome", "London"], scores.prob.tolist(), strict=True))

# %% [markdown]
# ## Tracing
#
# The model runs once as it is. Then noise is added to the embeddings of the subject's tokens, so that the model no longer
# knows what the prompt is about and *Paris* becomes unlikely. In this corrupted run we restore **one hidden state** at a
# time to its clean value. Where that brings *Paris* back, the state carries the fact.


# %%
def trace(component):
    generator = torch.Generator().manual_seed(0)  # the same noise for every component
    return tl_rome.causal_trace(model, fact, component, generator=generator, progress=False)


hidden = trace("resid_post")
print(f"P(Paris): {hidden.clean_score:.3f} clean, {hidden.corrupted_score:.3f} with the subject corrupted")
tl_rome.plot_trace(hidden);

# %% [markdown]
# Two islands: early and middle layers inside the subject, and late layers at the last token. The first is where the
# subject is *recognised* (here at *iffel*, the token that leaves no doubt; on average over many facts it is the subject's
# last token), the second where the answer is about to be *said*.
#
# Which part of a layer does it? A single MLP or attention output has little effect of its own, so we restore runs of ten
# layers of one kind.

# %%
mlp, attention = trace("mlp_out"), trace("attn_out")
for result in (mlp, attention):
    layer, position, score = result.strongest()
    print(f"{result.component}: strongest around layer {layer} at {result.labels[position]!r}, P(Paris) = {score:.3f}")
    tl_rome.plot_trace(result)

# %% [markdown]
# The same scores as an interactive view: hover over a token, and choose the layer on the left.

# %%
import circuitsvis

circuitsvis.tokens.colored_tokens_multi(
    list(mlp.labels), mlp.scores.T.float(), labels=[f"layer {layer}" for layer in range(len(mlp.scores))]
)

# %% [markdown]
# ## Editing
#
# ROME treats the MLP's output matrix as a memory of key-value pairs. The subject's last token gives the key, a short
# optimisation finds the value that makes the model say *Rome*, and one rank-one update inserts the pair so that other keys
# are disturbed least.

# %%
edit = tl_rome.rome(
    model, "{} is located in the city of", "The Eiffel Tower", "Rome", target_true="Paris", progress=False
)
print(edit)

# %% [markdown]
# The model itself is unchanged: an edit is a value. Inside `with edit.applied(model)` the weights hold the new fact, and
# afterwards they are back, bit for bit.

# %%
prompts = ["The Eiffel Tower stands in the heart of", "To visit the Eiffel Tower, book a flight to", "The Louvre is in"]


def show(title):
    texts = tl_rome.continue_texts(model, prompts, 12, generator=torch.Generator().manual_seed(0), top_k=1)
    print(title, *(f"  {prompt}|{text!r}" for prompt, text in zip(prompts, texts, strict=True)), sep="\n")


show("before")
with edit.applied(model):
    show("with the edit")

# %% [markdown]
# The edit is a small file that can be kept and shared without the model:

# %%
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    path = edit.save(Path(folder) / "eiffel-tower-rome.safetensors")
    print(f"{path.stat().st_size / 1000:.0f} kB")
    again = tl_rome.Edit.load(path, model)
again.request
