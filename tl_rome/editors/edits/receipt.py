"""What an edit did, in figures that fit on one screen."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """Measured effect and size of one edit."""

    prompt: str
    """The rewriting prompt."""
    target_new: str
    """The requested object."""
    target_true: str | None
    """The object before, if it was stated."""
    prob_new: tuple[float, float]
    """Probability of `target_new` (eq. 5) before and after."""
    prob_true: tuple[float, float] | None
    """Probability of `target_true` before and after."""
    preset: str
    """Settings that were followed."""
    layer: int
    """Layer whose W_out changed."""
    layer_choice: str
    """Why this layer."""
    contexts: int
    """Prefixes averaged over, the empty one included."""
    covariance: str | None
    """Where the key statistics came from, and of how many tokens; None for an editor that uses none."""
    relative_change: float
    """||delta W|| / ||W||, Frobenius norms."""
    divisor: float | None
    """k . u with u of unit norm: what v* - W k is divided by; a small one makes a large, damaging edit."""
    key_norm: float | None
    """||k*||, None where no key is used."""
    evaluations: int
    """Loss evaluations that v* took."""
    final_loss: float
    """Loss at the last of them, in nats."""
    seconds: float
    """Wall-clock time of the edit, without covariance and contexts."""

    rank_new: tuple[int, int] | None = None
    """Place of the first token of `target_new` among all next tokens, before and after; 1 is the most likely."""
    rank_true: tuple[int, int] | None = None
    """The same of `target_true`."""
    contexts_choice: str = "given"
    """How the prefixes were chosen."""
    divisor_ratio: float | None = None
    """Divisor over the one that C predicts, k* C^-1 k* / ||C^-1 k*||; 1 where one key is used in both places."""
    disturbance: float | None = None
    """Root mean square of what the edit adds to the MLP output on the text behind C, over that of the output."""
    text_nll: tuple[float, float] | None = None
    """Negative log-likelihood of a token of a few plain sentences before and after, in nats."""
    text_entropy: tuple[float, float] | None = None
    """Entropy of the next token in those sentences before and after, in nats."""
    losses: tuple[float, ...] = ()
    """The loss at each evaluation, in nats."""
    departures: str = ""
    """Settings that are not those of the preset."""
    warnings: tuple[str, ...] = ()
    """What suggests that the edit does damage, see `safety`; empty for a sound one."""

    def __str__(self) -> str:
        lines = [f"{self.prompt!r} -> {self.target_new!r}"]
        lines.append(_target_line(self.target_new, self.prob_new, self.rank_new))
        departures = f" with {self.departures}" if self.departures else ""
        if self.prob_true is not None and self.target_true is not None:
            lines.append(_target_line(self.target_true, self.prob_true, self.rank_true))
        lines.append(f"  layer {self.layer} ({self.layer_choice}), preset {self.preset!r}{departures}")
        lines.append(f"  {self.contexts} contexts ({self.contexts_choice})")
        if self.covariance is not None:
            lines.append(f"  covariance: {self.covariance}")
            lines.append(f"  divisor k.u = {self.divisor:.3g}, |k*| = {self.key_norm:.3g}")
        lines.append(f"  |dW| / |W| = {self.relative_change:.4f}")
        if self.disturbance is not None:
            lines.append(f"  change of the layer's output on ordinary text: {self.disturbance:.1%}")
        lines.append(f"  loss {self.final_loss:.3f} after {self.evaluations} evaluations, {self.seconds:.1f} s")
        return "\n".join(lines + [f"  WARNING: {warning}" for warning in self.warnings])


def _target_line(target: str, prob: tuple[float, float], rank: tuple[int, int] | None) -> str:
    places = "" if rank is None else f", rank {rank[0]} -> {rank[1]}"
    return f"  P({target!r})  {prob[0]:.4f} -> {prob[1]:.4f}{places}"
