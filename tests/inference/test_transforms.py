import hashlib
from pathlib import Path

import itk
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, MapTransform

from scripts.core.errors import SettingsError, SlideError
from scripts.datalists.datalist import list_slides
from scripts.datalists.failures import FailedSlides
from scripts.features.bank import stored_settings
from scripts.features.encoding import Encoder
from scripts.features.extraction import Extractor
from scripts.inference.patients import passing_bags
from scripts.inference.transforms import EncodeSlided, ServingHeadd
from scripts.networks.mustmil import MuSTMIL
from scripts.training.datasets import PatchBagDataset
from tests.cohorts import builder, draw_cohort, draw_slide, tiny_encoder
from tests.dicoms import write_dicom
from tests.pyramids import with_tissue
from tests.servers import serving


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    (entry,) = draw_cohort(tmp_path_factory.mktemp("transforms"), 1)
    return entry


def transform(**settings):
    return EncodeSlided("image", builder(**settings), tiny_encoder())


def test_a_path_becomes_the_bags_features_and_log_weight(entry):
    encoded = transform()(entry)["image"]
    bag = builder()(entry)
    assert isinstance(encoded, MetaTensor)
    assert encoded.shape == (bag.grid.num_rows, 2, 12 + 1)
    assert encoded.dtype == torch.float32
    assert np.array_equal(encoded[..., :-1].numpy(), tiny_encoder().encode_rows(bag))
    assert np.array_equal(encoded[..., -1].numpy(), bag.grid.log_weight())
    assert encoded.meta["filename_or_obj"] == entry["image"]
    assert encoded.meta["mpp"] == pytest.approx(0.5)


def test_beside_them_stands_where_the_patches_lie(entry):
    encoded = transform()(entry)
    (expected,) = PatchBagDataset([entry], builder())
    for key in ("corners", "patch_level0"):
        assert torch.equal(encoded[key], expected[key])
        assert encoded[key].dtype == torch.float64
    assert encoded["base_mpp"] == expected["base_mpp"]


def test_monais_engine_hands_on_where_they_lie_for_each_slide(tmp_path):
    cohort, seen = draw_cohort(tmp_path, 2), []
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(cohort, transform()), batch_size=1),
        network=MuSTMIL(3, num_scales=2, num_features=12, num_nodes=8),
    )
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.extend(engine.state.batch))
    evaluator.run()
    for item, entry in zip(seen, cohort, strict=True):
        expected = transform()(entry)
        assert item["slide"] == expected["slide"]
        assert torch.equal(item["corners"], expected["corners"])
        assert torch.equal(item["patch_level0"], expected["patch_level0"])
        assert item["corners"].dtype == item["patch_level0"].dtype == torch.float64
        assert float(item["base_mpp"]) == expected["base_mpp"]


def test_what_else_the_entry_holds_stays(entry):
    before = dict(entry)
    encoded = transform()({**entry, "note": "kept"})
    made = ("image", "corners", "patch_level0", "base_mpp", "bounds_level0")
    assert {key: value for key, value in encoded.items() if key not in made} == {
        "slide": "s0", "patient": "p0", "label": entry["label"], "note": "kept",
    }  # fmt: skip
    assert entry == before  # the entry itself is not changed
    assert transform()({"image": entry["image"]})["slide"] == "s0"  # after the file, where it has no name


def test_without_a_name_a_slide_is_called_as_in_a_datalist(tmp_path):
    image = with_tissue(512, 512, [(0, 0, 512, 512)])
    write_dicom(tmp_path / "case 1", image, downsamples=(1, 2))
    for level in (0, 1):
        assert transform()({"image": str(tmp_path / "case 1" / f"level_{level}.dcm")})["slide"] == "case 1"
    assert list_slides(tmp_path)[0]["slide"] == "case 1"


def test_the_entrys_mpp_and_mask_are_used(entry, tmp_path):
    finer = transform(min_tissue=0.2)({**entry, "mpp": 0.25})
    assert finer["image"].meta["mpp"] == 0.25
    bag = builder(min_tissue=0.2)({**entry, "mpp": 0.25})
    assert np.array_equal(finer["image"][..., :-1].numpy(), tiny_encoder().encode_rows(bag))

    mask = np.zeros((32, 64), dtype=np.uint8)
    mask[:8, :16] = 1  # 256 x 128 px in the corner: two patches of 10x in one of 5x
    itk.imwrite(itk.image_from_array(mask), str(tmp_path / "m.png"))
    masked = transform()({**entry, "mask": str(tmp_path / "m.png")})["image"]
    assert masked[..., -1].tolist() == pytest.approx(np.array([[-np.log(2), 0], [-np.log(2), 0]]))


