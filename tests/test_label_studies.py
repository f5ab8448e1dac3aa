"""A server's folder of slides: each has an id of its own."""

import pytest

from bundle.label_app.lib.reasons import RequestError
from bundle.label_app.lib.studies import check_ids

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
