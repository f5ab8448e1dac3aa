"""Copies of slides: where they are, how long, how many; and what is left alone."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.core.errors import SettingsError, SlideError
from scripts.slides.staging import SlideStaging, pulled_ahead
from tests.limits import within


@pytest.fixture
def slides(tmp_path):
    entries = []
    for name in "abc":
        path = tmp_path / "share" / f"{name}.svs"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode() * 1000)
        entries.append({"image": str(path), "slide": name})
    return entries


def content(entry):
    return Path(entry["image"]).read_bytes()


def test_a_slide_is_copied_under_its_own_name_and_removed_after_it(slides, tmp_path):
    staging = SlideStaging(tmp_path / "cache")
    staging.begin(slides[0])
    copy = staging.local(slides[0])
    assert (content(copy), Path(copy["image"]).name, copy["slide"]) == (b"a" * 1000, "a.svs", "a")
    assert Path(copy["image"]).is_relative_to(tmp_path / "cache")
    staging.end(slides[0])
    assert not os.path.exists(copy["image"])
    assert content(slides[0]) == b"a" * 1000
    assert staging.local(slides[0]) is slides[0]
    staging.close()
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_folder_slides_on_a_disk_are_read_where_they_are(slides):
    staging = SlideStaging()
    staging.begin(slides[0])
    assert staging.local(slides[0]) is slides[0]


def test_slides_of_several_files_are_read_where_they_are(tmp_path):
    (tmp_path / "a.mrxs").write_bytes(b"a")
    assert not SlideStaging(tmp_path / "cache").takes({"image": str(tmp_path / "a.mrxs")})


def test_the_slides_of_a_bag_are_there_together_and_the_next_wait_for_room(slides, tmp_path):
    staging = SlideStaging(tmp_path / "cache", 2e-6)
    staging.begin(*slides[:2])
    staging.begin(slides[2])
    copies = [staging.local(slide) for slide in slides[:2]]
    assert [content(copy)[:1] for copy in copies] == [b"a", b"b"]
    time.sleep(0.1)
    assert not staging.is_here(slides[2])
    staging.end(*slides[:2])
    with within(20):
        assert content(staging.local(slides[2]))[:1] == b"c"
    staging.close()


def test_slides_for_which_there_can_be_no_room_fail_and_others_do_not_wait_for_them(slides, tmp_path):
    staging = SlideStaging(tmp_path / "cache", 2e-6)
    staging.begin(*slides)
    staging.begin({"image": slides[0]["image"] + "x", "slide": "x"})
    with pytest.raises(
        SlideError, match=r"b\.svs: and the other slides of its patient are 3e-06 GB, and `slide_cache_gb` is"
    ):
        staging.local(slides[1])
    staging.end(*slides)
    staging.begin(slides[0])
    with within(20):
        assert content(staging.local(slides[0]))[:1] == b"a"
    staging.close()
    small = SlideStaging(tmp_path / "cache", 1e-9)
    small.begin(slides[0])
    with pytest.raises(SlideError, match=r"a\.svs: is 1e-06 GB, and `slide_cache_gb` is 1e-09. Raise `slide_cache_gb`"):
        small.local(slides[0])
    small.close()


def test_a_slide_behind_an_address_is_not_here_before_it_is_asked_for():
    with pytest.raises(SlideError, match="https://host/s1.svs: is behind an address, and is here only while"):
        SlideStaging().local({"image": "https://host/s1.svs"})


def test_what_a_killed_run_left_is_removed_and_nothing_else(slides, tmp_path):
    """Not what another process uses, nor files of others, however they are called."""
    cache = tmp_path / "cache"
    (cache / "mine").mkdir(parents=True)
    (cache / "mine" / "file").touch()
    (cache / "mustmil-slides-file").touch()
    (cache / "mustmil-slides-link").symlink_to(cache / "mine")
    code = (
        "import sys, time; from scripts.slides.staging import SlideStaging\n"
        f"staging, entry = SlideStaging({str(cache)!r}), {{'image': {slides[0]['image']!r}}}\n"
        "staging.begin(entry); print(staging.local(entry)['image'])\n"
        "print(sorted({'fsspec.implementations.http', 'aiohttp', 's3fs'} & {*sys.modules}), flush=True); time.sleep(60)"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        killed = Path(run.stdout.readline().strip())
        assert run.stdout.readline().strip() == "[]", "without addresses nothing is imported for them"
    finally:
        run.kill()
        run.wait()
        run.stdout.close()
    assert killed.exists()
    in_use = SlideStaging(cache)
    with in_use.holding(slides[2]):
        used = Path(in_use.local(slides[2])["image"])
        assert not killed.parents[1].exists()
        with SlideStaging(cache).holding(slides[1]):
            assert used.exists()
            assert (cache / "mine" / "file").exists()
            assert (cache / "mustmil-slides-file").exists()
            assert (cache / "mustmil-slides-link").exists()


def test_a_folder_that_cannot_be_made_is_the_settings_fault(slides, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"file/cache: cannot be made"):
        SlideStaging(tmp_path / "file" / "cache").begin(slides[0])


def test_items_come_in_order_after_those_ahead_were_taken():
    taken = []
    came = [(item, len(taken)) for item in pulled_ahead((taken.append(i) or i for i in range(5)), 2)]
    assert came == [(0, 3), (1, 4), (2, 5), (3, 5), (4, 5)]


def test_no_item_is_taken_ahead_while_it_may_not_be():
    taken, may = [], iter([True, False, True, True])
    ahead = pulled_ahead((taken.append(i) or i for i in range(5)), 1, lambda: next(may, False))
    assert [(item, len(taken)) for item in ahead] == [(0, 2), (1, 2), (2, 4), (3, 5), (4, 5)]
