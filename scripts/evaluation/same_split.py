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

    Then slides that are scored now may have been among them, for example because the datalist was split with another
    seed. Labels of training slides that cannot be understood are a warning, too. Nothing is said if the datalist has no
    training slides, or the weights have no record of theirs.

    Args:
        network: the trained network.
        list_training: gives ``slide`` and ``label`` of the datalist's training slides.
    """
    first: Any = network.copies[0]  # All are of one training, or one ensemble.
    members = first.record.get("members", [])
    data = [of.get("data") or {} for of in members or [first.origin.get("made_by", {})]]
    found = [of["training"] for of in data if "training" in of]
    if not found or not is_first_rank():
        return
    try:
        listed = list_training()
    except DatalistError as error:  # Evaluating does not need these labels.
        logger.warning("whether slides that are scored now were trained on is not known: %s", error)
        return
    now = cohort_fingerprint(training=listed)["training"]
    others = [trained for trained in found if trained != now]
    if not listed or not others:
        return
    if members:
        logger.warning(
            "%d of the %d members of the ensemble were trained on other slides than the datalist has for training. An "
            "ensemble of folds has seen its whole cohort: for that, report the scores of the cross-validation. If "
            "slides that are scored now were trained on, their scores are optimistically biased.",
            len(others),
            len(members),
        )
        return
    trained = others[0]
    logger.warning(
        "the weights were trained on %s slides (names and labels %s...), and what the datalist has for training is not "
        "the same: %s slides (%s...). If slides that are scored now were trained on, their scores are optimistically "
        "biased. Give the datalist, `split_seed`, `leave_out` (slides that failed there, too) and `task` of the "
        "training, or slides that it has not seen.",
        trained.get("slides"),
        str(trained.get("sha256"))[:12],
        now["slides"],
        now["sha256"][:12],
    )