def test_another_key_can_hold_the_path(entry):
    encode = EncodeSlided("wsi", builder(), tiny_encoder())
    expected = transform()(entry)["image"]
    assert torch.equal(encode({"wsi": entry["image"]})["wsi"].as_tensor(), expected.as_tensor())


def test_a_served_slide_scores_as_the_network_does_on_both_tensors(entry):
    torch.manual_seed(0)
    network = MuSTMIL(3, num_scales=2, num_features=12, num_nodes=8).eval()
    pipeline = Compose([transform()])
    assert isinstance(transform(), MapTransform)
    (batch,) = DataLoader(Dataset([{"image": entry["image"]}], pipeline), batch_size=1)
    with torch.no_grad():
        served = network(batch["image"])
    bag = builder()(entry)
    features = torch.from_numpy(tiny_encoder().encode_rows(bag))[None]
    log_weight = torch.from_numpy(bag.grid.log_weight())[None]
    with torch.no_grad():
        assert torch.allclose(torch.as_tensor(served), network(features, log_weight), atol=1e-6)
        # The weights matter: without them the same rows score otherwise.
        assert not torch.allclose(torch.as_tensor(served), network(features), atol=1e-4)


def test_a_server_chooses_the_device_of_each_request(entry):
    encode = transform()
    request = {"image": entry["image"], "image_path": entry["image"], "device": "cpu"}
    with pytest.raises(SettingsError, match="device: got 'tpu9'"):
        encode({**request, "device": "tpu9"})
    encode(request)
    # A column of that name in a datalist is the user's own.
    encode({**entry, "device": "Aperio AT2"})


@pytest.mark.parametrize(("heads", "served"), [(["global", "5x", "10x"], 0), (["5x", "10x"], 1), (["global"], 0)])
def test_served_are_the_scores_of_one_output_and_the_others_stay_beside_them(heads, served):
    scores = MetaTensor(torch.rand(len(heads), 5))
    data = ServingHeadd("pred", heads)({"pred": scores, "slide": "s"})
    assert torch.equal(data["pred"], scores[served])
    assert data["pred"].shape == (5,)
    assert isinstance(data["pred"], MetaTensor)
    assert torch.equal(data["head_scores"], scores)
    assert data["slide"] == "s"


def test_a_slide_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(SlideError, match=r"missing\.svs: no such file"):
        transform()({"image": tmp_path / "missing.svs"})


def test_a_file_that_is_not_what_the_datalist_means_is_refused(entry):
    with pytest.raises(SlideError, match=r"s0\.tif: its SHA-256 is .*the datalist says 0000"):
        transform()({**entry, "sha256": "0" * 64})


@pytest.fixture
def cohort(tmp_path):
    return draw_cohort(tmp_path, 2)


def banked(folder, **settings):
    return EncodeSlided("image", builder(**settings), tiny_encoder(), folder)


def never(*_):
    raise AssertionError("a slide is encoded again")


def test_a_bank_gives_what_the_slide_gives_to_the_last_digit_and_encodes_it_once(cohort, tmp_path, monkeypatch):
    wanted = [transform()(entry) for entry in cohort]
    first = [banked(tmp_path / "features")(entry) for entry in cohort]
    monkeypatch.setattr(Encoder, "encode", never)
    second = [banked(tmp_path / "features")(entry) for entry in cohort]
    for made in (first, second):
        for item, expected in zip(made, wanted, strict=True):
            assert item.keys() == expected.keys()
            for key in ("image", "corners", "patch_level0", "bounds_level0"):
                assert torch.equal(torch.as_tensor(item[key]), torch.as_tensor(expected[key])), key
                assert item[key].dtype == expected[key].dtype
            assert item["base_mpp"] == expected["base_mpp"]
            for key in ("filename_or_obj", "mpp"):
                assert item["image"].meta[key] == expected["image"].meta[key]


