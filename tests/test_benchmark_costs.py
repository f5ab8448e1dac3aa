"""The arithmetic of what cohorts cost: hours, disk, ranks and the first bottleneck."""

import pytest

from tests.benchmarks.costs import Machine, SlideCosts, cluster_table, cohort_table, duration, size

COSTS = SlideCosts(
    patches=2000,
    hash_mb_s=500.0,
    prepare_s=2.0,
    read_rate=500.0,
    extract_s={"resnet34": 36.0},
    bank_mb={"resnet34": 5.0},
    train_s=0.05,
    infer_s=1.8,
)


def cells(lines: list[str], row: int) -> list[str]:
    return [cell.strip() for cell in lines[2 + row].strip("|").split("|")]


def test_a_cohort_takes_its_slides_times_what_one_takes():
    assert cells(cohort_table(COSTS, [1000]), 0) == ["1,000", "resnet34", "10.0 h", "4.2 min", "30.0 min", "5.0 GB"]


@pytest.mark.parametrize(
    ("machine", "bottleneck", "slides_per_hour"),
    [
        # Of 1,000 MB: 2 s of checksum, 2 s to prepare and 4 s to read, 8 s of a core for each slide.
        (Machine(cores=2, encode_rate=5000, storage_mb_s=1e6), "cores", 900),
        (Machine(cores=32, encode_rate=500, storage_mb_s=1e6), "encoder", 900),
        (Machine(cores=32, encode_rate=5000, storage_mb_s=100), "storage", 360),
    ],
)
def test_the_slowest_stage_is_the_first_bottleneck(machine, bottleneck, slides_per_hour):
    limits = machine.slides_per_hour(COSTS, slide_mb=1000)
    assert min(limits, key=lambda name: limits[name]) == bottleneck
    assert limits[bottleneck] == pytest.approx(slides_per_hour)
    assert bottleneck in cells(cluster_table(COSTS, [machine], 1000), 0)


def test_ranks_for_a_day_are_rounded_up():
    # 900 slides an hour are 21,600 a day.
    row = cells(cluster_table(COSTS, [Machine(2, 5000, 1e6)], 1000), 0)
    assert row[-2:] == ["1", "5"]
    assert row[-4] == "11.1 h"


@pytest.mark.parametrize(
    ("seconds", "text"), [(59, "59 s"), (89, "89 s"), (90, "1.5 min"), (3 * 3600, "3.0 h"), (36 * 3600, "1.5 days")]
)
def test_durations_are_in_the_unit_that_suits_them(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("megabytes", "text"), [(999, "999 MB"), (1500, "1.5 GB"), (2.5e6, "2.5 TB")])
def test_sizes_are_in_the_unit_that_suits_them(megabytes, text):
    assert size(megabytes) == text
