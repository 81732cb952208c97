"""Turns the engine's functions into the compiled programs of a population.

An epoch is cut into segments of a fraction of a second, so that the progress bar moves, Ctrl-C is
heard and the augmented batches of a segment fit into memory. The last, smaller batch is a segment
of its own. Each distinct shape is compiled once; what the first step does not need, when its turn
comes.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmnist import data
from jaxmnist.errors import UserError
from jaxmnist.networks import target
from jaxmnist.training import hosts, parallel
from jaxmnist.training.engine import (
    Engine,
    Evaluation,
    Images,
    StepMetrics,
    TrainState,
    over_members,
)
from jaxmnist.training.population import Member


class Segment(NamedTuple):
    """``steps`` batches of ``batch_size`` images, from image ``start`` of the epoch's order."""

    start: int
    steps: int
    batch_size: int

    @property
    def images(self) -> int:
        return self.steps * self.batch_size


class Batching(NamedTuple):
    """How an epoch is cut into batches."""

    batch_size: int
    drop_remainder: bool = False
    """Leave out the last, smaller batch."""
    steps_per_epoch: int = 0
    """0 for the whole training set."""


def plan_epoch(size: int, batching: Batching, max_steps: int | None = None) -> list[Segment]:
    """Cuts an epoch over ``size`` images into segments of at most ``max_steps`` steps.

    Raises:
      UserError: where the configuration asks for more steps than there are, or for none.
    """
    batch_size, drop_remainder, steps_per_epoch = batching
    full, rest = divmod(size, batch_size)
    if drop_remainder:
        rest = 0
    available = full + (rest > 0)
    if not available:
        raise UserError(
            f"config.batch_size is {batch_size}: with drop_remainder it must not exceed "
            f"the {size:,} training images"
        )
    if steps_per_epoch > available:
        raise UserError(
            f"config.steps_per_epoch is {steps_per_epoch}: "
            f"{size:,} training images make {available} steps, use 0 for all of them"
        )
    if 0 < steps_per_epoch <= full:
        full, rest = steps_per_epoch, 0

    chunk = _chunk_steps(full, max_steps or full)
    segments = [
        Segment(first * batch_size, min(chunk, full - first), batch_size)
        for first in range(0, full, chunk or 1)
    ]
    return segments + ([Segment(full * batch_size, 1, rest)] if rest else [])


def _chunk_steps(full: int, max_steps: int) -> int:
    """The largest divisor of ``full`` up to ``max_steps``, so that all chunks are of one shape.

    Where only small ones exist, a remainder of another shape costs less than many small chunks.
    """
    divisors = [d for d in range(1, min(full, max_steps) + 1) if full % d == 0]
    if divisors and divisors[-1] * 4 >= min(full, max_steps):
        return divisors[-1]
    return min(full, max_steps)


def trace(
    function: Callable, mesh: Mesh, *args: Any, mapped: int = 1, donate: tuple[int, ...] = ()
) -> jax.stages.Traced:
    """The program that maps ``function`` over the members in its first ``mapped`` arguments."""
    over = parallel.spread(over_members(function, mapped), mesh, mapped)
    return jax.jit(over, donate_argnums=donate).trace(*args)


def on_devices(images: data.Dataset | Images, mesh: Mesh) -> Images:
    """A data set on every device of the mesh."""
    if isinstance(images, Images):
        return images
    everywhere = parallel.everywhere(mesh)
    return Images(*(hosts.place(a, everywhere) for a in (images.images_NHW, images.labels_N)))


