"""The key statistics that `--covariance` names."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tl_rome.errors import InputError

if TYPE_CHECKING:
    from tl_rome.editors import KeyCovariance
    from tl_rome.editors.layers import LayerFinder
    from tl_rome.sites import HookedModel


@dataclass(frozen=True)
class Statistics:
    """What `--covariance` names: key statistics of one layer, or a folder with those of several."""

    files: "Mapping[int, KeyCovariance]"
    """By layer; empty where nothing is named."""
    folder: bool
    """Whether they come from a folder."""
    location: str | None

    @classmethod
    def read(cls, location: str | None) -> "Statistics":
        """Read a file, a folder's files, or nothing.

        Raises:
            StorageError: If a file is not one of key statistics, or cannot be fetched.
            InputError: If the folder has no file of `tl-rome covariance`, or two of one layer.
        """
        from tl_rome.editors import KeyCovariance

        if location is None:
            return cls({}, False, None)
        if not Path(location).is_dir():
            found = KeyCovariance.load(location)
            return cls({found.layer: found}, False, location)
        read = [KeyCovariance.load(file) for file in sorted(Path(location).glob("*.safetensors"))]
        files = {each.layer: each for each in read}
        if not files or len(files) < len(read):
            raise InputError(
                f"{location} has {len(read)} files of key statistics, of {len(files)} layers; give one each"
            )
        return cls(files, True, location)

    def check(self, *, rome: bool, mass: bool) -> None:
        """Refuse a file for editors of several layers.

        Raises:
            InputError: If it is one, and there are no others.
        """
        if mass and not rome and not self.folder:
            raise InputError(
                f"{self.location} has statistics of one layer, and mass editors need those of all that they edit; "
                "give the folder that `tl-rome covariance --layers 3-7` writes"
            )

    @property
    def of_several(self) -> "Mapping[int, KeyCovariance] | None":
        """For mass editors; None where they take their own."""
        return self.files if self.folder else None

    def of_one(self, model: "HookedModel", layer: "int | LayerFinder | None") -> "KeyCovariance | None":
        """For ROME: the only file, or that of the layer which it edits; None where it takes its own.

        Raises:
            InputError: If the folder has none of that layer.
        """
        from tl_rome.editors.layers import choose_layer

        if not self.folder:
            return next(iter(self.files.values()), None)
        chosen, _ = choose_layer(model, layer)
        if chosen not in self.files:
            have = ", ".join(map(str, self.files))
            raise InputError(f"{self.location} has no statistics of layer {chosen} (only of {have}); give --layer")
        return self.files[chosen]
