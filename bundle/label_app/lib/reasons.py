"""What a client is told when a request fails: a status and one line with subject, cause and remedy."""

from __future__ import annotations

__all__ = ["RequestError", "find_reason", "show"]

# The statuses of HTTP that are used.
BAD_REQUEST, NOT_FOUND, NOT_USABLE, SERVER_FAULT, NOT_POSSIBLE, TOO_LATE = 400, 404, 422, 500, 501, 504

# What the bundle's `scripts.core.errors` calls what is wrong with the client's slide or label, not with the server.
CLIENTS_FAULTS = frozenset({"SlideError", "DatalistError"})

# Characters of a client's value that are told back.
LONGEST = 100


class RequestError(Exception):
    """A request that cannot be answered, in one line as the bundle's own errors have it.

    Args:
        status: of HTTP.
        subject: the parameter, slide or model that is at fault.
        cause: what is wrong with it, with the value found.
        remedy: what the client, or the server's keeper, can do next.
    """

    def __init__(self, status: int, subject: object, cause: str, remedy: str) -> None:
        super().__init__(" ".join(f"{subject}: {cause}. {remedy}".split()))
        self.status = status


def show(value: object) -> str:
    """What a client sent, as a reason shows it: not longer than a line."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def find_reason(error: BaseException, subject: str = "the server") -> tuple[int, str]:
    """The status and the line for the client, from an exception or the causes behind it.

    MONAI's parser wraps what a part of a bundle raises, so the chain of causes is searched. The errors of a bundle's
    ``scripts`` are known by their names: MONAI Label unloads that module between requests, so that the class which
    was raised is no longer the one that could be imported here.

    Args:
        error: what was raised.
        subject: what an error that tells nothing itself is about.
    """
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, RequestError):
            return link.status, str(link)
        names = {kind.__name__ for kind in type(link).__mro__ if kind.__module__ == "scripts.core.errors"}
        if "BundleError" in names:
            return NOT_USABLE if names & CLIENTS_FAULTS else SERVER_FAULT, str(link)
        link = link.__cause__ or link.__context__
    if isinstance(error, TimeoutError):
        return TOO_LATE, "the server: took longer than it may. Set MONAI_LABEL_INFER_TIMEOUT (seconds) to more."
    said = " ".join(str(getattr(error, "msg", None) or error).split())
    return SERVER_FAULT, f"{subject}: unexpected {type(error).__name__} ({said}). The server's log has all of it."
