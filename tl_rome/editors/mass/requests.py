"""The facts of a batch, looked at before any work: duplicates, contradictions, and several facts of one subject.

Facts of one subject have nearly equal keys and different values, and no linear map serves both: each ends half written
(MEMIT-Merge, arXiv 2502.07322). They are named in a warning, or merged: one delta for all of them.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.editors.covariance.key_covariance import KeyCovariance
from tl_rome.errors import InputError
from tl_rome.facts import EditRequest, Fact, check_requests

ALIKE = 0.95
"""Cosine of two keys, whitened by C, from which on they are hardly two."""
_SHOWN = 5


def check_batch(requests: Sequence[EditRequest]) -> None:
    """Refuse an empty batch, and one that asks twice, or for two answers, to one prompt.

    Raises:
        InputError: If it is one of those; names the requests.
    """
    check_requests(requests)
    if not requests:
        raise InputError("no requests; give at least one fact to write")
    seen: dict[str, EditRequest] = {}
    for request in requests:
        prompt = request.fact.prompt
        other = seen.get(prompt)
        seen[prompt] = request
        if other is None:
            continue
        if other.target_new.strip() != request.target_new.strip():
            raise InputError(
                f"two requests contradict each other: {prompt!r} -> {other.target_new!r} and "
                f"-> {request.target_new!r}; leave one of them out"
            )
        raise InputError(f"the request {prompt!r} -> {request.target_new!r} occurs twice; leave one of them out")


def check_each(requests: Sequence[EditRequest], make: Callable[[Fact], object]) -> None:
    """Refuse requests whose facts cannot be made into what is asked, all of them at once.

    Args:
        requests: Those of a batch.
        make: Raises InputError where it cannot.

    Raises:
        InputError: The first that was raised, with the number of the others and the first of their prompts.
    """
    failed: list[tuple[str, InputError]] = []
    for request in requests:
        try:
            make(request.fact)
        except InputError as error:
            failed.append((request.fact.prompt, error))
    if not failed:
        return
    (_, first), *others = failed
    if not others:
        raise first
    names = ", ".join(repr(prompt) for prompt, _ in others[:_SHOWN])
    more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    of = f"{len(failed)} of {len(requests)} requests"
    raise type(first)(f"{of} cannot be written; the first: {first}; the others: {names}{more}") from first


def fact_groups(requests: Sequence[EditRequest], merge: bool) -> list[tuple[int, ...]]:
    """Indices of the requests that get one value each: every one its own, or those of one subject together."""
    if not merge:
        return [(index,) for index in range(len(requests))]
    return list(_by_subject(requests).values())


def shared_subject_warning(requests: Sequence[EditRequest]) -> str | None:
    """Which subjects have several facts, in words; None if each has one."""
    several = {subject: len(found) for subject, found in _by_subject(requests).items() if len(found) > 1}
    if not several:
        return None
    names = ", ".join(f"{subject!r} ({count})" for subject, count in list(several.items())[:_SHOWN])
    more = f" and {len(several) - _SHOWN} more" if len(several) > _SHOWN else ""
    return (
        f"several facts of one subject share a key and end half written: {names}{more}; "
        "use merge_subjects=True, or write them in separate batches"
    )


def alike_warning(
    requests: Sequence[EditRequest], covariance: KeyCovariance, keys: Float[Tensor, "d_mlp n"]
) -> str | None:
    """Which facts of different subjects have nearly one key, cos(C^-1/2 k_a, C^-1/2 k_b), in words; None if none has.

    Args:
        requests: One for each column.
        covariance: C of the layer.
        keys: Of that layer.
    """
    whitened = torch.linalg.solve_triangular(covariance.factor(keys.device), keys, upper=False)
    whitened = whitened / whitened.norm(dim=0).clamp(min=1e-300)
    pairs = ((whitened.T @ whitened).triu(1) > ALIKE).nonzero().tolist()
    named = [(requests[one], requests[other]) for one, other in pairs]
    named = [(one, other) for one, other in named if one.subject != other.subject]
    if not named:
        return None
    shown = "; ".join(f"{one.fact.prompt!r} and {other.fact.prompt!r}" for one, other in named[:_SHOWN])
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    return f"facts with nearly one key end half written: {shown}{more}; write them in separate batches"


def _by_subject(requests: Sequence[EditRequest]) -> dict[str, tuple[int, ...]]:
    groups: dict[str, tuple[int, ...]] = {}
    for index, request in enumerate(requests):
        groups[request.subject] = (*groups.get(request.subject, ()), index)
    return groups
