"""Going on from the weights of another training, with new classes where they differ."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scripts.core.errors import SettingsError
from scripts.core.ranks import is_first_rank
from scripts.core.sums import check_sum
from scripts.core.tasks import get_task
from scripts.datalists.labels import output_names, with_positive_classes
from scripts.networks.bag_network import BagNetwork
from scripts.networks.state_record import weights_sha256
from scripts.weights.paths import serving_weights
from scripts.weights.record import DEMONSTRATION, is_demonstration, read_record, read_signed, record_problem

__all__ = ["Pretrained", "read_pretrained"]

OF_CLASSES = ("task", "class_names", "positive_classes")
"""What decides the meaning of scores, and may differ: classes are taken by their names."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretrained:
    """Weights from which a training starts.

    Args:
        path: their file.
        state: their state dict.
        record: of their training, as :func:`scripts.weights.record.read_record` gives it.
        before: the classes of their logits, in order.
        now: the classes of the new training's logits, in order.
    """

    path: Path
    state: Mapping[str, Tensor]
    record: Mapping[str, Any]
    before: tuple[str, ...]
    now: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """The checksum of their tensors, as evaluations store it."""
        return weights_sha256(self.state)

    @property
    def classes(self) -> dict[str, list[str]]:
        """The names of the classes that are ``taken``, those that are ``new``, and those that are ``dropped``."""
        return {
            "taken": [name for name in self.now if name in self.before],
            "new": [name for name in self.now if name not in self.before],
            "dropped": [name for name in self.before if name not in self.now],
        }

    @property
    def stored(self) -> dict[str, Any]:
        """What the new training's record stores of them: their record, checksum and classes."""
        return {**self.record, "weights_sha256": self.sha256, "classes": self.classes}

    def load_into(self, network: BagNetwork) -> None:
        """Start a network from them, in place, and log what was taken.

        What classes share is taken as it is: instance layers, V of the attention. So are, of each class of the same
        name, its attention, its row of the classifier, and in that row the parts of the classes that are taken. The
        part of a new class's attention in the row of a class that is taken is 0: where no class is dropped, the logits
        of these are at first what they were. All else of a new class stays as the network has it.

        Raises:
            SettingsError: if a tensor does not fit. The network is then as it was.
        """
        own = {key: value.cpu().clone() for key, value in network.state_dict().items()}
        axes, sizes = network.class_axes(), (len(self.now), len(self.before))
        for key in sorted(own.keys() | self.state.keys()):
            wanted = _shape(own, key, sizes, axes.get(key, ()))
            if (found := _shape(self.state, key)) != wanted:
                cause = f"does not fit the network: {key} is {found} in the file, and should be {wanted}"
                raise SettingsError(
                    self.path, cause, "Name weights that `training` wrote with the settings of this one."
                )
            if key in axes:
                self._take_classes(own[key], self.state[key], axes[key])
            else:
                own[key].copy_(self.state[key])
        network.load_state_dict(own)
        if is_first_rank():
            words = (f"{what} {', '.join(names) or 'none'}" for what, names in self.classes.items())
            logger.info(
                "starts from the weights in %s (SHA-256 %s...): the layers that classes share; classes %s",
                self.path,
                self.sha256[:12],
                "; ".join(words),
            )

    def _take_classes(self, own: Tensor, other: Tensor, axes: tuple[int, ...]) -> None:
        """Write what ``other`` has of the classes that are taken into ``own``."""
        taken = [(self.now.index(name), self.before.index(name)) for name in self.classes["taken"]]
        rows, given = own.unflatten(0, (len(self.now), -1)), other.unflatten(0, (len(self.before), -1))
        if axes == (0,):
            for new, old in taken:
                rows[new] = given[old]
            return
        # [K, 1, K (of the attention), width]
        rows, given = rows.unflatten(2, (len(self.now), -1)), given.unflatten(2, (len(self.before), -1))
        for new, old in taken:
            rows[new] = 0.0
            for new_part, old_part in taken:
                rows[new, :, new_part] = given[old, :, old_part]


def read_pretrained(path: str | Path, settings: Mapping[str, Any], class_names: Sequence[str]) -> Pretrained:
    """Read the weights from which a training is to start.

    Args:
        path: a folder of weights, of which the file that predicts is taken; or one file.
        settings: what the new training's record stores (:func:`scripts.weights.record.recorded_settings`). Tasks and
            classes may differ from theirs; of the rest, what decides the meaning of features and scores may not.
        class_names: the classes that the heads of the new training predict, in order.

    Raises:
        SettingsError: if there are none, they are damaged or have no record, are of another method, encoder or
            magnifications, or of ordered classes in another order.
    """
    file = _file_of(Path(path))
    check_sum(file)
    state, record, _ = read_signed(file)
    if "members" in record:
        raise SettingsError(file, "is an ensemble", "Name the weights of one of its members as `pretrained`.")
    problem = record_problem(record, {key: value for key, value in settings.items() if key not in OF_CLASSES})
    if problem is not None:
        remedy = "Train with these settings, or name other weights as `pretrained`."
        raise SettingsError(file, f"cannot be gone on from: {problem}", remedy)
    if is_demonstration(record):
        logger.warning("%s: %s", file, DEMONSTRATION)
    own = with_positive_classes(record["settings"])
    before = output_names(own["task"], own["class_names"], own["positive_classes"])
    # What is above a class has the same name whatever that is.
    both = [[name for name in of if name in before and name in class_names] for of in (before, class_names)]
    if own["task"] == settings["task"] == "ordinal" and both[0] != both[1]:
        cause = f"cannot be gone on from: its classes are in the order {', '.join(both[0])}, now {', '.join(both[1])}"
        raise SettingsError(file, cause, "Give `class_names` in that order, or name other weights as `pretrained`.")
    names = [get_task(task).logit_names(of) for task, of in ((own["task"], before), (settings["task"], class_names))]
    return Pretrained(file, state, record, *map(tuple, names))


def _file_of(path: Path) -> Path:
    if not path.exists():
        raise SettingsError(f"pretrained {path}", "there is no such folder or file", "Check the path.")
    if not path.is_dir():
        return path
    files = sorted(path.glob("model*.pt"), key=lambda file: (len(file.name), file.name))
    if not files:
        remedy = "Name a folder into which `training` wrote weights, or one file of weights."
        raise SettingsError(f"pretrained {path}", "the folder contains no weights", remedy)
    own = read_record(files[0])["settings"]
    served = serving_weights(path, own["method"], own["magnifications"])
    if not served.is_file():
        cause = f"contains no {served.name}, the file of this training that has the weights of all heads"
        raise SettingsError(f"pretrained {path}", cause, "Name one file of weights.")
    return served


def _shape(state: Mapping[str, Tensor], key: str, classes: tuple[int, int] = (1, 1), axes: tuple[int, ...] = ()) -> str:
    """The shape of a tensor in words; along the axes that have a part for each class, of the other side's classes."""
    if key not in state:
        return "absent"
    own, other = classes
    sizes = (size // own * other if axis in axes else size for axis, size in enumerate(state[key].shape))
    return "x".join(map(str, sizes)) or "a scalar"