class Programs:
    """The compiled programs of a population; every state has a leading axis of members, S."""

    compile_seconds: float
    """Spent on compilation so far."""

    def __init__(
        self,
        engine: Engine,
        members: Member,
        batching: Batching,
        mesh: Mesh,
        train_set: Images,
        eval_set: Images,
    ):
        """Compiles what the first step needs.

        Args:
          engine: what trains, for batches that are not split.
          members: the population, in host memory; see ``population.stack``.
          batching: how an epoch is cut into batches.
          mesh: the devices, see ``parallel.make_mesh``.
          train_set: the images to train on, see ``on_devices``.
          eval_set: the images to evaluate on.
        """
        self.compile_seconds = 0.0
        parts = mesh.shape[parallel.DATA]
        split = dataclasses.replace(engine, axis_name=parallel.DATA) if parts > 1 else engine
        count, size = len(np.asarray(members.seed)), len(train_set.labels_N)
        form = target.current()
        local = count // mesh.shape[parallel.SEED]
        self.segments = plan_epoch(size, batching, form.steps_of(local))
        by_member, self._same = parallel.per_member(mesh), parallel.everywhere(mesh)
        self._train_set, self._eval_set = train_set, eval_set
        self._by_member = by_member
        self.populate(members)

        def compiled(function: Callable, *args: Any, **options: Any):
            started = time.perf_counter()
            with target.form(form):  # some are compiled later
                traced = trace(function, mesh, *args, **options)
                program = traced.lower().compile(parallel.compiler_options(mesh))
            self.compile_seconds += time.perf_counter() - started
            return program

        states_of = parallel.spread(over_members(split.init), mesh)
        self.abstract_states: TrainState = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=by_member),
            jax.eval_shape(states_of, self._members),
        )
        order_SN = jax.ShapeDtypeStruct((count, size), jnp.int32, sharding=by_member)
        zero = self._number(0)
        epoch_order = functools.partial(split.epoch_order, size=size)

        @functools.cache
        def evaluate():
            args = self.abstract_states, self._members, self._eval_set
            return compiled(split.evaluate, *args, mapped=2)

        @functools.cache
        def train(steps: int, batch_size: int):
            # A batch that cannot be split evenly is done as a whole, by every device.
            able = engine if batch_size % parts else split
            train_steps = functools.partial(able.train_steps, steps=steps, batch_size=batch_size)
            args = self.abstract_states, self._members, order_SN, zero, self._train_set
            return compiled(train_steps, *args, mapped=3, donate=(0,))

        self._train, self._evaluate = train, evaluate
        self._init = compiled(split.init, self._members)
        self._order = compiled(epoch_order, self._members, zero)
        self._train(*self.segments[0][1:])

    def populate(self, members: Member) -> None:
        """Puts other members in the place of those there are; what is compiled serves them too."""
        self._members = jax.tree.map(lambda leaf: hosts.place(leaf, self._by_member), members)

    def _number(self, value: int) -> jax.Array:
        return hosts.place(np.array(value, np.int32), self._same)

    @property
    def steps_per_epoch(self) -> int:
        return sum(segment.steps for segment in self.segments)

    def segments_after(self, steps: int) -> list[Segment]:
        """What remains of an epoch of which ``steps`` steps are done.

        Where these end within a segment (other devices make others), the rest of it is a shape of
        its own.
        """
        remaining, before = [], 0
        for segment in self.segments:
            done = min(max(steps - before, 0), segment.steps)
            start = segment.start + done * segment.batch_size
            if done < segment.steps:
                remaining.append(segment._replace(start=start, steps=segment.steps - done))
            before += segment.steps
        return remaining

    def init(self) -> TrainState:
        """The states before the first step."""
        return self._init(self._members)

    def epoch_order(self, epoch: int) -> jax.Array:
        """The orders in which ``epoch`` visits the training images: int32 (S, N)."""
        return self._order(self._members, self._number(epoch))

    def train(
        self, states: TrainState, order_SN: jax.Array, segment: Segment
    ) -> tuple[TrainState, StepMetrics]:
        """Runs a segment; uses up ``states``. The metrics are (S, steps)."""
        program = self._train(segment.steps, segment.batch_size)
        start = self._number(segment.start)
        return program(states, self._members, order_SN, start, self._train_set)

    def evaluate(self, states: TrainState) -> Evaluation:
        """Scores the whole evaluation set, for each member."""
        return self._evaluate()(states, self._members, self._eval_set)
