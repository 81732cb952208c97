"""Checkpoints: nothing is lost on the way to the disk and back."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmnist import optim, parallel
from jaxmnist.checkpoint import Checkpoints
from jaxmnist.config import Config, default_config
from jaxmnist.engine import TrainState, make_engine, over_seeds
from jaxmnist.errors import UserError


def small_config(optimizer: str, model: str, num_seeds: int) -> Config:
    config = default_config()
    config.model = model
    config.optimizer.name = optimizer
    config.num_seeds = num_seeds
    return config


def filled_states(config: Config) -> TrainState:
    """States in whose leaves each number is another one, optimizer state included."""
    engine = make_engine(config, optim.make_schedule(config, 3))
    seeds_S = jnp.arange(config.num_seeds, dtype=jnp.uint32)
    shapes = jax.eval_shape(over_seeds(engine.init), seeds_S)
    rng = np.random.default_rng(0)

    def random_bits(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.dtype == jnp.float32:
            return jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32)
        return jnp.asarray(rng.integers(0, 2**31, leaf.shape), leaf.dtype)

    return jax.tree.map(random_bits, shapes)


def abstract(states: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), states)


@pytest.mark.parametrize(
    ("optimizer", "model", "num_seeds"), [("sgd", "model3", 1), ("adam", "compact_tiny", 3)]
)
def test_round_trip_is_bit_exact(tmp_path: Path, optimizer: str, model: str, num_seeds: int):
    states = filled_states(small_config(optimizer, model, num_seeds))
    # A moment for each parameter and two for Adam, beside the counters and hyperparameters.
    moments = 2 if optimizer == "adam" else 1
    params = len(jax.tree.leaves(states.params))
    assert len(jax.tree.leaves(states.opt_state)) > moments * params
    with contextlib.closing(Checkpoints(tmp_path / "c", 2)) as checkpoints:
        checkpoints.save(4, states, 99.0)
    with contextlib.closing(Checkpoints(tmp_path / "c", 2)) as checkpoints:
        assert checkpoints.latest_epoch() == 4
        restored = checkpoints.restore(4, abstract(states))
    chex.assert_trees_all_equal_structs(restored, states)
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, states)
    chex.assert_tree_all_finite(states)
    for before, after in zip(jax.tree.leaves(states), jax.tree.leaves(restored), strict=True):
        assert isinstance(after, jax.Array)
        assert np.asarray(before).tobytes() == np.asarray(after).tobytes()


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
def test_states_of_some_devices_are_restored_to_others(tmp_path: Path):
    """Saved from a mesh of 2×2 devices, to one of 4×1, and by default to the first device."""
    states = filled_states(small_config("sgd", "compact_tiny", 4))
    fields = {"num_seeds": 4, "mesh.seed": 2, "mesh.data": 2}
    shardings = []
    for fields["mesh.seed"], fields["mesh.data"] in ((2, 2), (4, 1)):
        config = default_config()
        config.update_from_flattened_dict(fields)
        shardings.append(parallel.per_seed(parallel.make_mesh(config)))
    with contextlib.closing(Checkpoints(tmp_path / "c", 2)) as checkpoints:
        checkpoints.save(4, jax.device_put(states, shardings[0]), 99.0)
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for sharding, expected in ((shardings[1], shardings[1]), (None, first)):
        target = jax.tree.map(
            lambda a, sharding=sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
            states,
        )
        with contextlib.closing(Checkpoints(tmp_path / "c", 2)) as checkpoints:
            restored = checkpoints.restore(4, target)
        chex.assert_trees_all_equal(restored, states)
        for leaf in jax.tree.leaves(restored):
            assert leaf.sharding.is_equivalent_to(expected, leaf.ndim)


def at_epoch(epoch: int) -> TrainState:
    """A small state that says which epoch it belongs to."""
    params = {"w": jnp.full((1, 2), epoch, jnp.float32)}
    return TrainState(jnp.zeros(1, jnp.uint32), jnp.full(1, epoch, jnp.int32), params, {}, ())


@pytest.mark.parametrize("keep", [1, 2])
def test_keeps_the_newest(tmp_path: Path, keep: int):
    with contextlib.closing(Checkpoints(tmp_path / "c", keep)) as checkpoints:
        for epoch in (1, 2, 5, 10):
            checkpoints.save(epoch, at_epoch(epoch), float(epoch))
            assert checkpoints.latest_epoch() == epoch
    kept = sorted(int(path.name) for path in (tmp_path / "c").iterdir() if path.name.isdigit())
    assert kept == [1, 2, 5, 10][-keep:]


def test_each_epoch_has_its_own_states(tmp_path: Path):
    with contextlib.closing(Checkpoints(tmp_path / "c", 2)) as checkpoints:
        for epoch in (1, 2):
            checkpoints.save(epoch, at_epoch(epoch), float(epoch))
        for epoch in (1, 2):
            restored = checkpoints.restore(epoch, abstract(at_epoch(0)))
            chex.assert_trees_all_equal(restored, at_epoch(epoch))


def test_nothing_is_saved_at_first(tmp_path: Path):
    with contextlib.closing(Checkpoints(tmp_path / "c", 2)) as checkpoints:
        assert checkpoints.latest_epoch() is None
        assert checkpoints.best_epoch() is None
        assert checkpoints.epochs() == []


def test_best_is_kept_beside_the_newest(tmp_path: Path):
    with contextlib.closing(Checkpoints(tmp_path / "c", 2)) as checkpoints:
        for epoch, accuracy in enumerate((97.0, 99.5, 98.0, 99.0, 98.5), start=1):
            checkpoints.save(epoch, at_epoch(epoch), accuracy)
    with contextlib.closing(Checkpoints(tmp_path / "c", 2)) as checkpoints:
        assert checkpoints.epochs() == [2, 4, 5]
        assert checkpoints.best_epoch() == 2
        assert checkpoints.latest_epoch() == 5
        chex.assert_trees_all_equal(checkpoints.restore(2, abstract(at_epoch(0))), at_epoch(2))


def test_unfinished_save_is_not_seen(tmp_path: Path):
    with contextlib.closing(Checkpoints(tmp_path / "c", 2)) as checkpoints:
        checkpoints.save(1, at_epoch(1), 90.0)
    (tmp_path / "c" / "2.orbax-checkpoint-tmp").mkdir()
    with contextlib.closing(Checkpoints(tmp_path / "c", 2)) as checkpoints:
        assert checkpoints.latest_epoch() == 1
        chex.assert_trees_all_equal(checkpoints.restore(1, abstract(at_epoch(0))), at_epoch(1))


def truncate(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize("damage", [truncate, empty])
def test_damaged_checkpoint_is_refused(tmp_path: Path, damage: Callable[[Path], None]):
    with contextlib.closing(Checkpoints(tmp_path / "c", 2)) as checkpoints:
        for epoch in (1, 2):
            checkpoints.save(epoch, at_epoch(epoch), float(epoch))
    damage(tmp_path / "c" / "2")
    with (
        pytest.raises(UserError) as caught,
        contextlib.closing(Checkpoints(tmp_path / "c", 2)) as checkpoints,
    ):
        checkpoints.restore(2, abstract(at_epoch(0)))
    message = str(caught.value)
    assert str(tmp_path / "c") in message
    assert "2" in message.replace(str(tmp_path), "")
    assert "--restart" in message
    assert "\n" not in message


def test_file_in_the_place_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "c").write_text("precious")
    with pytest.raises(UserError, match=r"/c\b"):
        Checkpoints(tmp_path / "c", 2)
    assert (tmp_path / "c").read_text() == "precious"
