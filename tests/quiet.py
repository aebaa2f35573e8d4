"""Training arguments of a short run on a CPU that saves, reports and prints nothing."""

QUIET = {
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}
