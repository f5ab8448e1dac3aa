"""Images of linked patches in TensorBoard."""

import cv2
import numpy as np
from ignite.engine import Engine
from torch.utils.tensorboard import SummaryWriter

from scripts.bags.linked_patches import linked_patches
from scripts.training.linked_patch_images import LinkedPatchImages, captioned_patches
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
    patches = linked_patches(builder()(cohort[0]), 3)
    height, width = patches.shape[:2]
    assert np.array_equal(decoded[-height:, :width], patches)  # pixel by pixel, below the caption


def test_the_caption_names_the_slide_and_the_size_of_its_patches(tmp_path):
    bag = builder()(draw_cohort(tmp_path, 1)[0])
    title, *columns = captioned_patches(bag, "a_slide", 2).texts
    assert title.get_text().startswith(f"a_slide: a few of its {bag.grid.num_rows} rows of linked patches\n")
    sides_um = [scale.patch_level0 * bag.slide.base_mpp for scale in bag.grid.scales]
    assert [text.get_text() for text in columns] == [f"5x, {sides_um[0]:.0f} µm", f"10x, {sides_um[1]:.0f} µm"]
