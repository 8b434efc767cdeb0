"""A batch over a Ray cluster: every worker holds an engine of its own and takes one scan after the other.

Ray Data hands the scans out and carries each answer back as it comes; the process that started the run writes them. The
program must be installed on every machine and the scans, masks and models lie at the same paths; the question file is
only read where the run starts. Run inside a cluster (`ray start`, RAY_ADDRESS), or this machine alone becomes one.
"""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from seg_backbone.errors import ConfigError
from vlm.infer.batch import Files, Loader, answer_each, answer_scan, unscored
from vlm.infer.blind import BlindEngine
from vlm.infer.index import QuestionIndex, ScanQuestions
from vlm.schema import Answer

if TYPE_CHECKING:
    import numpy as np

RETRIES = 3  # of a scan whose worker died
LOST = f"the worker died, and {RETRIES} more after it"


class Worker:
    """One engine in a process of its own."""

    def __init__(self, load: Callable[[], Any], files: Files, threads: int) -> None:
        torch.set_num_threads(threads)
        self.engine, self.files = load(), files

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, list[bytes]]]:
        """Answer scans, each (image, questions) pickled in `scan`; one row an answer, pickled in `answer`."""
        for image, questions in map(pickle.loads, batch["scan"]):
            if isinstance(self.engine, BlindEngine):
                answers = answer_each(self.engine.ask, questions)
            else:
                read = partial(self.files.for_model(self.engine).read, image)
                answers = answer_scan(self.engine, read, questions, self.files.fast)
            for answer in answers:
                yield {"answer": [pickle.dumps(answer)]}


def answer_on_ray(
    load: Loader, files: Files, cpus: int, index: QuestionIndex, scans: list[ScanQuestions]
) -> Iterator[Answer]:
    """Answer with one worker a GPU of the cluster, or without any with one worker for every `cpus` cores.

    A scan whose worker dies is given to another; after RETRIES more deaths its questions are unscored. Raises
    ConfigError where Ray is not installed or no worker can load the model.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        todo = "pip install 'flare-vlm[ray]', or leave --engine out"
        raise ConfigError("--engine ray", "Ray Data", "no such package", todo) from None

    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing about the scans' site leaves it
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:
            found = " ".join(str(error).split())
            raise ConfigError("--engine ray", "a Ray cluster", found, "check RAY_ADDRESS or `ray status`") from None
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # a lost scan is told by its answers
    seen: set[str] = set()
    try:
        workers, resources = share(ray.cluster_resources(), cpus, load.device)
        rows = [{"scan": pickle.dumps((scan.image, list(index.read(scan))))} for scan in scans]
        each = (load.absolute(), files.absolute(), int(resources["num_cpus"]))
        dataset = _dataset(ray, rows, each, min(workers, len(rows)), resources)
        for row in dataset.iter_rows():
            answer = pickle.loads(row["answer"])
            if answer.id not in seen:
                seen.add(answer.id)
                yield answer
    except ray.exceptions.RayError as error:
        found = str(error).strip().splitlines()[-1]
        todo = "check model and installation on every machine of the cluster"
        raise ConfigError("--engine ray", "workers that start and load the model", found, todo) from None
    finally:
        logger.setLevel(level)
        if started:
            ray.shutdown()
    for scan in scans:
        for question in index.read(scan.without(seen)):
            yield unscored(question, LOST)


def _dataset(ray: Any, rows: list[dict[str, bytes]], each: tuple[Any, ...], workers: int, resources: dict) -> Any:
    """The answers to `rows`, one scan each, by so many workers; nothing runs before they are asked for."""
    with warnings.catch_warnings():
        # of fields that Ray copies itself, and of `ray_remote_args_fn`, which nothing replaces yet
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.target_max_block_size = 1  # a block an answer, so that each is written as it comes
        context.max_errored_blocks = -1
        with ray.data.DataContext.current(context):
            return ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                Worker,
                fn_constructor_args=each,
                batch_size=None,
                compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
                ray_remote_args_fn=lambda: {"max_restarts": -1, "max_task_retries": RETRIES},
                **resources,
            )


def share(cluster: dict[str, float], cpus: int, device: str) -> tuple[int, dict[str, Any]]:
    """How many workers a cluster holds, and what each takes of it."""
    cores, gpus = int(cluster.get("CPU", 1)), int(cluster.get("GPU", 0))
    if gpus and device != "cpu":
        return gpus, {"num_gpus": 1, "num_cpus": max(1, min(cpus, cores // gpus))}
    each = min(cpus, cores)
    return cores // each, {"num_cpus": each}
