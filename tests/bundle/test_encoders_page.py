"""docs/encoders.md has the tables of the registry."""

from __future__ import annotations

from bundle.encoders_page import PAGE, filled
from scripts.encoders.registry import ENCODERS


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == filled(page)


def test_each_encoder_says_its_licence_paper_and_where_its_values_were_read() -> None:
    for name, entry in ENCODERS.items():
        assert entry.licence, name
        assert entry.paper, name
        assert entry.sources, name
        assert f"| `{name}` | {entry.num_features} |" in PAGE.read_text(encoding="utf-8")
