"""Other images held out: which, and what is said of them."""

from pathlib import Path

import held_out
import numpy as np
import study
import study_report

from jaxmnist import data


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


def test_the_readme_says_what_the_file_says():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    found = held_out.sentences(study_report.read(held_out.RESULTS))
    assert len(found) == 2
    for sentence in found:
        assert f"\n- {sentence}\n" in readme
