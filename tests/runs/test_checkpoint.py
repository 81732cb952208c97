"""Checkpoints: nothing is lost on the way to the disk and back, damage is found and set aside."""

import contextlib
import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from populations import members_of
from workdirs import files_below

from jaxmnist.config import Config, default_config, flatten
from jaxmnist.errors import StorageError, UserError
from jaxmnist.runs import assemble
from jaxmnist.runs.checkpoint import Checkpoints, PartialEpoch, Record
from jaxmnist.training import parallel
from jaxmnist.training.engine import TrainState, over_members


def small_config(optimizer: str, model: str, num_seeds: int) -> Config:
    config = default_config()
    config.model = model
    config.optimizer.name = optimizer
    config.num_seeds = num_seeds
    return config


def filled_states(config: Config) -> TrainState:
    """States in whose leaves each number is another one, optimizer state included."""
    shapes = jax.eval_shape(over_members(assemble.engine(config).init), members_of(config))
    rng = np.random.default_rng(0)

    def random_bits(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.dtype == jnp.float32:
            return jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32)
        return jnp.asarray(rng.integers(0, 2**31, leaf.shape), leaf.dtype)

    return jax.tree.map(random_bits, shapes)


def abstract(states: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), states)


def record_of(epoch: int, *accuracies: float, partial: PartialEpoch | None = None) -> Record:
    """Of as many seeds as there are accuracies, all of ``epoch``."""
    rows = [
        {"seed": seed, "epoch": epoch, "eval_accuracy": accuracy}
        for seed, accuracy in enumerate(accuracies)
    ]
    return Record(epoch, rows, partial, flatten(default_config()))


PARTIAL = PartialEpoch(
    steps=3,
    images=300,
    seconds=1 / 3,
    loss_S=[0.1 + 0.2, 5e-324],
    correct_S=[17.0, 299.0],
)


@contextlib.contextmanager
def opened(folder: Path, keep: int = 2, **options: Any) -> Iterator[Checkpoints]:
    with contextlib.closing(Checkpoints(folder, keep, **options)) as checkpoints:
        yield checkpoints


def at_step(step: int) -> TrainState:
    """A small state that says which step it belongs to."""
    params = {"w": jnp.full((1, 2), step, jnp.float32)}
    return TrainState(jnp.full(1, step, jnp.int32), params, {}, ())


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints after steps 10 and 20, not to be changed."""
    folder = tmp_path_factory.mktemp("two") / "c"
    with opened(folder) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, at_step(step), record_of(step // 10, 90.0 + step))
    return folder


@pytest.fixture
def two(two_saved: Path, tmp_path: Path) -> Path:
    """A copy of them."""
    return shutil.copytree(two_saved, tmp_path / "c")


@pytest.mark.parametrize(
    ("optimizer", "model", "num_seeds", "record"),
    [
        ("sgd", "model3", 1, record_of(4, 100 / 3)),
        ("adam", "compact_tiny", 3, record_of(4, 99.0, 98.7, 0.1 + 0.2)),
        ("adam", "compact_tiny", 2, record_of(4, 99.0, 98.5, partial=PARTIAL)),
    ],
    ids=["sgd", "adam", "partial"],
)
def test_round_trip_is_bit_exact(
    tmp_path: Path, optimizer: str, model: str, num_seeds: int, record: Record
):
    states = filled_states(small_config(optimizer, model, num_seeds))
    # A moment for each parameter; for Adam two, and a counter.
    params = len(jax.tree.leaves(states.params))
    leaves = 2 * params + 1 if optimizer == "adam" else params
    assert len(jax.tree.leaves(states.opt_state)) == leaves
    with opened(tmp_path / "c") as checkpoints:
        checkpoints.save(4, states, record)
    with opened(tmp_path / "c") as checkpoints:
        assert (checkpoints.steps(), checkpoints.damaged) == ([4], [])
        assert checkpoints.record(4) == record
        assert type(checkpoints.record(4).partial) is type(record.partial)
        restored = checkpoints.restore(4, abstract(states))
    chex.assert_trees_all_equal_structs(restored, states)
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, states)
    chex.assert_tree_all_finite(states)
    for before, after in zip(jax.tree.leaves(states), jax.tree.leaves(restored), strict=True):
        assert isinstance(after, jax.Array)
        assert np.asarray(before).tobytes() == np.asarray(after).tobytes()


class OlderState(flax.struct.PyTreeNode):
    """The states of version 0.2.0: the seed in them, the optimizer's another one."""

    seed: jax.Array
    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any


