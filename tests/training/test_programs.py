"""How an epoch is cut up, and what the compiled programs promise."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from populations import member_of, programs_of

from jaxmnist import data
from jaxmnist.config import Config, default_config
from jaxmnist.errors import UserError
from jaxmnist.networks import models, target
from jaxmnist.runs import assemble
from jaxmnist.training.programs import Batching, Programs, Segment, plan_epoch

BACKEND_COMPILE = "/jax/core/compile/backend_compile_duration"


def config_with(**values: object) -> Config:
    config = default_config()
    config.update(values)
    return config


def batching_with(batch_size: int = 128, **values: Any) -> Batching:
    return Batching(batch_size, **values)


@settings(max_examples=300, deadline=None)
@given(
    size=st.integers(1, 5000),
    batch_size=st.integers(1, 600),
    drop_remainder=st.booleans(),
    steps_share=st.floats(0, 1),
    max_steps=st.none() | st.integers(1, 100),
)
def test_segments_cover_the_epoch(
    size: int, batch_size: int, drop_remainder: bool, steps_share: float, max_steps: int | None
):
    steps = size // batch_size if drop_remainder else -(-size // batch_size)
    asked = int(steps * steps_share)
    batching = Batching(batch_size, drop_remainder, asked)
    if steps == 0:
        with pytest.raises(UserError):
            plan_epoch(size, batching, max_steps)
        return
    segments = plan_epoch(size, batching, max_steps)
    expected_steps = asked or steps
    starts = np.cumsum([0] + [segment.images for segment in segments])
    assert [segment.start for segment in segments] == starts[:-1].tolist()
    assert sum(segment.steps for segment in segments) == expected_steps
    assert starts[-1] == min(expected_steps * batch_size, size)
    assert all(1 <= segment.steps <= (max_steps or steps) for segment in segments)
    assert len({segment[1:] for segment in segments}) <= 3
    assert {segment.batch_size for segment in segments[:-1]} <= {batch_size}
    if max_steps is None:
        assert len(segments) <= 2


def test_mnist_is_469_steps_and_the_last_batch_has_96():
    assert plan_epoch(60_000, Batching(128)) == [
        Segment(0, 468, 128),
        Segment(59_904, 1, 96),
    ]
    assert plan_epoch(50_000, Batching(128)) == [Segment(0, 390, 128), Segment(49_920, 1, 80)]


def test_mnist_in_chunks_on_a_cpu():
    segments = plan_epoch(60_000, Batching(128), target.CPU.steps_of(1))
    assert sum(segment.steps for segment in segments) == 469
    assert segments[-1] == Segment(59_904, 1, 96)
    assert {segment[1:] for segment in segments} == {(26, 128), (1, 96)}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"drop_remainder": True}, [Segment(0, 468, 128)]),
        ({"steps_per_epoch": 3}, [Segment(0, 3, 128)]),
        ({"steps_per_epoch": 468}, [Segment(0, 468, 128)]),
        ({"steps_per_epoch": 469}, [Segment(0, 468, 128), Segment(59_904, 1, 96)]),
        ({"batch_size": 60_000}, [Segment(0, 1, 60_000)]),
        ({"batch_size": 60_001}, [Segment(0, 1, 60_000)]),
        ({"batch_size": 1_000}, [Segment(0, 60, 1_000)]),
    ],
)
def test_plans_by_hand(values: dict[str, Any], expected: list[Segment]):
    assert plan_epoch(60_000, batching_with(**values)) == expected


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps_per_epoch": 470}, ("config.steps_per_epoch is 470", "469 steps")),
        (
            {"steps_per_epoch": 469, "drop_remainder": True},
            ("config.steps_per_epoch is 469", "468 steps"),
        ),
        (
            {"batch_size": 60_001, "drop_remainder": True},
            ("config.batch_size is 60001", "60,000"),
        ),
    ],
)
def test_impossible_plans_are_refused(values: dict[str, Any], words: tuple[str, str]):
    with pytest.raises(UserError) as caught:
        plan_epoch(60_000, batching_with(**values))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), max_steps=st.none() | st.integers(1, 40))
def test_what_remains_of_an_epoch(data: st.DataObject, max_steps: int | None):
    """Wherever it stopped: what is left starts there, covers the rest and ends where it did."""
    programs = object.__new__(Programs)
    programs.segments = plan_epoch(data.draw(st.integers(1, 3000)), Batching(64), max_steps)
    done = data.draw(st.integers(0, programs.steps_per_epoch))
    remaining = programs.segments_after(done)

    def batches(segments: list[Segment]) -> list[tuple[int, int]]:
        return [
            (segment.start + step * segment.batch_size, segment.batch_size)
            for segment in segments
            for step in range(segment.steps)
        ]

    assert batches(remaining) == batches(programs.segments)[done:]
    assert len(remaining) <= len(programs.segments)
    assert all(segment.steps > 0 for segment in remaining)


def test_what_remains_by_hand():
    programs = object.__new__(Programs)
    programs.segments = [Segment(0, 3, 100), Segment(300, 3, 100), Segment(600, 1, 40)]
    assert programs.segments_after(0) == programs.segments
    assert programs.segments_after(3) == programs.segments[1:]
    assert programs.segments_after(4) == [Segment(400, 2, 100), Segment(600, 1, 40)]
    assert programs.segments_after(6) == [Segment(600, 1, 40)]
    assert programs.segments_after(7) == []


TINY = config_with(model="compact_tiny", batch_size=16, num_seeds=2, seed=5, num_epochs=2)


def programs_on(
    config: Config, mnist: tuple[data.Dataset, data.Dataset], sizes: tuple[int, int]
) -> Programs:
    """The programs of a run on the first images of both sets."""
    train, held_out = (
        data.Dataset(part.images_NHW[:size], part.labels_N[:size])
        for part, size in zip(mnist, sizes, strict=True)
    )
    return programs_of(config, train, held_out)


@pytest.fixture(scope="module")
def programs(mnist: tuple[data.Dataset, data.Dataset]) -> Programs:
    """Two seeds on 40 images in batches of 16, 16 and 8; evaluation on 30."""
    return programs_on(TINY, mnist, (40, 30))


def train_epoch(programs: Programs, states, epoch: int):
    """The states after ``epoch``, and what its steps said, with everything fetched."""
    order_SN = programs.epoch_order(epoch)
    said = []
    for segment in programs.segments:
        states, metrics = programs.train(states, order_SN, segment)
        said.append(jax.device_get(metrics))
    return states, np.asarray(order_SN), said, jax.device_get(programs.evaluate(states))


def test_abstract_states_are_those_of_real_ones(programs: Programs):
    states = programs.init()

    def describe(leaf: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    described = jax.tree.map(describe, states)
    assert described == programs.abstract_states
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(states))
    kernel_S = states.params["layers_0"]["kernel"]
    assert not np.array_equal(kernel_S[0], kernel_S[1])
    states, *_ = train_epoch(programs, states, 1)
    assert jax.tree.map(describe, states) == described
    np.testing.assert_array_equal(states.step, [3, 3])


def test_an_epoch_has_the_shapes_it_says(programs: Programs):
    assert programs.steps_per_epoch == 3
    assert programs.segments == [Segment(0, 2, 16), Segment(32, 1, 8)]
    _, order_SN, said, evaluation = train_epoch(programs, programs.init(), 1)
    assert order_SN.shape == (2, 40)
    np.testing.assert_array_equal(np.sort(order_SN, 1), [range(40)] * 2)
    assert not np.array_equal(order_SN[0], order_SN[1])
    assert [metrics.loss.shape for metrics in said] == [(2, 2), (2, 1)]
    for metrics, batch_size in zip(said, (16, 8), strict=True):
        assert np.isfinite(metrics.loss).all()
        assert metrics.correct.min() >= 0
        assert metrics.correct.max() <= batch_size
    assert evaluation.loss.shape == (2,)
    assert evaluation.predictions_N.shape == (2, 30)
    assert evaluation.correct.max() <= 30


def test_evaluation_counts_what_it_predicts(
    programs: Programs, mnist: tuple[data.Dataset, data.Dataset]
):
    _, _, _, evaluation = train_epoch(programs, programs.init(), 1)
    right_SN = evaluation.predictions_N == mnist[1].labels_N[None, :30]
    np.testing.assert_array_equal(evaluation.correct, right_SN.sum(1))


def test_same_seed_gives_the_same_bits(programs: Programs):
    first, second = (train_epoch(programs, programs.init(), 1) for _ in range(2))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_epochs_visit_in_different_orders(programs: Programs):
    first, second = (np.asarray(programs.epoch_order(epoch)) for epoch in (1, 2))
    assert not np.array_equal(first, second)


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """The seconds of each compilation, or search for one in the cache, as they happen."""
    seconds = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == BACKEND_COMPILE:
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_nothing_is_compiled_after_the_first_epoch(programs: Programs):
    states, *_ = train_epoch(programs, programs.init(), 1)
    before = programs.compile_seconds
    with compilations() as seconds:
        jax.jit(lambda x: x * 3 + 1)(np.float32(2))
        assert seconds  # the counter counts
        seconds.clear()
        for epoch in (2, 3):
            states, *_ = train_epoch(programs, states, epoch)
        assert seconds == []
    assert programs.compile_seconds == before


def test_programs_are_compiled_when_their_turn_comes(mnist: tuple[data.Dataset, data.Dataset]):
    """Before the first step no more than it needs; every compilation is counted in seconds."""
    with compilations() as seconds:
        programs = programs_on(TINY, mnist, (40, 30))
        assert len(programs.segments) == 2
        at_first = len(seconds)
        states = programs.init()
        order_SN = programs.epoch_order(1)
        later = []
        for use in (
            lambda: programs.train(states, order_SN, programs.segments[0]),
            lambda: programs.train(programs.init(), order_SN, programs.segments[1]),
            lambda: programs.evaluate(programs.init()),
        ):
            before, spent = len(seconds), programs.compile_seconds
            use()
            later.append(len(seconds) - before)
            assert (programs.compile_seconds > spent) == bool(later[-1])
    assert at_first >= 3  # the first states, the order of the epoch, its first segment
    assert later == [0, 1, 1]
    assert sum(seconds) <= programs.compile_seconds


# What the compiled programs hold, and what they do not.


@pytest.fixture(scope="module")
def model3_programs(mnist: tuple[data.Dataset, data.Dataset]) -> Programs:
    """A chunk of model3's recipe on a single device: 26 steps of 128 augmented images."""
    config = config_with(model="model3")
    config.update_from_flattened_dict(
        {"augment.rotate_degrees": 7.0, "mesh.data": 1, "drop_remainder": True}
    )
    return programs_on(config, mnist, (26 * 128, 128))


