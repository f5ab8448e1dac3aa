"""What a client of the MONAI Label app may ask for, and what it is told where it asks for something else."""

import pytest

from bundle.label_app.lib.choices import (
    Choice,
    Offer,
    check_logging,
    check_training,
    read_choice,
    read_device,
    read_mpp,
    read_switch,
)
from bundle.label_app.lib.reasons import RequestError
from scripts.networks.methods import METHODS, attention_maps, result_heads
from scripts.slides.frames import COORDINATES

CLASSES = ("cancer", "hgd", "serrated, sessile")


def offer_of(method, magnifications=(5, 10)):
    maps = tuple((spec.name, spec.head) for spec in attention_maps(method, magnifications))
    return Offer(tuple(result_heads(method, magnifications)), maps, CLASSES)


MUSTMIL = offer_of("mustmil")


def test_a_client_that_asks_for_nothing_gets_the_top_tenth_of_the_global_attention():
    assert read_choice({}, MUSTMIL) == Choice("global", None, "attention", (0.1,), None, None)


def test_each_parameter_is_the_clients():
    request = {"head": "5x", "classes": ["hgd"], "kind": "contribution", "threshold": -0.5}
    assert read_choice(request, MUSTMIL) == Choice("5x", ("hgd",), "contribution", (), -0.5, None)


@pytest.mark.parametrize(
    ("classes", "wanted"),
    [
        ("predicted", None),
        ("all", CLASSES),
        ("hgd", ("hgd",)),
        ("hgd, cancer", ("cancer", "hgd")),
        ("serrated, sessile", ("serrated, sessile",)),
        (["serrated, sessile", "cancer"], ("cancer", "serrated, sessile")),
    ],
)
def test_classes_are_a_word_a_name_or_several(classes, wanted):
    assert read_choice({"classes": classes}, MUSTMIL).classes == wanted


@pytest.mark.parametrize(
    ("share", "wanted"), [(1, (1.0,)), ("0.2", (0.2,)), ([0.3, 0.05], (0.05, 0.3)), ("0.3,0.05", (0.05, 0.3)), (0, ())]
)
def test_a_share_is_one_number_or_several_ascending_and_0_draws_none(share, wanted):
    assert read_choice({"share": share}, MUSTMIL).shares == wanted


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"head": "20x"}, "head: got '20x'. Give one of global, 5x, 10x."),
        ({"kind": "saliency"}, "kind: got 'saliency'. Give one of attention, contribution."),
        (
            {"classes": "Cancer"},
            "classes: got ['Cancer']. Give one or more of cancer, hgd, serrated, sessile; or predicted, or all.",
        ),
        (
            {"classes": []},
            "classes: got []. Give one or more of cancer, hgd, serrated, sessile; or predicted, or all.",
        ),
        (
            {"share": 10},
            "share: got 10. Give the share of the patches to draw, in 0..1, or up to 5 of them; 0 draws none.",
        ),
        ({"share": "much"}, "share: got 'much'. Give a number."),
        ({"share": True}, "share: got True. Give a number."),
        ({"threshold": "nan"}, "threshold: got 'nan'. Give a number."),
        ({"share": 0.1, "threshold": 0}, "share, threshold: both were given. Give one of the two."),
        (
            {"location": [1], "size": [2, 3]},
            "location, size: got [1] and [2, 3]. Give (x, y) and (width, height) in level-0 pixels.",
        ),
    ],
)
def test_a_wrong_value_is_told_with_those_there_are(request_, text):
    with pytest.raises(RequestError) as refusal:
        read_choice(request_, MUSTMIL)
    assert str(refusal.value) == text
    assert refusal.value.status == 400


@pytest.mark.parametrize(
    ("location", "size", "region"),
    [
        ([100, 200], [300, 400], (100, 200, 300, 400)),
        # QuPath and DSA for the whole slide, and what the server fills in for a client that sends nothing.
        ([0, 0], [0, 0], None),
        ([-1, -1], [-1, -1], None),
        ([0, 0], [2048, 2048], None),
        ([1, 0], [2048, 2048], (1, 0, 2048, 2048)),
        (None, None, None),
    ],
)
def test_a_rectangle_is_used_where_a_client_drew_one(location, size, region):
    assert read_choice({"location": location, "size": size}, MUSTMIL).region == region