def test_networks_of_an_older_version_are_read(tmp_path: Path):
    """And with ``restore``, which would train on, they are refused."""
    states = filled_states(small_config("sgd", "compact_tiny", 2))
    opt_state = {"hyperparams": {"learning_rate": jnp.ones(2)}, "trace": states.params}
    older = OlderState(
        jnp.zeros(2, jnp.uint32), states.step, states.params, states.batch_stats, opt_state
    )
    with opened(tmp_path / "c") as checkpoints:
        checkpoints.save(4, cast(TrainState, older), record_of(1, 99.0, 98.0))
        restored = checkpoints.restore_networks(4, abstract(states))
        assert restored.opt_state is None
        chex.assert_trees_all_equal(restored, states.replace(opt_state=None))
        with pytest.raises(UserError, match="another version of jaxmnist"):
            checkpoints.restore(4, abstract(states))


def test_networks_are_not_those_of_another_model(tmp_path: Path):
    states = filled_states(small_config("sgd", "compact_tiny", 2))
    others = filled_states(small_config("sgd", "model3", 2))
    with opened(tmp_path / "c") as checkpoints:
        checkpoints.save(4, states, record_of(1, 99.0, 98.0))
        with pytest.raises(UserError, match="cannot be read"):
            checkpoints.restore_networks(4, abstract(others))


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
def test_states_of_some_devices_are_restored_to_others(tmp_path: Path):
    """Saved from a mesh of 2×2 devices, to one of 4×1, and by default to the first device."""
    states = filled_states(small_config("sgd", "compact_tiny", 4))
    fields = {"num_seeds": 4, "mesh.seed": 2, "mesh.data": 2}
    shardings = []
    for fields["mesh.seed"], fields["mesh.data"] in ((2, 2), (4, 1)):
        config = default_config()
        config.update_from_flattened_dict(fields)
        shardings.append(parallel.per_member(assemble.mesh(config)))
    with opened(tmp_path / "c") as checkpoints:
        checkpoints.save(4, jax.device_put(states, shardings[0]), record_of(1, 99.0))
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for sharding, expected in ((shardings[1], shardings[1]), (None, first)):
        target = jax.tree.map(
            lambda a, sharding=sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
            states,
        )
        with opened(tmp_path / "c") as checkpoints:
            restored = checkpoints.restore(4, target)
        chex.assert_trees_all_equal(restored, states)
        for leaf in jax.tree.leaves(restored):
            assert leaf.sharding.is_equivalent_to(expected, leaf.ndim)


def test_nothing_is_saved_at_first(tmp_path: Path):
    with opened(tmp_path / "c") as checkpoints:
        assert (checkpoints.steps(), checkpoints.best(), checkpoints.damaged) == ([], None, [])


def test_each_step_has_its_own_states_and_record(two: Path):
    with opened(two) as checkpoints:
        for step in (10, 20):
            restored = checkpoints.restore(step, abstract(at_step(0)))
            chex.assert_trees_all_equal(restored, at_step(step))
            assert checkpoints.record(step) == record_of(step // 10, 90.0 + step)


def test_accuracy_is_the_mean_of_the_newest_epoch():
    rows = [*record_of(1, 10.0, 20.0).rows, *record_of(2, 80.0, 90.0).rows]
    assert Record(2, rows, None, {}).eval_accuracy == 85.0
    assert Record(2, rows, PARTIAL, {}).eval_accuracy is None
    assert Record(0, [], None, {}).eval_accuracy is None


@pytest.mark.parametrize(
    ("keep", "accuracies", "kept", "best"),
    [
        (1, [97.0, 98.0, 99.0], [3], 3),
        (1, [99.0, 98.0, 97.0], [1, 3], 1),
        (2, [97.0, 99.5, 98.0, 99.0, 98.5], [2, 4, 5], 2),
        (2, [97.0, 99.5, 98.0, 99.5, 98.5], [4, 5], 4),  # the later of equals
        (1, [97.0, None, 96.0, None], [1, 4], 1),  # None: within an epoch
        (1, [None, None], [2], None),
    ],
)
def test_keeps_the_newest_and_the_best(
    tmp_path: Path, keep: int, accuracies: list[float | None], kept: list[int], best: int | None
):
    with opened(tmp_path / "c", keep) as checkpoints:
        for step, accuracy in enumerate(accuracies, start=1):
            partial = PARTIAL if accuracy is None else None
            # Within an epoch the rows are those of the one before, however good it was.
            record = record_of(step, 100.0 if accuracy is None else accuracy, partial=partial)
            checkpoints.save(step, at_step(step), record)
            assert checkpoints.steps()[-1] == step
        assert (checkpoints.steps(), checkpoints.best()) == (kept, best)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [str(step) for step in kept]
    with opened(tmp_path / "c", keep) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best()) == (kept, best)


