"""Which sweep a model gets."""

import logging
from collections.abc import Sequence

from tl_rome.editors.mass.sweeps.layer_sweep import LayerSweep
from tl_rome.editors.mass.sweeps.protocol import Sweep
from tl_rome.editors.mass.sweeps.whole_sweep import WholeSweep
from tl_rome.editors.rank_one.value_settings import ValueSite
from tl_rome.errors import UnsupportedModelError
from tl_rome.facts import Fact
from tl_rome.running.blocks import first_run
from tl_rome.sites import HookedModel
from tl_rome.tokens import encode_fact

_log = logging.getLogger(__name__)


def sweep_layers(
    model: HookedModel,
    facts: Sequence[Fact],
    contexts: Sequence[str],
    last: int,
    site: ValueSite,
    *,
    max_batch_tokens: int = 4096,
) -> Sweep:
    """A sweep up to a layer, in the shorter way if that is right.

    Args:
        model: Left as found; the layers that are measured may be written in between.
        facts: Prompts and subjects.
        contexts: Prefixes, the empty one first.
        last: The highest layer, whose state is measured.
        site: What is measured there.
        max_batch_tokens: Bound on rows times positions that are run at once.

    Raises:
        SubjectError: If a subject does not lie on whole tokens in some context.
        InputError: If a prompt is longer than the context.
    """
    prompts = [[encode_fact(model, fact, prefix) for fact in facts] for prefix in contexts]
    rows = [[prompt.tokens[: prompt.subject.end] for prompt in group] for group in prompts]
    try:
        with first_run():
            return LayerSweep(model, rows, last, site, max_batch_tokens)
    except UnsupportedModelError as error:
        _log.warning("%s; running the whole model for the keys of each layer instead", error)
        return WholeSweep(model, rows, last, site, max_batch_tokens)
