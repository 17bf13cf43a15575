"""What the Hub does not give is one sentence, wherever in a chain of errors it is found; tests/hub meets real ones."""

from types import SimpleNamespace

import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from qkvit.configuration.hub_errors import hub_sentences


def answered(status, kind=HfHubHTTPError):
    return kind(
        f"{status} Error for url: x.\nMore.", response=SimpleNamespace(headers={}, request=None, status_code=status)
    )


def broken_off():
    transport = type("TransportError", (Exception,), {"__module__": "httpx2"})
    return type("ReadError", (transport,), {})("connection lost.")


def raised_as(cause):
    """As transformers tells it: with the cause behind another error."""
    with hub_sentences("me/tiny"):
        try:
            raise cause
        except Exception as error:
            raise OSError("Can't load the model. Make sure that ...") from error


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (answered(403, GatedRepoError), "me/tiny is gated; ask for access"),
        (answered(401), "does not know your token; log in anew"),
        (answered(503), "is not given by the Hub (503 Error for url: x); try again later"),
        (broken_off(), "me/tiny broke off on its way from the Hub (connection lost); try again"),
    ],
)
def test_the_cause_is_told(raises_sentence, cause, words):
    with raises_sentence(ValueError, words):
        raised_as(cause)


@pytest.mark.parametrize("cause", [answered(401, RepositoryNotFoundError), answered(404), KeyError("layers")])
def test_what_others_say_better_passes(cause):
    with pytest.raises(OSError, match="Can't load the model"):
        raised_as(cause)
