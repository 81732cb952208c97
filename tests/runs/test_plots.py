"""What the four figures show, read off the axes that were saved."""

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxmnist.runs import plots

PUBLISHED = [
    {"epoch": 1, "train_accuracy": 69.52, "eval_accuracy": 94.31},
    {"epoch": 2, "train_accuracy": 94.34, "eval_accuracy": 96.46},
    {"epoch": 5, "eval_accuracy": 98.95, "eval_loss": 0.03},
]


@pytest.fixture
def draw(saved_figures: list[Figure], tmp_path):
    """Calls a plot function, checks the PNG and returns the figure that it saved."""

    def call(plot, *args, **kwargs) -> Figure:
        path = tmp_path / f"{len(saved_figures)}.png"
        assert plot(path, *args, **kwargs) is None
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert path.stat().st_size < 300_000
        height, width, channels = matplotlib.image.imread(path).shape
        inches = saved_figures[-1].get_size_inches()
        assert (width, height) == pytest.approx(tuple(130 * inches), abs=1)
        assert channels == 4
        return saved_figures[-1]

    return call


def rows(seeds: int, epochs: int) -> list[dict[str, float]]:
    return [
        {
            "seed": seed,
            "epoch": epoch,
            "train_loss": 1 / epoch + 0.01 * seed,
            "eval_loss": 0.5 / epoch + 0.01 * seed,
            "train_accuracy": 99.5 - 57 / epoch**3 - 0.1 * seed,
            "eval_accuracy": 99.6 - 20 / epoch**3 - 0.1 * seed,
        }
        for seed in range(seeds)
        for epoch in range(1, epochs + 1)
    ]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def line(axes, label: str) -> np.ndarray:
    (found,) = [line for line in axes.lines if line.get_label() == label]
    return np.asarray(found.get_xydata())


def test_one_seed_is_drawn_as_it_is(draw):
    run = rows(1, 8)
    figure = draw(plots.learning_curves, run, title="a run")
    accuracy, loss = figure.axes
    assert figure.get_suptitle() == "a run"
    assert legend(figure) == ["train (n = 1)", "eval (n = 1)"]
    assert not accuracy.collections
    assert not loss.collections
    for axes, quantity in ((accuracy, "accuracy"), (loss, "loss")):
        for part in ("train", "eval"):
            expected = [(row["epoch"], row[f"{part}_{quantity}"]) for row in run]
            np.testing.assert_allclose(line(axes, f"{part} (n = 1)"), expected)


@pytest.mark.parametrize("title", ["model3, prices_$5_to_$9", "model3, 数字", "model3, d\udcff"])
def test_titles_name_folders_of_any_name(draw, title: str):
    """No mathematics, no complaint of a glyph that is missing, no bytes that are no text."""
    figure = draw(plots.learning_curves, rows(1, 2), title=title)
    assert figure.get_suptitle() == title.replace("\udcff", "?")


def test_several_seeds_give_the_mean_and_the_band(draw):
    run = rows(3, 6)
    figure = draw(plots.learning_curves, run)
    labels = ["train (n = 3: mean, min–max)", "eval (n = 3: mean, min–max)"]
    assert legend(figure) == labels
    for axes, quantity in zip(figure.axes, ("accuracy", "loss"), strict=True):
        assert len(axes.collections) == 2
        for part, label, band in zip(("train", "eval"), labels, axes.collections, strict=True):
            values_SE = np.reshape([row[f"{part}_{quantity}"] for row in run], (3, 6))
            np.testing.assert_allclose(line(axes, label)[:, 1], values_SE.mean(axis=0))
            outline = band.get_paths()[0].vertices
            for epoch in range(1, 7):
                at_epoch = outline[outline[:, 0] == epoch, 1]
                assert at_epoch.min() == pytest.approx(values_SE[:, epoch - 1].min())
                assert at_epoch.max() == pytest.approx(values_SE[:, epoch - 1].max())


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_single_epoch_is_visible(draw, seeds):
    for axes in draw(plots.learning_curves, rows(seeds, 1)).axes:
        assert [line.get_marker() for line in axes.lines] == [".", "."]
        assert [tick for tick in axes.get_xticks() if 0.5 <= tick <= 1.5] == [1]
        for band in axes.collections:
            assert np.ptp(band.get_paths()[0].vertices, axis=0).min() > 0


def test_the_published_points_and_no_line_across_missing_epochs(draw):
    figure = draw(plots.learning_curves, rows(1, 3), PUBLISHED)
    accuracy, loss = figure.axes
    assert set(legend(figure)[1::2]) == {"train, published", "eval, published"}
    np.testing.assert_array_equal(line(accuracy, "train, published"), [(1, 69.52), (2, 94.34)])
    np.testing.assert_array_equal(
        line(accuracy, "eval, published"),
        [(1, 94.31), (2, 96.46), (3, np.nan), (4, np.nan), (5, 98.95)],
    )
    np.testing.assert_array_equal(line(loss, "eval, published"), [(5, 0.03)])
    assert "train, published" not in [line.get_label() for line in loss.lines]
    assert accuracy.get_xlim() == loss.get_xlim() == (0.5, 5.5)


@pytest.mark.parametrize("published", [None, []])
def test_nothing_published_draws_nothing(draw, published):
    figure = draw(plots.learning_curves, rows(1, 3), published)
    assert [len(axes.lines) for axes in figure.axes] == [2, 2]
    assert not any("published" in text for text in legend(figure))


