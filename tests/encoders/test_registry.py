"""The encoders that have a name, as they are listed."""

from __future__ import annotations

import pytest

from scripts.core.errors import SettingsError
from scripts.encoders.registry import ENCODERS, encoder_entry, list_encoders

PUBLISHED = {
    "uni", "uni2_h", "conch", "conch_v1_5", "virchow", "virchow2", "gigapath", "h_optimus_0", "h_optimus_1", "h0_mini",
    "phikon", "phikon_v2", "hibou_b", "hibou_l", "midnight", "gpfm", "resnet50", "vit_large_imagenet",
}  # fmt: skip


def test_the_encoders_that_others_list_have_an_entry() -> None:
    assert ENCODERS.keys() >= PUBLISHED


def test_the_list_has_each_encoder_with_its_length_and_licence() -> None:
    _, *lines = list_encoders().splitlines()
    assert [line.split()[0] for line in lines] == list(ENCODERS)
    for line, entry in zip(lines, ENCODERS.values(), strict=True):
        assert line.split()[1] == str(entry.num_features)
        assert line.endswith(entry.licence)
        assert ("(gated)" in line) is entry.is_gated


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("UNI", "uni"),
        ("uni2-h", "uni2_h"),
        ("Virchow-2", "virchow2"),
        ("resnet35", "resnet34"),
        ("torchscirpt", "torchscript"),
    ],
)
def test_a_name_that_is_nearly_right_is_suggested(name: str, meant: str) -> None:
    with pytest.raises(SettingsError, match=rf"got '{name}'\. Did you mean .*{meant}.*run encoders ") as caught:
        encoder_entry(name)
    assert len(str(caught.value)) < 300


def test_patches_are_resized_as_the_makers_or_two_other_tools_do() -> None:
    bilinear = {name for name, entry in ENCODERS.items() if entry.input_px and entry.resize == "bilinear"}
    assert bilinear == {"uni", "uni2_h", "conch_v1_5", "phikon", "phikon_v2", "midnight"}
