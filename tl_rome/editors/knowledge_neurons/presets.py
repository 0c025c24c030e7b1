"""What knowledge neurons are in each of their sources, as plain values of one implementation.

The ROME authors' code ("released") takes the knowledge-neurons library (EleutherAI) as it is, a port of the method to
GPT-2 that departs from the paper (Dai et al. 2022) in nearly everything: neurons are read before the activation, object
tokens have no leading space, the greedy token is subtracted in place of the true object, and the factors are not the
paper's. `KN` is that, since it is what the ROME paper measured; `KN_CORRECTED` is the method as it was meant.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from tl_rome.arguments import Count, NotNegative, Share
from tl_rome.editors.departures import departures_from
from tl_rome.editors.knowledge_neurons.scores import NeuronSite, Points


@dataclass(frozen=True, kw_only=True)
class KnowledgeNeuronsConfig:
    """Settings of one edit of knowledge neurons; none of them says anything about the model.

    Raises:
        InputError: If a number is out of its range or a choice is unknown.
    """

    preset: str
    """Name of the source these values follow; written into every receipt."""
    site: NeuronSite | None
    """Where neurons are read, see `attribute_neurons`; None: before the activation, in gated MLPs after it."""
    points: Points
    """Where the path to a neuron's value is sampled, see `attribute_neurons`."""
    steps: Count = 20
    """At how many points."""
    threshold: Share = 0.2
    """A neuron is chosen if its score is above this share of the largest."""
    refine: bool
    """Whether only those are kept that paraphrases share, where there are any."""
    sharing: Share = 0.4
    """Those chosen in more than this share of the prompts are kept."""
    leading_space: bool
    """Whether an object's tokens are those that follow the prompt, or those of its bare text, as in "Paris"."""
    old: Literal["predicted", "true"]
    """What is subtracted: the token that the model thinks most likely, or the true object."""
    old_factor: NotNegative
    """How many times the embedding of the old object is subtracted."""
    new_factor: NotNegative
    """How many times that of the new one is added; of several tokens, their sum."""
    norm_matched: bool
    """Whether both embeddings are first brought to the length of the row that they are added to."""

    def identity(self) -> dict[str, Any]:
        """The settings that decide an edit, JSON-serialisable: all but the name."""
        return {name: value for name, value in asdict(self).items() if name != "preset"}

    @property
    def departures(self) -> str:
        """Settings in which this is not the preset it names, such as "steps=50"; for the receipt."""
        named = {config.preset: config for config in (KN, KN_CORRECTED)}
        return departures_from(self, named.get(self.preset, self))


KN = KnowledgeNeuronsConfig(
    preset="kn",
    site=None,
    points="ends",
    refine=False,
    leading_space=False,
    old="predicted",
    old_factor=2.0,
    new_factor=1.0,
    norm_matched=False,
)
"""The released code, as the ROME paper measured it: no refinement, factor 2 for the old token and 1 for the new."""

KN_CORRECTED = KnowledgeNeuronsConfig(
    preset="kn_corrected",
    site="post",
    points="left",
    refine=True,
    sharing=0.7,
    leading_space=True,
    old="true",
    old_factor=1.0,
    new_factor=8.0,
    norm_matched=True,
)
"""Dai et al. (2022) on a GPT: neurons after the activation, the true object, the paper's factors 1 and 8 in the manner
of its code, which brings embeddings to the length of the row. Eight times a row's length is much for a small model:
SmolLM2-135M then prefers most new objects and loses its language, of which receipts warn."""
