"""The layer loop: what each layer gets, with all lower ones already rewritten.

Of the residual that is left at the highest layer each layer gets a share, by `spread`; what lower layers did not write
is measured anew for the next.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.editors.covariance.key_covariance import KeyCovariance
from tl_rome.editors.edits.receipts.batch_receipt import LayerReceipt
from tl_rome.editors.edits.update import DenseUpdate, LowRankUpdate, Update
from tl_rome.editors.edits.weight_edit import updates_applied
from tl_rome.editors.mass.closed_form import CovariancePrior, Prior, SubspacePrior, key_directions
from tl_rome.editors.mass.config import MassConfig
from tl_rome.editors.mass.finish import Solved
from tl_rome.editors.mass.subspace import KeySubspace
from tl_rome.editors.mass.sweep import Sweep
from tl_rome.running.arithmetic import in_float64
from tl_rome.running.matrices import w_out
from tl_rome.sites import HookedModel

PriorOf = Callable[[int, int], tuple[Prior, KeySubspace | None]]
"""The prior of a layer for a batch of so many facts."""


def weighted_keys(rows: Float[Tensor, "facts contexts d_mlp"], config: MassConfig) -> Float[Tensor, "facts d_mlp"]:
    """One key for each fact from those in each context, the bare prompt first."""
    if config.key_weighting == "flat" or rows.shape[1] == 1:
        return rows.mean(1)
    return (rows[:, 0] + rows[:, 1:].mean(1)) / 2


def remaining_share(config: MassConfig, remaining: int) -> float:
    """What part of the residual a layer gets that is one of so many that are left, itself included."""
    return {"linear": 1 / remaining, "sqrt": remaining**-0.5, "none": 1.0}[config.spread]


def write_layers(
    model: HookedModel,
    sweep: Sweep,
    layers: Sequence[int],
    groups: Sequence[Sequence[int]],
    deltas: Float[Tensor, "groups d_model"],
    config: MassConfig,
    prior_of: PriorOf,
    covariances: Mapping[int, KeyCovariance],
) -> Solved:
    """Solve layer after layer; the model's weights are written meanwhile and are back bit for bit afterwards.

    Args:
        model: Left as found.
        sweep: Of the facts, up to the highest layer.
        layers: Ascending.
        groups: Indices of the facts that share a value, and then a key.
        deltas: What is to be added to the state of each group.
        config: Key weighting and spread.
        prior_of: What has to be kept.
        covariances: For the receipts.

    Raises:
        NumericsError: If a prior is singular, or an edited weight is not finite.
    """
    facts = sum(map(len, groups))
    mean = deltas.new_zeros(len(groups), facts).double()
    for row, group in enumerate(groups):
        mean[row, list(group)] = 1 / len(group)
    owner = (mean > 0).long().argmax(0)
    updates, receipts, kept = list[Update](), list[LayerReceipt](), dict[int, Tensor]()
    wanted = start = None
    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            rows, states = sweep.measure(layer)
            mean, owner = mean.to(states.device), owner.to(states.device)
            if wanted is None or start is None:
                start, wanted = states, states + in_float64(deltas).to(states.device)[owner]
            keys = (mean @ weighted_keys(rows, config)).T
            asked = ((mean @ (wanted - states)) * remaining_share(config, len(layers) - index)).T
            prior, subspace = prior_of(layer, len(groups))
            directions = key_directions(prior, keys)
            before = w_out(model, layer).detach().clone()
            update = _update(layer, directions, asked, before)
            receipts.append(_receipt(layer, keys, directions, asked, before, prior, subspace, covariances[layer]))
            stack.enter_context(updates_applied(model, [update]))
            sweep.written(layer, w_out(model, layer).detach() - before)
            updates.append(update)
            kept[layer] = keys.cpu()
        assert wanted is not None
        assert start is not None
        left = (wanted - sweep.final()).norm(dim=1) / (wanted - start).norm(dim=1).clamp(min=1e-300)
    return Solved(tuple(updates), tuple(receipts), tuple(left.tolist()), kept)


def _update(layer: int, directions: Tensor, asked: Tensor, weight: Float[Tensor, "d_mlp d_model"]) -> Update:
    """As factors where they are smaller; in float32, or float64 for a model that is."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    d_in, d_out = weight.shape
    if directions.shape[1] * (d_in + d_out) < d_in * d_out:
        return LowRankUpdate(layer, directions.to(dtype).cpu(), asked.to(dtype).cpu())
    return DenseUpdate(layer, (directions @ asked.T).to(dtype).cpu())


def _receipt(
    layer: int,
    keys: Float[Tensor, "d_mlp n"],
    directions: Float[Tensor, "d_mlp n"],
    asked: Float[Tensor, "d_model n"],
    weight: Float[Tensor, "d_mlp d_model"],
    prior: Prior,
    subspace: KeySubspace | None,
    covariance: KeyCovariance,
) -> LayerReceipt:
    stored = asked @ (directions.T @ keys)
    share = (stored * asked).sum(0) / asked.square().sum(0).clamp(min=1e-300)
    root = covariance.factor(keys.device)
    usual = (root.float().T @ weight.float()).norm()
    disturbance = float(_norm(root.T @ directions, asked) / usual)
    relative = float(_norm(directions, asked) / weight.double().norm())
    weight_of = prior.weight / len(root) if isinstance(prior, CovariancePrior) else prior.l2
    confined = isinstance(prior, SubspacePrior)
    return LayerReceipt(
        layer=layer,
        facts=keys.shape[1],
        weight=weight_of,
        written=float(share.mean()),
        relative=relative,
        disturbance=disturbance,
        rank=prior.basis.shape[1] if confined else None,
        energy=None if subspace is None else subspace.energy,
        leakage=disturbance**2 if confined else None,
    )


def _norm(left: Float[Tensor, "rows n"], right: Float[Tensor, "columns n"]) -> Float[Tensor, ""]:
    """||left right^T||, without that matrix."""
    return ((left.T @ left) * (right.T @ right)).sum().clamp(min=0).sqrt()
