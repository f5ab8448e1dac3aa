"""Whether weights were trained on the training slides of the datalist that they are evaluated with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scripts.core.errors import DatalistError
from scripts.core.provenance import cohort_fingerprint
from scripts.core.ranks import is_first_rank
from scripts.weights.checkpoints import HeadwiseNetwork

__all__ = ["warn_of_other_split"]

logger = logging.getLogger(__name__)


def warn_of_other_split(network: HeadwiseNetwork, list_training: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
    """Warn if the weights were trained on other slides, labels, or in another order than the datalist has for training.

    Then nothing tells whether the slides to be scored were among them, as they are after another draw of the split. Nor
    does anything where labels of training slides cannot be understood: that is said, too. Of a datalist without slides
    for training, and of weights that do not tell what they were trained on, nothing is said.

    Args:
        network: the trained network.
        list_training: gives ``slide`` and ``label`` of the datalist's training slides.
    """
    first: Any = network.copies[0]  # All are of one training.
    trained = first.origin.get("made_by", {}).get("data", {}).get("training")
    if trained is None:
        return
    if not is_first_rank():
        return
    try:
        listed = list_training()
    except DatalistError as error:  # Labels that evaluating has no need of.
        logger.warning("whether slides that are scored now were trained on is not known: %s", error)
        return
    if not listed or (now := cohort_fingerprint(training=listed)["training"]) == trained:
        return
    logger.warning(
        "the weights were trained on %s slides (names and labels %s...), and what the datalist has for training is not "
        "the same: %s slides (%s...). If slides that are scored now were trained on, their scores are too good. Give "
        "the datalist, `split_seed`, `leave_out` (slides that failed there, too) and `task` of the training, or slides "
        "that it has not seen.",
        trained.get("slides"),
        str(trained.get("sha256"))[:12],
        now["slides"],
        now["sha256"][:12],
    )
