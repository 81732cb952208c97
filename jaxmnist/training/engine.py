"""The training engine: pure functions over a ``TrainState``, scanned over steps on the device.

Structure and numbers are two things. What shapes the program is in the ``Engine``; what is only a
number is data, a ``Member``.

Randomness is decided here and only here. Every draw comes from the member's seed, folded with what
it is for and with the epoch or step it belongs to, so a run depends on nothing but its numbers: not
on where it was interrupted, nor on which other members share the program.
"""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from jaxmnist.data import SIDE
from jaxmnist.networks import models, prng, target
from jaxmnist.training import augment
from jaxmnist.training.population import Member

EVAL_BATCH = 500  # of each device; on a CPU nothing else in a run takes as much memory


class Stream(enum.IntEnum):
    """What a random number is for."""

    INIT = 0
    SHUFFLE = 1
    AUGMENT = 2
    DROPOUT = 3


def _key(member: Member, stream: Stream, count: jax.Array) -> jax.Array:
    """The PRNG key of ``stream`` at its ``count``-th use (an epoch or a step)."""
    return jax.random.fold_in(jax.random.fold_in(prng.key(jnp.asarray(member.seed)), stream), count)


def cross_entropy(
    logits_NK: ArrayLike, labels_N: ArrayLike, label_smoothing: ArrayLike | None
) -> jax.Array:
    """Cross-entropy of each image, (N,), with label smoothing as in PyTorch."""
    logits_NK = jnp.asarray(logits_NK)
    targets_NK = jax.nn.one_hot(labels_N, logits_NK.shape[1])
    if label_smoothing is not None:
        targets_NK = optax.smooth_labels(targets_NK, jnp.asarray(label_smoothing))
    wide_NK = logits_NK.astype(jnp.promote_types(logits_NK.dtype, jnp.float32))
    return optax.softmax_cross_entropy(wide_NK, targets_NK)


class Images(NamedTuple):
    """A data set on the device."""

    images_NHW: jax.Array
    """uint8 (N, 28, 28)."""
    labels_N: jax.Array
    """uint8 (N,)."""


class TrainState(flax.struct.PyTreeNode):
    """All that changes during a run."""

    step: jax.Array
    """int32 (), optimizer steps done."""
    params: Any
    batch_stats: Any
    opt_state: optax.OptState


class StepMetrics(NamedTuple):
    """What a training step saw, before it changed the parameters."""

    loss: jax.Array
    """float32 (), mean over the batch."""
    correct: jax.Array
    """int32 (), images of the batch classified right (in training mode)."""


class Evaluation(NamedTuple):
    """A network's result on a whole data set."""

    loss: jax.Array
    """float32 (), mean over the images."""
    correct: jax.Array
    """int32 ()."""
    predictions_N: jax.Array
    """uint8 (N,), the class with the largest logit."""