def train_programs(programs: Programs) -> list[Any]:
    return [programs._train(*shape) for shape in {segment[1:] for segment in programs.segments}]


def all_programs(programs: Programs) -> list[Any]:
    return [*train_programs(programs), programs._evaluate(), programs._order, programs._init]


@pytest.mark.parametrize("name", ["programs", "model3_programs"])
def test_no_program_holds_a_convolution_or_talks_to_the_host(
    name: str, request: pytest.FixtureRequest
):
    """XLA's convolutions are slow inside a scan on CPU."""
    for program in all_programs(request.getfixturevalue(name)):
        hlo = program.as_text()
        assert "ENTRY" in hlo
        for operation in ("convolution(", "infeed(", "outfeed(", "send(", "recv(", "callback"):
            assert operation not in hlo, operation


@pytest.mark.parametrize("model", models.NETWORKS)
def test_no_network_asks_for_a_convolution(model: str):
    config = config_with(model=model)
    engine, member = assemble.engine(config), member_of(config)
    state = jax.eval_shape(engine.init, member)
    images_HWB = jax.ShapeDtypeStruct((28, 28, 128), np.uint8)
    labels_B = jax.ShapeDtypeStruct((128,), np.uint8)
    text = jax.jit(engine.train_step).lower(state, member, images_HWB, labels_B).as_text()
    assert "stablehlo.dot_general" in text
    assert "stablehlo.convolution" not in text
    assert "custom_call" not in text


