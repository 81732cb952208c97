"""Turns the engine's functions into the compiled programs of one run.

An epoch is cut into segments. Accelerators do all full batches in one; CPUs in chunks of a fraction
of a second, so that the progress bar moves and Ctrl-C is heard. The last, smaller batch is a
segment of its own. Each distinct shape is compiled once, before the first step.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmnist.config import Config
from jaxmnist.engine import Engine, Evaluation, Images, StepMetrics, TrainState, over_seeds
from jaxmnist.errors import UserError

CPU_CHUNK_STEPS = 32


class Segment(NamedTuple):
    """``steps`` batches of ``batch_size`` images, from image ``start`` of the epoch's order."""

    start: int
    steps: int
    batch_size: int

    @property
    def images(self) -> int:
        return self.steps * self.batch_size


def plan_epoch(size: int, config: Config, max_steps: int | None = None) -> list[Segment]:
    """Cuts an epoch over ``size`` images into segments of at most ``max_steps`` steps.

    Raises:
      UserError: where the configuration asks for more steps than there are, or for none.
    """
    batch_size = config.batch_size
    full, rest = divmod(size, batch_size)
    if config.drop_remainder:
        rest = 0
    available = full + (rest > 0)
    if not available:
        raise UserError(
            f"config.batch_size is {batch_size}: with drop_remainder it must not exceed "
            f"the {size:,} training images"
        )
    if config.steps_per_epoch > available:
        raise UserError(
            f"config.steps_per_epoch is {config.steps_per_epoch}: "
            f"{size:,} training images make {available} steps, use 0 for all of them"
        )
    if 0 < config.steps_per_epoch <= full:
        full, rest = config.steps_per_epoch, 0

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


class Programs:
    """The compiled programs of a run; every state has a leading axis of seeds, S."""

    def __init__(self, engine: Engine, config: Config, train_set: Images, eval_set: Images):
        """Compiles everything that the run will need."""
        num_seeds, size = config.num_seeds, len(train_set.labels_N)
        on_cpu = jax.default_backend() == "cpu"
        self.segments = plan_epoch(
            size, config, max(1, CPU_CHUNK_STEPS // num_seeds) if on_cpu else None
        )
        self._train_set, self._eval_set = train_set, eval_set
        self._seeds_S = jnp.asarray(config.seed + np.arange(num_seeds), jnp.uint32)

        init = jax.jit(over_seeds(engine.init, num_seeds))
        order = jax.jit(over_seeds(functools.partial(engine.epoch_order, size=size), num_seeds))
        evaluate = jax.jit(over_seeds(engine.evaluate, num_seeds))

        self.abstract_states: TrainState = jax.eval_shape(init, self._seeds_S)
        zero = jax.ShapeDtypeStruct((), jnp.int32)
        order_SN = jax.eval_shape(order, self.abstract_states, zero)
        self._init = init.lower(self._seeds_S).compile()
        self._order = order.lower(self.abstract_states, zero).compile()
        self._evaluate = evaluate.lower(self.abstract_states, eval_set).compile()
        self._train = {}
        for steps, batch_size in {segment[1:] for segment in self.segments}:
            train_steps = functools.partial(engine.train_steps, steps=steps, batch_size=batch_size)
            train = jax.jit(over_seeds(train_steps, num_seeds, mapped=2), donate_argnums=0)
            lowered = train.lower(self.abstract_states, order_SN, zero, train_set)
            self._train[steps, batch_size] = lowered.compile()

    @property
    def steps_per_epoch(self) -> int:
        return sum(segment.steps for segment in self.segments)

    def init(self) -> TrainState:
        """The states before the first step."""
        return self._init(self._seeds_S)

    def epoch_order(self, states: TrainState, epoch: int) -> jax.Array:
        """The orders in which ``epoch`` visits the training images: int32 (S, N)."""
        return self._order(states, jnp.int32(epoch))

    def train(
        self, states: TrainState, order_SN: jax.Array, segment: Segment
    ) -> tuple[TrainState, StepMetrics]:
        """Runs a segment; uses up ``states``. The metrics are (S, steps)."""
        program = self._train[segment.steps, segment.batch_size]
        return program(states, order_SN, jnp.int32(segment.start), self._train_set)

    def evaluate(self, states: TrainState) -> Evaluation:
        """Scores the whole evaluation set, for each seed."""
        return self._evaluate(states, self._eval_set)
