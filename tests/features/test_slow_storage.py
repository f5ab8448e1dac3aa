"""Slides behind addresses, and on slow shares: the encoder does not wait, and the banks are those of local files."""

import contextlib
import csv
import hashlib
import logging
import os
import threading
from pathlib import Path

import pytest

from scripts.core.errors import SettingsError
from scripts.datalists.datalist import list_slides
from scripts.datalists.failures import FailedSlides, FailedSlidesError
from scripts.features.bank_settings import slide_fingerprint
from scripts.features.extraction import Extractor
from scripts.slides import remote
from tests.cohorts import builder, draw_cohort, tiny_encoder
from tests.limits import within
from tests.servers import serving


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return draw_cohort(tmp_path_factory.mktemp("slow"), 4)


@pytest.fixture(scope="module")
def local_banks(cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    Extractor(cohort, builder(), tiny_encoder(), folder).run()
    return folder


@pytest.fixture
def server(cohort):
    remote.num_bytes.cache_clear()
    with serving(Path(cohort[0]["image"]).parent) as files:
        yield files


def behind(server, cohort, query=""):
    """The slides as a list of addresses gives them."""
    return list_slides([f"{server.url}/{Path(entry['image']).name}{query}" for entry in cohort])


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).glob("*.h5")}


def cached(tmp_path, **settings):
    return builder(slide_cache=tmp_path / "cache", **settings)


def gigabytes(cohort, number):
    """As much as the largest slides take, so many of them."""
    return sum(sorted((os.path.getsize(entry["image"]) for entry in cohort), reverse=True)[:number]) / 1e9


def test_the_banks_of_addresses_are_those_of_files_to_the_last_byte(cohort, local_banks, server, tmp_path):
    entries = behind(server, cohort)
    Extractor(entries, cached(tmp_path), tiny_encoder(), tmp_path / "features").run()
    assert [entry["slide"] for entry in entries] == [entry["slide"] for entry in cohort]
    assert digests(tmp_path / "features") == digests(local_banks)
    assert sorted(server.asked) == [Path(entry["image"]).name for entry in cohort]
    assert not list((tmp_path / "cache").iterdir())


def test_the_banks_of_a_slow_share_are_those_of_files_to_the_last_byte(cohort, local_banks, tmp_path):
    opened = []
    encoder = tiny_encoder()
    encode = encoder.encode
    encoder.encode = lambda bag, transforms: opened.append(bag.slide.path.parents[2]) or encode(bag, transforms)
    Extractor(cohort, cached(tmp_path), encoder, tmp_path / "features").run()
    assert digests(tmp_path / "features") == digests(local_banks)
    assert {folder.parent for folder in opened} == {tmp_path / "cache"}
    assert not list((tmp_path / "cache").iterdir())


def test_the_next_slide_is_fetched_while_one_is_encoded(cohort, server, tmp_path):
    """Each slide is encoded only once the server has been asked for the next, and sends no other before."""
    asked = {Path(entry["image"]).stem: threading.Event() for entry in cohort}
    server.before = lambda name: asked[Path(name).stem].set()
    names = [entry["slide"] for entry in cohort]
    encoder = tiny_encoder()
    encode, came = encoder.encode, []

    def waiting(bag, transforms):
        following = names[names.index(bag.slide.path.stem) + 1 :][:1]
        came.extend(asked[name].wait(20) for name in following)
        yield from encode(bag, transforms)

    encoder.encode = waiting
    Extractor(behind(server, cohort), cached(tmp_path), encoder, tmp_path / "features").run()
    assert came == [True] * (len(cohort) - 1)


def test_a_slide_is_not_begun_before_its_turn_where_the_cache_has_room_for_one(cohort, server, tmp_path):
    taken = []
    encoder = tiny_encoder()
    encode = encoder.encode

    def looking(bag, transforms):
        files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
        taken.append(([file.stem for file in files], bag.slide.path.stem))
        yield from encode(bag, transforms)

    encoder.encode = looking
    room = gigabytes(cohort, 1)
    with within(60):
        Extractor(behind(server, cohort), cached(tmp_path, slide_cache_gb=room), encoder, tmp_path / "features").run()
    assert taken == [([entry["slide"]], entry["slide"]) for entry in cohort]


def test_the_cache_never_has_more_than_it_may(cohort, server, tmp_path):
    room, most, is_over = gigabytes(cohort, 2), [0], threading.Event()

    def watch():
        while not is_over.is_set():
            sizes = []
            for folder, _, files in os.walk(tmp_path / "cache"):  # which passes over folders that have just gone
                for file in files:
                    with contextlib.suppress(FileNotFoundError):
                        sizes.append(os.path.getsize(os.path.join(folder, file)))
            most.append(sum(sizes))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        Extractor(
            behind(server, cohort), cached(tmp_path, slide_cache_gb=room), tiny_encoder(), tmp_path / "features"
        ).run()
    finally:
        is_over.set()
        watcher.join()
    assert 0 < max(most) <= room * 1e9