def test_training_moves_nothing_between_host_and_device(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
):
    """But the number where a segment starts, which is sent on purpose."""
    states, *_ = train_epoch(programs, programs.init(), 1)  # everything is compiled now
    order_SN = programs.epoch_order(1)
    numbers = {segment.start: programs._number(segment.start) for segment in programs.segments}
    monkeypatch.setattr(programs, "_number", numbers.__getitem__)
    with jax.transfer_guard("disallow"):
        for segment in programs.segments:
            states, _ = programs.train(states, order_SN, segment)
        evaluation = programs.evaluate(states)
    assert np.isfinite(evaluation.loss).all()


def test_the_guard_against_transfers_guards():
    add = jax.jit(lambda a: a + 1)
    with (
        pytest.raises(Exception, match="Disallowed host-to-device"),
        jax.transfer_guard("disallow"),
    ):
        add(np.float32(1))


def test_training_uses_up_the_states(programs: Programs):
    states = programs.init()
    order_SN = programs.epoch_order(1)
    programs.train(states, order_SN, programs.segments[0])
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(states.params))
    assert not order_SN.is_deleted()


def test_a_chunk_of_model3_fits_into_60_megabytes(model3_programs: Programs):
    assert [segment[1:] for segment in model3_programs.segments] == [(26, 128)]
    (program,) = train_programs(model3_programs)
    memory = program.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    # 29 MB on CPU: 26 for the batches and activations, 2.7 for the 3,328 training images; with
    # all 60,000 it would be 73.
    assert needed < 60e6