# What MONAI Label makes of what QuPath's extension sends, and the Digital Slide Archive's plugin: clicks, be there any
# or not.
QUPATH = {"output": "asap", "foreground": [], "background": [], "max_workers": 1}
DSA = {"output": "dsa", "wsi_tiles": []}


@pytest.mark.parametrize(
    ("request_", "conf", "coordinates"),
    [
        (QUPATH, {}, "qupath"),
        ({"output": "asap"}, {}, "level0"),
        (DSA, {}, "level0"),
        ({**DSA, "foreground": [[1, 2]], "background": []}, {}, "level0"),
        ({"output": "json"}, {}, "level0"),
        ({}, {}, "level0"),
        # A client's word counts, then the server's, then what the client is.
        ({**QUPATH, "coordinates": "level0"}, {}, "level0"),
        ({"coordinates": "qupath"}, {}, "qupath"),
        (QUPATH, {"coordinates": "level0"}, "level0"),
        ({"coordinates": "qupath"}, {"coordinates": "level0"}, "qupath"),
        ({**DSA, "coordinates": ["qupath", "level0"]}, {}, "level0"),  # the list of /info/, sent back
    ],
)
def test_qupath_gets_its_own_frame_and_others_that_of_level_0(request_, conf, coordinates):
    assert read_choice(request_, MUSTMIL, conf).coordinates == coordinates


def test_a_bundle_without_frames_is_served_in_that_of_level_0():
    old = Offer(MUSTMIL.heads, MUSTMIL.maps, CLASSES, coordinates=("level0",))
    assert read_choice(QUPATH, old).coordinates == "level0"
    assert read_choice({"coordinates": ["level0"]}, old).coordinates == "level0"  # the list of /info/, sent back
    with pytest.raises(RequestError, match=r"^coordinates: got 'qupath'\. Give one of level0\.$"):
        read_choice({"coordinates": "qupath"}, old)


def test_a_frame_that_there_is_not_is_refused_with_those_there_are():
    for wrong in ("QuPath", 0, True, {}):
        with pytest.raises(RequestError, match=r"^coordinates: got .*\. Give one of qupath, level0\.$"):
            read_choice({"coordinates": wrong}, MUSTMIL)
    assert tuple(MUSTMIL.coordinates) == COORDINATES


def test_the_servers_defaults_hold_until_the_client_says_otherwise():
    conf = {"kind": "contribution", "threshold": "0.01", "classes": "cancer,hgd"}
    assert read_choice({}, MUSTMIL, conf) == Choice("global", ("cancer", "hgd"), "contribution", (), 0.01, None)
    assert read_choice({"share": 0.5, "kind": "attention"}, MUSTMIL, conf).shares == (0.5,)


def test_a_client_that_sends_the_lists_of_info_back_means_their_first_entry():
    # As the panels of MONAI Label's viewers do with what was not touched.
    choice = read_choice({"head": ["global", "5x", "10x"], "kind": ["attention", "contribution"]}, MUSTMIL)
    assert (choice.head, choice.kind) == ("global", "attention")


@pytest.mark.parametrize("method", [method for method in METHODS if attention_maps(method, (5, 10))])
def test_each_method_offers_its_maps_by_name_and_by_the_output_that_they_explain(method):
    offer = offer_of(method)
    specs = attention_maps(method, (5, 10))
    for m, spec in enumerate(specs):
        assert offer.map_index(spec.name) == m
        # Of several maps of one output, the one on the highest magnification.
        assert specs[offer.map_index(spec.head)].scale_index == max(s.scale_index for s in specs if s.head == spec.head)
    assert read_choice({}, offer).head == offer.map_names[0] == specs[0].head


@pytest.mark.parametrize(
    ("value", "wanted"), [(True, True), ("true", True), ("Yes", True), (1, True), (False, False), ("no", False)]
)
def test_a_switch_is_read_from_json_and_from_text(value, wanted):
    assert read_switch("save_label", value) is wanted


