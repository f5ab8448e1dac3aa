"""What train.json wires together, on random features, for tests that need a whole training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import PrepareBatchExtraInput, SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler

from scripts.evaluation.metrics import head_metrics, key_metric, lower_is_better
from scripts.networks.methods import get_loss, get_network, trained_heads
from scripts.training.best_weights import BestWeights
from scripts.training.datasets import pad_bags
from scripts.training.phases import PhaseScores, TrainingPhases
from scripts.training.resuming import LastCheckpoint, Resume
from scripts.training.sampler import BalancedSampler

MAGNIFICATIONS = (5, 10)
NUM_FEATURES = 6


def random_bags(num_bags: int, seed: int) -> list[dict[str, Any]]:
    """Bags of 2 scales and 6 features, of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "image": torch.randn(3 + i % 4, 2, NUM_FEATURES, generator=generator),
            "log_weight": torch.zeros(3 + i % 4, 2),
            "label": torch.tensor([float(i % 2), float(i % 3 == 0)]),
            "slide": f"s{i}",
        }
        for i in range(num_bags)
    ]


class Training:
    """A training of a method, and its validation."""

    def __init__(
        self,
        folder: Path,
        epochs: int,
        resume: bool = False,
        extra_handlers: Sequence[Any] = (),
        num_bags: int = 8,
        num_nodes: int = 4,
        method: str = "mustmil",
        lr: float = 0.01,
    ) -> None:
        torch.manual_seed(0)
        self.folder, self.heads = folder, trained_heads(method, MAGNIFICATIONS)
        self.network = get_network(method, num_classes=2, num_scales=2, num_features=NUM_FEATURES, num_nodes=num_nodes)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=lr, weight_decay=1e-4)
        self.best = BestWeights(folder, self.network, self.heads)
        self.phases = TrainingPhases(
            self.network, self.heads, epochs, self.best, folder / "training.json", {"method": method}
        )
        bags, prepare = random_bags(num_bags, seed=1), PrepareBatchExtraInput({"log_weight": "log_weight"})
        self.validations: list[dict[str, float]] = []
        evaluator = SupervisedEvaluator(
            device="cpu",  # type: ignore[arg-type]
            val_data_loader=DataLoader(Dataset(random_bags(5, seed=2)), batch_size=1, collate_fn=pad_bags),
            network=self.network,
            prepare_batch=prepare,
            key_val_metric=key_metric(self.heads, "multilabel"),
            additional_metrics=head_metrics(self.heads, "multilabel"),
            metric_cmp_fn=lower_is_better,
            val_handlers=[PhaseScores(self.network, self.heads), self.best],
        )
        evaluator.add_event_handler(
            Events.EPOCH_COMPLETED, lambda engine: self.validations.append(dict(engine.state.metrics))
        )
        self.objects = objects = {
            "model": self.network,
            "optimizer": self.optimizer,
            "best": self.best,
            "phases": self.phases,
        }
        self.trainer = SupervisedTrainer(
            device="cpu",  # type: ignore[arg-type]
            max_epochs=epochs * len(self.network.phases),
            train_data_loader=DataLoader(
                Dataset(bags), batch_size=1, sampler=BalancedSampler(bags, bags, seed=3), collate_fn=pad_bags
            ),
            network=self.network,
            optimizer=self.optimizer,
            loss_function=get_loss(method, self.network),
            prepare_batch=prepare,
            train_handlers=[
                Resume(folder / "last.ckpt", objects, resume),
                ValidationHandler(interval=1, validator=evaluator),
                self.phases,
                LastCheckpoint(folder / "last.ckpt", objects),
                *extra_handlers,
            ],
        )

    def run(self) -> Training:
        self.trainer.run()
        return self


def checkpoint(folder: Path, name: str = "last.ckpt") -> dict[str, Any]:
    """A checkpoint, read so that no code can hide in it."""
    content: dict[str, Any] = torch.load(folder / name, weights_only=True)
    return content


def same(a: Any, b: Any) -> bool:
    """Whether two checkpoints are equal to the last bit."""
    return next(differences(a, b), None) is None


def differences(a: Any, b: Any, place: str = "") -> Iterator[str]:
    """Where two checkpoints are not equal to the last bit, and by how much tensors differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            inside = f"{place}/{key}"
            if key in a and key in b:
                yield from differences(a[key], b[key], inside)
            else:
                yield f"{inside}: in one of them only"
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for number, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from differences(one, other, f"{place}/{number}")
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.shape != b.shape:
            yield f"{place}: shapes {list(a.shape)}, {list(b.shape)}"
        elif not torch.equal(a, b):
            yield f"{place}: by {(a.double() - b.double()).abs().max():.3g} of {a.double().abs().max():.3g}"
    elif not bool(a == b):
        yield f"{place}: {str(a)[:100]}, {str(b)[:100]}"


class Interrupt:
    """Kills the training in the middle of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if engine.state.epoch == self.epoch and engine.state.iteration % 8 == 5:
            raise KeyboardInterrupt
