"""Training a segmentation model: data, model, loop, validation, checkpoint. Reads top to bottom.

The same seed gives the same windows whatever happened in between: batch n draws from a generator seeded by (seed, n),
so a resumed run sees what an uninterrupted one would have seen. Step s of P processes that each gather A batches takes
the batches from s x A x P on, so that P processes see what one would that gathers A x P.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import gather_object

from seg_backbone.cases import TrainingCase
from seg_backbone.checkpoint import load_model, save_model
from seg_backbone.errors import ConfigError
from seg_backbone.nets.wrappers import Ensemble
from seg_backbone.plan import Plan
from seg_backbone.scan_heads import load_heads, save_heads
from seg_backbone.train.classes import accuracies, class_terms, classify_cases, scan_targets
from seg_backbone.train.config import SegmentationConfig
from seg_backbone.train.data import Progress, annotated, build_sources, read_cases
from seg_backbone.train.log import Log
from seg_backbone.train.model import build_model, running_average, save_trained
from seg_backbone.train.objective import Step, build_terms, total
from seg_backbone.train.optimise import build_optimizer, build_schedule, is_out_of_memory, out_of_memory
from seg_backbone.train.samples import SCAN, Batches, ahead, layout
from seg_backbone.train.state import Best, load_state, save_state
from seg_backbone.train.validation import means, score

LOG_EVERY = 50
Report = Callable[[dict[str, Any]], None]


def train_segmentation(
    config: SegmentationConfig,
    resume: bool = False,
    report: Report | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train and save a model folder under `config.output`/model. Returns that folder.

    Beside it: `best`, the model of the highest mean validation Dice; checkpoint.pt; log.jsonl; `cases`, the scans as
    preprocessed. The members of an ensemble are trained one after the other, each in a folder of its own, and their
    weights go into one model whose logits are the mean of theirs. With `pseudo_labels`, see rounds.py.

    resume: go on from the checkpoints where there are any. report(row) receives every log row. progress(stage, done,
    total) is for a progress bar. Raises ConfigError for data that is missing, and for a lack of memory.
    """
    if config.pseudo_labels:
        from seg_backbone.train.rounds import train_rounds  # which trains every round by this function

        return train_rounds(config, resume, report, progress)
    cache = config.cache or config.output / "cases"
    if not config.members:
        return _train(config, cache, resume, report, progress)
    folders = []
    for number, member in enumerate(config.members):
        alone = replace(
            config,
            members=(),
            output=config.output / f"member_{number}",
            fold=config.fold if member.fold is None else member.fold,
            seed=config.seed + number if member.seed is None else member.seed,
        )
        name = f"member {number}"
        tell = (lambda row, name=name: report({"member": name} | row)) if report else None
        show = (lambda stage, done, of, name=name: progress(f"{name}: {stage}", done, of)) if progress else None
        folders.append(_train(alone, cache, resume, tell, show))
    if PartialState().is_main_process:
        save_ensemble(folders, config.output / "model")
    PartialState().wait_for_everyone()
    return config.output / "model"


def save_ensemble(folders: Sequence[Path], out: Path) -> Path:
    """One model folder of several that are alike in all but their weights: the mean of their logits."""
    networks, plans, _ = zip(*(load_model(folder) for folder in folders), strict=True)
    trained_on: dict[str, tuple[str, ...]] = {}
    for modality, names in (item for plan in plans for item in plan.trained_on.items()):
        trained_on[modality] = tuple(dict.fromkeys((*trained_on.get(modality, ()), *names)))
    if plans[0].heads:
        save_heads([load_heads(folder, plan)[0] for folder, plan in zip(folders, plans, strict=True)], out)
    return save_model(Ensemble(networks), plans[0].with_(trained_on=trained_on, members=len(plans)), out, half=True)


def _train(
    config: SegmentationConfig, cache: Path, resume: bool, report: Report | None, progress: Progress | None
) -> Path:
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    machine = start_machine(config)
    config.output.mkdir(parents=True, exist_ok=True)

    for entry in config.datasets:
        scan_targets(config.plan, config.data / entry.name)  # what is wrong with them is told before a voxel is read
    model = build_model(config).to(machine.device, memory_format=layout(machine.device))
    with machine.main_process_first():  # the first one fills the cache, the others read it
        training, validation = read_cases(config, cache, progress if machine.is_main_process else None)
    plan = config.plan.with_(trained_on=annotated(training, config.plan, config.synthetic_tumours))
    if not any(plan.trained_on.values()) and not plan.heads:
        expected = f"training scans that show one of {', '.join(plan.classes)}"
        raise ConfigError(config.data, expected, "none", "see `vlm data check`, or correct the plan's `classes`")
    batches = Batches(build_sources(config, training), config.batch, config.seed, config.consistency)
    terms = [*build_terms(config), *class_terms(config, training)]

    average = running_average(model, config.ema) if config.ema else None
    kept = average.module if average else model
    optimizer = build_optimizer(model, config)
    schedule = build_schedule(optimizer, config)
    best = Best()
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "best": best}
    parts |= {"average": average} if average else {}
    parts |= {"scaler": machine.scaler} if machine.scaler else {}
    checkpoint = config.output / "checkpoint.pt"
    made_with = {"network": str((plan.network, plan.network_options)), "classes": str(plan.classes)}
    made_with |= {"spacing": str(plan.spacing_mm), "optimizer": config.optimizer}
    first = load_state(checkpoint, parts, made_with) if resume else 0
    trained, stepper = machine.prepare(model, optimizer)
    if average:
        machine.prepare_model(average.module, evaluation_mode=True)  # the teacher runs at the same precision

    each = config.accumulate * machine.num_processes
    numbers = range(first * each + machine.process_index, config.steps * each, machine.num_processes)
    coming = ahead(batches, numbers, workers_of(config, machine))
    saved = time.monotonic()
    with Log(config.output, first, config.steps, report, config.tensorboard, machine.is_main_process) as log:
        for step in range(first, config.steps):
            torch.manual_seed(config.seed + step * each + machine.process_index)  # dropout, if any
            waited = 0.0
            trained.train()
            try:
                for part in range(1, config.accumulate + 1):
                    asked = time.monotonic()
                    batch = next(coming).to(machine.device)
                    waited += time.monotonic() - asked
                    with nullcontext() if part == config.accumulate else machine.no_sync(trained):
                        output = trained(batch.image)
                        teacher = average.module if average else model
                        loss, values = total(terms, Step(step, trained, teacher, batch, output))
                        machine.backward(loss / config.accumulate)
                    log.part(values)
                machine.clip_grad_norm_(trained.parameters(), config.clip)
                stepper.step()
                stepper.zero_grad(set_to_none=True)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                raise out_of_memory(config, machine.device, machine.mixed_precision != "no") from None
            schedule.step()
            if average:
                average.update_parameters(model)
            log.step(waited)

            done = step + 1
            last = done == config.steps
            due = last or time.monotonic() - saved > 60 * config.checkpoint_minutes
            if due or done % LOG_EVERY == 0:
                log.require_finite()
            row: dict[str, Any] = {"step": done} | log.means() if done % LOG_EVERY == 0 or last else {}
            if done % config.validate_every == 0 or last:
                row = {"step": done} | row | {"validation_dice": validate(kept.network, validation, plan, machine)}
                if SCAN in kept.heads:
                    own = validation[machine.process_index :: machine.num_processes]
                    found = gather_object(classify_cases(kept.network, kept.heads[SCAN], own, plan))
                    row |= {"validation_classes": accuracies(found)}
                dice = list(row["validation_dice"].values())
                if dice and sum(dice) / len(dice) > best.dice:
                    best.dice, best.step = sum(dice) / len(dice), done
                    if machine.is_main_process:
                        save_trained(kept, plan, config.output / "best")
                row |= {"best_dice": round(best.dice, 4), "best_step": best.step} if dice else {}
            if row:
                log.write(row)
            if progress and machine.is_main_process:
                progress("training", done, config.steps)
            if due and machine.is_main_process:
                save_state(checkpoint, parts, done, made_with)
                saved = time.monotonic()
    if machine.is_main_process:
        save_trained(kept, plan, config.output / "model")
    machine.wait_for_everyone()
    return config.output / "model"


def start_machine(config: SegmentationConfig) -> Accelerator:
    """The device and the processes to train on: this one, or all that `accelerate launch` started."""
    cpu = config.device == "cpu" or not torch.cuda.is_available()
    if config.device == "cuda" and cpu:
        raise ConfigError("device", "a CUDA device that torch can use", "none", "set `device: auto`")
    half = "bf16" if not cpu and torch.cuda.is_bf16_supported() else "fp32"
    precision = half if config.precision == "auto" else config.precision
    if cpu and precision == "fp16":
        raise ConfigError("precision", "fp32 or bf16 on a CPU", "fp16", "change it")
    torch.backends.cudnn.benchmark = True
    # heads of coarser logits take part only under deep supervision
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    mixed = "no" if precision == "fp32" else precision
    AcceleratorState._reset_state()  # of an earlier training in this process, maybe at another precision
    return Accelerator(cpu=cpu, mixed_precision=mixed, kwargs_handlers=[unused])


def workers_of(config: SegmentationConfig, machine: Accelerator) -> int:
    """Processes that draw windows for this one."""
    if config.workers is not None or machine.device.type == "cpu":
        return config.workers or 0
    return max(1, min(8, (os.cpu_count() or 1) // machine.num_processes - 1))


def validate(
    network: torch.nn.Module, cases: Sequence[TrainingCase], plan: Plan, machine: Accelerator
) -> dict[str, float]:
    """Mean Dice per "MODALITY class"; every process scores its share of the cases."""
    return means(gather_object(score(network, cases[machine.process_index :: machine.num_processes], plan)))
