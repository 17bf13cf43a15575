"""What an error of another library says, short enough to stand inside a sentence of ours."""


def first_line(error: BaseException) -> str:
    """Its first line without a full stop; of an error without words, the name of its class.

    Example:

    ```python
    >>> first_line(ValueError("not found.\\nTry another")), first_line(KeyError())
    ('not found', 'KeyError')

    ```
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip().rstrip(".")


def in_one_line(error: BaseException) -> str:
    """All that it says, without line breaks and without a full stop; without words, the name of its class.

    Example:

    ```python
    >>> in_one_line(ValueError("not\\n  found.")), in_one_line(KeyError())
    ('not found', 'KeyError')

    ```
    """
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
