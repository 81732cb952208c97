"""A trained network as a file, in the format that the file's suffix names."""

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from jaxmnist.classifier import Classifier
from jaxmnist.errors import UserError
from jaxmnist.export import torch_weights


def _weights(classifier: Classifier, file: Path) -> bytes:
    told = classifier.metadata.get("step", "")
    step = int(told) if re.fullmatch(r"\d{1,18}", told) else 0  # a counter has 64 bits
    state_dict = torch_weights.to_state_dict(
        classifier.network, classifier.params, classifier.batch_stats, step
    )
    return torch_weights.content(file, state_dict, classifier.metadata)


def _onnx(classifier: Classifier, file: Path) -> bytes:
    from jaxmnist.export import onnx

    return onnx.content(classifier, file)


def _stablehlo(classifier: Classifier, file: Path) -> bytes:
    from jaxmnist.export import stablehlo

    return stablehlo.content(classifier, file)


def _page(classifier: Classifier, file: Path) -> bytes:
    from jaxmnist.export import page

    return page.content(classifier)


_FORMATS: dict[str, Callable[[Classifier, Path], bytes]] = {
    **dict.fromkeys(torch_weights.SUFFIXES, _weights),
    ".onnx": _onnx,
    ".stablehlo": _stablehlo,
    ".html": _page,
}

SUFFIXES = tuple(_FORMATS)


def save(classifier: Classifier, file: str | os.PathLike[str]) -> None:
    """See ``jaxmnist.save``. The file is written completely or not at all."""
    file = Path(os.path.expanduser(file))
    if file.suffix not in _FORMATS:
        raise UserError(f"{file} must end in {', '.join(SUFFIXES)}")
    content = _FORMATS[file.suffix](classifier, file)
    partial = file.with_name(file.name + ".partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UserError(f"{file}: {error.strerror or error}: choose another place") from error