def test_a_switch_that_is_none_is_refused():
    with pytest.raises(RequestError, match="save_label: got 'maybe'. Give true or false."):
        read_switch("save_label", "maybe")


@pytest.mark.parametrize(("name", "meant"), [("heads", "head"), ("class", "classes"), ("tresholds", "threshold")])
def test_a_misspelt_parameter_is_refused_with_the_name_that_was_meant(name, meant):
    with pytest.raises(RequestError, match=f"{name}: there is no such parameter. Write {meant}"):
        read_choice({name: "5x"}, MUSTMIL)


def test_what_clients_send_of_their_own_stays_unread():
    sent = {"model": "m", "image": "s", "level": 0, "tile_size": [1024, 1024], "min_poly_area": 80, "output": "asap"}
    others = {
        "multi_gpu": True,
        "gpus": "all",
        "logging": "INFO",
        "session": {},
        "label": "x",
        "result_extension": ".nrrd",
    }
    assert read_choice({**sent, **others}, MUSTMIL) == read_choice({}, MUSTMIL)


@pytest.mark.parametrize("key", ["share", "threshold"])
def test_a_number_that_is_too_large_for_one_is_told_in_short(key):
    with pytest.raises(RequestError) as refusal:
        read_choice({key: 10**400}, MUSTMIL)
    assert str(refusal.value) == f"{key}: got 1{'0' * 99}.... Give a number."


def test_a_corner_that_is_too_far_away_is_refused():
    with pytest.raises(RequestError, match="location: got 1000"):
        read_choice({"location": [10**400, 0], "size": [1, 1]}, MUSTMIL)


@pytest.mark.parametrize("value", [0.02, 0.25, 1, 20])
def test_a_resolution_is_one_that_slides_have(value):
    assert read_mpp(value) == value


@pytest.mark.parametrize("value", [True, 1e-9, 0, -1, 21, "abc", "0.5", [0.5], float("nan"), 10**400])
def test_a_resolution_that_no_slide_has_is_refused(value):
    with pytest.raises(RequestError, match=r"mpp: got .* a number in 0\.02\.\.20\.") as refusal:
        read_mpp(value)
    assert refusal.value.status == 400


def test_a_device_is_a_name_or_the_first_of_those_in_info():
    assert [read_device(value, ["cpu"]) for value in ("cuda:1", ["cpu", "cuda:0"], None, "")] == [
        "cuda:1",
        "cpu",
        None,
        None,
    ]
    for value in (3, [3], {"cpu": 1}, True, []):
        with pytest.raises(RequestError, match="device: got .* Give one of cpu; or leave it out"):
            read_device(value, ["cpu"])


def test_a_level_of_the_log_is_one_of_pythons():
    for value in (None, "INFO", "debug"):
        check_logging(value)
    for wrong in ("x", 3, ["INFO"], ""):
        with pytest.raises(RequestError, match="logging: got .* Give one of CRITICAL"):
            check_logging(wrong)


FILES = ["model.pt", "model_5x.pt"]


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"val_split": 0.2, "max_epochs": 1, "model_filename": "model_5x.pt"},
        {"model_filename": FILES},
    ],
)
def test_a_training_as_the_clients_ask_for_it_is_let_pass(request_):
    check_training(request_, FILES)


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        *(("val_split", value, "Give the share of the labelled slides") for value in (-1, 0, 1, 2, True, "0.2", [0.2])),
        *(("val_split", value, "Give the share of the labelled slides") for value in (float("nan"), 10**400)),
        *(("max_epochs", value, "Give a whole number from 1 on.") for value in (0, -1, 1.5, True, "5", [5])),
        *(("model_filename", value, "Give one of model.pt") for value in ("x.pt", "../model.pt", [], ["x"], 3, {})),
    ],
)
def test_a_training_that_would_not_do_what_was_meant_is_refused(key, value, remedy):
    with pytest.raises(RequestError) as refusal:
        check_training({key: value}, FILES)
    assert str(refusal.value).startswith(f"{key}: got ")
    assert remedy in str(refusal.value)
    assert refusal.value.status == 400
