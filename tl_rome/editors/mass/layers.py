"""The layer loop: what each layer gets, with all lower ones already rewritten.

Of the residual that is left at the highest layer each layer gets a share, by `spread`; what lower layers did not write
is measured anew for the next. What a configuration cuts from the changes (RECT, PRUNE) it cuts when all are found.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.editors.covariance.key_covariance import KeyCovariance
from tl_rome.editors.edits.receipts.batch_receipt import LayerReceipt
from tl_rome.editors.edits.update import DenseUpdate, LowRankUpdate, Update
from tl_rome.editors.edits.written import updates_applied
from tl_rome.editors.mass.closed_form import CovariancePrior, Prior, SubspacePrior, key_directions
from tl_rome.editors.mass.config import MassConfig
from tl_rome.editors.mass.finish import Solved
from tl_rome.editors.mass.shrink.prune import prune
from tl_rome.editors.mass.shrink.rect import rect
from tl_rome.editors.mass.subspace import KeySubspace
from tl_rome.editors.mass.sweeps.protocol import Sweep
from tl_rome.running.arithmetic import in_float64
from tl_rome.running.matrices import MlpMatrix
from tl_rome.running.packed import packed_matrix, read_matrix
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


@dataclass(frozen=True, eq=False)
class _Layer:
    """What was asked of a layer and is written there: left right^T."""

    layer: int
    keys: Float[Tensor, "d_mlp n"]
    asked: Float[Tensor, "d_model n"]
    weight: Float[Tensor, "d_mlp d_model"]
    """W_out before."""
    prior: Prior
    subspace: KeySubspace | None
    left: Float[Tensor, "d_mlp rank"]
    right: Float[Tensor, "d_model rank"]

    def cut(self, config: MassConfig) -> "_Layer":
        """The same with what RECT or PRUNE leave of the finished change."""
        change = self.left @ self.right.T
        if config.rect_share is not None:
            change = rect(self.weight, change, config.rect_share)
        if config.prune_base is not None:
            change = prune(self.weight, change, config.prune_base)
        return replace(self, left=change, right=torch.eye(change.shape[1]).to(change))

    @property
    def update(self) -> Update:
        """As factors where they are smaller; in float32, or float64 for a model that is."""
        dtype = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        d_in, d_out = self.weight.shape
        if self.left.shape[1] * (d_in + d_out) < d_in * d_out:
            return LowRankUpdate(self.layer, self.left.to(dtype).cpu(), self.right.to(dtype).cpu())
        return DenseUpdate(self.layer, (self.left @ self.right.T).to(dtype).cpu())

    def receipt(self, covariance: KeyCovariance) -> LayerReceipt:
        """Its figures, with key statistics of this layer."""
        stored = self.right @ (self.left.T @ self.keys)
        share = (stored * self.asked).sum(0) / self.asked.square().sum(0).clamp(min=1e-300)
        root = covariance.factor(self.keys.device)
        usual = (root.float().T @ self.weight.float()).norm()
        disturbance = float(_norm(root.T @ self.left, self.right) / usual)
        relative = float(_norm(self.left, self.right) / self.weight.double().norm())
        prior = self.prior
        confined = isinstance(prior, SubspacePrior)
        return LayerReceipt(
            layer=self.layer,
            facts=self.keys.shape[1],
            weight=prior.weight / len(root) if isinstance(prior, CovariancePrior) else prior.l2,
            written=float(share.mean()),
            relative=relative,
            disturbance=disturbance,
            rank=prior.basis.shape[1] if confined else None,
            energy=None if self.subspace is None else self.subspace.energy,
            leakage=disturbance**2 if confined else None,
        )


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
        config: Key weighting, spread, and what is cut from the finished changes.
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
    found = list[_Layer]()
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
            before = read_matrix(model, MlpMatrix(layer))[0].detach().clone()
            solved = _Layer(layer, keys, asked, before, prior, subspace, key_directions(prior, keys), asked)
            stack.enter_context(updates_applied(model, [solved.update]))
            sweep.written(layer, _written(model, before, solved.update))
            found.append(solved)
        reached = sweep.final()
    assert wanted is not None
    assert start is not None
    if config.cuts:
        found = [each.cut(config) for each in found]
        with updates_applied(model, [each.update for each in found]):
            reached = sweep.anew()
    left = (wanted - reached).norm(dim=1) / (wanted - start).norm(dim=1).clamp(min=1e-300)
    return Solved(
        tuple(each.update for each in found),
        tuple(each.receipt(covariances[each.layer]) for each in found),
        tuple(left.tolist()),
        {each.layer: each.keys.cpu() for each in found},
    )


def _written(
    model: HookedModel, before: Float[Tensor, "d_mlp d_model"], update: Update
) -> Float[Tensor, "d_mlp d_model"]:
    """What W_out has got of an update: all of it where it is packed and hooks add it, else what its dtype took."""
    if packed_matrix(model, update.place) is not None:
        return update.delta.to(before)
    return update.place.weight(model).detach() - before


def _norm(left: Float[Tensor, "rows n"], right: Float[Tensor, "columns n"]) -> Float[Tensor, ""]:
    """||left right^T||, without that matrix."""
    return ((left.T @ left) * (right.T @ right)).sum().clamp(min=0).sqrt()
