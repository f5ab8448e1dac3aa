"""A server's folder of slides: each has an id of its own."""

import tempfile

import pytest

from bundle.label_app.lib.reasons import RequestError
from bundle.label_app.lib.studies import check_ids, find_mask, find_slide_file

PATTERNS = ["*.svs", "*.tiff", "*.mrxs"]


def test_slides_with_names_of_their_own_are_served(tmp_path):
    for name in ("a.svs", "b.svs", "c.mrxs", "a.xml"):
        (tmp_path / name).touch()
    (tmp_path / "c").mkdir()  # where MRXS keeps its data
    check_ids(str(tmp_path), PATTERNS)
    check_ids("https://example.org/dicom", PATTERNS)


def test_two_files_with_one_id_are_refused_by_name(tmp_path):
    for name in ("a.tiff", "a.svs", "b.svs"):
        (tmp_path / name).touch()
    with pytest.raises(RequestError, match=r"a\.svs and a\.tiff would have the same id\. Rename one"):
        check_ids(str(tmp_path), PATTERNS)


@pytest.fixture
def studies(tmp_path):
    folder = tmp_path / "studies"
    folder.mkdir()
    for path in (folder / "a.svs", tmp_path / "outside.svs"):
        path.touch()
    return folder


def test_a_slide_is_opened_by_its_path_only_within_the_studies(studies, tmp_path, monkeypatch):
    monkeypatch.chdir(studies)
    assert find_slide_file(str(studies / "a.svs"), [str(studies)]) == str(studies / "a.svs")
    assert find_slide_file(str(studies / "a.svs"), ["."]) == str(studies / "a.svs")
    refused = ("a.svs", str(tmp_path / "outside.svs"), f"{studies}/../outside.svs", str(studies), f"{studies}/gone.svs")
    for image in refused:
        assert find_slide_file(image, [str(studies)]) is None, image


def test_an_uploaded_slide_is_opened_by_its_temporary_path():
    with tempfile.NamedTemporaryFile(suffix=".svs") as file:
        assert find_slide_file(file.name, []) == file.name
    assert find_slide_file(tempfile.gettempdir(), []) is None


def test_a_temporary_file_that_nobody_uploaded_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "secret.svs").touch()
    (tmp_path / "tmp_link.svs").symlink_to(tmp_path / "secret.svs")
    assert find_slide_file(str(tmp_path / "secret.svs"), []) is None
    assert find_slide_file(str(tmp_path / "tmp_link.svs"), []) is None


def test_a_mask_lies_in_the_studies(studies):
    (studies / "masks").mkdir()
    (studies / "masks" / "a.png").touch()
    wanted = str(studies / "masks" / "a.png")
    assert find_mask("masks/a.png", str(studies)) == find_mask(wanted, str(studies)) == wanted
    with pytest.raises(RequestError, match=r"mask: there is no file gone\.png\."):
        find_mask("gone.png", str(studies))


def test_of_a_mask_elsewhere_nothing_is_told(studies, tmp_path):
    for name in ("outside.svs", "gone.svs"):
        for mask in (f"../{name}", str(tmp_path / name)):
            with pytest.raises(RequestError) as refusal:
                find_mask(mask, str(studies))
            assert str(refusal.value).startswith(f"mask: {mask} is not in the server's folder of slides.")


@pytest.mark.parametrize("mask", [3, [], "", True])
def test_a_mask_that_is_no_path_is_refused(studies, mask):
    with pytest.raises(RequestError, match="mask: got ") as refusal:
        find_mask(mask, str(studies))
    assert refusal.value.status == 400
