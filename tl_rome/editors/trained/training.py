"""The outer loop: a network learns to make edits that take and leave other text alone (Mitchell et al. 2022, sec. 3).

At each step a batch of facts is edited, each in a model of its own, and one step of Adam lowers the mean of

    edit_weight * l_edit + locality_weight * l_loc

see `passes.outer`. Running statistics see a step's gradients before they are transformed; the released code does the
same fact by fact. Facts are drawn without replacement, round by round, locality texts with replacement. A fact whose
loss or gradient is not finite is left out and counted. Dropout is off; the released code has it at 0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_rome.editors.trained.config import TrainingConfig
from tl_rome.editors.trained.log import TrainingLog, Validation
from tl_rome.editors.trained.network import EditNetwork
from tl_rome.editors.trained.passes.inner import inner_gradients
from tl_rome.editors.trained.passes.outer import EditedModels
from tl_rome.editors.trained.passes.products import OuterProducts
from tl_rome.editors.trained.passes.streams import Streams
from tl_rome.editors.trained.passes.texts import TargetText
from tl_rome.editors.trained.passes.upper import UpperBlocks
from tl_rome.editors.trained.state import TrainingState
from tl_rome.errors import NumericsError
from tl_rome.running.matrices import MlpMatrix


@dataclass(frozen=True, eq=False)
class Lessons:
    """Texts that a network learns from, or is validated on: facts, and text that edits should leave alone."""

    inner: Sequence[TargetText]
    """What is edited."""
    outer: Sequence[TargetText]
    """By what each edit is judged."""
    locality: Sequence[Int[Tensor, " _"]]
    """Unrelated texts."""


_Drawn = tuple[int, int, Tensor]
"""A fact, a locality text, and the positions at which that is compared."""


class _Classroom:
    """Lessons, and what a network makes of them."""

    def __init__(self, upper: UpperBlocks, matrices: Sequence[MlpMatrix], network: EditNetwork, lessons: Lessons):
        self.upper, self.matrices, self.network, self.lessons = upper, matrices, network, lessons
        self._facts = Streams(upper, [text.read for text in (*lessons.inner, *lessons.outer)])
        self._locality = Streams(upper, lessons.locality)

    def gradients(self, facts: Sequence[int]) -> tuple[list[OuterProducts], list[int]]:
        """Inner gradients, and the places among the facts of those that are finite; the others are left out."""
        texts = [self.lessons.inner[fact] for fact in facts]
        gradients, losses = inner_gradients(self.upper, self.matrices, texts, self._facts(facts))
        finite = losses.isfinite()
        for gradient in gradients:
            finite &= gradient.finite(len(facts))
        good = finite.nonzero()[:, 0].tolist()
        return [gradient.select(good) for gradient in gradients], good

    def losses(
        self, drawn: Sequence[_Drawn], gradients: Sequence[OuterProducts]
    ) -> tuple[Float[Tensor, " edits"], Float[Tensor, " edits"], list[bool]]:
        """l_edit and l_loc of each edit, and whether its target is the most likely."""
        facts, texts, positions = zip(*drawn, strict=True)
        changes = self.network(gradients, [self.lessons.inner[fact].whole for fact in facts])
        models = EditedModels(self.upper, self.matrices, changes, len(facts))
        streams = self._facts([len(self.lessons.inner) + fact for fact in facts])
        edit, hit = models.edit_losses([self.lessons.outer[fact] for fact in facts], streams)
        return edit, models.locality_losses(self._locality(texts), positions), hit


class Training:
    """One training of one network; `run` it once.

    Args:
        upper: The blocks that have the matrices, of a model that is borrowed for gradients.
        matrices: What is edited.
        network: Trained in place.
        lessons: To learn from.
        validation: To choose the best network by; a fixed locality text goes with each fact.
        config: Settings.
        generator: Draws the order of facts, locality texts and positions.
    """

    def __init__(
        self,
        upper: UpperBlocks,
        matrices: Sequence[MlpMatrix],
        network: EditNetwork,
        lessons: Lessons,
        validation: Lessons,
        config: TrainingConfig,
        generator: torch.Generator,
    ) -> None:
        self.config, self.network = config, network
        self._learn = _Classroom(upper, matrices, network, lessons)
        self._check = _Classroom(upper, matrices, network, validation)
        self.state = TrainingState(network, generator)

    def run(self, *, about: Mapping[str, Any], checkpoint: Path | None, progress: bool) -> TrainingLog:
        """Train to the end, and leave the network in its best state.

        Args:
            about: What the training is of, see `TrainingState.save`.
            checkpoint: Gone on from if it is there, written at every validation.
            progress: Whether to show a progress bar over steps.

        Raises:
            NumericsError: If no edit of a whole step has a finite gradient.
            StorageError: If the checkpoint is damaged or cannot be written.
            InputError: If it is of another training.
        """
        state, config = self.state, self.config
        if checkpoint is not None and checkpoint.exists():
            state.load(checkpoint, about)
        else:
            self._warm_up()
            if not self._validate():
                raise NumericsError("the untrained network's edits have losses that are not finite; lower start_rate")
        ended = self._ended()
        with tqdm(
            total=config.max_steps, initial=state.step, desc=config.preset, unit="step", disable=not progress
        ) as bar:
            while ended is None:
                self._step()
                bar.update()
                ended = self._ended()
                if ended is None and state.step % config.validate_every:
                    continue
                if not self._validate():
                    ended = f"the validation at step {state.step} was not finite"
                    break
                ended = self._ended()
                bar.set_postfix({"loss": f"{state.curve[-1].loss:.3f}", "best": f"{state.best_point.loss:.3f}"})
                if checkpoint is not None:
                    state.save(checkpoint, about)
        self.network.load_state_dict(state.best)
        return TrainingLog(
            state.step, state.best_point.step, state.skipped, ended, tuple(state.curve), dict(about["data"])
        )

    def _ended(self) -> str | None:
        """Why there is no further step, None if there is one."""
        state, config = self.state, self.config
        if state.step >= config.max_steps:
            return "all steps were made"
        if state.step - state.best_point.step >= config.patience:
            return f"no better validation in {config.patience} steps"
        return None

    def _warm_up(self) -> None:
        """Let the running statistics see some edits, so that there are any to validate with."""
        facts = range(min(self.config.warm_up, len(self._learn.lessons.inner)))
        for first in range(0, len(facts), self.config.batch_size):
            self.network.count(self._learn.gradients(facts[first : first + self.config.batch_size])[0])

    def _draw(self) -> list[_Drawn]:
        """The facts of the next step, with what goes with them."""
        state, lessons = self.state, self._learn.lessons
        while len(state.order) < self.config.batch_size:
            state.order += torch.randperm(len(lessons.inner), generator=state.generator).tolist()
        facts, state.order = state.order[: self.config.batch_size], state.order[self.config.batch_size :]
        texts = torch.randint(len(lessons.locality), (len(facts),), generator=state.generator).tolist()
        positions = [self._positions(len(lessons.locality[text])) for text in texts]
        return list(zip(facts, texts, positions, strict=True))

    def _positions(self, length: int) -> Int[Tensor, " chosen"]:
        most = self.config.locality_positions
        if most is None or most >= length:
            return torch.arange(length)
        return torch.randperm(length, generator=self.state.generator)[:most].sort().values

    def _step(self) -> None:
        """Draw a batch, average its gradients, move the parameters."""
        state, drawn = self.state, self._draw()
        gradients, good = self._learn.gradients([fact for fact, _, _ in drawn])
        self.network.count(gradients)
        state.optimiser.zero_grad()
        used = self._accumulate([drawn[place] for place in good], gradients) if good else 0
        state.skipped += len(drawn) - used
        if used == 0:
            raise NumericsError(
                f"none of the {len(drawn)} edits of step {state.step} has a finite loss and gradient; look for "
                "texts that the model cannot read, or lower the learning rates"
            )
        torch.nn.utils.clip_grad_norm_(state.parameters, self.config.clip)
        state.optimiser.step()
        state.step += 1

    def _accumulate(self, drawn: Sequence[_Drawn], gradients: Sequence[OuterProducts]) -> int:
        """Add the share of some edits to the gradient; what is not finite is looked for by halves.

        Returns:
            How many of them were used.
        """
        edit, locality, _ = self._learn.losses(drawn, gradients)
        loss = self._loss(edit, locality).sum() / self.config.batch_size
        found = torch.autograd.grad(loss, self.state.parameters, allow_unused=True)
        if all(bool(part.isfinite().all()) for part in (loss, *found) if part is not None):
            for parameter, part in zip(self.state.parameters, found, strict=True):
                if part is not None:
                    parameter.grad = part if parameter.grad is None else parameter.grad + part
            return len(drawn)
        middle = len(drawn) // 2
        halves = [range(middle), range(middle, len(drawn))] if middle else []
        return sum(
            self._accumulate([drawn[edit] for edit in half], [gradient.select(half) for gradient in gradients])
            for half in halves
        )

    def _loss(self, edit: Float[Tensor, " edits"], locality: Float[Tensor, " edits"]) -> Float[Tensor, " edits"]:
        return self.config.edit_weight * edit + self.config.locality_weight * locality

    @torch.no_grad()
    def _validate(self) -> bool:
        """Note how the network does on facts that it is not trained on; nothing is counted or drawn.

        Returns:
            Whether the losses are finite.
        """
        lessons, size = self._check.lessons, self.config.batch_size
        facts, edits, localities, hits = range(len(lessons.inner)), list[Tensor](), list[Tensor](), list[bool]()
        for first in range(0, len(facts), size):
            gradients, good = self._check.gradients(facts[first : first + size])
            if not good:
                return False
            texts = [(first + place) % len(lessons.locality) for place in good]
            positions = [torch.arange(len(lessons.locality[text])) for text in texts]
            drawn = list(zip((first + place for place in good), texts, positions, strict=True))
            edit, locality, hit = self._check.losses(drawn, gradients)
            edits, localities, hits = [*edits, edit.double()], [*localities, locality.double()], [*hits, *hit]
        edit, locality = torch.cat(edits), torch.cat(localities)
        loss, share = self._loss(edit, locality).mean().item(), sum(hits) / len(hits)
        if not math.isfinite(loss):
            return False
        self.state.note(Validation(self.state.step, edit.mean().item(), locality.mean().item(), share, loss))
        return True