def test_extracting_finds_the_bank_of_inferring_and_inferring_that_of_extracting(cohort, tmp_path, monkeypatch):
    places = {"inferred": tmp_path / "inferred", "extracted": tmp_path / "extracted"}
    for entry in cohort:
        banked(places["inferred"])(entry)
    Extractor(cohort, builder(), tiny_encoder(), places["extracted"]).run()
    monkeypatch.setattr(Encoder, "encode", never)
    Extractor(cohort, builder(), tiny_encoder(), places["inferred"]).run()
    for entry in cohort:
        banked(places["extracted"])(entry)
        of_both = [stored_settings(folder / f"{entry['slide']}.h5") for folder in places.values()]
        assert of_both[0] == of_both[1]
        assert of_both[0]["slide_sha256"] == hashlib.sha256(Path(entry["image"]).read_bytes()).hexdigest()


def test_a_bank_of_other_settings_is_refused_before_a_slide_is_encoded(cohort, tmp_path, monkeypatch):
    banked(tmp_path)(cohort[1])
    monkeypatch.setattr(Encoder, "encode", never)
    with pytest.raises(SettingsError, match=r"s1\.h5: was made otherwise \(min_tissue"):
        banked(tmp_path, min_tissue=0.5).check_banks(cohort)


def test_a_bank_of_another_file_is_refused(cohort, tmp_path):
    entry, checksum = cohort[0], "0" * 64
    banked(tmp_path)(entry)
    with pytest.raises(SettingsError, match=rf"s0\.h5: was made otherwise \(slide_sha256 '\w+', now '{checksum}'\)"):
        banked(tmp_path)({**entry, "sha256": checksum})
    draw_slide(Path(entry["image"]), seed=9)
    with pytest.raises(SettingsError, match=r"s0\.h5: was made otherwise \(slide_fingerprint"):
        banked(tmp_path)(entry)


def test_a_slide_that_cannot_be_read_is_not_looked_at_before_its_turn(cohort, tmp_path, caplog):
    Path(cohort[0]["image"]).unlink()
    banked(tmp_path / "features")(cohort[1])
    with caplog.at_level("INFO"):
        banked(tmp_path / "features").check_banks(cohort)
    assert "1 of 2 slides have features in" in caplog.text
    with pytest.raises(SlideError, match="s0.tif"):
        banked(tmp_path / "features")(cohort[0])


def test_only_inferring_does_without_a_bank():
    with pytest.raises(SettingsError, match="feature_dir: got None. Give a path as text"):
        Extractor([], builder(), tiny_encoder(), None)


@pytest.mark.parametrize("unit", ["slide", "patient"])
def test_slides_behind_addresses_are_predicted_from_copies_that_last_one_turn(tmp_path, unit):
    """Features are those of the files; a handler of the turn can open the slide, and none is left at the end."""
    cohort = draw_cohort(tmp_path, 3)
    with serving(tmp_path) as server:
        addresses = [{"image": f"{server.url}/s{i}.tif", "patient": f"p{i // 2}"} for i in range(3)]
        entries = list_slides(addresses, unit=unit)
        encode = transform(slide_cache=tmp_path / "cache")
        failures = FailedSlides(tmp_path / "out", "inferring")
        failures.start()
        made = {}
        for item in passing_bags(entries, encode, failures, unit, encode.staging):
            made[item["slide"]] = item["image"]
            names = {"p0": ["s0", "s1"], "p1": ["s2"]}.get(item["slide"], [item["slide"]])
            for entry in (entry for entry in entries if entry["slide"] in names):
                assert encode.bag_builder.open_slide(entry).path.is_file()
        assert not encode.staging.is_here(entries[-1])
    expected = [transform()(entry)["image"] for entry in cohort]
    if unit == "slide":
        assert all(torch.equal(made[f"s{i}"], expected[i]) for i in range(3))
    else:
        assert [len(made[name]) for name in ("p0", "p1")] == [len(expected[0]) + len(expected[1]), len(expected[2])]
        assert torch.equal(made["p1"], expected[2])
    assert not list((tmp_path / "cache").iterdir())
    assert sorted(server.asked) == ["s0.tif", "s1.tif", "s2.tif"]
