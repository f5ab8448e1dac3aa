"""The record of a training: what its weights, its checkpoints and ``training.json`` store of how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts import __version__
from scripts.core.provenance import cohort_fingerprint, made_by
from scripts.core.ranks import num_ranks
from scripts.core.settings import values_with_role
from scripts.features.encoding import Encoder
from scripts.synthetic.marker import count_slides
from scripts.training.resuming import SameSettings, pretrained_sha256_of
from scripts.training.slides import TrainingSlides
from scripts.weights.pretrained import Pretrained
from scripts.weights.record import recorded_settings

__all__ = ["TrainingRecord"]


class TrainingRecord:
    """What is stored of a training.

    Args:
        settings: all of the config, by name.
        encoder: encodes the patches.
        slides: those that are trained on, and those that choose the weights.
        left_out: names of slides that failed, without which the training goes on.
        pretrained: the weights from which the training starts. One that is resumed finds their checksum in its
            checkpoint, and their record in that of the checkpoint's weights.

    Attributes:
        record: for the weights: what decides the meaning of their scores, and how many slides they are trained on.
        same_settings: for resuming: what must be as before.
        made_by: for every file: versions, checksums, settings.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        encoder: Encoder,
        slides: TrainingSlides,
        left_out: Sequence[str] = (),
        pretrained: Pretrained | None = None,
    ) -> None:
        training, validation = slides.training_without(left_out), slides.others_without(left_out)
        checksums = encoder.checksums
        used = {**settings, **encoder.backbone.recorded}
        data = cohort_fingerprint(training=training, validation=validation)
        self.record = {
            "version": __version__,
            # Not every backbone says the length of its features before it is loaded.
            "settings": {**recorded_settings(used, checksums), "num_features": encoder.num_features},
            "data": count_slides(training, validation),
            **({} if pretrained is None else {"pretrained": pretrained.stored}),
        }
        self.same_settings = SameSettings(
            {
                **values_with_role(used, "fixed"),
                **checksums,
                "leave_out": sorted({*settings["leave_out"], *left_out}) or None,
                "ranks": num_ranks(),
                "data": data,
            }
        )
        source = None if pretrained is None else pretrained.sha256
        if settings.get("resume"):
            source = pretrained_sha256_of(Path(settings["ckpt_dir"]) / "last.ckpt")
        self.made_by = made_by(
            settings,
            settings["seed"],
            slides.datalist,
            **checksums,
            **({} if source is None else {"pretrained_sha256": source}),
            data=data,
        )

    def state(self, **parts: Any) -> dict[str, Any]:
        """What a checkpoint contains: the parts of a training, by name, and the settings that must be as before."""
        return {"settings": self.same_settings, **parts}
