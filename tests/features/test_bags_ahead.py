"""Bags are made by other threads than the one that encodes, a few slides ahead and no more."""

import hashlib
import threading

import pytest

from scripts.bags.bag import BagBuilder
from scripts.core.errors import SlideError
from scripts.features.bags_ahead import BAGS_AHEAD, bags_ahead
from scripts.features.bank_settings import bank_settings
from scripts.features.bank_writing import write_bank
from scripts.features.extraction import Extractor
from scripts.features.progress import SlideToExtract
from tests.cohorts import PATCH_PX, builder, draw_cohort, tiny_encoder
from tests.limits import within


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return draw_cohort(tmp_path_factory.mktemp("ahead"))


class WatchedBuilder(BagBuilder):
    """Records which bags were asked for, by which threads, and tells when each is made."""

    def __init__(self, names):
        super().__init__((5, 10), patch_size=PATCH_PX)
        self.asked, self.threads = [], set()
        self.is_made = {name: threading.Event() for name in names}

    def verified(self, entry, always=False):
        self.asked.append(entry["slide"])
        self.threads.add(threading.get_ident())
        made = super().verified(entry, always)
        self.is_made[entry["slide"]].set()
        return made


def names_of(cohort):
    return [entry["slide"] for entry in cohort]


def test_the_bags_of_the_next_slides_are_made_while_one_is_encoded(cohort, tmp_path):
    names = names_of(cohort)
    bags, encoder = WatchedBuilder(names), tiny_encoder()
    encode, came, most = encoder.encode, [], []

    def waiting(bag, transforms):
        number = names.index(bag.slide.path.stem)
        came.extend(bags.is_made[name].wait(20) for name in names[number + 1 : number + 1 + BAGS_AHEAD])
        most.append(len(bags.asked) - number - 1)
        yield from encode(bag, transforms)

    encoder.encode = waiting
    Extractor(cohort, bags, encoder, tmp_path).run()
    assert came == [True] * len(came)
    assert most == [min(BAGS_AHEAD, left) for left in (4, 3, 2, 1, 0)]
    assert threading.get_ident() not in bags.threads


def test_banks_of_bags_made_ahead_are_those_of_bags_made_one_by_one(cohort, tmp_path):
    Extractor(cohort, builder(), tiny_encoder(), tmp_path / "ahead").run()
    for entry in cohort:
        name = f"{entry['slide']}.h5"
        bag, sha256 = builder().verified(entry, always=True)
        settings = {**bank_settings(entry, builder(), tiny_encoder()), "slide_sha256": sha256}
        write_bank(tmp_path / name, bag, tiny_encoder(), settings)
        ahead, alone = ((folder / name).read_bytes() for folder in (tmp_path / "ahead", tmp_path))
        assert hashlib.sha256(ahead).hexdigest() == hashlib.sha256(alone).hexdigest()


def test_a_run_that_breaks_off_makes_no_further_bags(cohort, tmp_path):
    bags, encoder = WatchedBuilder(names_of(cohort)), tiny_encoder()

    def fails(bag, transforms):
        raise KeyboardInterrupt
        yield

    encoder.encode = fails
    with within(60), pytest.raises(KeyboardInterrupt):
        Extractor(cohort, bags, encoder, tmp_path).run()
    assert len(bags.asked) <= 1 + BAGS_AHEAD
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("bags")]


def test_a_slide_that_fails_ahead_of_its_turn_fails_in_its_turn(cohort, tmp_path):
    text = tmp_path / "text.tif"
    text.write_text("no slide")
    entries = [cohort[0], {**cohort[1], "image": str(text)}, cohort[2]]
    todo = [SlideToExtract(number, [0], 1) for number in range(3)]
    names = []
    for slide, get_bag in bags_ahead(todo, entries, builder()):
        if slide.number == 1:
            with pytest.raises(SlideError, match=r"text\.tif: cannot be read as a slide"):
                get_bag()
        else:
            names.append(get_bag()[0].slide.path.stem)
    assert names == ["s0", "s2"]