def test_step_that_exists_is_left_alone(two: Path):
    before = files_below(two)
    with opened(two) as checkpoints:
        checkpoints.save(20, at_step(99), record_of(9, 1.0))
        assert checkpoints.record(20) == record_of(2, 110.0)
    assert files_below(two) == before


def test_leftovers_of_cut_short_saves_are_removed(two: Path):
    for name in ("30.orbax-checkpoint-tmp-17", "5.removing"):
        (two / name / "deeper").mkdir(parents=True)
        (two / name / "deeper" / "file").write_text("half")
    (two / "20.record.orbax-checkpoint-tmp").write_text("half")
    (two / "notes.txt").write_text("mine")
    with opened(two) as checkpoints:
        assert (checkpoints.steps(), checkpoints.damaged) == ([10, 20], [])
    assert sorted(path.name for path in two.iterdir()) == ["10", "20", "notes.txt"]


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def damaged_line(folder: Path) -> str:
    """What is said when step 20 is damaged, which must be moved aside whole."""
    before = files_below(folder / "20")
    with opened(folder) as checkpoints:
        assert checkpoints.steps() == [10]
        chex.assert_trees_all_equal(checkpoints.restore(10, abstract(at_step(0))), at_step(10))
        (line,) = checkpoints.damaged
    assert sorted(path.name for path in folder.iterdir()) == ["10", "20.damaged.1"]
    assert files_below(folder / "20.damaged.1") == before
    assert line.startswith(f"checkpoint {folder / '20'} is damaged (")
    assert line.endswith("): moved to 20.damaged.1")
    assert "\n" not in line
    return line


