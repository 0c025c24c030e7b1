"""ROME in one call: an editor is prepared, and used once."""

from collections.abc import Sequence
from typing import Literal

from tl_rome.arguments import Seed
from tl_rome.editors.covariance.key_covariance import KeyCovariance
from tl_rome.editors.edits.edit import Edit
from tl_rome.editors.layers import LayerChoice
from tl_rome.editors.rank_one.editor import Rome
from tl_rome.editors.rank_one.presets import RELEASED, RomeConfig
from tl_rome.errors import InputError
from tl_rome.facts import EditRequest
from tl_rome.sites import HookedModel


def rome(
    model: HookedModel,
    request: EditRequest | str,
    subject: str | None = None,
    target_new: str | None = None,
    *,
    target_true: str | None = None,
    layer: LayerChoice = None,
    covariance: KeyCovariance | None = None,
    contexts: Sequence[str] | Literal["recipe"] | None = None,
    config: RomeConfig | str = RELEASED,
    seed: Seed = 0,
    progress: bool = True,
) -> Edit:
    """Edit one fact in one call; the model is left as found, and `edit.applied(model)` puts the edit in.

    Args:
        model: A HookedTransformer or TransformerBridge.
        request: The fact to write, as `Fact.rewrite` gives it too; or the template of one, which is its prompt with one
            `{}` in the subject's place, ending just before the object.
        subject: The entity; with a template only, as the next two.
        target_new: What the model should say, without a leading space.
        target_true: What it says now; only reported.
        layer: Layer to edit, something with a `.layer`, or `tl_rome.find_layer`; see `Rome.prepare` for the defaults.
        covariance: Key statistics.
        contexts: Prefixes.
        config: Preset or its name, such as "r_rome".
        seed: Seed of everything that is sampled.
        progress: Whether long work shows progress bars.

    Returns:
        The edit; `print(edit)` shows what it did.

    Raises:
        InputError: If a request is given together with parts of one, or a template without them.
        TLRomeError: See `Rome.prepare` and `Rome.__call__`.
    """
    request = _request(request, subject, target_new, target_true)
    editor = Rome.prepare(
        model, layer=layer, covariance=covariance, contexts=contexts, config=config, seed=seed, progress=progress
    )
    return editor(model, request, progress=progress)


def _request(
    request: EditRequest | str, subject: str | None, target_new: str | None, target_true: str | None
) -> EditRequest:
    """The request itself, or one made of the parts."""
    if isinstance(request, EditRequest):
        parts = {"subject": subject, "target_new": target_new, "target_true": target_true}
        twice = [name for name, part in parts.items() if part is not None]
        if twice:
            raise InputError(f"{' and '.join(twice)} given beside an EditRequest, which has its own; leave that out")
        return request
    if subject is None or target_new is None:
        missing = "a subject" if subject is None else "target_new"
        raise InputError(
            f"{request!r} is given without {missing}; give template, subject and target_new, or an EditRequest, "
            'as fact.rewrite("Rome") makes one'
        )
    return EditRequest(request, subject, target_new, target_true)