@dataclasses.dataclass(frozen=True)
class Engine:
    """What trains: everything that shapes the program of a step."""

    make_network: Callable[..., models.Network]
    """The network with the dropout rate and the axis name that it is given by keyword."""
    make_optimizer: Callable[..., optax.GradientTransformation]
    """The optimizer of one step out of learning rate, momentum and weight decay."""
    axis_name: str | None = None
    """The mapped axis (of ``shard_map`` or ``pmap``) that batches are split over; gradients and
    statistics are then those of the whole batch."""

    def network(self, dropout: ArrayLike | None = None) -> models.Network:
        return self.make_network(dropout=dropout, axis_name=self.axis_name)

    def optimizer(self, member: Member, step: ArrayLike = 0) -> optax.GradientTransformation:
        """That of the ``step``-th step; its state has the same form for all."""
        learning_rate, momentum = (jnp.asarray(table_T1)[step] for table_T1 in member.schedule)
        return self.make_optimizer(learning_rate, momentum, jnp.asarray(member.weight_decay))

    def init(self, member: Member) -> TrainState:
        """The state before the first step."""
        blank_NHW = jnp.zeros((1, SIDE, SIDE), jnp.uint8)
        step = jnp.int32(0)
        key = _key(member, Stream.INIT, step)
        variables = self.network().init(key, blank_NHW, train=False)
        opt_state = self.optimizer(member).init(variables["params"])
        return TrainState(step, variables["params"], variables["batch_stats"], opt_state)

    def gradients(
        self, state: TrainState, member: Member, images_HWB: jax.Array, labels_B: jax.Array
    ) -> tuple[Any, Any, StepMetrics]:
        """Gradients and new batch_stats of a training-mode pass over uint8 images, (28, 28, B).

        With ``axis_name``, B is this device's part of the batch.
        """

        network = self.network(member.dropout)

        def loss_fn(params):
            logits_BK, updates = network.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images_HWB,
                train=True,
                method="from_batch_minor",
                mutable=["batch_stats"],
                rngs={"dropout": _key(member, Stream.DROPOUT, state.step)},
            )
            correct = (logits_BK.argmax(1).astype(jnp.uint8) == labels_B).sum()
            losses_B = cross_entropy(logits_BK, labels_B, member.label_smoothing)
            return losses_B.mean(), (updates["batch_stats"], correct)

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (batch_stats, correct)), grads = grad_fn(state.params)
        if self.axis_name:
            grads, loss, correct = _sum_over((grads, loss, correct), self.axis_name)
            parts = lax.axis_size(self.axis_name)
            grads, loss = jax.tree.map(lambda total: total / parts, (grads, loss))
        return grads, batch_stats, StepMetrics(loss, correct)

    def train_step(
        self, state: TrainState, member: Member, images_HWB: jax.Array, labels_B: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        """One optimizer step on a batch of uint8 images, (28, 28, B)."""
        grads, batch_stats, metrics = self.gradients(state, member, images_HWB, labels_B)
        optimizer = self.optimizer(member, state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new_state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        # Where JAX knows float64, the numbers of a member have it.
        return jax.tree.map(lambda new, old: new.astype(old.dtype), new_state, state), metrics

    def epoch_order(self, member: Member, epoch: jax.Array, size: int) -> jax.Array:
        """The order in which ``epoch`` visits the ``size`` training images: int32 (size,)."""
        return jax.random.permutation(_key(member, Stream.SHUFFLE, epoch), size).astype(jnp.int32)

    def batches(
        self, state: TrainState, member: Member, index_SB: jax.Array, train_set: Images
    ) -> tuple[jax.Array, jax.Array]:
        """The batches of the next S steps, augmented: uint8 images (S, 28, 28, B), labels (S, B).

        ``index_SB`` says which images; with ``axis_name``, B is this device's part in the result.
        """
        steps, batch = index_SB.shape
        first = 0
        if self.axis_name:
            batch //= lax.axis_size(self.axis_name)
            first = batch * lax.axis_index(self.axis_name)

        def own(a: jax.Array) -> jax.Array:
            return lax.dynamic_slice_in_dim(a, first, batch, axis=-1)

        def augmented(step: jax.Array, index_B: jax.Array) -> jax.Array:
            pixel_HWB = None
            if any(bound is not None for bound in member.augment):
                key = _key(member, Stream.AUGMENT, step)
                drawn = augment.random_transforms(key, len(index_B), member.augment)
                pixel_HWB = augment.source_pixels(jax.tree.map(own, drawn))
            return augment.gather(train_set.images_NHW, own(index_B), pixel_HWB)

        step_S = state.step + lax.iota(jnp.int32, steps)
        return _each(augmented)(step_S, index_SB), train_set.labels_N[own(index_SB)]

    def train_steps(
        self,
        state: TrainState,
        member: Member,
        order_N: jax.Array,
        start: jax.Array,
        train_set: Images,
        *,
        steps: int,
        batch_size: int,
    ) -> tuple[TrainState, StepMetrics]:
        """``steps`` steps over ``order_N[start:]``, in one scan; the metrics are (steps,)."""

        def body(
            state: TrainState, batch: tuple[jax.Array, jax.Array]
        ) -> tuple[TrainState, StepMetrics]:
            return self.train_step(state, member, *batch)

        index = lax.dynamic_slice(order_N, (start,), (steps * batch_size,))
        batches = self.batches(state, member, index.reshape(steps, batch_size), train_set)
        return lax.scan(body, state, batches)

    def evaluate(self, state: TrainState, member: Member, eval_set: Images) -> Evaluation:
        """Scores every image; the last batch is padded and its padding not counted.

        With ``axis_name`` the devices share the work; each gets the whole result.
        """
        network = self.network()
        size, parts, part = len(eval_set.labels_N), 1, 0
        if self.axis_name:
            parts, part = lax.axis_size(self.axis_name), lax.axis_index(self.axis_name)
        batch = min(-(-size // parts), EVAL_BATCH)
        batches = -(-size // (batch * parts))

        def body(_, index_B: jax.Array):
            valid_B = index_B < size
            index_B = jnp.minimum(index_B, size - 1)
            logits_BK: Any = network.apply(
                {"params": state.params, "batch_stats": state.batch_stats},
                augment.gather(eval_set.images_NHW, index_B),
                train=False,
                method="from_batch_minor",
            )
            losses_B = cross_entropy(logits_BK, eval_set.labels_N[index_B], member.label_smoothing)
            predictions_B = logits_BK.argmax(1).astype(jnp.uint8)
            correct_B = predictions_B == eval_set.labels_N[index_B]
            return None, (losses_B * valid_B, correct_B & valid_B, predictions_B)

        index = lax.iota(jnp.int32, batches * batch).reshape(batches, batch)
        _, found = lax.scan(body, None, part * index.size + index)
        losses, correct, predictions = (a.reshape(-1) for a in found)
        if self.axis_name:
            losses, correct, predictions = (
                lax.all_gather(a, self.axis_name, tiled=True)
                for a in (losses, correct, predictions)
            )
        return Evaluation(losses.sum() / size, correct.sum(), predictions[:size])


def _sum_over(tree: Any, axis_name: str) -> Any:
    """The sum of each leaf over the devices, in a single collective: each one costs 50 µs.

    Integers travel as floats: they must stay below 2²⁴.
    """
    flat, unravel = ravel_pytree(tree)
    return unravel(lax.psum(flat, axis_name))


def _each(function: Callable) -> Callable:
    """Maps ``function`` over the leading axis of all its arguments, in the target's form."""

    def each(*args):
        if target.current().one_by_one:
            return lax.map(lambda entry: function(*entry), args)
        return jax.vmap(function)(*args)

    return each


def over_members(function: Callable, mapped: int = 1) -> Callable:
    """Maps ``function`` over the members: the leading axis of its first ``mapped`` arguments.

    A single member is not mapped by ``vmap``, which would batch dots and conditionals for nothing.
    """

    def over(*args):
        per_member, shared = args[:mapped], args[mapped:]

        def one(*single):
            return function(*single, *shared)

        (size,) = {len(leaf) for leaf in jax.tree.leaves(per_member)}
        if size == 1:
            return lax.map(lambda entry: one(*entry), per_member)
        return _each(one)(*per_member)

    return over