def test_banks_that_are_there_are_known_again_without_the_slides(cohort, local_banks, server, tmp_path):
    Extractor(behind(server, cohort), cached(tmp_path), tiny_encoder(), local_banks).run()
    assert server.asked == []
    assert set(server.parts) == {Path(entry["image"]).name for entry in cohort}
    server.parts.clear()
    with_sums = [
        {**entry, "sha256": hashlib.sha256(Path(known["image"]).read_bytes()).hexdigest()}
        for entry, known in zip(behind(server, cohort), cohort, strict=True)
    ]
    Extractor(with_sums, cached(tmp_path), tiny_encoder(), local_banks).run()
    assert server.parts == []


def test_a_slide_that_was_replaced_is_noticed_without_its_checksum(cohort, local_banks, server, tmp_path):
    image = Path(cohort[1]["image"])
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / image.name).write_bytes(image.read_bytes() + b"more")
    server.folder = tmp_path / "slides"
    with pytest.raises(SettingsError, match=r"s1\.h5: was made otherwise \(slide_fingerprint"):
        Extractor(behind(server, [cohort[1]]), cached(tmp_path), tiny_encoder(), local_banks).run()


def test_a_server_that_sends_no_parts_is_warned_of(cohort, local_banks, server, tmp_path, caplog):
    server.sends_parts = False
    with caplog.at_level(logging.WARNING):
        Extractor(behind(server, cohort[:1]), cached(tmp_path), tiny_encoder(), local_banks).run()
    assert "its server sends no parts of files" in caplog.text
    assert "Give its `sha256` in the datalist." in caplog.text


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda server: server.status.update({"s1.tif": 404}), r"is not there (HTTP 404)"),
        (lambda server: server.status.update({"s1.tif": 403}), r"may not be read (HTTP 403)"),
        (lambda server: server.status.update({"s1.tif": 503}), r"cannot be read (HTTP 503)"),
        (lambda server: setattr(server, "cut", 1000), "was cut off before its end"),
    ],
)
def test_a_slide_that_cannot_be_fetched_is_named_with_its_address_and_no_secret(
    spoil, reason, cohort, server, tmp_path
):
    entries = behind(server, cohort[1:2], "?X-Signature=geheim")
    spoil(server)
    failures = FailedSlides(tmp_path / "out", "extracting")
    extractor = Extractor(entries, cached(tmp_path), tiny_encoder(), tmp_path / "features", failures=failures)
    with pytest.raises(FailedSlidesError, match="1 of 1 slides failed"):
        extractor.run()
    (row,) = csv.DictReader((tmp_path / "out" / "failed.csv").open())
    assert (row["slide"], row["image"]) == ("s1", f"{server.url}/s1.tif")
    assert row["reason"].startswith(f"{server.url}/s1.tif: {reason}")
    assert "geheim" not in str(row)
    assert "X-Signature=geheim" in server.secrets
    assert not list((tmp_path / "cache").iterdir())


def test_a_slide_with_another_checksum_is_named_by_its_address(cohort, server, tmp_path):
    entries = [{**entry, "sha256": "0" * 64} for entry in behind(server, cohort[:1])]
    failures = FailedSlides(tmp_path / "out", "extracting")
    with pytest.raises(FailedSlidesError):
        Extractor(entries, cached(tmp_path), tiny_encoder(), tmp_path / "features", failures=failures).run()
    (row,) = csv.DictReader((tmp_path / "out" / "failed.csv").open())
    assert row["reason"].startswith(f"{server.url}/s0.tif: its SHA-256 is ")


def test_a_run_that_breaks_off_ends_what_it_is_copying(cohort, server, tmp_path):
    """The server never sends the third slide; the run does not wait for it."""
    never, asked = threading.Event(), threading.Event()

    def stall(name):
        if name == "s2.tif":
            asked.set()
            never.wait(60)

    server.before = stall
    encoder = tiny_encoder()

    def fails(bag, transforms):
        assert asked.wait(20)
        raise KeyboardInterrupt
        yield

    encoder.encode = fails
    try:
        with within(20), pytest.raises(KeyboardInterrupt):
            Extractor(behind(server, cohort), cached(tmp_path), encoder, tmp_path / "features").run()
        assert not list((tmp_path / "cache").iterdir())
    finally:
        never.set()


def test_the_fingerprint_of_an_address_is_that_of_its_file(cohort, server):
    image = cohort[0]["image"]
    size, start, end = remote.ends(f"{server.url}/{Path(image).name}", 1 << 20)
    assert hashlib.sha256(f"{size}:".encode() + start + end).hexdigest() == slide_fingerprint(image)
