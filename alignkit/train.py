"""What `accelerate launch` starts: `accelerate launch -m alignkit.train RECIPE.yaml [--resume] [key=value …]`.

Reads top to bottom: the recipe, the model, the data, the trainer, a last evaluation, the adapter, the canary, the
result. Everything the run writes is in `output_dir` (see alignkit.run.folder). A folder that already holds a run
is never written over: the repeat goes to `repeat-1`, `repeat-2`, … inside it. With `--resume` the run in the folder
goes on from its last whole checkpoint instead. SIGTERM pauses a run: see alignkit.run.pausing.
"""

import errno
import os
import re
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from alignkit.errors import AlignkitError, CollapseError, FieldIssue, ModelError, RecipeError
from alignkit.models.adapters import adapted_modules, train_on
from alignkit.models.chat_templates import read_template
from alignkit.models.loading import experts_of, load_causal_lm
from alignkit.recipe import Recipe
from alignkit.run.checkpoints import newest_first, read_manifest
from alignkit.run.environment_checks import require, settle_length
from alignkit.run.folder import SAVED_TEACHER, RunFolder, newest, write_json
from alignkit.run.resume_guard import origin_of, refusal
from alignkit.sharding import SHARES_WEIGHTS, sharding

RESUME = "--resume"
OUT_OF_MEMORY = "Out of memory: lower micro_batch_size or max_length. ({})"


def main(argv: list[str] | None = None) -> int:
    """Run a recipe; returns the exit status. Errors are one line on stderr and the run's result.json."""
    given = sys.argv[1:] if argv is None else argv
    resume, arguments = RESUME in given, [argument for argument in given if argument != RESUME]
    if not arguments:
        print(
            "usage: accelerate launch -m alignkit.train RECIPE.yaml [--resume] [key=value …]", file=sys.stderr
        )
        return 2
    try:
        recipe = settle_length(Recipe.load(Path(arguments[0]), arguments[1:]))
        folder = open_folder(recipe, resume=resume)
    except AlignkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        run(recipe, folder, resume=resume)
    except Exception as error:
        report_failure(folder, error)
        return 1
    return 0


def open_folder(recipe: Recipe, *, resume: bool = False) -> RunFolder:
    """The folder of this run, with the resolved recipe in it; where it resumes, that of the run before, untouched."""
    given = Path(recipe.output_dir)
    path = newest(given) if resume else given
    if not resume and RunFolder(path).events.exists():
        path = next(path / f"repeat-{n}" for n in range(1, 10_000) if not (path / f"repeat-{n}").exists())
    folder = RunFolder(path)
    if not is_main_process():
        return folder
    if path != given:
        print(f"{'Resuming' if resume else 'Writing to'} {path}: {given} holds an earlier run", flush=True)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError([FieldIssue("output_dir", f"cannot make {path}: {error.strerror}")]) from error
    if not resume:
        begin(recipe, folder)
    return folder


def begin(recipe: Recipe, folder: RunFolder) -> None:
    """Make the folder this run's: its recipe, and no result yet."""
    resolved = recipe.model_copy(update={"output_dir": str(folder.path)})
    folder.recipe.write_text(resolved.to_yaml(), encoding="utf-8")
    folder.result.unlink(missing_ok=True)


def run(recipe: Recipe, folder: RunFolder, *, resume: bool = False) -> None:
    """Train, on from the last checkpoint if asked; unless that was paused, finish the run."""
    from alignkit.run.pausing import Leaving, pausing_on_sigterm  # saves transformers at start-up

    quiet_libraries()
    use_all_cores()
    started = time.monotonic()
    try:
        with pausing_on_sigterm() as pause:
            require(recipe)
            trainer = build_trainer(recipe, folder)
            checkpoint = checkpoint_to_resume(trainer, folder) if resume else None
            if resume and is_main_process():
                begin(recipe, folder)
            require_exact_heads(trainer)
            guard = add_guard(trainer, recipe, folder)
            trainer.add_callback(pause)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if not pause.paused:
                finish(trainer, guard, recipe, folder, started)
                return
    except Leaving:
        pass  # there was nothing to save
    report_pause(folder)


def finish(trainer: Any, guard: Any, recipe: Recipe, folder: RunFolder, started: float) -> None:
    """Evaluate, save, measure the canary and write the result."""
    metrics = final_metrics(trainer)
    if guard is not None and guard.settle():
        metrics = final_metrics(trainer)
    save(trainer, recipe, folder)
    save_canary(trainer, folder)
    if is_main_process():
        state = trainer.state
        result = {
            "status": "succeeded",
            "steps": state.global_step,
            "trained_tokens": trainer.trained_tokens,
            "seconds": round(time.monotonic() - started, 1),
            "metrics": metrics,
        }
        write_json(folder.result, result)
        print(f"Finished in {result['seconds']:.0f} s: {folder.path}", flush=True)


