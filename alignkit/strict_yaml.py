"""YAML as its writer means it: YAML 1.1 read with PyYAML, without the forms that surprise.

A key that a mapping has twice is refused. Keys are text (`on`, `no`, `0`), `010` is ten and not eight, and `1:30` and
`2024-01-01` are text and no numbers of seconds or dates.
"""

import re
from typing import Any

import yaml

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)\Z")
_FLOAT = re.compile(
    r"(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with fewer forms of numbers, and with mappings that have each key once."""

    def construct_mapping(self, node: Any, *args: Any, **options: Any) -> Any:
        """The mapping of a node. Raises ConstructorError for a key that is there twice."""
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != f"{_TAG}merge":
                key.tag = f"{_TAG}str"
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"found the key {key.value!r} twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, *args, **options)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if tag.removeprefix(_TAG) not in {"int", "float", "timestamp"}]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789."))


def read_yaml(text: str) -> Any:
    """The value of a YAML text. Raises yaml.YAMLError, with the place, if it is none."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader
