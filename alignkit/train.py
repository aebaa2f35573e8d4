"""The training program: `python -m alignkit.train RECIPE.yaml [--resume] [key=value …]`, alone or by a launcher.

It loads the recipe, the model and the data, trains, evaluates, and saves the adapter, the canary and the result.
Everything the run writes is in `output_dir` (see alignkit.run.folder). A folder that already holds a run is never
overwritten: the repeat goes to `repeat-1`, `repeat-2`, … inside it. `--resume` resumes the run in the folder from its
last complete checkpoint instead. SIGTERM pauses a run (see alignkit.run.pausing).
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from alignkit import startup
from alignkit.data.template import end_of_answer
from alignkit.data.tokens import chat_tokenizer
from alignkit.errors import AlignkitError, FieldIssue, ModelError, RecipeError
from alignkit.finish import finish
from alignkit.launch import RESUME, RETRY_EXIT, THREADS_GIVEN, start_again
from alignkit.models.adapters import adapted_modules, train_on
from alignkit.models.layers import compile_layers, plain_layers, use_liger
from alignkit.models.loading import ends_of, experts_of, load_weights
from alignkit.recipe import Recipe
from alignkit.report import report_at_end
from alignkit.run import facts
from alignkit.run.checkpoints import newest_first, read_manifest
from alignkit.run.environment_checks import require, settle_length
from alignkit.run.failures import explain, lost_a_peer, report_failure
from alignkit.run.folder import RunFolder, newest, write_json
from alignkit.run.resume_guard import origin_of, refusal
from alignkit.run.settled import halve
from alignkit.settling import settle, settle_evaluations, settle_precision, settle_references
from alignkit.sharding import SHARES_WEIGHTS, is_main_process, sharding

LAUNCHED = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"}
"""Environment variables of which accelerate's launcher and torchrun set one at least."""


def main(argv: list[str] | None = None) -> int:
    """Run a recipe and return the exit status. An error is one line on stderr, and is in the run's result.json."""
    given = sys.argv[1:] if argv is None else argv
    resume, arguments = RESUME in given, [argument for argument in given if argument != RESUME]
    if not arguments:
        print("usage: python -m alignkit.train RECIPE.yaml [--resume] [key=value …]", file=sys.stderr)
        return 2
    try:
        recipe = settle_length(Recipe.load(Path(arguments[0]), arguments[1:]))
        folder = agreed(open_folder(recipe, resume=resume))
    except AlignkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        run(recipe, folder, resume=resume)
    except Exception as error:
        if try_with_less(recipe, folder, error):
            return RETRY_EXIT
        report_failure(folder, error)
        report_at_end(folder)
        return 1
    report_at_end(folder)
    return 0


def open_folder(recipe: Recipe, *, resume: bool = False) -> RunFolder:
    """Return the run's folder, with the resolved recipe in it. A resume gets the earlier run's folder, unchanged."""
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
        if not resume:
            folder.settled.unlink(missing_ok=True)
            begin(recipe, folder)
    except OSError as error:
        raise RecipeError(
            [FieldIssue("output_dir", f"cannot write into {path}: {error.strerror}")]
        ) from error
    return folder


