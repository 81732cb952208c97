"""Other images held out: which, and what is said of them."""

from pathlib import Path

import held_out
import numpy as np
import study
import study_report

from jaxmnist import data, recipes


def test_each_draw_holds_out_others():
    images = data.Dataset(
        np.arange(12_000, dtype=np.uint32)[:, None, None], np.arange(12_000, dtype=np.uint32)
    )
    parts = [held_out.drawn(images, draw) for draw in (0, 0, 1)]
    for kept, out in parts:
        assert (len(kept), len(out)) == (2000, 10_000)
        for part in (kept, out):
            np.testing.assert_array_equal(part.images_NHW[:, 0, 0], part.labels_N)
        np.testing.assert_array_equal(np.union1d(kept.labels_N, out.labels_N), images.labels_N)
    first, same, other = (set(out.labels_N.tolist()) for _, out in parts)
    assert first == same
    assert len(first - other) > 1000


def test_what_is_said(tmp_path: Path):
    lines = []
    for seed, accuracies in enumerate(([99.0, 99.2], [99.3, 99.2], [99.25, 99.2])):
        line = study.line("compact", study_report.fields("compact"), seed, 18472, accuracies, 1.0)
        lines.append(line | {"peer": "jaxmnist", "epochs": 20})
    assert held_out.sentences(lines[:1]) == []
    fields = {"recipe": "net8k", "epochs": 19, "fields": study_report.fields("net8k")}
    lines += [line | fields for line in lines[:2]]  # which publishes no accuracy
    assert held_out.sentences(lines) == [
        "compact: final epoch 99.200 ± 0.000 (n = 3), best epoch 99.250 ± 0.050, "
        "1 of 3 below the published 99.25",
        "net8k: final epoch 99.200 ± 0.000 (n = 2), best epoch 99.250 ± 0.071",
    ]


def test_recipes_that_the_same_draws_move_alike():
    """Of the seeds that both have; -0.91 to 0.98 is Fisher's interval of 0.4 with four runs."""
    finals = {"compact_sgd": [1.0, 2.0, 3.0, 4.0, 9.0], "compact": [1.0, 4.0, 2.0, 3.0]}
    finals["net8k"] = [1.0, 2.0, 3.0]  # too few
    lines = [
        study.line(name, study_report.fields(name), seed, 1, [final], 1.0)
        | {"peer": "jaxmnist", "epochs": recipes.load(name).num_epochs}
        for name, of_recipe in finals.items()
        for seed, final in enumerate(of_recipe)
    ]
    same = "0.40 (-0.91 to 0.98, n = 4)"
    assert held_out.correlations(lines, lines) == [
        f"compact_sgd and compact, correlation of final epochs: by draw {same}, "
        f"by seed on the study's images {same}"
    ]
    few = [line for line in lines if line["seed"] < 3]
    assert held_out.correlations(lines, few) == held_out.correlations(few, lines) == []


def test_the_readme_says_what_the_file_says():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    lines, fixed = (study_report.read(file) for file in (held_out.RESULTS, study.RESULTS))
    found = held_out.sentences(lines) + held_out.correlations(lines, fixed)
    assert len(found) == 3
    for sentence in found:
        assert f"\n- {sentence}\n" in readme
