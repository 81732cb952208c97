"""Every network and every recipe against the real PyTorch: forward, backward, training, statistics.

The yardstick is torch in float64. In float32 torch on CPU strays from that by itself: oneDNN's fast
convolutions leave errors of 3e-4 in a first gradient, and training amplifies any error, at the
learning rates of one-cycle by orders of magnitude within 200 steps. So the semantics are proven in
float64, and in float32 jaxmnist must stay as close to the exact result as torch's float32 does.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_parity
from scipy import stats
from torch_parity import RECIPES
from torch_reference import TORCH_NETWORKS, TorchRecipe, under

import jaxmnist
from jaxmnist import convert, recipes
from jaxmnist.export import torch_weights
from jaxmnist.networks import analyze, models, prng
from jaxmnist.networks.layers import Dropout, MaxPool
from jaxmnist.runs import assemble, saved_run
from jaxmnist.runs import train as train_lib
from jaxmnist.training import augment
from jaxmnist.training.engine import Images


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread():
    """Two runtimes with two spinning threads each would starve each other on two cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def batch(mnist):
    _, test = mnist
    return test.images_NHW[:128], test.labels_N[:128]


@pytest.mark.parametrize("model", TORCH_NETWORKS)
def test_parameters(model):
    network = models.build(model)
    expected = {
        key: tuple(tensor.shape)
        for key, tensor in TORCH_NETWORKS[model](0.0).state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    assert {slot.key: slot.shape for slot in torch_weights.slots(network)} == expected


@pytest.mark.parametrize("name", [name for name in recipes.names() if name.startswith("under_")])
def test_our_own_networks_are_the_same_in_torch(name: str, batch):
    """The packaged ones, with all that they have learnt."""
    classifier, (images_NHW, _) = jaxmnist.load(name), batch
    theirs = under(classifier.config.network.blocks, classifier.config.network.padding).eval()
    state_dict = torch_weights.to_state_dict(
        classifier.network, classifier.params, classifier.batch_stats, step=0
    )
    tensors = {key: torch.tensor(array) for key, array in state_dict.items()}
    theirs.load_state_dict(tensors, strict=True)
    with torch.no_grad():
        expected_NK = theirs(torch_parity.normalised(images_NHW, torch.float32)).numpy()
    np.testing.assert_allclose(classifier.logits(images_NHW), expected_NK, atol=1e-4)


@pytest.mark.parametrize("model", TORCH_NETWORKS)
def test_layers_have_the_same_outputs_one_by_one(model):
    """Position by position, as in ``nn.Sequential``; torch may have a log-softmax behind."""
    summaries = analyze.summarize(models.build(model))
    layers = TORCH_NETWORKS[model](0.0).eval().layers
    assert len(layers) - len(summaries) == isinstance(layers[-1], torch.nn.LogSoftmax)
    x = torch.zeros(1, 1, 28, 28)
    for summary, layer in zip(summaries, layers, strict=False):
        x = layer(x)
        assert summary.output_shape == tuple(x.shape[1:]), summary.name
        assert summary.params == sum(parameter.numel() for parameter in layer.parameters())


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_forward(recipe, batch, train):
    images_NHW, _ = batch
    assert torch_parity.forward_error(recipe, images_NHW, train=train) <= 1e-5


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_step(recipe, mnist):
    """Loss and statistics of any batch; gradients of one out of three.

    Now and then an activation lies on the edge of a ReLU or of a maximum, and rounding decides
    which way its gradient goes: 2e-3 in efficient's first batch. What is wrong is wrong in all.
    """
    _, test = mnist
    gradients = []
    while not gradients or (min(gradients) > 1e-4 and len(gradients) < 3):
        part = slice(128 * len(gradients), 128 * (len(gradients) + 1))
        errors = torch_parity.step_errors(recipe, test.images_NHW[part], test.labels_N[part])
        assert errors.loss <= 1e-6
        assert errors.batch_stats <= 1e-6
        gradients.append(errors.gradient)
    assert min(gradients) <= 1e-4


@pytest.mark.parametrize("steps", [40, pytest.param(torch_parity.STEPS, marks=pytest.mark.long)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_training(recipe, steps, mnist):
    """In float64: 40 steps pass through two epochs of the schedules, 200 through ten."""
    train, _ = mnist
    exact, double = torch_parity.trajectories(recipe, train, float64=True, steps=steps)
    assert exact.losses[0] > 2
    least = 1.5 if steps == torch_parity.STEPS else 0.99 * exact.losses[:20].mean()
    assert exact.losses[-20:].mean() < least, "it must train for the comparison to mean anything"

    assert torch_parity.stray(double, exact).early_weights <= 1e-10
    np.testing.assert_allclose(double.losses, exact.losses, rtol=1e-3)
    np.testing.assert_allclose(double.losses[:80], exact.losses[:80], rtol=1e-8)


@pytest.mark.long
@pytest.mark.parametrize("recipe", RECIPES)
def test_training_in_float32(recipe, mnist):
    """Within 20 steps a rounding error may decide a tie in a pool or the sign before a ReLU.

    Which recipes stay below 1e-4 is chance, on both sides.
    """
    train, _ = mnist
    steps = torch_parity.EARLY_STEPS
    exact, _ = torch_parity.trajectories(recipe, train, float64=True, steps=steps)
    theirs, ours = (
        torch_parity.stray(single, exact)
        for single in torch_parity.trajectories(recipe, train, float64=False, steps=steps)
    )
    assert ours.early_weights <= max(1e-4, 10 * theirs.early_weights)


@pytest.mark.parametrize("recipe", RECIPES)
def test_learning_rate_and_momentum_of_every_step(recipe):
    config = torch_parity.load_recipe(recipe)
    steps_per_epoch = 469 if config.split == "train/test" else 391
    parameter = torch.nn.Parameter(torch.zeros(1))
    torch_recipe = TorchRecipe(recipe, [parameter], steps_per_epoch)
    parameter.grad = torch.zeros(1)
    expected = [torch_recipe.hyperparameters()]
    for _ in range(config.num_epochs * steps_per_epoch):
        torch_recipe.step()
        expected.append(torch_recipe.hyperparameters())
    schedule = assemble.schedule(config, steps_per_epoch)
    found = np.array([schedule.learning_rate_T1, schedule.momentum_T1], np.float32)
    peak = schedule.learning_rate_T1.max()  # cosine ends at 0, where nothing is relative
    np.testing.assert_allclose(found, np.transpose(expected), rtol=1e-6, atol=1e-12 * peak)


@pytest.mark.parametrize("model", TORCH_NETWORKS)
def test_initialisation_is_drawn_from_torchs_distribution(model):
    """Bounds, and Kolmogorov–Smirnov over the values of 20 initialisations."""
    count = 20
    network = models.build(model)
    blank_NHW = jnp.zeros((1, 28, 28), jnp.uint8)
    ours = jax.jit(jax.vmap(lambda seed: network.init(prng.key(seed), blank_NHW, train=False)))(
        jnp.arange(count)
    )
    torch.manual_seed(0)
    theirs = [TORCH_NETWORKS[model](0.0).state_dict() for _ in range(count)]
    for slot in torch_weights.slots(network):
        found = np.asarray(ours[slot.collection][f"layers_{slot.owner}"][slot.leaf]).ravel()
        expected = np.concatenate([state[slot.key].numpy().ravel() for state in theirs])
        if np.ptp(expected) == 0:
            np.testing.assert_array_equal(found, expected)
            continue
        assert abs(np.abs(found).max() / np.abs(expected).max() - 1) < 0.05
        test: Any = stats.ks_2samp(found, expected)
        assert test.pvalue > 1e-4, slot.key


def test_rotation_equals_grid_sample(mnist):
    train, _ = mnist
    count = 256
    images_NHW = train.images_NHW[:count]
    degrees_N = np.random.RandomState(0).uniform(-30, 30, count).astype(np.float32)
    radians_N = torch.from_numpy(np.radians(degrees_N))
    cos, sin, zero = radians_N.cos(), radians_N.sin(), torch.zeros(count)
    theta = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).reshape(count, 2, 3)
    grid = torch.nn.functional.affine_grid(theta, [count, 1, 28, 28], align_corners=False)
    expected = torch.nn.functional.grid_sample(
        torch.from_numpy(images_NHW).float()[:, None],
        grid,
        mode="nearest",
        padding_mode="zeros",
        align_corners=False,
    )
    shift_2N = jnp.zeros((2, count), jnp.int32)
    index_N = jnp.arange(count, dtype=jnp.int32)
    pixel_HWN = augment.source_pixels(augment.Transforms(jnp.asarray(degrees_N), shift_2N))
    found_HWN = augment.gather(jnp.asarray(images_NHW), index_N, pixel_HWN)
    different = np.asarray(found_HWN).transpose(2, 0, 1) != expected[:, 0].numpy()
    assert different.mean() <= 1e-3
    assert (expected[:, 0].numpy() != images_NHW).mean() > 0.05, "the rotation must do something"


def test_translation_equals_grid_sample(mnist):
    train, _ = mnist
    shifts = [(0, 0), (1, 0), (0, -2), (-3, 3), (2, 1)]
    images_NHW = train.images_NHW[: len(shifts)]
    down, right = (torch.tensor(axis, dtype=torch.float32) for axis in zip(*shifts, strict=True))
    one, zero = torch.ones(len(shifts)), torch.zeros(len(shifts))
    # In torch's coordinates the image is 2 wide, and the grid says where each pixel comes from.
    theta = torch.stack([one, zero, -right / 14, zero, one, -down / 14], dim=1)
    grid = torch.nn.functional.affine_grid(
        theta.reshape(-1, 2, 3), [len(shifts), 1, 28, 28], align_corners=False
    )
    expected = torch.nn.functional.grid_sample(
        torch.from_numpy(images_NHW).float()[:, None], grid, mode="nearest", align_corners=False
    )
    drawn = augment.Transforms(jnp.zeros(len(shifts)), jnp.asarray(shifts, jnp.int32).T)
    pixel_HWN = augment.source_pixels(drawn)
    index_N = jnp.arange(len(shifts), dtype=jnp.int32)
    found_HWN = augment.gather(jnp.asarray(images_NHW), index_N, pixel_HWN)
    np.testing.assert_array_equal(np.asarray(found_HWN).transpose(2, 0, 1), expected[:, 0].numpy())


def test_pool_gives_ties_to_the_same_pixel():
    """Few distinct values, so that most 2×2 patches have ties: forward and gradient are equal."""
    random = np.random.RandomState(0)
    x_NCHW = random.randint(0, 3, (4, 3, 7, 8)).astype(np.float32)
    weight_NCHW = random.normal(size=(4, 3, 3, 4)).astype(np.float32)
    x = torch.tensor(x_NCHW, requires_grad=True)
    pooled = torch.nn.functional.max_pool2d(x, 2)
    (pooled * torch.from_numpy(weight_NCHW)).sum().backward()

    def pool(x_HCWN):
        return MaxPool().apply({}, x_HCWN, train=True)

    y_HCWN, pullback = jax.vjp(pool, jnp.asarray(x_NCHW.transpose(2, 1, 3, 0)))
    (dx_HCWN,) = pullback(jnp.asarray(weight_NCHW.transpose(2, 1, 3, 0)))
    np.testing.assert_array_equal(np.asarray(y_HCWN).transpose(3, 1, 0, 2), pooled.detach())
    assert x.grad is not None
    np.testing.assert_array_equal(np.asarray(dx_HCWN).transpose(3, 1, 0, 2), x.grad)


@pytest.mark.parametrize("whole_channels", [False, True])
def test_dropout_masks_what_torch_masks(whole_channels):
    """The same granularity, rate and scale; the masks themselves are other random numbers."""
    rate, shape_NCHW = 0.25, (64, 32, 6, 6)
    layer = Dropout(rate, whole_channels)
    ones_HCWN = jnp.ones((6, 32, 6, 64))
    found_HCWN = layer.apply({}, ones_HCWN, train=True, rngs={"dropout": prng.key(0)})
    found = np.asarray(found_HCWN).transpose(3, 1, 0, 2)
    torch.manual_seed(0)
    torch_layer = torch.nn.Dropout2d(rate) if whole_channels else torch.nn.Dropout(rate)
    expected = torch_layer(torch.ones(shape_NCHW)).numpy()
    for mask in (found, expected):
        np.testing.assert_allclose(np.unique(mask), [0, 1 / (1 - rate)], rtol=1e-6)
        per_map = np.ptp(mask.reshape(64, 32, 36), axis=2) == 0
        assert per_map.mean() == 1 if whole_channels else per_map.mean() < 0.01
        decisions = mask[:, :, 0, 0].size if whole_channels else mask.size
        tolerance = 4.5 * np.sqrt(rate * (1 - rate) / decisions)
        assert abs((mask == 0).mean() - rate) < tolerance


def torch_correct(network: torch.nn.Module, test) -> int:
    network.eval()
    with torch.no_grad():
        images = torch_parity.normalised(test.images_NHW, torch.float32)
        predictions = torch.cat([network(part).argmax(1) for part in images.split(1000)])
    return int((predictions.numpy() == test.labels_N).sum())


@pytest.mark.parametrize("steps", [100, pytest.param(469, marks=pytest.mark.long)])
def test_weights_trained_by_torch_score_the_same_here(steps, mnist, tmp_path):
    """The start, or all, of an epoch of model3's recipe in plain torch, imported from its file."""
    train, test = mnist
    network = torch_parity.make_torch("model3")
    recipe = TorchRecipe("model3", network.parameters(), 469)
    for images_NHW, labels_N in torch_parity.batches(train, steps, 128):
        recipe.optimizer.zero_grad()
        outputs = network(torch_parity.normalised(images_NHW, torch.float32))
        recipe.loss(outputs, torch.from_numpy(labels_N).long()).backward()
        recipe.step()
    torch.save(network.state_dict(), tmp_path / "trained.pth")
    config = torch_parity.load_recipe("model3")
    convert.import_weights(tmp_path / "trained.pth", tmp_path / "run", config)

    run = saved_run.load(tmp_path / "run")
    test_set = Images(jnp.asarray(test.images_NHW), jnp.asarray(test.labels_N))
    engine, schedule = assemble.engine(run.config), assemble.schedule(run.config, 1)
    member = assemble.member(run.config, schedule, run.seed)
    correct = int(jax.jit(engine.evaluate)(run.state, member, test_set).correct)
    # Torch rounds as the processor likes; 100 steps later: 8,642 on Zen 3, above 9,000 on Zen 4.
    assert correct > (9500 if steps == 469 else 5000)
    assert abs(correct - torch_correct(network, test)) <= 2


@pytest.mark.long
def test_weights_trained_here_score_the_same_in_torch(mnist, tmp_path):
    """An epoch of model3's recipe, exported to a file that torch loads strictly."""
    _, test = mnist
    config = torch_parity.load_recipe("model3")
    config.num_epochs = 1
    summary = train_lib.run(config, tmp_path / "run")
    convert.export(tmp_path / "run", tmp_path / "trained.pth")
    network = TORCH_NETWORKS["model3"](0.0)
    network.load_state_dict(torch.load(tmp_path / "trained.pth", weights_only=True), strict=True)
    correct = round(summary["final_accuracy"]["mean"] * len(test) / 100)
    assert correct > 9500
    assert abs(correct - torch_correct(network, test)) <= 2
