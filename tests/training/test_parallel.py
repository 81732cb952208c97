"""What is split over devices, and that splitting changes nothing but the order of summation."""

import dataclasses
import functools
import os
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from populations import member_of, programs_of

from jaxmnist import data
from jaxmnist.config import Config, default_config
from jaxmnist.errors import UserError
from jaxmnist.networks import models
from jaxmnist.runs import assemble
from jaxmnist.training import engine as engine_lib
from jaxmnist.training import parallel
from jaxmnist.training.engine import Engine, Evaluation, Images, TrainState
from jaxmnist.training.population import Member

needs_four_devices = pytest.mark.skipif(
    jax.device_count() < 4, reason="the devices are accelerators, and too few"
)
on_four_cpus = pytest.mark.skipif(
    (jax.default_backend(), jax.device_count()) != ("cpu", 4), reason="not on four CPU devices"
)


def config_with(**fields: object) -> Config:
    config = default_config()
    config.update_from_flattened_dict(fields)
    return config


# The choice of a mesh.


@on_four_cpus
@pytest.mark.parametrize(
    ("num_seeds", "batch_size", "seed", "data_", "expected"),
    [
        # A single run: the batch is shared.
        (1, 128, 0, 0, (1, 4)),
        (1, 128, 0, 1, (1, 1)),
        (1, 128, 0, 2, (1, 2)),
        (1, 128, 1, 0, (1, 4)),
        # 32 images or more for each core, in equal parts.
        (1, 127, 0, 0, (1, 1)),
        (1, 96, 0, 0, (1, 3)),
        (1, 100, 0, 0, (1, 2)),
        (1, 64, 0, 0, (1, 2)),
        (1, 63, 0, 0, (1, 1)),
        (1, 16, 0, 0, (1, 1)),
        (1, 16, 0, 4, (1, 4)),
        # Several runs come first.
        (2, 128, 0, 0, (2, 2)),
        (3, 128, 0, 0, (3, 1)),
        (4, 128, 0, 0, (4, 1)),
        (5, 128, 0, 0, (1, 4)),
        (6, 128, 0, 0, (3, 1)),
        (8, 128, 0, 0, (4, 1)),
        (8, 128, 2, 0, (2, 2)),
        (8, 128, 1, 0, (1, 4)),
        (4, 128, 0, 2, (2, 2)),
        (4, 128, 0, 4, (1, 4)),
        (3, 128, 0, 2, (1, 2)),
        (2, 128, 2, 2, (2, 2)),
        (2, 128, 1, 1, (1, 1)),
    ],
)
def test_mesh(num_seeds: int, batch_size: int, seed: int, data_: int, expected: tuple[int, int]):
    mesh = parallel.make_mesh(num_seeds, batch_size, seed=seed, data=data_)
    assert mesh.axis_names == (parallel.SEED, parallel.DATA)
    assert tuple(mesh.shape.values()) == expected
    assert mesh.devices.ravel().tolist() == jax.devices()[: mesh.size]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"mesh.seed": 2, "num_seeds": 3},
            ("config.mesh.seed is 2", "must divide config.num_seeds (3)"),
        ),
        ({"mesh.seed": 2}, ("config.mesh.seed is 2", "must divide config.num_seeds (1)")),
        (
            {"mesh.data": 3},
            ("config.mesh.data is 3", "must divide config.batch_size (128)"),
        ),
        (
            {"mesh.data": 256},
            ("config.mesh.data is 256", "must divide config.batch_size (128)"),
        ),
        (
            {"mesh.seed": 5000, "num_seeds": 10_000},
            ("config.mesh.seed is 5000", f"needs more than the {jax.device_count()} there "),
        ),
        (
            {"mesh.data": 10_000, "batch_size": 10_000},
            ("config.mesh.data is 10000", "1 (seed) × 10000 (data)", "needs more than the"),
        ),
        (
            {"mesh.data": 5000, "mesh.seed": 2, "num_seeds": 2, "batch_size": 10_000},
            ("config.mesh.data is 5000", "2 (seed) × 5000 (data)", "needs more than the"),
        ),
    ],
)
def test_impossible_meshes_are_refused(fields: dict[str, int], words: tuple[str, ...]):
    with pytest.raises(UserError) as caught:
        assemble.mesh(config_with(**fields))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


