"""What a training warns of: settings that do nothing, and heads that learn nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from scripts.core.defaults import training_defaults
from scripts.networks.methods import USED_BY, untrained_heads
from scripts.weights.ranking import doubt_of_ranking

__all__ = ["warn_of_doubts", "warn_of_untrained", "warn_of_unused"]

logger = logging.getLogger(__name__)


def warn_of_untrained(settings: Mapping[str, Any]) -> None:
    """Warn at the start of the heads that these settings do not train."""
    if heads := untrained_heads(settings):
        logger.warning(
            "alpha %g and beta %g: %s will learn nothing. What `evaluating`, `inferring` and a server give of it means "
            "nothing.",
            settings["alpha"],
            settings["beta"],
            ", ".join(heads),
        )


def warn_of_unused(settings: Mapping[str, Any]) -> None:
    """Warn at the start of settings that are not the defaults, and that the method does not use."""
    if "method" not in settings:
        return
    defaults = training_defaults()
    for name, methods in USED_BY.items():
        if settings["method"] not in methods and settings.get(name, defaults[name]) != defaults[name]:
            told = name, settings[name], settings["method"]
            logger.warning("%s %r has no effect: %s does not use it. Leave it out.", *told)


def warn_of_doubts(points: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Warn at the end of heads that may have learnt nothing.

    Args:
        points: the operating points of the weights that are kept, by head.
        settings: of the training.
    """
    for head, point in points.items():
        if head not in untrained_heads(settings) and (doubt := doubt_of_ranking(point)) is not None:
            logger.warning(
                "the head %s may have learnt nothing: %s. Look at its losses in TensorBoard; train with %sanother "
                "`seed`, a lower `lr`, or on more slides.",
                head,
                doubt,
                "" if settings.get("classifier_init") == "zeros" else "`classifier_init` zeros, ",
            )
