"""YAML of a recipe, where a name that is written twice is an error and does not take the place of the first."""

from typing import Any

import yaml


class _EachNameOnce(yaml.SafeLoader):
    def construct_document(self, node: yaml.Node) -> Any:
        self.deep_construct = True  # an anchor that holds itself is an error then, and not an endless value
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value} is written twice, put both together", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load(text: str) -> Any:
    """What the text holds.

    Raises:
        yaml.YAMLError: it is no YAML, or a mapping has a name twice.

    Example:

    ```python
    >>> load("{a: 1, b: {a: 2}}")
    {'a': 1, 'b': {'a': 2}}
    >>> load("{a: 1, a: 2}")
    Traceback (most recent call last):
    ...
    yaml.constructor.ConstructorError: a is written twice, put both together
      in "<unicode string>", line 1, column 8:
        {a: 1, a: 2}
               ^

    ```
    """
    return yaml.load(text, Loader=_EachNameOnce)  # which is a SafeLoader
