"""Schemas and patterns that an engine must compile have limits, and typical ones are within them."""

import json
from typing import Any

import pytest

from alignkit_server.chat.options import OPTIONS, Demand, check_options
from alignkit_server.chat.structured import check_schema, check_structured, written_out
from alignkit_server.errors import ApiError

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 200},
        "phone": {"type": "string", "pattern": r"^\+?[0-9]{6,15}$"},
        "tags": {"type": "array", "maxItems": 50, "items": {"enum": ["a", "b", "c"]}},
    },
    "required": ["name"],
}


@pytest.mark.parametrize(
    "given",
    [
        {"json": PERSON},
        {"json": json.dumps(PERSON)},
        {"json_object": True},
        {"choice": ["yes", "no", *(f"a choice of some words, number {n}" for n in range(200))]},
        {"regex": r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"},
        {"regex": r"\d{4}-\d{2}-\d{2}T(\d{2}:){2}\d{2}Z"},
        {"grammar": 'root ::= "yes" | "no"'},
        {
            "structural_tag": json.dumps(
                {"triggers": ["<f"], "structures": [{"begin": "<f", "schema": PERSON}]}
            )
        },
    ],
)
def test_what_people_send_is_taken(given: dict[str, Any]) -> None:
    check_structured("structured_outputs", given)


def nested(levels: int, items: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "minItems": items, "items": schema}
    return schema


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"choice": ["a" * 1_000_000]}, "choice"),
        ({"choice": ["a"] * 1000}, "choice"),
        ({"choice": [str(n) * 300 for n in range(100)]}, "choice"),
        ({"choice": "yes"}, "choice"),
        ({"regex": "a" * 5000}, "regex"),
        ({"regex": "a{100000}"}, "regex"),
        ({"regex": "((a{100}){100}){100}"}, "regex"),
        ({"regex": "a{999999999999999999}"}, "regex"),
        ({"whitespace_pattern": "( {1000}){1000}"}, "whitespace_pattern"),
        ({"grammar": "root ::= " + "a" * 100_000}, "grammar"),
        ({"grammar": 'root ::= ("a"{1000}){1000}'}, "grammar"),
        ({"json": {"enum": ["a" * 100_000]}}, "json"),
        ({"json": {"type": "string", "maxLength": 10**6}}, "json…maxLength"),
        ({"json": {"type": "string", "pattern": "(a{1000}){1000}"}}, "json…pattern"),
        ({"json": {"patternProperties": {"(a{1000}){1000}": {}}}}, "json…patternProperties"),
        ({"json": {"properties": {f"p{n}": {"pattern": "[a-z]{1,20}"} for n in range(200)}}}, "json"),
        ({"json": nested(5, 100)}, "json"),
        ({"json": {"allOf": [{}] * 2000}}, "json"),
        ({"json": json.dumps({"enum": ["a" * 100_000]})}, "json"),
        ({"json": "{"}, "json"),
        ({"structural_tag": json.dumps({"structures": [{"schema": nested(5, 100)}]})}, "structural_tag"),
    ],
)
def test_what_takes_an_engine_long_is_refused(given: dict[str, Any], where: str) -> None:
    with pytest.raises(ApiError) as refused:
        check_structured("structured_outputs", given)
    assert refused.value.detail.param == f"structured_outputs.{where}"


@pytest.mark.parametrize(
    ("pattern", "length"),
    [
        ("", 0),
        ("abc", 3),
        ("a{3}", 3),
        ("a{2,5}b", 6),
        ("(ab){3}", 6),
        ("(a{2}b){3}c", 10),
        (r"\\{3}", 3),
        (r"\{3}", 3),
        ("[a{9}]{2}", 2),
        ("[]{9}]{2}", 2),
        (r"[\]{9}]{2}", 2),
        ("a{,4}", 4),
        ("a{3,}", 3),
    ],
)
def test_repetitions_are_written_out(pattern: str, length: int) -> None:
    assert written_out(pattern) == length


def test_tools_and_formats_are_schemas_too() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": nested(5, 100)}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": nested(5, 100)}}
    for body in ({"tools": [tool]}, {"response_format": form}, {"tools": [{}] * 129}):
        with pytest.raises(ApiError):
            check_options({"model": "m", **body})
    form["json_schema"]["schema"] = PERSON  # type: ignore[index]
    tool["function"]["parameters"] = PERSON  # type: ignore[index]
    assert check_options({"tools": [tool], "response_format": form}).structured


@pytest.mark.parametrize(
    ("body", "demand"),
    [
        ({"messages": []}, Demand(1, None, structured=False)),
        ({"messages": [], "n": 3, "max_tokens": 7}, Demand(3, 7, structured=False)),
        ({"messages": [], "max_tokens": 7, "max_completion_tokens": 9}, Demand(1, 9, structured=False)),
        ({"prompt": "a"}, Demand(1, 16, structured=False)),
        ({"prompt": [1, 2, 3], "best_of": 4}, Demand(4, 16, structured=False)),
        ({"prompt": ["a", "b"], "n": 2}, Demand(4, 16, structured=False)),
        ({"prompt": [[1, 2], [3]]}, Demand(2, 16, structured=False)),
        ({"prompt": "a", "response_format": {"type": "text"}}, Demand(1, 16, structured=False)),
        ({"prompt": "a", "response_format": {"type": "json_object"}}, Demand(1, 16, structured=True)),
    ],
)
def test_what_a_request_asks_of_its_engine(body: dict[str, Any], demand: Demand) -> None:
    assert check_options(body) == demand


def test_null_is_let_through_whatever_it_is_called() -> None:
    check_options({"model": "m", "prompt_embeds": None, "vllm_option_of_tomorrow": None})


def test_no_option_that_reaches_further_than_its_request_is_in_the_list() -> None:
    assert not OPTIONS.keys() & {
        "priority",
        "request_id",
        "kv_transfer_params",
        "vllm_xargs",
        "chat_template",
    }


def test_a_schema_of_any_depth_is_measured() -> None:
    schema: Any = {}
    for _ in range(60):
        schema = {"items": schema}
    check_schema("s", schema)
