"""The methods and their options as data and as a docs page; both follow from the declarations."""

from collections.abc import Mapping, Set
from typing import Any

from alignkit.methods.base import Method
from alignkit.methods.hyperparameters import Hyperparameters, hyperparameters_of, in_jobs, job_name
from alignkit.methods.registry import METHODS

INTRODUCTION = """# Methods

Every method with its options, made from their declarations by `alignkit methods --markdown`. A recipe gives options
under `method:`, a job under `method.<type>.hyperparameters`; `alignkit methods --json` and
`GET /v1/fine_tuning/methods` have the same as data.
"""


def described() -> list[dict[str, Any]]:
    """Every registered method: type, description, rows, learning rate, and its options in recipes and in jobs."""
    return [_described(method) for method in METHODS.values()]


def _described(method: type[Method]) -> dict[str, Any]:
    options = method.own_options()
    recipe = method.model_json_schema()
    job = hyperparameters_of(method).model_json_schema()
    given = {job_name(name, field) for name, field in options.items() if in_jobs(field)}
    return {
        "type": method.model_fields["type"].default,
        "description": method.summary(),
        "rows": method.rows,
        "learning_rate": method.learning_rate,
        "options": _resolved(recipe, set(options)),
        "hyperparameters": _resolved(job, given),
    }


def _resolved(schema: Mapping[str, Any], names: Set[str]) -> dict[str, Any]:
    """The named properties, with `required` on each and references to the schema's definitions followed."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping) and "$ref" in value:
            return {**plain(schema["$defs"][value["$ref"].rpartition("/")[2]]), **_without(value, "$ref")}
        if isinstance(value, Mapping):
            return {key: plain(part) for key, part in value.items()}
        return [plain(part) for part in value] if isinstance(value, list) else value

    required = schema.get("required", ())
    return {
        name: {**plain(value), "required": name in required}
        for name, value in schema["properties"].items()
        if name in names
    }


def _without(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: part for name, part in value.items() if name != key}


def markdown() -> str:
    """The docs page of all methods."""
    parts = [INTRODUCTION]
    for method in described():
        parts.append(f"\n## {method['type']}\n\n{method['description']}\n")
        parts.append(
            f"\nRows: {method['rows']}. A job's learning rate: {method['learning_rate']:g} with LoRA.\n"
        )
        if not method["options"]:
            continue
        parts.append("\n| option | in a recipe | in a job | meaning |\n| --- | --- | --- | --- |\n")
        parts.extend(_row(name, method) for name in method["options"])
        further = [name for name in method["hyperparameters"] if name not in method["options"]]
        parts.extend(_row(name, method) for name in further)
    parts.append("\n## Every job\n\n| hyperparameter | values | meaning |\n| --- | --- | --- |\n")
    for name, option in Hyperparameters.model_json_schema()["properties"].items():
        parts.append(f"| `{name}` | {_values(option)} | {option['description']} |\n")
    return "".join(parts)


def _row(name: str, method: Mapping[str, Any]) -> str:
    recipe, job = method["options"].get(name), method["hyperparameters"].get(name)
    meaning = (recipe or job)["description"]
    return f"| `{name}` | {_values(recipe)} | {_values(job)} | {meaning} |\n"


def _values(option: Mapping[str, Any] | None) -> str:
    """Kind, bounds and default of an option, as a table's cell."""
    if option is None:
        return "-"
    arms = [arm for arm in option.get("anyOf", [option]) if arm.get("type") != "null"]
    words = " or ".join(dict.fromkeys(map(_kind, arms)))
    if option.get("required"):
        return f"{words}; required"
    default = option.get("default")
    return words if default in (None, [], {}) else f"{words}; default {_text(default)}"


def _kind(arm: Mapping[str, Any]) -> str:
    if "const" in arm:
        return _text(arm["const"])
    if "enum" in arm:
        return ", ".join(map(_text, arm["enum"]))
    name = {"string": "text", "array": "list", "object": "section"}.get(
        arm.get("type", ""), arm.get("type", "value")
    )
    bounds = [
        f"{sign} {arm[key]:g}"
        for key, sign in (
            ("exclusiveMinimum", ">"),
            ("minimum", ">="),
            ("exclusiveMaximum", "<"),
            ("maximum", "<="),
        )
        if key in arm
    ]
    return f"{name} {', '.join(bounds)}".strip()


def _text(value: object) -> str:
    return (
        {True: "true", False: "false"}.get(value, f"`{value}`") if isinstance(value, bool) else f"`{value}`"
    )