def agreed(folder: RunFolder) -> RunFolder:
    """Return rank 0's folder on every rank.

    A rank that starts later than rank 0 would take the run that has just begun for an earlier one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return folder
    from accelerate import PartialState  # saves accelerate at start-up
    from accelerate.utils import broadcast_object_list

    PartialState()
    return RunFolder(Path(broadcast_object_list([str(folder.path)])[0]))


def begin(recipe: Recipe, folder: RunFolder) -> None:
    """Write the resolved recipe into the folder and remove the result of an earlier run."""
    folder.write_recipe(recipe)
    folder.result.unlink(missing_ok=True)


def try_with_less(recipe: Recipe, folder: RunFolder, error: Exception) -> bool:
    """Whether the run ran out of memory and can start once more with half the micro-batch, which is stored."""
    if not folder.path.is_dir() or lost_a_peer(error) or explain(error)[0] != "out_of_memory":
        return False
    sizes = halve(recipe, folder, processes=int(os.environ.get("WORLD_SIZE", "1")))
    if sizes is None:
        return False
    message = f"Out of memory with micro_batch_size {sizes[0]}: resuming with {sizes[1]}"
    print(f"warning: {message}", file=sys.stderr, flush=True)
    folder.emit(message, level="warn", data={"micro_batch_size": sizes[1]})
    return True


def run(recipe: Recipe, folder: RunFolder, *, resume: bool = False) -> None:
    """Train, from the last checkpoint if `resume`. Finish the run unless it was paused."""
    from alignkit.run.pausing import Leaving, pausing_on_sigterm  # saves transformers at start-up

    quiet_libraries()
    use_all_cores()
    started = time.monotonic()
    try:
        evaluates = recipe.data.validation is not None
        with pausing_on_sigterm(recipe.training.pause_at, evaluates=evaluates) as pause:
            require(recipe)
            recipe = settle(recipe, folder, resume=resume, main=is_main_process())
            trainer = build_trainer(recipe, folder)
            recipe = trainer.recipe
            startup.end()
            checkpoint = checkpoint_to_resume(trainer, folder) if resume else None
            if resume and is_main_process():
                begin(recipe, folder)
            require_exact_heads(trainer)
            if facts.wanted():
                facts.keep(folder, environment=facts.environment())
            guard = add_guard(trainer, recipe, folder)
            trainer.add_callback(pause)
            watch_best(trainer, recipe, folder)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if not pause.paused:
                finish(trainer, guard, recipe, folder, started)
                return
    except Leaving:
        pass  # there was nothing to save
    report_pause(folder)


def build_trainer(recipe: Recipe, folder: RunFolder) -> Any:
    """Build the method's trainer with the recipe's model and data; its `recipe` has no `auto` left."""
    from transformers import PrinterCallback, set_seed  # saves transformers at start-up

    from alignkit.run.progress import ProgressCallback
    from alignkit.tracker_callbacks import tracker_callbacks
    from alignkit.trainers.building import RunContext, build, datasets
    from alignkit.trainers.elastic import noise_callbacks
    from alignkit.trainers.nested_ranks import nested_callbacks
    from alignkit.trainers.orthogonal_gradient import gradient_callbacks
    from alignkit.trainers.upstream import skip_deepspeed

    skip_deepspeed()
    set_seed(recipe.seed)
    callbacks = [ProgressCallback(folder), *(tracker_callbacks(recipe, folder) if is_main_process() else [])]
    callbacks += [*gradient_callbacks(recipe), *nested_callbacks(recipe), *noise_callbacks(recipe)]
    tokenizer = chat_tokenizer(recipe.model.path, recipe.model.chat_template, field="model.path")
    data = datasets(recipe, tokenizer, folder)  # a bad row is reported before weights are loaded
    held_out = 0 if data[1] is None else len(data[1])
    recipe = settle_evaluations(recipe, len(data[0]), held_out, folder, main=is_main_process())
    model = load_model(recipe)
    recipe = settle_precision(recipe, model, tokenizer, folder, main=is_main_process())
    recipe = settle_references(recipe, model, len(data[0]), folder, main=is_main_process())
    if recipe.training.mixed_precision == "tf32":
        torch.set_float32_matmul_precision("high")
    settle_ends(model, tokenizer, folder)
    if recipe.training.torch_compile:
        compile_layers(model)  # before a trainer scores answers under it
    context = RunContext(recipe, model, tokenizer, folder.checkpoints, callbacks, data)
    trainer = build(context)
    require_processes(trainer)
    report_adapters(trainer, recipe, folder)
    speed_up_beside(trainer, recipe, folder)
    trainer.origin = origin_of(recipe, trainer.accelerator)
    trainer.recipe = recipe
    trainer.remove_callback(PrinterCallback)  # ProgressCallback prints one readable line instead
    return trainer


def report_adapters(trainer: Any, recipe: Recipe, folder: RunFolder) -> None:
    """Report which modules LoRA changes in a mixture of experts, because adapters may not fit its experts."""
    from alignkit.trainers.scoring import published  # saves transformers at start-up

    model = published(trainer.model, trainer.accelerator)
    experts = experts_of(model.config)
    if recipe.lora is None or not experts or not is_main_process():
        return
    names = adapted_modules(model)
    trained = (name for name, weight in model.named_parameters() if weight.requires_grad)
    frozen = "" if any("expert" in name for name in trained) else "; the experts are frozen"
    folder.emit(f"LoRA changes {', '.join(names)} of a mixture of {experts} experts{frozen}")


def speed_up_beside(trainer: Any, recipe: Recipe, folder: RunFolder) -> None:
    """Give a reference the policy's kernels, so that both round alike, and compile a reference and a teacher too."""
    reference = getattr(trainer, "ref_model", None)
    if recipe.model.layer_kernels is not None and reference is not None:
        use_liger(trainer.accelerator.unwrap_model(reference))
    if recipe.training.torch_compile:
        for model in filter(None, (trainer.model, reference)):
            compile_layers(model)
        if is_main_process():
            folder.emit("Decoder layers are compiled at their first use, for which the run waits")


def require_processes(trainer: Any) -> None:
    """Raise RecipeError unless all of the launcher's processes train together.

    Otherwise each would silently train a model of its own.
    """
    expected, found = int(os.environ.get("WORLD_SIZE", "1")), trainer.accelerator.num_processes
    if found != expected:
        message = f"the launcher started {expected} processes, but only {found} train together"
        raise RecipeError([FieldIssue("", message)])