class Settings(dict):
    """Stands in for ``jax.config``: remembers what is set."""

    update = dict.__setitem__  # pyright: ignore


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, {"jax_num_cpu_devices": 3}),
        ({"XLA_FLAGS": "--xla_dump_to=/tmp/x"}, {"jax_num_cpu_devices": 3}),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}, {}),
        ({"JAX_NUM_CPU_DEVICES": "1"}, {}),
    ],
)
def test_every_core_is_used_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], asked: dict[str, int]
):
    for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    # The process may be kept to fewer cores than the machine has.
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 4, 6}, raising=False)
    settings = Settings()
    monkeypatch.setattr(jax, "config", settings)
    parallel.use_every_core()
    assert settings == asked


def test_cores_are_counted_where_there_is_no_affinity(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for count, expected in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert parallel.cores() == expected


# Whole programs.


class Run(NamedTuple):
    """What a few epochs left behind, on the host."""

    losses: np.ndarray
    """(S, steps)."""
    correct: np.ndarray
    states: TrainState
    evaluation: Evaluation


@pytest.fixture(scope="module")
def run(mnist: tuple[data.Dataset, data.Dataset]) -> Any:
    """Trains on eight batches of 64 real digits and a last one of ``rest``, epoch by epoch.

    Dropout and augmentation are on. The learning rate is small: at 0.01 the rounding of a sum grows
    to 1e-3 of the loss in 54 steps, as ReLUs and maxima switch, and at 0.0001 a single one moves a
    weight by 2e-5. At 0.01, but in float64, the networks are compared further down.
    """

    @functools.cache
    def run(epochs: int, rest: int, **fields: int) -> Run:
        config = config_with(
            **{
                "model": "compact_tiny",
                "dropout": 0.1,
                "augment.rotate_degrees": 10.0,
                "augment.translate": 0.1,
                "batch_size": 64,
                "num_epochs": 6,
                "optimizer.learning_rate": 0.00003,
            }
            | {name.replace("mesh_", "mesh."): value for name, value in fields.items()}
        )
        train, held_out = (
            data.Dataset(part.images_NHW[:size], part.labels_N[:size])
            for part, size in zip(mnist, (8 * 64 + rest, 203), strict=True)
        )
        mesh = assemble.mesh(config)
        assert mesh.size == fields.get("mesh_seed", 1) * fields.get("mesh_data", 1)
        programs = programs_of(config, train, held_out)
        states, said = programs.init(), []
        for epoch in range(1, epochs + 1):
            order_SN = programs.epoch_order(epoch)
            for segment in programs.segments:
                states, metrics = programs.train(states, order_SN, segment)
                said.append(jax.device_get(metrics))
        losses, correct = (np.concatenate(leaves, 1) for leaves in zip(*said, strict=True))
        evaluation = programs.evaluate(states)
        return Run(losses, correct, *jax.device_get((states, evaluation)))

    return run


def distance(found: Any, expected: Any) -> float:
    """Largest distance of a tensor from the expected one, relative to its norm.

    Norms below a thousandth of the whole are raised to that: biases start at zero.
    """
    whole = float(optax.tree.norm(expected))
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(
        float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-3 * whole)) for a, b in pairs
    )


def assert_equal_runs(found: Run, expected: Run) -> None:
    """Equal but for rounding."""
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)
    np.testing.assert_array_equal(found.correct, expected.correct)
    np.testing.assert_array_equal(found.states.step, expected.states.step)
    assert distance(found.states.params, expected.states.params) <= 1e-5
    assert distance(found.states.batch_stats, expected.states.batch_stats) <= 1e-5
    # The mean of the last gradients: a ReLU or a maximum that switches moves them at once.
    momenta = (optax.tree.get(run.states.opt_state, "trace") for run in (found, expected))
    assert distance(*momenta) <= 1e-3
    np.testing.assert_allclose(found.evaluation.loss, expected.evaluation.loss, rtol=1e-5)
    np.testing.assert_array_equal(found.evaluation.correct, expected.evaluation.correct)
    np.testing.assert_array_equal(found.evaluation.predictions_N, expected.evaluation.predictions_N)


