"""The teacher's side of distillation: its logits for a batch, worked out now or looked up.

For a fixed set of views the answers are worked out once and kept, so that the teacher is not run
in every epoch. Fixed views overfit in long trainings (Beyer et al. 2022, section 3): their number
is a setting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import models
from pipeline.batches import GPU_SHARE, Batch, Batches
from pipeline.context import Context
from pipeline.devices import autocast, compiled, pick_precision, prepare
from pipeline.images import batch_size, open_split
from pipeline.moving import moved
from pipeline.progress import track
from pipeline.records import Answers, Checkpoint, Dataset
from pipeline.settings import Recipe

Guide = Callable[[Batch], Tensor]
"""The teacher's logits [b, classes] of a batch, on its device."""
Recall = Callable[[Batch], Batch]
"""The batch, with the `answers` that were kept."""


def running(context: Context, teacher: Checkpoint, recipe: Recipe) -> Guide:
    """A guide that runs the teacher on each batch."""
    device = prepare(context)
    model = models.load(teacher).to(device).to(memory_format=torch.channels_last)
    dtype = pick_precision(recipe, model.network, device)
    forward = compiled(model, recipe.compile)

    def guide(batch: Batch) -> Tensor:
        with torch.no_grad(), autocast(device, dtype):
            return forward(batch.images)

    return guide


def kept(answers: Sequence[Answers], device: torch.device) -> Recall:
    """Looks up what the teacher said of each view; `answers` in order of the views.

    They lie on the GPU where they fit, else in files that are mapped into memory.
    """
    files = [np.load(each.path, mmap_mode="r") for each in answers]
    whole: Tensor | None = None
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
        if sum(file.nbytes for file in files) < GPU_SHARE * there:
            whole = torch.from_numpy(np.stack(files)).to(device)

    def recall(batch: Batch) -> Batch:
        if whole is not None:
            found = whole[batch.view, moved(batch.rows, device)]
        else:
            found = moved(torch.from_numpy(files[batch.view][batch.rows.numpy()]), device)
        return replace(batch, answers=found)

    return recall


class Asking:
    """Asks a teacher about whole views of the training split, and keeps its answers in the store.

    The precision of its arithmetic is the `recipe`'s; the answers are kept in float16.
    """

    def __init__(
        self, context: Context, teacher: Checkpoint, dataset: Dataset, recipe: Recipe
    ) -> None:
        self._context, self._teacher = context, teacher
        self._dataset, self._recipe = dataset, recipe

    def about(self, view: int) -> Answers:
        """The answers to one view, from the store if they are there."""
        return self._context.store.get(
            Answers,
            "answers",
            lambda folder: self._work(view, folder),
            version=1,
            settings={
                "augment": self._recipe.augment,
                "precision": self._recipe.precision,
                "view": view,
            },
            parents=[self._dataset, self._teacher],
            facts=self._context.training_facts(),
            together=True,
        )

    # Made when the first view is wanted, and kept for the next.

    @cached_property
    def _guide(self) -> Guide:
        return running(self._context, self._teacher, self._recipe)

    @cached_property
    def _batches(self) -> Batches:
        return Batches(
            open_split(self._dataset, "train"),
            batch_size(self._dataset.input.size) * self._context.team.size,
            prepare(self._context),
            settings=self._recipe.augment,
            seed=self._context.seed,
            team=self._context.team,
        )

    def _work(self, view: int, folder: Path) -> Answers:
        team, n, batches = self._context.team, self._dataset.train.n, self._batches
        logits = np.zeros((n, len(self._dataset.labels)), np.float16)
        title = f"teacher, view {view + 1}"
        for batch in track(batches.view(view), title, -(-n // batches.size)):
            logits[batch.rows.numpy()] = self._guide(batch).half().cpu().numpy()
        if team.size > 1:
            own = logits[_rows_of(team.rank, team.size, n, batches.size)]
            for rank, part in enumerate(team.gather(own)):
                logits[_rows_of(rank, team.size, n, batches.size)] = part
        if team.leads:
            np.save(folder / "logits.npy", logits)
        return Answers(view=view)


def _rows_of(rank: int, size: int, n: int, batch: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """The rows that `Batches.view` gives the process of that rank."""
    chunks = (np.arange(start, min(start + batch, n)) for start in range(0, n, batch))
    return np.concatenate([chunk[rank::size] for chunk in chunks])