def test_the_accuracy_axis_spreads_the_last_percent(draw):
    axes = draw(plots.learning_curves, rows(1, 10)).axes[0]
    height = axes.get_window_extent().height
    pixels = axes.transData.transform([(1, 42), (1, 99), (1, 99.5)])[:, 1]
    assert pixels[0] < pixels[1] < pixels[2]
    assert pixels[2] - pixels[1] > 0.1 * height
    low, high = axes.get_ylim()
    assert low < 42.5
    assert high > 99.6
    shown = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert {50, 90, 99, 99.5} <= set(shown)


def test_perfect_and_diverged_values_stay_inside_the_axes(draw):
    run = [row | {"train_accuracy": 100.0} for row in rows(1, 3)]
    run[1] |= {"train_loss": float("nan"), "eval_loss": float("nan"), "eval_accuracy": 9.8}
    for axes in draw(plots.learning_curves, run).axes:
        drawn = np.concatenate([line.get_xydata() for line in axes.lines])
        pixels = axes.transData.transform(drawn[np.isfinite(drawn[:, 1])])[:, 1]
        window = axes.get_window_extent()
        assert window.y0 < pixels.min()
        assert pixels.max() <= window.y1 + 1e-6
        assert len(set(pixels.round())) > 2


def test_the_schedule_of_every_step_and_the_epochs_on_top(draw):
    learning_rate_T = np.linspace(0.3, 0.0, 40)
    momentum_T = np.linspace(0.85, 0.95, 40)
    top, bottom = draw(plots.schedule, learning_rate_T, momentum_T, 10).axes
    for axes, values_T in ((top, learning_rate_T), (bottom, momentum_T)):
        (stairs,) = axes.patches
        np.testing.assert_array_equal(stairs.get_data().values, values_T)
        np.testing.assert_array_equal(stairs.get_data().edges, np.arange(41))
        assert axes.get_xlim() == (0, 40)
    (epochs,) = top.child_axes
    assert epochs.get_xlim() == pytest.approx((0, 4))
    assert [tick for tick in epochs.get_xticks() if 0 <= tick <= 4] == [0, 1, 2, 3, 4]


def test_the_confusion_matrix_counts(draw):
    labels_N = np.repeat(np.arange(9), 100)  # no 9 at all
    predictions_N = labels_N.copy()
    predictions_N[:3] = 6
    predictions_N[410:411] = 9
    figure = draw(plots.confusion_matrix, labels_N, predictions_N, title="test")
    matrix, per_class = figure.axes
    expected_CC = np.diag([97, 100, 100, 100, 99, 100, 100, 100, 100, 0])
    expected_CC[0, 6], expected_CC[4, 9] = 3, 1
    # The text at (x, y) is row y, the true class, and column x, the predicted one.
    shown = {text.get_position(): text.get_text() for text in matrix.texts}
    assert shown == {(p, t): str(n) for (t, p), n in np.ndenumerate(expected_CC)}
    assert figure.get_suptitle() == "test: 99.56 % correct, 4 errors in 900 digits"
    (image,) = matrix.images
    colours = np.ma.asarray(image.get_array())
    assert np.ma.getmaskarray(colours).diagonal().all()
    assert image.get_clim() == (0, 3)  # the errors alone set the colours
    names = [label.get_text() for label in per_class.get_yticklabels()]
    assert names == ["97.00 %", *["100.00 %"] * 3, "99.00 %", *["100.00 %"] * 4, "no digit"]
    assert [bar.get_width() for bar in per_class.patches] == [3, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert per_class.get_ylim() == matrix.get_ylim()


@pytest.mark.parametrize(
    ("errors", "tiles", "summary"),
    [
        (0, 0, "0 errors in 2,000 digits"),
        (12, 12, "12 errors in 2,000 digits"),
        (15, 15, "15 errors in 2,000 digits"),
        (1100, 15, "1,100 errors in 2,000 digits, the first 15 shown"),
    ],
)
def test_one_tile_per_error_up_to_the_limit(draw, errors, tiles, summary):
    rng = np.random.default_rng(errors)
    images_NHW = rng.integers(0, 256, (2000, 28, 28), dtype=np.uint8)
    labels_N = rng.integers(0, 10, 2000)
    wrong = np.sort(rng.choice(2000, errors, replace=False))
    predictions_N = labels_N.copy()
    predictions_N[wrong] = (labels_N[wrong] + rng.integers(1, 10, errors)) % 10
    figure = draw(plots.misclassified, images_NHW, labels_N, predictions_N, limit=15)
    assert figure.get_suptitle() == summary
    assert len(figure.axes) == tiles
    for axes, index in zip(figure.axes, wrong[:tiles], strict=True):
        assert axes.get_title() == f"{labels_N[index]} → {predictions_N[index]}"
        np.testing.assert_array_equal(axes.images[0].get_array(), images_NHW[index])
    assert ("no digit is misclassified" in figure.get_supxlabel()) == (errors == 0)
    assert ("true → predicted" in figure.get_supxlabel()) == (errors > 0)


def test_the_default_limit_is_sixty(draw):
    figure = draw(plots.misclassified, np.zeros((61, 4, 4)), np.zeros(61, int), np.ones(61, int))
    assert len(figure.axes) == 60
    assert figure.get_suptitle() == "61 errors in 61 digits, the first 60 shown"
