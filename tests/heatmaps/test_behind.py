"""The heatmaps of a slide are drawn while the next slide is encoded, and are those of a run of that slide alone."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from monai.transforms import Activationsd

from scripts.core.errors import SettingsError, SlideError
from scripts.core.ranks import StoppedError
from scripts.datalists.failures import FailedSlides
from scripts.heatmaps.mapped_slides import MappedSlides
from scripts.heatmaps.writer import HeatmapWriter
from scripts.inference.patients import passing_bags
from scripts.inference.transforms import EncodeSlided
from scripts.networks.methods import attention_maps, get_network
from tests.cohorts import NUM_TINY_FEATURES, builder, draw_cohort, tiny_encoder
from tests.servers import serving

HEADS, CLASSES = ["global", "5x", "10x"], ["a", "b"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return draw_cohort(tmp_path_factory.mktemp("behind"), 3)


class Run:
    """Predicts slides, and calls ``before`` with a slide's name before it is shown, in the thread that shows it."""

    def __init__(self, folder, data, before=lambda slide: None, on_encode=lambda slide: None, **settings):
        network = get_network("mustmil", num_classes=2, num_features=NUM_TINY_FEATURES, num_scales=2, num_nodes=8)
        for number, parameter in enumerate(network.parameters()):
            parameter.data.fill_(0.01 * (number + 1))
        bags, encoder = builder(**settings), tiny_encoder()
        encode = encoder.encode
        encoder.encode = lambda bag, *given: on_encode(bag.slide.path.stem) or encode(bag, *given)
        self.failures = FailedSlides(folder, "inferring")
        self.failures.start()
        self.mapped = MappedSlides(network, attention_maps("mustmil", [5, 10]), bags, data)
        writer = HeatmapWriter(
            folder, self.mapped, HEADS, CLASSES, heatmap_classes=CLASSES, top_patches=1, failures=self.failures
        )
        write = writer._write
        writer._write = lambda slide, *given: before(slide) or write(slide, *given)
        transform = EncodeSlided("image", bags, encoder)
        self.evaluator = SupervisedEvaluator(
            device="cpu",
            val_data_loader=DataLoader(
                passing_bags(data, transform, self.failures, staging=transform.staging), batch_size=1
            ),
            network=network,
            postprocessing=Activationsd("pred", sigmoid=True),
            val_handlers=[writer],
        )
        self.run = lambda: self.mapped.run(self.evaluator)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def alone(cohort, tmp_path_factory):
    """The heatmaps of each slide, of a run of its own."""
    folder = tmp_path_factory.mktemp("alone")
    for entry in cohort:
        Run(folder, [entry]).run()
    return files(folder)


def test_a_slide_is_drawn_while_the_next_is_encoded_and_before_the_one_after_that(cohort, alone, tmp_path):
    names = [entry["slide"] for entry in cohort]
    is_encoded, came, encoded, behind = {name: threading.Event() for name in names}, [], [], []

    def before(slide):
        came.extend(is_encoded[name].wait(20) for name in names[names.index(slide) + 1 :][:1])
        behind.append(len(encoded) - names.index(slide))

    Run(tmp_path, cohort, before, lambda slide: encoded.append(slide) or is_encoded[slide].set()).run()
    assert came == [True, True]
    assert behind == [2, 2, 1]
    assert files(tmp_path) == alone


def test_slides_behind_addresses_are_drawn_from_their_copies(cohort, alone, tmp_path):
    room = 1.1 * max(os.path.getsize(entry["image"]) for entry in cohort) / 1e9
    with serving(Path(cohort[0]["image"]).parent) as server:
        slides = [{**entry, "image": f"{server.url}/{Path(entry['image']).name}"} for entry in cohort]
        run = Run(tmp_path / "out", slides, slide_cache=tmp_path / "cache", slide_cache_gb=room)
        run.run()
    assert run.failures.names() == []
    assert files(tmp_path / "out") == alone
    assert not list((tmp_path / "cache").iterdir())


def test_sigterm_while_the_last_slide_is_drawn_ends_the_run_when_it_is_drawn(cohort, alone, tmp_path):
    def before(slide):
        if slide == "s2":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)

    with pytest.raises(StoppedError, match="was told to stop"):
        Run(tmp_path, cohort, before).run()
    assert files(tmp_path) == alone


def test_a_slide_that_cannot_be_drawn_is_named_and_the_others_are_drawn(cohort, alone, tmp_path):
    def before(slide):
        if slide == "s1":
            raise SlideError("s1.tif", "cannot be read", "Copy it again.")

    run = Run(tmp_path, cohort, before)
    run.run()
    assert run.failures.names() == ["s1"]
    assert {name.split("/")[1] for name in files(tmp_path) if name != "failed.csv"} == {"s0", "s2"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SettingsError("encode_batch", "does not fit", "Lower it.")])
def test_a_run_that_ends_with_an_error_has_drawn_what_it_had_predicted(cohort, alone, tmp_path, error):
    is_ended = threading.Event()

    def on_encode(slide):
        if slide == "s1":
            threading.Timer(0.3, is_ended.set).start()
            raise error

    run = Run(tmp_path, cohort, lambda slide: is_ended.wait(20) and None, on_encode)
    with pytest.raises(type(error)):
        run.run()
    assert files(tmp_path) == {name: content for name, content in alone.items() if name.split("/")[1] == "s0"}


@pytest.mark.parametrize("at", ["s0", "s2"])
def test_heatmaps_that_cannot_be_written_end_the_run(cohort, tmp_path, at):
    def before(slide):
        if slide == at:
            raise SettingsError("output_dir", f"no room for {slide}", "Make room.")

    with pytest.raises(SettingsError, match=f"no room for {at}"):
        Run(tmp_path, cohort, before).run()


def test_of_two_errors_the_first_ends_the_run_and_the_other_is_told(cohort, tmp_path, caplog):
    is_ended = threading.Event()

    def before(slide):
        is_ended.wait(20)
        raise SettingsError("output_dir", f"no room for {slide}", "Make room.")

    def on_encode(slide):
        if slide == "s1":
            is_ended.set()
            raise SettingsError("encode_batch", "does not fit", "Lower it.")

    with pytest.raises(SettingsError, match="does not fit"):
        Run(tmp_path, cohort, before, on_encode).run()
    assert "not all heatmaps that were begun are written: output_dir: no room for s0" in caplog.text