def test_truncated_file_is_found(two: Path, tmp_path: Path):
    """Whichever it is, and at whatever length."""
    number = len(files_of(two / "20"))
    assert number > 5
    for index in range(number):
        folder = shutil.copytree(two, tmp_path / f"{index}" / "c")
        path = files_of(folder / "20")[index]
        whole = path.read_bytes()
        path.write_bytes(whole[: index * len(whole) // number])
        if whole:
            assert f"({path.relative_to(folder / '20').as_posix()} has" in damaged_line(folder)


def test_flipped_bit_is_found(two: Path, tmp_path: Path):
    """Whichever file it is in, the record itself among them."""
    names = [path.relative_to(two / "20").as_posix() for path in files_of(two / "20")]
    assert "record.json" in names
    flipped = 0
    for index, name in enumerate(names):
        folder = shutil.copytree(two, tmp_path / f"{index}" / "c")
        path = folder / "20" / name
        if content := bytearray(path.read_bytes()):
            content[len(content) * index // len(names)] ^= 1 << index % 8
            path.write_bytes(content)
            assert f"({name} has changed)" in damaged_line(folder)
            flipped += 1
    assert flipped > 5


def test_every_byte_of_the_record_counts(two: Path):
    path = two / "20" / "record.json"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in [*rng.choice(len(whole), 40, replace=False), 63, 64, 65, len(whole) - 1]:
        changed = bytearray(whole)
        changed[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        with opened(two, read_only=True) as checkpoints:
            assert checkpoints.steps() == [10], position


@pytest.mark.parametrize("name", ["record.json", "_METADATA", "manifest.ocdbt"])
def test_missing_file_is_found(two: Path, name: str):
    (two / "20" / name).unlink()
    assert f"({name} is missing)" in damaged_line(two)


def test_extra_file_is_found(two: Path):
    (two / "20" / "d" / "notes").write_text("")
    assert "(d/notes does not belong there)" in damaged_line(two)


def swap(folder: Path) -> None:
    """The weights of another step under this step's record."""
    record = (folder / "20" / "record.json").read_bytes()
    shutil.rmtree(folder / "20")
    shutil.copytree(folder / "10", folder / "20")
    (folder / "20" / "record.json").write_bytes(record)


def empty(folder: Path) -> None:
    shutil.rmtree(folder / "20")
    (folder / "20").mkdir()


@pytest.mark.parametrize(
    ("damage", "words"), [(swap, "has changed"), (empty, "(record.json is missing)")]
)
def test_what_is_not_a_whole_checkpoint_is_set_aside(
    two: Path, damage: Callable[[Path], None], words: str
):
    damage(two)
    assert words in damaged_line(two)


def test_file_in_the_place_of_a_checkpoint_is_set_aside(two: Path):
    (two / "30").write_text("precious")
    with opened(two) as checkpoints:
        assert checkpoints.steps() == [10, 20]
        assert len(checkpoints.damaged) == 1
    assert (two / "30.damaged.1").read_text() == "precious"


def test_nothing_that_is_moved_aside_is_overwritten(two: Path):
    (two / "20.damaged.1").mkdir()
    (two / "20" / "record.json").unlink()
    with opened(two) as checkpoints:
        assert checkpoints.damaged[0].endswith("moved to 20.damaged.2")
        checkpoints.save(20, at_step(21), record_of(2, 50.0))
    with opened(two) as checkpoints:
        assert (checkpoints.steps(), checkpoints.damaged) == ([10, 20], [])
        chex.assert_trees_all_equal(checkpoints.restore(20, abstract(at_step(0))), at_step(21))
    names = sorted(path.name for path in two.iterdir())
    assert names == ["10", "20", "20.damaged.1", "20.damaged.2"]


def test_read_only_changes_nothing(two: Path):
    (two / "20" / "_METADATA").write_text("{")
    for name in ("30.orbax-checkpoint-tmp", "5.removing"):
        (two / name).mkdir()
    before = files_below(two)
    with opened(two, read_only=True) as checkpoints:
        assert checkpoints.steps() == [10]
        assert checkpoints.damaged == ["checkpoint 20 is damaged (_METADATA has changed)"]
    assert files_below(two) == before


def test_full_disk_leaves_the_older_ones(two: Path, monkeypatch: pytest.MonkeyPatch):
    before = files_below(two)

    def half_a_save(_, path: Path, **__):
        Path(f"{path}.orbax-checkpoint-tmp").mkdir()
        raise OSError(errno.ENOSPC, "No space left on device")

    with opened(two, keep=1) as checkpoints:
        monkeypatch.setattr(ocp.Checkpointer, "save", half_a_save)
        with pytest.raises(StorageError) as caught:
            checkpoints.save(30, at_step(30), record_of(3, 99.0))
        assert checkpoints.steps() == [10, 20]
    message = str(caught.value)
    assert message.startswith(f"{two / '30'} could not be written (")
    assert "No space left on device" in message
    assert "\n" not in message
    monkeypatch.undo()
    with opened(two, keep=1) as checkpoints:
        assert (checkpoints.steps(), checkpoints.damaged) == ([10, 20], [])
    assert files_below(two) == before


def test_full_disk_at_the_record_leaves_the_older_ones(two: Path, monkeypatch: pytest.MonkeyPatch):
    """The states are written, but nothing seals them: they do not count."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with opened(two, keep=1) as checkpoints:
        monkeypatch.setattr("jaxmnist.runs.checkpoint.os.replace", full)
        with pytest.raises(StorageError, match="No space left on device"):
            checkpoints.save(30, at_step(30), record_of(3, 99.0))
        assert checkpoints.steps() == [10, 20]
        monkeypatch.undo()
    with opened(two, keep=1) as checkpoints:
        assert checkpoints.steps() == [10, 20]
        assert "(record.json is missing)" in checkpoints.damaged[0]


def test_an_old_one_that_cannot_be_removed_goes_at_the_next_start(
    two: Path, monkeypatch: pytest.MonkeyPatch
):
    """As where somebody has a file of it open, on NFS: the new one has been written."""

    def busy(*_, **__):
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr("shutil.os.rmdir", busy)
    with opened(two, keep=1) as checkpoints:
        checkpoints.save(30, at_step(30), record_of(3, 120.0))
        assert checkpoints.steps() == [30]
    with opened(two, keep=1) as checkpoints:  # still busy
        assert (checkpoints.steps(), checkpoints.damaged) == ([30], [])
    assert sorted(path.name for path in two.iterdir()) == ["10.removing", "20.removing", "30"]
    monkeypatch.undo()
    with opened(two, keep=1) as checkpoints:
        assert (checkpoints.steps(), checkpoints.damaged) == ([30], [])
    assert [path.name for path in two.iterdir()] == ["30"]


def test_a_device_without_memory_damns_no_checkpoint(two: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(ocp.Checkpointer, "restore", full)
    with opened(two) as checkpoints, pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE"):
        checkpoints.restore(20, abstract(at_step(0)))


@pytest.mark.parametrize("names", ["v", "vw", ""])
def test_other_states_are_refused(two: Path, names: str):
    params = {name: jax.ShapeDtypeStruct((1, 2), jnp.float32) for name in names}
    target = abstract(at_step(0)).replace(params=params)
    with opened(two) as checkpoints, pytest.raises(UserError) as caught:
        checkpoints.restore(20, target)
    message = str(caught.value)
    assert message.startswith(f"{two / '20'} cannot be read (")
    assert "--restart" in message
    assert "\n" not in message


def test_file_in_the_place_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "c").write_text("precious")
    for read_only in (False, True):
        with pytest.raises(UserError, match=r"/c\b"):
            Checkpoints(tmp_path / "c", 2, read_only=read_only)
    assert (tmp_path / "c").read_text() == "precious"