def require_exact_heads(trainer: Any) -> None:
    """Raise ModelError if the fused head or faster layers do not reproduce the model's own log-probs.

    Under ZeRO-3 and FSDP a model runs only after the Trainer has prepared it, so the check is made when training
    begins.
    """
    from transformers import TrainerCallback  # saves transformers at start-up

    from alignkit.checks import require_exact_head, require_same_layers

    recipe = trainer.recipe
    faster = recipe.training.torch_compile or recipe.model.layer_kernels is not None

    def check(device: Any = None) -> None:
        require_exact_head(trainer.model, device=device)
        if faster:
            require_same_layers(trainer.model, plain_layers, device=device)

    class HeadCheck(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            check(trainer.accelerator.device)

    if sharding() in SHARES_WEIGHTS:
        trainer.add_callback(HeadCheck())
    else:
        with trainer.accelerator.autocast():
            check()


def checkpoint_to_resume(trainer: Any, folder: RunFolder) -> Path | None:
    """Return the last complete checkpoint, or None to start from the beginning. Rank 0 finds it for all ranks.

    Raises RecipeError if this run cannot resume from it.
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
    """Add the collapse guard to the trainer and return it; None if the recipe turns it off."""
    from alignkit.trainers.collapse_guard import CollapseGuard  # saves transformers at start-up

    if recipe.collapse_guard is None:
        return None
    guard = CollapseGuard(trainer, recipe.collapse_guard, folder, seed=recipe.seed)
    trainer.add_callback(guard)
    return guard


def watch_best(trainer: Any, recipe: Recipe, folder: RunFolder) -> None:
    """Keep the best step and stop early, if the recipe says so. It follows the guard, whose verdicts it reads."""
    from alignkit.trainers.best_checkpoint import BestCheckpoint  # saves transformers at start-up

    if recipe.keeps_best or recipe.training.early_stopping is not None:
        trainer.add_callback(BestCheckpoint(trainer, recipe, folder))


def load_model(recipe: Recipe) -> Any:
    """Load the model, with the adapter that trains on, if the recipe names one."""
    options = recipe.model
    model = load_weights(
        options.path,
        options.dtype,
        options.attn_implementation,
        field="model.path",
        quantization=options.quantization,
    )
    if options.layer_kernels is not None:
        use_liger(model)
    if options.adapter is None:
        return model
    try:
        # like TRL's new adapters: ZeRO-3 gathers parameters of one dtype only
        return train_on(model, Path(options.adapter), upcast=sharding() != "ZeRO-3")
    except ModelError as error:
        raise ModelError(f"model.adapter: {error}") from error


def settle_ends(model: Any, tokenizer: Any, folder: RunFolder) -> None:
    """Make the token that ends a trained answer end every answer: in sampling, in the guard and when served.

    A base model's chat template may end a turn with another token than its tokenizer and generation config do.
    """
    end, ends = end_of_answer(tokenizer), ends_of(model, tokenizer)
    if end is None or end in ends:
        return
    model.generation_config.eos_token_id = [*ends, end]
    if is_main_process():
        written, own = (tokenizer.convert_ids_to_tokens(ids) for ids in (end, ends))
        message = f"An answer ends with {written}, as the chat template writes it"
        folder.emit(f"{message}, in addition to the model's own {', '.join(own)}" if own else message)


def report_pause(folder: RunFolder) -> None:
    """Write the result of a paused run, with the step that it can resume from."""
    if is_main_process():
        newest = next(iter(newest_first(folder.checkpoints)), None)
        step = int(newest.name.rpartition("-")[2]) if newest else 0
        folder.emit(f"Training paused at step {step}", data={"step": step})
        write_json(folder.result, {"status": "paused", "steps": step})
        print(f"Paused at step {step}: {folder.path}", flush=True)


def use_all_cores() -> None:
    """Share the cores among this machine's processes if there is no GPU and OMP_NUM_THREADS is not the user's.

    Launchers set OMP_NUM_THREADS=1 where it is not set; `alignkit.launch` marks one that was.
    """
    threads = os.environ.get("OMP_NUM_THREADS")
    launched = LAUNCHED & os.environ.keys() and THREADS_GIVEN not in os.environ
    if torch.cuda.is_available() or not (threads is None or (threads == "1" and launched)):
        return
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))


def quiet_libraries() -> None:
    """Turn off the libraries' progress bars, which would fill a log file, and their telemetry."""
    import datasets  # saves transformers at start-up
    import transformers

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def run_program() -> None:
    """Run the recipe; in a process of its own, once more if it can resume with a smaller micro-batch."""
    startup.begin()  # until the trainer is built: a fifth of the start
    status = main()
    if status == RETRY_EXIT and not LAUNCHED & os.environ.keys():
        start_again("alignkit.train")
    sys.exit(status)


if __name__ == "__main__":
    run_program()
