"""One sentence about what the Hub did not give, from whatever transformers, datasets and huggingface_hub make of it.

They raise errors of a dozen classes, of several sentences, and say of a connection that broke off that a name is wrong.
What was the matter is somewhere in the chain of their causes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .reasons import first_line


@contextmanager
def hub_sentences(name: Any) -> Iterator[None]:
    """Raise a `ValueError` where something is gated, a token is unknown, the Hub fails, or the connection breaks off.

    Other errors pass as they are.

    Args:
        name: What is loaded.

    Example:

    ```python
    >>> from types import SimpleNamespace
    >>> from huggingface_hub.errors import GatedRepoError
    >>> with hub_sentences("some/model"):
    ...     raise GatedRepoError("403 Client Error", response=SimpleNamespace(headers={}, request=None))
    Traceback (most recent call last):
    ...
    ValueError: some/model is gated; ask for access on its page on the Hub, and log in with `hf auth login`

    ```
    """
    try:
        yield
    except Exception as error:  # of the network, in a library that huggingface_hub chooses
        said = _said_of(error)
        if said is None:
            raise
        raise ValueError(f"{name} {said}") from error


def _said_of(error: BaseException) -> str | None:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    each: BaseException | None = error
    while each is not None:
        if isinstance(each, GatedRepoError) or "is a gated dataset" in str(each):  # datasets keeps no cause
            return "is gated; ask for access on its page on the Hub, and log in with `hf auth login`"
        if _broke_off(each):
            return f"broke off on its way from the Hub ({first_line(each)}); try again"
        if isinstance(each, HfHubHTTPError) and not isinstance(each, RepositoryNotFoundError):
            status = getattr(each.response, "status_code", 0)
            if status == 401:
                return "is not given by the Hub, which does not know your token; log in anew with `hf auth login`"
            if status >= 500:
                return f"is not given by the Hub ({first_line(each)}); try again later"
        each = each.__cause__ or each.__context__
    return None


def _broke_off(error: BaseException) -> bool:
    """Whether it is of the network, in httpx or in its successor that huggingface_hub uses."""
    kinds = type(error).__mro__
    return any(kind.__name__ == "TransportError" and kind.__module__.startswith("httpx") for kind in kinds)
