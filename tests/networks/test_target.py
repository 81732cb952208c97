"""Both forms of the programs on whatever backend there is, both precisions, and other platforms."""

import functools
import importlib.util
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from populations import programs_of
from torch_parity import RECIPES

from jaxmnist import data, recipes
from jaxmnist.config import Config, default_config
from jaxmnist.networks import models, target
from jaxmnist.networks.target import ACCELERATOR, CPU, GPU, Kernels, Target
from jaxmnist.training import programs
from jaxmnist.training.programs import Programs

BATCH = 32
ON_GPU = jax.default_backend() == "gpu"

# Between them every kind of layer; and a CPU lacks model2's products in bfloat16.
SHORT = ("compact_tiny", "model2")


def each(names: Iterable[str]) -> list[Any]:
    """Those in SHORT, and as long tests the others."""
    return [n if n in SHORT else pytest.param(n, marks=pytest.mark.long) for n in names]


def make_programs(
    config: Config, mnist: tuple[data.Dataset, data.Dataset], train_size: int
) -> Programs:
    config.mesh.seed = config.mesh.data = 1
    train, held_out = (
        data.Dataset(part.images_NHW[:size], part.labels_N[:size])
        for part, size in zip(mnist, (train_size, 50), strict=True)
    )
    return programs_of(config, train, held_out)


class Said(NamedTuple):
    """What two epochs said."""

    losses: np.ndarray
    """(S, steps)."""
    evaluation: np.ndarray
    """(S,), the loss after the last step."""


Train = Callable[..., Said]


@pytest.fixture(scope="module")
def trained(mnist: tuple[data.Dataset, data.Dataset]) -> Train:
    """Rotation, translation and dropout are on; at this learning rate rounding stays small."""

    @functools.cache
    def train(
        model: str,
        form: Target = CPU,
        *,
        seeds: int = 1,
        precision: str = "float32",
    ) -> Said:
        config = default_config()
        config.update_from_flattened_dict(
            {
                "model": model,
                "dropout": 0.0 if model == "model3" else 0.1,
                "batch_size": BATCH,
                "num_seeds": seeds,
                "precision": precision,
                "optimizer.learning_rate": 1e-3,
                "augment.rotate_degrees": 10.0,
                "augment.translate": 0.1,
                "augment.elastic": 30.0,
            }
        )
        with target.form(form):
            compiled = make_programs(config, mnist, 2 * BATCH)
        states, losses = compiled.init(), []
        for epoch in (1, 2):
            order_SN = compiled.epoch_order(epoch)
            for segment in compiled.segments:
                states, metrics = compiled.train(states, order_SN, segment)
                losses.append(np.asarray(metrics.loss))
        evaluation = compiled.evaluate(states)
        return Said(np.concatenate(losses, 1), np.asarray(evaluation.loss))

    return train


def assert_close(found: Said, expected: Said) -> None:
    assert found.losses.shape == expected.losses.shape
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)
    np.testing.assert_allclose(found.evaluation, expected.evaluation, rtol=1e-5)


@pytest.mark.parametrize("model", [SHORT[0], pytest.param(SHORT[1], marks=pytest.mark.long)])
def test_three_seeds_in_the_form_for_accelerators_equal_one_in_that_for_a_cpu(
    model: str, trained: Train
):
    alone, together = trained(model), trained(model, ACCELERATOR, seeds=3)
    assert alone.losses.shape == (1, 4)
    assert len(set(together.losses[:, 0].tolist())) == 3
    assert_close(Said(*(leaf[:1] for leaf in together)), alone)


@pytest.mark.long
@pytest.mark.parametrize("model", models.NETWORKS)
@pytest.mark.parametrize("seeds", [1, 3])
def test_both_forms_train_alike(model: str, seeds: int, trained: Train):
    cpu, accelerator = (trained(model, form, seeds=seeds) for form in (CPU, ACCELERATOR))
    assert cpu.losses.shape == (seeds, 4)
    assert_close(accelerator, cpu)


@pytest.mark.long
@pytest.mark.parametrize("model", models.NETWORKS if ON_GPU else ["compact_tiny"])
def test_kernels_for_gpus_train_alike(model: str, trained: Train):
    """Without a GPU interpreted, and therefore slowly: of the networks the smallest."""
    kernels = Kernels.COMPILED if ON_GPU else Kernels.INTERPRETED
    forms = ACCELERATOR, GPU._replace(kernels=kernels)
    plain, gpu = (trained(model, form, seeds=3) for form in forms)
    assert plain.losses.shape == (3, 4)
    assert_close(gpu, plain)


@pytest.mark.parametrize("model", each(models.NETWORKS))
def test_bfloat16_trains_nearly_as_float32(model: str, trained: Train):
    """XLA on CPU lacks products of bfloat16 with sums in float32, of some shapes."""
    wide, narrow = trained(model), trained(model, precision="bfloat16")
    assert np.isfinite(narrow.losses).all()
    assert not np.array_equal(narrow.losses, wide.losses)
    np.testing.assert_allclose(narrow.losses, wide.losses, rtol=0.02)
    np.testing.assert_allclose(narrow.evaluation, wide.evaluation, rtol=0.02)


