"""Converts rows of evals, runs and graded rows to API objects."""

from typing import Any

from alignkit_server.evals.schemas import (
    CriterionResult,
    EvalError,
    EvalObject,
    ModelUsage,
    OutputItem,
    ResultCounts,
    RunObject,
)
from alignkit_server.tables import Eval, EvalItem, EvalRun

NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0, "total_tokens": 0}
SAMPLE_SCHEMA = {
    "type": "object",
    "properties": {"output_text": {"type": "string"}, "model": {"type": "string"}},
    "required": ["output_text"],
}
"""The schema of `sample` as a sampled model fills it."""


def present_eval(row: Eval) -> EvalObject:
    """An eval, with the schema of everything that its graders may refer to."""
    config = row.data_source_config
    properties = {"item": config["item_schema"]}
    if config.get("include_sample_schema"):
        properties["sample"] = SAMPLE_SCHEMA
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return EvalObject(
        id=row.id,
        created_at=row.created_at,
        name=row.name,
        data_source_config={"type": "custom", "schema": schema},
        testing_criteria=row.testing_criteria,
        metadata=row.labels,
    )


def present_run(row: EvalRun) -> RunObject:
    """A run, with its counts so far."""
    tally = row.tally
    counts = {name: tally[name] for name in ("passed", "failed", "errored")}
    return RunObject(
        id=row.id,
        created_at=row.created_at,
        eval_id=row.eval_id,
        name=row.name,
        status=row.status,
        model=row.model,
        data_source=row.data_source,
        metadata=row.labels,
        error=EvalError(**row.error) if row.error else None,
        result_counts=ResultCounts(total=row.total, **counts),
        per_testing_criteria_results=[
            CriterionResult(testing_criteria=name, passed=passed, failed=failed)
            for name, (passed, failed) in tally["criteria"].items()
        ],
        per_model_usage=[ModelUsage(model_name=name, **used) for name, used in tally["models"].items()],
        report_url=f"/v1/evals/{row.eval_id}/runs/{row.id}/output_items",
    )


def present_item(row: EvalItem, eval_id: str) -> OutputItem:
    """A graded row. A row that brought its own answer shows that as its sample."""
    return OutputItem(
        id=row.id,
        created_at=row.created_at,
        eval_id=eval_id,
        run_id=row.run_id,
        status=row.status,
        datasource_item_id=row.number,
        datasource_item=row.item,
        results=row.results,
        sample=row.sample or given_sample(row.given),
    )


def given_sample(given: dict[str, Any] | None) -> dict[str, Any]:
    """A row's own answer in the form of a sampled one."""
    text = (given or {}).get("output_text")
    output = [{"role": "assistant", "content": text}] if isinstance(text, str) else []
    return {
        "error": None,
        "finish_reason": "",
        "input": [],
        "max_completion_tokens": 0,
        "model": "",
        "output": output,
        "seed": 0,
        "temperature": 0.0,
        "top_p": 0.0,
        "usage": NO_USAGE,
    }
