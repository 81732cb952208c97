"""The pure functions of the engine: one step, many steps, many seeds, evaluation."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from populations import member_of

from jaxmnist.config import Config, default_config
from jaxmnist.runs import assemble
from jaxmnist.training import augment, population
from jaxmnist.training import engine as engine_lib
from jaxmnist.training.engine import Engine, Images, over_members
from jaxmnist.training.population import Member


def config_with(**fields) -> Config:
    """A compact_tiny recipe (small, with dropout and augmentation), changed by ``fields``."""
    config = default_config()
    config.update_from_flattened_dict(
        {"model": "compact_tiny", "dropout": 0.1, "augment.rotate_degrees": 10.0} | fields
    )
    return config


def make(seed: int = 0, **fields) -> tuple[Engine, Member]:
    """The engine of ``config_with`` and the numbers of one member."""
    config = config_with(**fields)
    return assemble.engine(config), member_of(config, seed)


def train_steps(engine: Engine):
    """Compiled as one program; op by op it would be hundreds."""
    return jax.jit(engine.train_steps, static_argnames=("steps", "batch_size"))


@pytest.fixture(scope="module")
def train_set(mnist) -> Images:
    train, _ = mnist
    return Images(jnp.asarray(train.images_NHW[:256]), jnp.asarray(train.labels_N[:256]))


@pytest.mark.parametrize(
    ("dropout", "loss", "correct", "params_norm", "stats_norm", "kernel"),
    [
        (0.0, 2.7604766, 12, 8.8443610, 6.8962060, [-0.2113660, 0.0479654, -0.1589039]),
        (0.1, 2.7758291, 11, 8.8442803, 6.9222350, [-0.2097573, 0.0493899, -0.1587673]),
    ],
)
def test_golden_step(train_set, dropout, loss, correct, params_norm, stats_norm, kernel):
    """One step from seed 0, digit for digit.

    May change only with the initialisation, the random streams or the recipe's mathematics; then
    every published accuracy has to be measured again.
    """
    fields = {"dropout": dropout, "optimizer.nesterov": True, "label_smoothing": 0.02}
    engine, member = make(**fields)
    order = jnp.arange(256, dtype=jnp.int32)
    state = jax.jit(engine.init)(member)
    state, metrics = train_steps(engine)(
        state, member, order, jnp.int32(0), train_set, steps=1, batch_size=128
    )
    assert float(metrics.loss[0]) == pytest.approx(loss, rel=1e-5)
    assert int(metrics.correct[0]) == correct
    assert int(state.step) == 1
    assert float(optax.tree.norm(state.params)) == pytest.approx(params_norm, rel=1e-5)
    assert float(optax.tree.norm(state.batch_stats)) == pytest.approx(stats_norm, rel=1e-5)
    first_kernel = state.params["layers_0"]["kernel"][:, 0, 0, 0]
    np.testing.assert_allclose(first_kernel, kernel, rtol=1e-4)


def test_label_smoothing_is_that_of_torch():
    logits_NK = jnp.asarray([[2.0, 1.0, 0.0] + [0.0] * 7])
    log_p = np.log(np.exp(logits_NK[0]) / np.exp(logits_NK[0]).sum())
    loss = engine_lib.cross_entropy(logits_NK, jnp.uint8([1]), 0.1)
    np.testing.assert_allclose(loss[0], -0.9 * log_p[1] - 0.1 * log_p.mean(), rtol=1e-6)
    plain = engine_lib.cross_entropy(logits_NK, jnp.uint8([1]), None)
    np.testing.assert_allclose(plain[0], -log_p[1], rtol=1e-6)


def test_epoch_orders_are_fresh_permutations():
    engine, first = make(seed=1)
    _, second = make(seed=2)
    orders = [
        jax.jit(engine.epoch_order, static_argnums=2)(member, jnp.int32(epoch), 1000)
        for member in (first, second)
        for epoch in (1, 2)
    ]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    fixed_points = [np.mean(a == b) for i, a in enumerate(orders) for b in orders[:i]]
    assert max(fixed_points) < 0.01  # two random permutations agree in one place on average


def test_scan_equals_single_steps(train_set):
    engine, member = make()
    order = jnp.asarray(np.random.RandomState(0).permutation(256), jnp.int32)
    start = jax.jit(engine.init)(member)
    many = train_steps(engine)
    scanned, metrics = many(start, member, order, jnp.int32(64), train_set, steps=3, batch_size=64)

    state, losses = start, []
    for step in range(3):
        state, one = many(
            state, member, order, jnp.int32(64 * (step + 1)), train_set, steps=1, batch_size=64
        )
        losses.append(one.loss[0])
    chex.assert_trees_all_close(scanned, state, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics.loss, losses, rtol=1e-6)
    assert int(scanned.step) == 3


@pytest.mark.parametrize("augmented", [True, False])
def test_batches_are_those_of_the_single_steps(train_set, augmented):
    """Each step's batch is augmented with its own parameters, that of the state's next step."""
    bounds = augment.Bounds(10.0, 0.1, 0.2, 15.0, elastic=30.0)
    fields: dict[str, Any] = {
        f"augment.{name}": bound * augmented for name, bound in bounds._asdict().items()
    }
    engine, member = make(seed=3, **fields)
    state = jax.jit(engine.init)(member).replace(step=jnp.int32(7))
    index_SB = jnp.asarray(np.random.RandomState(0).permutation(256)[:96], jnp.int32).reshape(3, 32)
    images_SHWB, labels_SB = jax.jit(engine.batches)(state, member, index_SB, train_set)
    assert images_SHWB.dtype == jnp.uint8
    np.testing.assert_array_equal(labels_SB, train_set.labels_N[index_SB])
    for step, index_B in enumerate(index_SB):
        pixel_HWB = None
        if augmented:
            key = engine_lib._key(member, engine_lib.Stream.AUGMENT, state.step + step)
            pixel_HWB = augment.source_pixels(augment.random_transforms(key, 32, bounds))
        expected_HWB = augment.gather(train_set.images_NHW, index_B, pixel_HWB)
        # Compiled, a pixel on the edge between two others may fall on either side.
        different = np.asarray(images_SHWB[step] != expected_HWB).mean()
        assert different <= (1e-3 if augmented else 0)
    plain_SHWB = train_set.images_NHW[index_SB].transpose(0, 2, 3, 1)
    assert bool((plain_SHWB != images_SHWB).any()) == augmented


@pytest.mark.parametrize("off", ["dropout", "augment.rotate_degrees"])
def test_every_step_draws_anew(train_set, off):
    """With the same batch twice, augmentation or dropout alone must change the loss."""
    fields: dict[str, Any] = {"optimizer.learning_rate": 1e-30, off: 0.0}
    engine, member = make(**fields)
    order = jnp.concatenate([jnp.arange(64, dtype=jnp.int32)] * 2)
    state = jax.jit(engine.init)(member)
    many = train_steps(engine)
    _, metrics = many(state, member, order, jnp.int32(0), train_set, steps=2, batch_size=64)
    assert abs(float(metrics.loss[0] - metrics.loss[1])) > 1e-4


@pytest.mark.long
def test_three_members_equal_three_single_runs(train_set):
    """Seeds and numbers differ; whatever shares the program, a member is the same run."""
    engine, _ = make()
    fields = [
        {"seed": 5},
        {"seed": 6, "optimizer.learning_rate": 0.03, "augment.rotate_degrees": 3.0},
        {"seed": 6, "dropout": 0.3, "optimizer.weight_decay": 0.01, "schedule.name": "onecycle"},
    ]

    def run(members: Member):
        states = jax.jit(over_members(engine.init))(members)
        orders = jax.jit(over_members(lambda m: engine.epoch_order(m, jnp.int32(1), 256)))(members)

        def train(state, member, order):
            return engine.train_steps(
                state, member, order, jnp.int32(0), train_set, steps=8, batch_size=32
            )

        states, metrics = jax.jit(over_members(train, mapped=3))(states, members, orders)
        evaluate = jax.jit(over_members(engine.evaluate, mapped=2))
        return states, metrics, evaluate(states, members, train_set)

    members = [make(**of_member)[1] for of_member in fields]
    together = run(population.stack(members))
    alone = [run(population.stack([member])) for member in members]
    stacked = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *alone)
    chex.assert_trees_all_close(together, stacked, rtol=1e-4, atol=1e-5)
    losses = np.asarray(together[1].loss)
    assert np.abs(losses[0] - losses[1]).min() > 1e-4, "different members must differ"
    assert np.abs(losses[1] - losses[2]).max() > 1e-4


@pytest.mark.long
def test_members_at_once_equal_members_in_turn(train_set):
    """Accelerators map the members with vmap, CPUs one by one: the results agree."""
    engine, first = make(seed=5)
    members = population.stack([first, make(seed=6, **{"optimizer.learning_rate": 0.003})[1]])
    order_N = jnp.arange(256, dtype=jnp.int32)

    def run(member):
        state = engine.init(member)
        state, metrics = engine.train_steps(
            state, member, order_N, jnp.int32(0), train_set, steps=4, batch_size=32
        )
        return (
            metrics,
            engine.evaluate(state, member, train_set),
            engine.epoch_order(member, jnp.int32(1), 256),
        )

    at_once = jax.jit(jax.vmap(run))(members)
    in_turn = jax.jit(over_members(run))(members)
    chex.assert_trees_all_close(at_once, in_turn, rtol=1e-4, atol=1e-5)


def test_evaluate_counts_every_image_once(train_set, monkeypatch):
    """A batch that does not divide the set must change nothing but the order of summation."""
    engine, member = make()
    state = jax.jit(engine.init)(member)
    whole = jax.jit(engine.evaluate)(state, member, train_set)
    monkeypatch.setattr(engine_lib, "EVAL_BATCH", 100)
    padded = jax.jit(lambda state: engine.evaluate(state, member, train_set))(state)
    chex.assert_trees_all_close(padded, whole, rtol=1e-5)
    chex.assert_shape(padded.predictions_N, (256,))
    assert int(padded.correct) == int((padded.predictions_N == train_set.labels_N).sum())

    variables = {"params": state.params, "batch_stats": state.batch_stats}
    apply = jax.jit(engine.network().apply, static_argnames="train")
    logits = apply(variables, train_set.images_NHW, train=False)
    expected = engine_lib.cross_entropy(logits, train_set.labels_N, member.label_smoothing).mean()
    np.testing.assert_allclose(whole.loss, expected, rtol=1e-5)


def test_bfloat16_trains_with_float32_parameters(train_set):
    engine, member = make(precision="bfloat16")
    state = jax.jit(engine.init)(member)
    order = jnp.arange(256, dtype=jnp.int32)
    sizes = {"steps": 2, "batch_size": 64}
    after, metrics = train_steps(engine)(state, member, order, jnp.int32(0), train_set, **sizes)
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}
    reference, _ = make()
    state = jax.jit(reference.init)(member)
    _, wide = train_steps(reference)(state, member, order, jnp.int32(0), train_set, **sizes)
    np.testing.assert_allclose(metrics.loss, wide.loss, rtol=0.02)
    assert not np.array_equal(metrics.loss, wide.loss)