def test_the_backend_decides_unless_a_form_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    for backend, expected in (("cpu", CPU), ("tpu", ACCELERATOR)):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert target.current() == expected
        for form in (CPU, GPU, ACCELERATOR):
            with target.form(form):
                assert target.current() == form
        assert target.current() == expected


class Device(NamedTuple):
    compute_capability: str


@pytest.mark.parametrize(
    ("device", "has_triton", "expected"),
    [
        (Device("9.0"), True, GPU),
        (Device("8.0"), True, GPU),
        (Device("7.5"), True, ACCELERATOR),
        (Device("gfx942"), True, ACCELERATOR),
        (object(), True, ACCELERATOR),
        (Device("9.0"), False, ACCELERATOR),
    ],
)
def test_gpus_that_cannot_compile_kernels_get_none(
    device: Any, has_triton: bool, expected: Target, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: has_triton or None)
    assert target.current() == expected


def test_a_form_is_part_of_what_jit_remembers():
    """A function that is traced in one form must not be found again in the other."""
    traced = []

    @jax.jit
    def function(x):
        traced.append(target.current())
        return x + 1

    for form in (CPU, ACCELERATOR, CPU):
        with target.form(form):
            function(1.0)
    assert traced == [CPU, ACCELERATOR]


@pytest.mark.parametrize(
    ("form", "seeds", "expected"),
    [(CPU, 1, 32), (CPU, 3, 10), (CPU, 100, 1), (ACCELERATOR, 1, 128), (ACCELERATOR, 64, 128)],
)
def test_steps_of_a_program(form: Target, seeds: int, expected: int):
    assert form.steps_of(seeds) == expected


def test_programs_that_are_compiled_later_have_the_form_of_the_first(mnist):
    config = recipes.load("compact_tiny")
    config.batch_size = BATCH
    seen = []

    def record(*args: Any, **options: Any) -> jax.stages.Traced:
        seen.append(target.current())
        return traced(*args, **options)

    traced = programs.trace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "trace", record)
        with target.form(ACCELERATOR):
            compiled = make_programs(config, mnist, BATCH)
        first = len(seen)
        compiled.evaluate(compiled.init())
    assert first >= 1
    assert len(seen) == first + 1
    assert set(seen) == {ACCELERATOR}


class NotCompiled:
    """Stands in for a traced program: lowered for platforms that are not there, and that is all."""

    def __init__(self, traced: jax.stages.Traced, platforms: tuple[str, ...], texts: list[str]):
        texts.append(traced.lower(lowering_platforms=platforms).as_text())

    def lower(self) -> "NotCompiled":
        return self

    def compile(self, _: Any) -> None:
        return None


@pytest.mark.parametrize(
    ("seeds", "precision"),
    [
        (3, "float32"),
        pytest.param(1, "bfloat16", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize(
    ("form", "platforms"),
    [
        (ACCELERATOR, ("cuda", "tpu")),
        pytest.param(
            GPU,
            ("cuda",),
            marks=pytest.mark.skipif(
                jax.__version_info__ >= (0, 11),
                reason="asks the devices of the mesh for their kind",
            ),
        ),
    ],
    ids=["plain", "gpu"],
)
@pytest.mark.parametrize("recipe", each(RECIPES))
def test_every_program_can_be_lowered_for_cuda_and_tpu(
    recipe: str,
    form: Target,
    platforms: tuple[str, ...],
    seeds: int,
    precision: str,
    mnist,
    monkeypatch: pytest.MonkeyPatch,
):
    """What only an accelerator could run is at least known to be accepted for one."""
    texts: list[str] = []
    traced = programs.trace
    monkeypatch.setattr(
        programs, "trace", lambda *a, **o: NotCompiled(traced(*a, **o), platforms, texts)
    )
    config = recipes.load(recipe)
    config.num_seeds, config.precision, config.batch_size = seeds, precision, BATCH
    with target.form(form):
        lowered = make_programs(config, mnist, 2 * BATCH + 24)
        for segment in lowered.segments:
            lowered._train(segment.steps, segment.batch_size)
        lowered._evaluate()
    assert len(texts) == 5  # first states, order, two shapes of training, evaluation
    kernel = "stablehlo.custom_call @__gpu$xla.gpu.triton"
    convolution = kernel if form == GPU else "stablehlo.dot_general"
    assert sum(convolution in text for text in texts) == 3
    products = re.findall(r"stablehlo\.dot_general.*", "".join(texts))
    assert products or form == GPU
    if precision == "float32":  # or GPUs and TPUs would round the factors
        assert all("precision = [HIGHEST, HIGHEST]" in product for product in products)
    for text in texts:
        assert "stablehlo.convolution" not in text
        called = set(re.findall(r"stablehlo\.custom_call @[\w$.]+", text))
        assert called <= ({kernel} if form == GPU else set())