def build_trainer(recipe: Recipe, folder: RunFolder) -> Any:
    """The method's trainer over the recipe's model and data."""
    from transformers import PrinterCallback, set_seed  # saves transformers at start-up

    from alignkit.run.progress import ProgressCallback
    from alignkit.tracker_callbacks import tracker_callbacks
    from alignkit.trainers.building import RunContext, build

    set_seed(recipe.seed)
    callbacks = [ProgressCallback(folder), *(tracker_callbacks(recipe, folder) if is_main_process() else [])]
    model, tokenizer = load_model(recipe)
    context = RunContext(recipe, model, tokenizer, folder.checkpoints, callbacks)
    trainer = build(context)
    require_processes(trainer)
    report_adapters(trainer, recipe, folder)
    trainer.origin = origin_of(recipe, trainer.accelerator)
    trainer.remove_callback(PrinterCallback)  # ProgressCallback prints one readable line instead
    return trainer


def report_adapters(trainer: Any, recipe: Recipe, folder: RunFolder) -> None:
    """Tell which modules the adapters of a mixture of experts change: its experts may be none that adapters fit."""
    from alignkit.trainers.scoring import published  # saves transformers at start-up

    model = published(trainer.model, trainer.accelerator)
    experts = experts_of(model.config)
    if recipe.lora is None or not experts or not is_main_process():
        return
    names = adapted_modules(model)
    frozen = (
        ""
        if any("expert" in name for name, weight in model.named_parameters() if weight.requires_grad)
        else ("; the experts stay as they are")
    )
    folder.emit(f"LoRA changes {', '.join(names)} of a mixture of {experts} experts{frozen}")


def require_processes(trainer: Any) -> None:
    """A launcher's processes that do not see each other would each train alone, and say nothing."""
    expected, found = int(os.environ.get("WORLD_SIZE", "1")), trainer.accelerator.num_processes
    if found != expected:
        message = f"expected {expected} processes, as the launcher started, found {found} training together"
        raise RecipeError([FieldIssue("", message)])