@needs_four_devices
@pytest.mark.parametrize(
    ("parts", "rest"),
    [
        (4, 30),
        pytest.param(2, 30, marks=pytest.mark.long),
        pytest.param(4, 32, marks=pytest.mark.long),
    ],
)
def test_split_batches_train_the_same_network(run, parts: int, rest: int):
    """54 steps: 30 images cannot be split in four, each device then does them all."""
    expected = run(6, rest, mesh_data=1)
    assert expected.losses.shape == (1, 54)
    assert expected.losses[0, -9:].mean() < 0.97 * expected.losses[0, :9].mean()
    assert_equal_runs(run(6, rest, mesh_data=parts), expected)


@needs_four_devices
@pytest.mark.parametrize(
    "devices",
    [
        {"mesh_seed": 2, "mesh_data": 2},
        {"mesh_seed": 4, "mesh_data": 1},
    ],
    ids=lambda devices: "x".join(map(str, devices.values())),
)
@pytest.mark.long
def test_seeds_on_several_devices_equal_single_runs(run, devices: dict[str, int]):
    alone = [run(2, 30, seed=seed, mesh_data=1) for seed in range(4)]
    stacked = jax.tree.map(lambda *leaves: np.concatenate(leaves), *alone)
    assert len(set(stacked.losses[:, 0].tolist())) == 4, "different seeds must differ"
    assert_equal_runs(run(2, 30, num_seeds=4, **devices), stacked)


@needs_four_devices
def test_states_lie_where_the_seeds_do(mnist: tuple[data.Dataset, data.Dataset]):
    fields = {"mesh.seed": 2, "mesh.data": 2, "num_seeds": 4, "batch_size": 8}
    config = config_with(model="compact_tiny", **fields)
    part = data.Dataset(mnist[0].images_NHW[:16], mnist[0].labels_N[:16])
    by_member = parallel.per_member(assemble.mesh(config))
    programs = programs_of(config, part, part)
    states = programs.init()
    order_SN = programs.epoch_order(1)
    for _ in range(2):
        for leaf in jax.tree.leaves((states, order_SN)):
            by_seed = (2, *leaf.shape[1:])
            assert {shard.data.shape for shard in leaf.addressable_shards} == {by_seed}
            assert leaf.sharding.is_equivalent_to(by_member, leaf.ndim)
        states, _ = programs.train(states, order_SN, programs.segments[0])


# The pure functions under jax's own maps.


@pytest.fixture(scope="module")
def digits(mnist: tuple[data.Dataset, data.Dataset]) -> Images:
    train, _ = mnist
    return Images(jnp.asarray(train.images_NHW[:512]), jnp.asarray(train.labels_N[:512]))


def engines(dtype: str = "float32", **fields: Any) -> tuple[Engine, Engine, Member]:
    """A small network for whole batches and for batches split over 'data', and its numbers."""
    config = config_with(
        **{"model": "compact_tiny", "dropout": 0.1, "augment.rotate_degrees": 10.0} | fields
    )
    make_network = functools.partial(models.build, config.model, dtype=dtype)
    whole = dataclasses.replace(assemble.engine(config), make_network=make_network)
    return whole, dataclasses.replace(whole, axis_name="data"), member_of(config)


def on_four_devices(function: Any) -> Any:
    """Runs ``function`` on each of four devices, on equal arguments; the results are stacked."""

    def with_place(_, *args):
        return function(*args)

    def spread(*args):
        axes, devices = (0, *(None for _ in args)), jax.devices()[:4]
        return jax.pmap(with_place, "data", in_axes=axes, devices=devices)(np.arange(4), *args)

    return spread


@needs_four_devices
def test_a_step_under_pmap_is_that_of_the_whole_batch(digits: Images):
    whole, split, member = engines()
    images_HWB, labels_B = digits.images_NHW[:64].transpose(1, 2, 0), digits.labels_N[:64]
    state = jax.jit(whole.init)(member)
    expected = jax.jit(whole.train_step)(state, member, images_HWB, labels_B)
    images_DHWB = jnp.stack(jnp.split(images_HWB, 4, axis=-1))
    step = jax.pmap(split.train_step, "data", in_axes=(None, None, 0, 0), devices=jax.devices()[:4])
    found = jax.device_get(step(state, member, images_DHWB, labels_B.reshape(4, 16)))
    for device in range(4):
        of_device = jax.tree.map(lambda leaf, device=device: leaf[device], found)
        chex.assert_trees_all_close(of_device, expected, rtol=1e-5, atol=1e-5)
        of_first = jax.tree.map(lambda leaf: leaf[0], found)
        chex.assert_trees_all_equal(of_device, of_first)  # or the copies would drift apart


