"""A training that diverges."""

import pytest

from scripts.core.errors import SettingsError
from scripts.training.divergence import StopOnDivergence
from tests.trainings import Training


def test_a_training_that_diverges_is_stopped_and_says_where(tmp_path):
    training = Training(tmp_path, epochs=3, lr=1e30, extra_handlers=[StopOnDivergence()])
    with pytest.raises(SettingsError, match=r"lr: the loss is (nan|inf) in epoch 1, at s\d\. Lower `lr`"):
        training.run()
