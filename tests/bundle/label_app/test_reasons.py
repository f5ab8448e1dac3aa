"""What a client of the MONAI Label app is told when a request fails."""

import sys

import pytest

from bundle.label_app.lib.reasons import RequestError, find_reason
from scripts.core.errors import DatalistError, SettingsError, SlideError


def wrapped(error):
    """An error as MONAI's config parser hands it on."""
    try:
        try:
            raise error
        except type(error) as cause:
            raise RuntimeError("Failed to instantiate preprocessing") from cause
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SlideError("a.svs", "no tissue was found", "Leave it out."), 422),
        (DatalistError("a.svs", "no tissue was found", "Leave it out."), 422),
        (SettingsError("a.svs", "no tissue was found", "Leave it out."), 500),
        (RequestError(404, "a.svs", "no tissue was found", "Leave it out."), 404),
    ],
)
def test_the_line_of_an_error_reaches_the_client_however_it_is_wrapped(error, status):
    line = "a.svs: no tissue was found. Leave it out."
    assert find_reason(error) == (status, line)
    assert find_reason(wrapped(error)) == (status, line)


def test_the_bundles_errors_are_known_after_their_module_was_unloaded(monkeypatch):
    error = SlideError("a.svs", "no tissue was found", "Leave it out.")
    monkeypatch.delitem(sys.modules, "scripts.core.errors")
    from scripts.core.errors import SlideError as Reloaded

    assert not isinstance(error, Reloaded)
    assert find_reason(error)[0] == 422


def test_a_class_that_is_only_named_alike_is_no_error_of_the_bundle():
    class BundleError(Exception):
        pass

    assert find_reason(BundleError("secret"))[1].startswith("the server: unexpected BundleError")


def test_an_unexpected_error_is_told_in_one_line_with_its_kind():
    status, text = find_reason(KeyError("a\nb"))
    assert status == 500
    assert text == "the server: unexpected KeyError ('a\\nb'). The server's log has all of it."
    assert find_reason(KeyError("a"), "model/b")[1].startswith("model/b: unexpected KeyError ('a').")


def test_the_message_of_monai_labels_own_errors_is_not_lost():
    # Its exceptions keep the text in an attribute and show nothing as a string.
    class SilentError(Exception):
        def __init__(self, msg):
            self.msg = msg

    assert "there is no model" in find_reason(SilentError("there is no model"))[1]


def test_a_request_that_took_too_long_names_the_setting():
    status, text = find_reason(TimeoutError())
    assert status == 504
    assert "MONAI_LABEL_INFER_TIMEOUT" in text
