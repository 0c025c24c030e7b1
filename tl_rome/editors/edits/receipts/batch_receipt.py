"""What an edit of many facts did: figures of each fact and of each layer."""

from dataclasses import dataclass

from tl_rome.editors.edits.receipts.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class FactReceipt:
    """Measured effect of a batch on one of its facts; pairs are before and after the whole batch."""

    prompt: str
    """The rewriting prompt."""
    target_new: str
    """The requested object."""
    target_true: str | None
    """The object before, if it was stated."""
    prob_new: tuple[float, float]
    """Probability of `target_new`, the product over its tokens."""
    prob_true: tuple[float, float] | None
    """Probability of `target_true`."""
    rank_new: tuple[int, int]
    """Place of the first token of `target_new` among all next tokens; 1 is the most likely."""
    rank_true: tuple[int, int] | None
    """The same of `target_true`."""
    verdict: Verdict
    """Whether the edit took, see `verdict`."""
    preferred: bool
    """Whether `target_new` is more likely than `target_true` afterwards; of rank 1, where no true one is stated."""
    said: bool
    """Whether greedy continuation of the prompt begins with `target_new` afterwards."""
    said_again: bool | None
    """Whether it does so after another text; None if it did not fit the context."""
    evaluations: int
    """Loss evaluations that its value took."""
    final_loss: float
    """Loss at the last of them, in nats."""
    residual_left: float
    """||z - h|| after the batch over that before: 0 if the value was stored whole, 1 if nothing was."""
    warnings: tuple[str, ...] = ()
    """What suggests that it did not take, or why its key is unlike others; empty for a sound one."""


@dataclass(frozen=True, kw_only=True)
class LayerReceipt:
    """What a batch wrote into W_out of one layer."""

    layer: int
    """Block index."""
    facts: int
    """Columns of K: facts, or subjects where theirs are merged."""
    weight: float
    """lambda / d_mlp, which compares across models; L2 where there is a subspace."""
    written: float
    """Mean over facts of the share of what was asked of this layer that it stores: (Delta k) . r / r . r."""
    relative: float
    """||Delta|| / ||W_out||, Frobenius norms."""
    disturbance: float
    """Root mean square of what is added to the layer's output on the text behind C, over that of k W_out."""
    rank: int | None = None
    """Dimensions of the subspace that Delta is confined to; None without one."""
    energy: float | None = None
    """Share of tr C in that subspace."""
    leakage: float | None = None
    """tr(Delta C Delta^T) / tr(W C W^T), the square of `disturbance`; reported where there is a subspace."""


@dataclass(frozen=True, kw_only=True)
class BatchReceipt:
    """Measured effect and size of one edit of many facts."""

    facts: tuple[FactReceipt, ...]
    """One for each request, in order."""
    layers: tuple[LayerReceipt, ...]
    """One for each edited layer, lowest first."""
    preset: str
    """Settings that were followed."""
    departures: str
    """Settings that are not those of the preset."""
    layer_choice: str
    """Why these layers."""
    contexts: int
    """Prefixes averaged over, the empty one included."""
    contexts_choice: str
    """How the prefixes were chosen."""
    covariance: str
    """Where the key statistics came from, and of how many tokens."""
    earlier: int
    """Facts in the key memory before this batch."""
    text_nll: tuple[float, float]
    """Negative log-likelihood of a token of a few plain sentences before and after, in nats."""
    text_entropy: tuple[float, float]
    """Entropy of the next token in those sentences before and after, in nats."""
    seconds: float
    """Wall-clock time of the batch, without statistics and contexts."""
    runs_as_hooks: str | None = None
    """As in `Receipt`."""
    warnings: tuple[str, ...] = ()
    """What concerns the batch as a whole; those of facts are theirs."""

    @property
    def verdict(self) -> Verdict:
        """That of all facts together: "partly" unless all of them have the same."""
        first = self.facts[0].verdict
        return first if all(fact.verdict == first for fact in self.facts) else "partly"

    @property
    def took(self) -> int:
        """Facts that took."""
        return sum(fact.verdict == "took" for fact in self.facts)

    @property
    def title(self) -> str:
        """What was asked for, in one line."""
        if len(self.facts) == 1:
            return f"Edit of {self.facts[0].prompt!r} to {self.facts[0].target_new!r}"
        return f"Edit of {len(self.facts)} facts"

    def rows(self) -> list[tuple[str, str]]:
        """Name and figures of everything worth reading at a glance; warnings come last."""
        count = len(self.facts)
        before, after = (sum(fact.prob_new[i] for fact in self.facts) / count for i in (0, 1))
        left = sum(fact.residual_left for fact in self.facts) / count
        departures = f" with {self.departures}" if self.departures else ""
        rows = [
            ("verdict", f"{self.took} of {count} took"),
            ("mean P(new)", f"{before:.4f} → {after:.4f}"),
            ("residual left", f"{left:.3f} of what the values ask for"),
            ("layers", f"{', '.join(str(each.layer) for each in self.layers)} ({self.layer_choice})"),
            ("preset", self.preset + departures),
            ("contexts", f"{self.contexts} ({self.contexts_choice})"),
            ("covariance", self.covariance),
            ("earlier facts", str(self.earlier)),
        ]
        for each in self.layers:
            leakage = "" if each.leakage is None else f", {each.rank} dimensions, leakage {each.leakage:.2g}"
            figures = f"written {each.written:.2f}, |dW|/|W| {each.relative:.3f}, disturbance {each.disturbance:.1%}"
            rows.append((f"layer {each.layer}", f"weight {each.weight:.3g}, {figures}{leakage}"))
        rows.append(("plain text NLL", f"{self.text_nll[0]:.3f} → {self.text_nll[1]:.3f}"))
        rows.append(("seconds", f"{self.seconds:.1f}"))
        rows += [] if self.runs_as_hooks is None else [("runs as hooks", self.runs_as_hooks)]
        rows += [("WARNING", warning) for warning in self.warnings]
        failed = [f"{fact.prompt!r} → {fact.target_new!r}" for fact in self.facts if fact.verdict == "did not take"]
        if failed:
            rows.append(("WARNING", f"did not take: {', '.join(failed[:5])}{' ...' * (len(failed) > 5)}"))
        return rows

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join([self.title, *(f"  {name:{width}}  {figures}" for name, figures in rows)])