@needs_four_devices
@pytest.mark.parametrize("size", [203, 512, 3])
def test_devices_share_an_evaluation(digits: Images, size: int, monkeypatch: pytest.MonkeyPatch):
    """Each gets the whole result, however the images divide into devices and batches."""
    whole, split, member = engines()
    part = Images(digits.images_NHW[:size], digits.labels_N[:size])
    state = jax.jit(whole.init)(member)
    expected = jax.jit(whole.evaluate)(state, member, part)
    monkeypatch.setattr(engine_lib, "EVAL_BATCH", 50)
    found = jax.device_get(on_four_devices(split.evaluate)(state, member, part))
    for device in range(4):
        of_device = jax.tree.map(lambda leaf, device=device: leaf[device], found)
        chex.assert_trees_all_close(of_device, expected, rtol=1e-5)
    assert found.predictions_N.shape == (4, size)


@needs_four_devices
def test_devices_augment_their_part_as_the_whole(digits: Images):
    fields: dict[str, Any] = {"augment.translate": 0.1, "augment.elastic": 30.0}
    whole, split, member = engines(**fields)
    index_SB = jnp.asarray(np.random.RandomState(0).permutation(512), jnp.int32).reshape(8, 64)
    state = jax.jit(whole.init)(member)
    expected_SHWB, expected_SB = jax.jit(whole.batches)(state, member, index_SB, digits)
    found = on_four_devices(split.batches)(state, member, index_SB, digits)
    images_DSHWB, labels_DSB = jax.device_get(found)
    np.testing.assert_array_equal(np.concatenate(list(labels_DSB), -1), expected_SB)
    different = np.concatenate(list(images_DSHWB), -1) != np.asarray(expected_SHWB)
    # A pixel on the edge between two others may fall on either side, as the sine is rounded.
    assert different.mean() <= 1e-4


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_float32_it_stays_where_jax_knows_float64(name: str):
    with jax.enable_x64(True):
        engine, _, member = engines("float32", **{"optimizer.name": name})
        images_HWB, labels_B = jnp.zeros((28, 28, 8), jnp.uint8), jnp.zeros(8, jnp.uint8)
        state = engine.init(member)
        new_state, _ = jax.eval_shape(engine.train_step, state, member, images_HWB, labels_B)
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)


@pytest.mark.long
@needs_four_devices
def test_splitting_is_exact_but_for_rounding(mnist: tuple[data.Dataset, data.Dataset]):
    """In float64, at a learning rate at which rounding in float32 grows to 1e-3, none is seen."""
    with jax.enable_x64(True):
        digits = Images(*(jnp.asarray(a[:512]) for a in (mnist[0].images_NHW, mnist[0].labels_N)))
        whole, split, member = engines("float64", **{"optimizer.learning_rate": 0.01})
        state = whole.init(member)
        state = state.replace(params=jax.tree.map(jnp.float64, state.params))
        state = state.replace(
            batch_stats=jax.tree.map(jnp.float64, state.batch_stats),
            opt_state=whole.optimizer(member).init(state.params),
        )
        order_N = jnp.arange(512, dtype=jnp.int32)

        def train(engine: Engine) -> Any:
            def epochs(state):
                def epoch(state, _):
                    return engine.train_steps(
                        state, member, order_N, jnp.int32(0), digits, steps=8, batch_size=64
                    )

                return jax.lax.scan(epoch, state, length=6)

            return epochs

        mesh = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,))
        same = PartitionSpec()
        spread = jax.shard_map(
            train(split), mesh=mesh, in_specs=same, out_specs=same, check_vma=False
        )
        (found, metrics), (expected, expected_metrics) = (
            jax.device_get(jax.jit(function)(state)) for function in (spread, train(whole))
        )
    assert found.params["layers_0"]["kernel"].dtype == np.float64
    np.testing.assert_allclose(metrics.loss, expected_metrics.loss, rtol=1e-11)
    for part in ("params", "batch_stats"):
        trees = getattr(found, part), getattr(expected, part)
        chex.assert_trees_all_close(*trees, rtol=1e-9, atol=1e-11)
