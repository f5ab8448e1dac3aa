"""Images of linked patches in TensorBoard."""

import cv2
import numpy as np
from ignite.engine import Engine
from torch.utils.tensorboard import SummaryWriter

from scripts.bags.linked_patches import linked_patches
from scripts.training.linked_patch_images import LinkedPatchImages
from tests.cohorts import builder, draw_cohort
from tests.training.test_curves import events_of


def test_tensorboard_shows_linked_patches_when_a_training_starts(tmp_path):
    cohort, writer = draw_cohort(tmp_path, 1), SummaryWriter(str(tmp_path / "events"))
    trainer = Engine(lambda engine, batch: None)
    handler = LinkedPatchImages(writer, cohort, builder(), num_slides=1, num_rows=3)
    handler.attach(trainer)
    trainer.run([0], max_epochs=2)
    events = events_of(writer)
    assert events.Tags()["images"] == ["linked patches/s0"]
    writer.close()
    (image,) = events.Images("linked patches/s0")  # once, not in each epoch
    decoded = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(decoded, linked_patches(builder()(cohort[0]), 3))
