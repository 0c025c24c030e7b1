"""All that decides how a training goes on, in one file that is written whole or not at all."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_rome.editors.trained.log import Validation
from tl_rome.editors.trained.network import EditNetwork
from tl_rome.errors import InputError
from tl_rome.storage.files import load, save
from tl_rome.storage.parts import read_as, reading

_KIND = "training_checkpoint"


class TrainingState:
    """The network with its optimiser, where the training stands, and the best network so far.

    Args:
        network: Trained in place.
        generator: Of all that is drawn in training; its state is part of this one.
    """

    def __init__(self, network: EditNetwork, generator: torch.Generator) -> None:
        self.network, self.generator = network, generator
        self.optimiser = torch.optim.Adam(network.groups())
        self.step = 0
        """Steps of Adam made."""
        self.skipped = 0
        """Edits left out."""
        self.order: list[int] = []
        """Examples that are still to come in this round."""
        self.curve: list[Validation] = []
        """Validations so far."""
        self.best: dict[str, Tensor] = {}
        """State of the network at the best of them."""

    @property
    def parameters(self) -> list[Tensor]:
        """All that is trained, in the optimiser's order."""
        return [parameter for group in self.optimiser.param_groups for parameter in group["params"]]

    @property
    def best_point(self) -> Validation:
        """The validation with the lowest loss, the first of equals."""
        return min(self.curve, key=lambda point: point.loss)

    def note(self, point: Validation) -> None:
        """Add a validation; the network is kept if it is the best."""
        self.curve.append(point)
        if self.best_point is point:
            self.best = {name: value.detach().clone() for name, value in self.network.state_dict().items()}

    def save(self, path: Path, about: Mapping[str, Any]) -> None:
        """Write everything.

        Args:
            path: Replaced.
            about: What the training is of; JSON-serialisable. A checkpoint of anything else is refused later.

        Raises:
            StorageError: If it cannot be written.
        """
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for index, parameter in enumerate(self.parameters):
            moments = self.optimiser.state.get(parameter, {})
            tensors |= {f"adam.{index}.{name}": value for name, value in moments.items()}
        tensors |= {"generator": self.generator.get_state(), "order": torch.tensor(self.order, dtype=torch.int64)}
        header = {
            "about": dict(about),
            "step": self.step,
            "skipped": self.skipped,
            "curve": [asdict(point) for point in self.curve],
        }
        save(path, _KIND, tensors, header)

    def load(self, path: Path, about: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was written.

        Raises:
            StorageError: If the file is damaged or holds something else.
            InputError: If it is of another training: other settings, data, model or seed.
        """
        tensors, header = load(path, _KIND)
        with reading(path, "a checkpoint of a training"):
            found = read_as(dict[str, Any], header["about"], "about")
            step, skipped = read_as(int, header["step"], "step"), read_as(int, header["skipped"], "skipped")
            curve = read_as(tuple[Validation, ...], header["curve"], "curve")
            parts: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}, "adam": {}}
            order, state = tensors.pop("order").tolist(), tensors.pop("generator")
            for name, tensor in tensors.items():
                part, rest = name.split(".", 1)
                parts[part][rest] = tensor
        if other := sorted(name for name in {*found, *about} if found.get(name) != about.get(name)):
            raise InputError(
                f"{path} is the checkpoint of another training: {', '.join(other)} differ; name another file to begin "
                "anew, or give what that training was given"
            )
        with reading(path, "a checkpoint of a training"):
            self.network.load_state_dict(parts["network"])
            for index, parameter in enumerate(self.parameters):
                prefix = f"{index}."
                moments = {n.removeprefix(prefix): t for n, t in parts["adam"].items() if n.startswith(prefix)}
                if moments:
                    step_count = moments.pop("step")
                    self.optimiser.state[parameter] = {
                        "step": step_count,
                        **{name: moment.to(parameter.device) for name, moment in moments.items()},
                    }
            self.generator.set_state(state)
        self.best = {name: value.to(self.network.state_dict()[name].device) for name, value in parts["best"].items()}
        self.step, self.skipped, self.order, self.curve = step, skipped, order, list(curve)


def generator_digest(generator: torch.Generator) -> str:
    """16 hexadecimal digits of what a generator will draw."""
    return hashlib.sha256(generator.get_state().numpy().tobytes()).hexdigest()[:16]