def require_exact_heads(trainer: Any) -> None:
    """Refuse, by a ModelError, a model whose log-probs would not be its own: now, or as soon as it is sharded.

    Under ZeRO-3 and FSDP a model runs only once the Trainer has prepared it, which is when training begins.
    """
    from transformers import TrainerCallback  # saves transformers at start-up

    from alignkit.checks import require_exact_head

    class HeadCheck(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            require_exact_head(trainer.model, device=trainer.accelerator.device)

    if sharding() in SHARES_WEIGHTS:
        trainer.add_callback(HeadCheck())
    else:
        with trainer.accelerator.autocast():
            require_exact_head(trainer.model)


def checkpoint_to_resume(trainer: Any, folder: RunFolder) -> Path | None:
    """The last whole checkpoint, as one process finds it for all; None to begin at the beginning.

    Raises RecipeError where that is not one that this run can go on from.
    """
    from accelerate.utils import broadcast_object_list  # saves transformers at start-up

    choice: list[Any] = [None, None]
    if is_main_process():
        checkpoint = folder.last_checkpoint(lambda message: folder.emit(message, level="warn"))
        if checkpoint is not None:
            choice = [checkpoint, refusal(checkpoint.name, read_manifest(checkpoint), trainer.origin)]
    found, refused = broadcast_object_list(choice)
    if refused:
        raise RecipeError([FieldIssue("", refused)])
    return found


def add_guard(trainer: Any, recipe: Recipe, folder: RunFolder) -> Any:
    """The collapse guard, watching; None where the recipe turns it off."""
    from alignkit.trainers.collapse_guard import CollapseGuard  # saves transformers at start-up

    if recipe.collapse_guard is None:
        return None
    guard = CollapseGuard(trainer, recipe.collapse_guard, folder, seed=recipe.seed)
    trainer.add_callback(guard)
    return guard


def load_model(recipe: Recipe) -> tuple[Any, Any]:
    """The model and its tokenizer, which must have a chat template."""
    path, options = recipe.model.path, recipe.model
    model, tokenizer = load_causal_lm(
        path,
        options.dtype,
        options.attn_implementation,
        field="model.path",
        quantization=options.quantization,
    )
    if options.chat_template is not None:
        tokenizer.chat_template = read_template(options.chat_template)
    if not tokenizer.chat_template:
        hint = "name one with model.chat_template: a Jinja file, or one of those that ship with TRL"
        raise ModelError(
            f"model.path: {path} has no chat template, so conversations cannot be rendered: {hint}"
        )
    if options.adapter is None:
        return model, tokenizer
    try:
        # as TRL makes new ones: ZeRO-3 gathers parameters of one dtype only
        return train_on(model, Path(options.adapter), upcast=sharding() != "ZeRO-3"), tokenizer
    except ModelError as error:
        raise ModelError(f"model.adapter: {error}") from error


def final_metrics(trainer: Any) -> dict[str, Any]:
    """The last evaluation's metrics, evaluating now if the last step was not evaluated."""
    from alignkit.run.progress import rename  # saves transformers at start-up

    if trainer.eval_dataset is not None and not _evaluated_at_end(trainer.state):
        trainer.evaluate()
    logs: dict[str, Any] = {}
    for entry in trainer.state.log_history:
        if "train_runtime" not in entry:
            logs.update({name: value for name, value in entry.items() if name != "step"})
    return rename(logs)


def _evaluated_at_end(state: Any) -> bool:
    return any(entry["step"] == state.global_step and "eval_loss" in entry for entry in state.log_history)


def save(trainer: Any, recipe: Recipe, folder: RunFolder) -> None:
    """Write the adapter, or the model, whole or not at all; a teacher saved with it goes beside it."""
    target = folder.model if recipe.lora is None else folder.adapter
    staging = target.with_name(f".{target.name}.tmp")
    trainer.save_model(str(staging))
    if is_main_process():
        teacher = staging / SAVED_TEACHER
        if teacher.is_dir():
            _put(teacher, folder.teacher)
            teacher.parent.rmdir()
        _put(staging, target)


def _put(source: Path, target: Path) -> None:
    for leftover in ("training_args.bin", "README.md"):
        (source / leftover).unlink(missing_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    source.rename(target)


def save_canary(trainer: Any, folder: RunFolder) -> None:
    """Measure and write canary.json."""
    from alignkit import canary  # saves transformers at start-up

    measured = canary.measure(trainer)
    if measured is not None and is_main_process():
        write_json(folder.canary, measured)


def report_pause(folder: RunFolder) -> None:
    """Write that the run can go on, and from where."""
    if is_main_process():
        newest = next(iter(newest_first(folder.checkpoints)), None)
        step = int(newest.name.rpartition("-")[2]) if newest else 0
        folder.emit(f"Training paused at step {step}", data={"step": step})
        write_json(folder.result, {"status": "paused", "steps": step})
        print(f"Paused at step {step}: {folder.path}", flush=True)


def report_failure(folder: RunFolder, error: Exception) -> None:
    """Tell of the failure, and write it where the service looks. A trace is for what no sentence explains.

    The process that fails says why, whichever it is. One that fails for want of another says nothing that lasts: the
    run counts as killed, and goes on. A run that was not taken up, and a full disk, leave what is in the folder.
    """
    place = "" if is_main_process() else f" in process {os.environ['RANK']}"
    if not folder.path.is_dir():
        gone = f"The run's folder {folder.path} is gone: {RESUME} goes on once it is back."
        print(f"error{place}: {gone}", file=sys.stderr, flush=True)
        return
    if lost_a_peer(error):
        gone = f"another process of the run is gone: {RESUME} goes on from the last checkpoint"
        print(f"error{place}: {gone} ({error})", file=sys.stderr, flush=True)
        return
    code, message = explain(error)
    if code == UNEXPLAINED:
        traceback.print_exception(error)
    print(f"error{place}: {message}", file=sys.stderr, flush=True)
    if folder.result.exists():
        return
    try:
        if is_main_process():  # which alone writes events
            folder.emit(message, level="error", data={"code": code})
        write_json(folder.result, {"status": "failed", "error": {"code": code, "message": message}})
    except OSError as full:
        print(f"error: the result could not be written: {full}", file=sys.stderr, flush=True)


PEER_GONE = re.compile(r"closed by peer|reset by peer|remote process exited|ncclRemoteError|Broken pipe")


def lost_a_peer(error: Exception) -> bool:
    """Whether gloo or NCCL says that another process, or its machine, went away."""
    text = str(error)
    by_the_network = re.search("gloo|nccl", text, re.IGNORECASE) is not None
    return isinstance(error, RuntimeError) and by_the_network and PEER_GONE.search(text) is not None


UNEXPLAINED = "training_failed"
EXPLAINED: tuple[tuple[type[Exception], str, str], ...] = (
    (CollapseError, "collapsed", "{}"),
    (AlignkitError, "invalid_recipe", "{}"),
    (FloatingPointError, "not_finite", "Training stopped: {}"),
    (MemoryError, "out_of_memory", OUT_OF_MEMORY),
)
"""Kinds of errors that a user can act on, with the code and the sentence they become."""


def explain(error: Exception) -> tuple[str, str]:
    """(code, sentence) of a failure."""
    full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    if full or "No space left on device" in str(error):  # safetensors wraps the OSError
        return "disk_full", "The disk is full: free some space and start the job again."
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be imported to fail
        return "out_of_memory", OUT_OF_MEMORY.format(error)
    for kind, code, sentence in EXPLAINED:
        if isinstance(error, kind):
            return code, sentence.format(error)
    return UNEXPLAINED, f"{type(error).__name__}: {error}"


def is_main_process() -> bool:
    """Whether this is rank 0."""
    return os.environ.get("RANK", "0") == "0"


def use_all_cores() -> None:
    """Without a GPU, share the cores among the processes of this machine: accelerate's default is one each."""

    if torch.cuda.is_available() or os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))


def quiet_libraries() -> None:
    """No progress bars and no telemetry in a log file."""
    import datasets  # saves transformers at start-up
    import transformers

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
