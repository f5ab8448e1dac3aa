from pathlib import Path

import pytest
import torch

from scripts.core.errors import SettingsError
from scripts.core.settings import SETTINGS, check_settings, is_same_value, with_role
from tests.worlds import CONFIGS, settings_of

NUMBERS = (
    "views", "cache_gb", "epochs", "lr", "weight_decay", "num_nodes", "alpha", "beta", "val_interval", "batch_size",
    "encode_batch", "num_workers", "seed", "split_seed", "patch_size", "num_processes",
)  # fmt: skip
OWN_FOLDERS = ("bundle_root", "output_dir", "ckpt_dir")
OPTIONAL_PATHS = (
    "dataset_dir", "datalist", "feature_dir", "backbone_weights", "image", "mask", "internal", "pretrained",
)  # fmt: skip
SWITCHES = ("allow_missing", "amp", "heatmaps", "resume", "strict")


@pytest.mark.parametrize("config", CONFIGS)
def test_every_setting_of_a_config_is_registered(config):
    assert settings_of(config) <= SETTINGS.keys()


def test_every_registered_setting_is_in_a_config():
    assert set().union(*(settings_of(config) for config in CONFIGS)) == SETTINGS.keys()


def test_what_a_training_may_change_when_it_is_resumed():
    """What is stored of a run and is not fixed; more epochs, other hardware, another library to read with."""
    changeable = {*with_role("provenance")} - {*with_role("fixed"), *with_role("own")}
    assert changeable == {"partition", "epochs", "reader", "encode_batch", "amp", "runtime", "device"}


def test_a_resumed_training_keeps_all_that_decides_what_scores_mean():
    assert (
        {*with_role("decides"), *with_role("recorded")} <= {*with_role("fixed")} <= {*with_role("provenance"), "seed"}
    )


def test_the_papers_settings_pass():
    check_settings(
        epochs=5, batch_size=1, encode_batch=32, num_nodes=128, num_workers=0, patch_size=224, seed=0,
        lr=1e-3, weight_decay=1e-4, alpha=1, beta=0.0, amp=False, resume=True, device="cpu",
    )  # fmt: skip
    check_settings(device=torch.device("cpu"))


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("wrong", ["1", None, float("nan"), float("inf"), 10**400, -1, True, [1]])
def test_a_setting_that_is_no_such_number_is_refused_by_name(key, wrong):
    with pytest.raises(SettingsError, match=rf"{key}: got .* Give a (whole )?number from"):
        check_settings(**{key: wrong})


@pytest.mark.parametrize("wrong", ["5", 1, 2.5, True, float("nan")])
def test_folds_are_a_whole_number_or_none(wrong):
    check_settings(folds=None)
    with pytest.raises(SettingsError, match="folds: got .* Give a whole number from 2 to 10000"):
        check_settings(folds=wrong)


@pytest.mark.parametrize("key", ["epochs", "batch_size", "seed", "num_nodes"])
def test_counts_are_whole_numbers(key):
    with pytest.raises(SettingsError, match=rf"{key}: got 2\.5\. Give a whole number"):
        check_settings(**{key: 2.5})


def test_a_batch_fits_in_memory():
    check_settings(encode_batch=4096)
    with pytest.raises(SettingsError, match=r"encode_batch: got 1000000000\. Give a whole number from 1 to 4096"):
        check_settings(encode_batch=10**9)


@pytest.mark.parametrize(
    ("name", "one", "other", "same"),
    [
        ("magnifications", [5, 10], (10.0, 5.0), True),
        ("positive_classes", ["cancer", "hgd"], ("hgd", "cancer"), True),
        ("positive_classes", None, ["cancer"], False),
        ("class_names", ["a", "b"], ["b", "a"], False),
        ("min_tissue", [0.5, 0.7], [0.7, 0.5], False),
        ("backbone_input", {"size": 64}, {"size": 64, "mean": [0.5, 0.5, 0.5]}, True),
        ("backbone_input", {"size": 64}, {"size": 32, "mean": [0.5, 0.5, 0.5]}, False),
    ],
)
def test_values_are_the_same_if_they_mean_the_same(name, one, other, same):
    assert is_same_value(name, one, other) == same


def test_a_seed_fits_in_32_bits():
    check_settings(seed=2**32 - 1)
    with pytest.raises(SettingsError, match=r"seed: got 4294967296\. Give a whole number from 0 to"):
        check_settings(seed=2**32)


@pytest.mark.parametrize("key", [*OWN_FOLDERS, *OPTIONAL_PATHS])
@pytest.mark.parametrize("wrong", [5, True, 0.5, "", ["x"], {"a": 1}])
def test_a_path_is_a_text(key, wrong):
    with pytest.raises(SettingsError, match=rf"{key}: got .* Give a path as text"):
        check_settings(**{key: wrong})


def test_a_folder_whose_name_is_a_number_is_written_with_a_dot():
    with pytest.raises(SettingsError, match=r"output_dir: got 2024\. Give a path as text, for example \./2024\."):
        check_settings(output_dir=2024)


def test_paths_may_be_those_of_pathlib_but_where_configs_add_to_them():
    for key in (*OWN_FOLDERS, *OPTIONAL_PATHS):
        check_settings(**{key: "slides"})
        if key in OWN_FOLDERS:
            with pytest.raises(SettingsError, match=key):
                check_settings(**{key: Path("slides")})
        else:
            check_settings(**{key: Path("slides")})
        if key in OPTIONAL_PATHS:
            check_settings(**{key: None})
        else:
            with pytest.raises(SettingsError, match=rf"{key}: got None"):
                check_settings(**{key: None})


@pytest.mark.parametrize("wrong", [True, 0, -1, float("nan"), float("inf"), "0.25", [0.25]])
def test_a_resolution_is_a_positive_number(wrong):
    check_settings(mpp=0.25)
    check_settings(mpp=None)
    with pytest.raises(SettingsError, match=r"mpp: got .* Give micrometres per pixel"):
        check_settings(mpp=wrong)


@pytest.mark.parametrize("wrong", ["gpu", "cuda:99", "meta", 1.5])
def test_a_device_must_be_there(wrong):
    with pytest.raises(SettingsError, match=r"device: got .* Give cpu, cuda, or cuda:N with a GPU that is there"):
        check_settings(device=wrong)


@pytest.mark.parametrize("key", SWITCHES)
@pytest.mark.parametrize("wrong", ["yes", 1, None])
def test_a_switch_is_true_or_false(key, wrong):
    check_settings(**{key: True})
    with pytest.raises(SettingsError, match=rf"{key}: got .* Give True or False\."):
        check_settings(**{key: wrong})
