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

    def __str__(self) -> str:
        lines = [f"{self.prompt!r} -> {self.target_new!r}"]
        lines.append(f"  P({self.target_new!r})  {self.prob_new[0]:.4f} -> {self.prob_new[1]:.4f}")
        if self.prob_true is not None:
            lines.append(f"  P({self.target_true!r})  {self.prob_true[0]:.4f} -> {self.prob_true[1]:.4f}")
        lines += [
            f"  layer {self.layer} ({self.layer_choice}), preset {self.preset!r}, {self.contexts} contexts",
            f"  |dW| / |W| = {self.relative_change:.4f}",
        ]
        if self.covariance is not None:
            lines.append(f"  covariance: {self.covariance}")
            lines.append(f"  divisor k.u = {self.divisor:.3g}, |k*| = {self.key_norm:.3g}")
        lines += [
            f"  loss {self.final_loss:.3f} after {self.evaluations} evaluations, {self.seconds:.1f} s",
        ]
        return "\n".join(lines)
