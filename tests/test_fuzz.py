"""Bad input, made up by hypothesis: refused in one line, at once, without waste.

Whatever the bytes or arguments, the outcome is a valid result or a ``UserError``. Any other
exception, also one from a warning, fails the test; so do a hang and memory out of proportion.
"""

import collections
import contextlib
import copy
import faulthandler
import gc
import gzip
import hashlib
import inspect
import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from commands import fresh
from hypothesis import strategies as st

import jaxmnist
from jaxmnist import config, convert, data
from jaxmnist.errors import UserError
from jaxmnist.export import torch_weights
from jaxmnist.networks import models
from jaxmnist.runs import assemble, checkpoint, saved_run
from jaxmnist.runs.checkpoint import Checkpoints, PartialEpoch, Record
from jaxmnist.training import programs
from jaxmnist.training.engine import TrainState

PATIENCE = 30  # seconds for one case, on a machine that is busy
MEMORY = 200_000_000  # bytes that one case may add
TABLE = 20_000  # steps whose schedule is made in a moment
ROOT = Path(__file__).parents[1]

torch.set_num_threads(1)

# Orbax leaves event loops behind after a read that failed; see cli._insist_on_ctrl_c.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _collect_garbage() -> Iterator[None]:
    """So that what Orbax leaves is found here and not in another file's test."""
    yield
    gc.collect()


def fuzz(
    cases: int, least: int = 0, **drawn: st.SearchStrategy
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Makes a test out of one for a single case: a fifth of ``cases``, as a long test all of them.

    The same cases each time, nothing left on disk; the time of each is limited by ``guard``.
    Parameters that are not drawn are fixtures. Where the test says which cases are valid, more than
    ``least`` of all must be, and as many must not be.
    """

    def decorate(case: Callable[..., Any]) -> Callable[..., None]:
        @pytest.mark.parametrize("count", [cases // 5, pytest.param(cases, marks=pytest.mark.long)])
        def test(count: int, request: pytest.FixtureRequest) -> None:
            names = inspect.signature(case).parameters.keys() - drawn.keys()
            fixtures = {name: request.getfixturevalue(name) for name in names}
            seen = collections.Counter()

            @hypothesis.settings(
                max_examples=count, derandomize=True, database=None, deadline=None, print_blob=False
            )
            @hypothesis.given(**drawn)
            def run(**values: Any) -> None:
                seen[bool(case(**fixtures, **values))] += 1

            run()
            if least:
                assert min(seen[True], seen[False]) > least * count // cases

        test.__doc__ = case.__doc__
        return test

    return decorate


class _HangError(BaseException):
    """Not an ``Exception``: what is under test must not take it for bad input."""


def _hang(*_: object) -> None:
    raise _HangError(f"a case takes more than {PATIENCE} s")


def _peak() -> int:
    """Bytes in memory at most, since the last call of ``_forget_peak`` or the start."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _forget_peak() -> None:
    with contextlib.suppress(OSError):  # not Linux: then only new peaks are noticed
        Path("/proc/self/clear_refs").write_text("5")


@contextlib.contextmanager
def guard() -> Iterator[None]:
    """Limits time and memory of a case; native code that hangs ends the whole process."""
    before = signal.signal(signal.SIGALRM, _hang)
    signal.alarm(PATIENCE)
    faulthandler.dump_traceback_later(2 * PATIENCE, exit=True)
    _forget_peak()
    start = _peak()
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()
    assert _peak() - start < MEMORY


def outcome(function: Callable[[], Any], *named: str) -> Any:
    """What the function returns, or None after a ``UserError`` that names one of ``named``."""
    try:
        with guard():
            return function()
    except UserError as error:
        message = str(error)
        assert len(message.splitlines()) == 1, repr(message)
        assert any(name in message for name in named), repr(message)
        return None


EXTREMES = [0, 1, 9, 10, 27, 28, 2**16, 1_000_000, 1_000_001, 2**31 - 1, 2**31, 2**32 - 1]
LARGE = [*EXTREMES, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes damaged in up to three places, the first and last ones foremost."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        size = len(changed)
        at = draw(st.integers(0, min(24, size)) | st.integers(0, size))
        at = size - at if draw(st.booleans()) else at
        what = draw(st.sampled_from(["flip", "number", "replace", "repeat", "cut", "append"]))
        if what == "flip" and at < size:
            changed[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "number":
            layout, most = draw(st.sampled_from([(">I", 32), ("<I", 32), ("<Q", 64)]))
            number = struct.pack(layout, draw(st.sampled_from(LARGE)) % 2**most)
            changed[at : at + len(number)] = number
        elif what == "replace":
            changed[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
        elif what == "repeat":
            changed[at:at] = changed[at : at + draw(st.integers(1, 200))]
        elif what == "cut":
            del changed[at:]
        else:
            changed += draw(st.binary(max_size=40))
    return bytes(changed)


ODD_VALUES: list[Any] = [*LARGE, -1, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), True]
ODD_VALUES += [None, "", "a\nb", "1", "x" * 1000, [], {}, [1], [[]], {"a": 1}, [2**40, 2**40]]


@st.composite
def forged(draw: st.DrawFn, content: Any) -> Any:
    """What JSON says, with one or two values replaced, removed or added."""
    root: dict[str, Any] = {"": copy.deepcopy(content)}
    for _ in range(draw(st.integers(1, 2))):
        parent: Any = root
        place: Any = ""
        while isinstance(parent[place], (dict, list)) and parent[place]:
            if parent is not root and draw(st.integers(0, 5)) == 0:
                break
            parent = parent[place]
            places = sorted(parent) if isinstance(parent, dict) else range(len(parent))
            place = draw(st.sampled_from(places))
        what = draw(st.sampled_from([*4 * ["replace"], "remove", "add"]))
        if what == "add" and isinstance(parent, dict) and parent is not root:
            place = draw(st.text(max_size=3) | st.sampled_from(["a\nb", "a.b", "x" * 300]))
        if what != "remove":
            parent[place] = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
        elif parent is not root:
            del parent[place]
    return root[""]


# Config overrides, parsed as the command parses them.

RECIPES = sorted(str(path) for path in (ROOT / "configs").glob("*.py"))
WORDS = [*models.NETWORKS, *data.SPLITS, "sgd", "adam", "constant", "step", "cosine", "onecycle"]
WORDS += ["float32", "bfloat16", "mnist", "model3", "", "blocks", "0/1", "1", "linear", "maps"]
WORDS += ["8-8/16", "8k5-8d-=/10", "8o-16do/10d", "=", "8k", "relu", "silu"]
ODD_TEXT = st.text(max_size=12) | st.sampled_from(
    ["\n", "a\nb", "\r", "\x1b[2J", "\x0c", "\u2028", "²", "٣", "\udc80", "9" * 5000]
)
HUGE = hex(16**6000 - 1)  # Python does not print it in decimals
INTEGERS = st.integers(-(2**70), 2**70) | st.sampled_from([*LARGE, -1, 10**400])
NUMBERS = (
    st.integers(0, 300).map(str)
    | st.floats(0, 1).map(str)
    | st.floats().map(str)
    | INTEGERS.map(str)
    | INTEGERS.map(hex)
    | st.sampled_from(
        ["nan", "inf", "-inf", "1e308", "1e309", "1e30", "5e-324", "-0.0", "1_0", HUGE]
    )
)
VALUES = NUMBERS | ODD_TEXT | st.sampled_from([*WORDS, "true", "False", "none", "(1,)", "[]"])


@st.composite
def fields(draw: st.DrawFn) -> str:
    """A field, or something near one."""
    name = draw(st.sampled_from(sorted(config.FIELDS)))
    how = draw(st.sampled_from([*12 * ["right"], "misspelt", "group", "leaf", "below", "odd"]))
    at = draw(st.integers(0, len(name)))
    return {
        "right": name,
        "misspelt": name[:at] + draw(st.sampled_from(["", *"aeinorst_."])) + name[at + 1 :],
        "group": name.partition(".")[0],
        "leaf": name.rpartition(".")[2],
        "below": name + ".x",
        "odd": draw(ODD_TEXT),
    }[how]


def plausible(field: str) -> st.SearchStrategy[str]:
    """Values of the right type, most of them allowed."""
    default, _, allowed = config.FIELDS[field]
    if isinstance(default, bool):
        return st.sampled_from(["true", "false", "1", "0"])
    if isinstance(default, str):
        return st.sampled_from([w for w in WORDS if not allowed or allowed.holds(w)])
    number = st.integers(0, 300) if isinstance(default, int) else st.floats(0, 1)
    return number.map(str)


@st.composite
def overrides(draw: st.DrawFn) -> list[str]:
    """One to four of --config.FIELD=VALUE, in the ways in which flags can be written."""
    arguments = []
    for _ in range(draw(st.integers(1, 4))):
        field = draw(fields())
        sensible = field in config.FIELDS and draw(st.integers(0, 5)) > 0
        value = draw(plausible(field) if sensible else VALUES)
        flag = draw(st.sampled_from([*8 * ["--config."], "-config.", "--noconfig."])) + field
        form = draw(st.sampled_from([*12 * ["one"], "two", "bare"]))
        arguments += {"one": [f"{flag}={value}"], "two": [flag, value], "bare": [flag]}[form]
    return arguments


OTHER_FLAGS = ["workdir", "restart", "norestart", "coordinator", "num_processes", "process_id"]
OTHER_FLAGS += ["config", "help_me", "", "-", "flagfile", "undefok"]


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A recipe, overrides, and perhaps other flags before or after them."""
    recipe = draw(st.sampled_from(RECIPES))
    arguments = [f"--config={recipe}", *draw(overrides())]
    if draw(st.integers(0, 3)) == 0:
        flag = draw(st.sampled_from(OTHER_FLAGS))
        value = draw(VALUES | st.sampled_from(["auto", "host:1", ":", "host:999999", recipe]))
        other = draw(st.sampled_from([f"--{flag}={value}", f"--{flag}", value]))
        arguments.insert(draw(st.integers(0, len(arguments))), other)
    return arguments


def check_config(given: config.Config) -> bool:
    """Goes on as ``train.run`` does, before there are data."""
    config.validate(given)
    segments = programs.plan_epoch(60_000, assemble.batching(given), 32)
    steps = sum(segment.steps for segment in segments)
    assert 0 < steps <= 60_000
    assert sum(segment.images for segment in segments) <= 60_000
    assemble.mesh(given)
    if given.num_epochs * steps <= TABLE:
        schedule = assemble.schedule(given, steps)
        assert schedule.learning_rate_T1.dtype == np.float64
        assert len(schedule.learning_rate_T1) == given.num_epochs * steps + 1
    return True


def parse(arguments: list[str]) -> bool:
    module = fresh("main")
    module._parse(["jaxmnist.main", *arguments])
    return check_config(module._RECIPE.value)


@fuzz(350, least=50, arguments=command_lines())
def test_command_lines(arguments: list[str]) -> bool:
    return outcome(lambda: parse(arguments), "config", "--", "argument", "mesh")


# Folders of IDX files; images reach the programs through these alone.

IDX_NAMES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"]
IDX_NAMES += ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
ZEROS = gzip.compress(bytes(1 << 20))  # a megabyte in one; gzip files can be strung together


def idx(shape: tuple[int, ...], kind: int = 8) -> bytes:
    """An IDX file of zeros, one byte an item."""
    header = struct.pack(f">{1 + len(shape)}I", (kind << 8) + len(shape), *shape)
    return header + bytes(int(np.prod(shape, dtype=np.int64)))


IDX_FILES = dict(zip(IDX_NAMES, map(idx, [(4, 28, 28), (4,), (3, 28, 28), (3,)]), strict=True))


@st.composite
def idx_bytes(draw: st.DrawFn, valid: bytes) -> tuple[bytes, bool]:
    """A file that is bad (but for one kind), and whether it is named .gz."""
    kind = draw(st.sampled_from(["plain", "zipped", "inside", "header", "bomb", "any", "ink"]))
    if kind == "plain":
        return draw(mutated(valid)), False
    if kind == "ink":
        return valid[:-1] + bytes([draw(st.integers(0, 9))]), False
    if kind == "zipped":
        return draw(mutated(gzip.compress(valid, mtime=0))), True
    if kind == "inside":
        return gzip.compress(draw(mutated(valid)), mtime=0), True
    if kind == "any":
        return draw(st.binary(max_size=100)), draw(st.booleans())
    fields = list(struct.unpack_from(">4I", valid)) if len(valid) > 100 else [0x801, 4]
    for _ in range(draw(st.integers(1, 2))):
        fields[draw(st.integers(0, len(fields) - 1))] = draw(st.sampled_from(EXTREMES))
    header = struct.pack(f">{len(fields)}I", *fields)
    if kind == "header":
        return header + valid[len(header) :], False
    return gzip.compress(header, mtime=0) + ZEROS * draw(st.sampled_from([1, 10, 100])), True


@st.composite
def idx_folders(draw: st.DrawFn) -> dict[str, bytes]:
    """A folder of which one or two files are bad."""
    files = dict(IDX_FILES)
    for name in draw(st.lists(st.sampled_from(IDX_NAMES), min_size=1, max_size=2, unique=True)):
        content, zipped = draw(idx_bytes(files.pop(name)))
        files[name + ".gz" * zipped] = content
    return files


def load_data(files: dict[str, bytes], split: str = "train/test") -> bool:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        for part in data.load(folder, split):
            assert len(part) > 0
            assert part.images_NHW.shape == (len(part), 28, 28)
            assert part.labels_N.shape == (len(part),)
            assert part.images_NHW.dtype == part.labels_N.dtype == np.uint8
            assert part.labels_N.max() <= 9
    return True


@fuzz(300, least=3, files=idx_folders(), split=st.sampled_from([*3 * ["train/test"], "train/val"]))
def test_idx_files(files: dict[str, bytes], split: str) -> bool:
    return outcome(lambda: load_data(files, split), *files, "training images")


SIDES = st.sampled_from([28, 28, 28, 0, 1, 27, 29, 56])


@fuzz(
    100,
    shape=st.tuples(st.integers(0, 3), SIDES, SIDES) | st.lists(SIDES, max_size=5).map(tuple),
    kind=st.sampled_from([8, 8, 8, 9, 11, 12, 13, 14, 0, 255]),
    labels=st.integers(0, 3),
)
def test_shapes_of_images(shape: tuple[int, ...], kind: int, labels: int):
    hypothesis.assume(np.prod(shape, dtype=np.int64) < 10**6)
    files = IDX_FILES | {IDX_NAMES[2]: idx(shape, kind), IDX_NAMES[3]: idx((labels,))}
    valid = outcome(lambda: load_data(files), *IDX_NAMES[2:])
    assert bool(valid) == (shape == (labels, 28, 28) and labels > 0 and kind == 8)


# Files of weights.

NETWORK = models.build("compact_tiny")
SLOTS = torch_weights.slots(NETWORK)
STATE_DICT = {slot.key: np.full(slot.shape, 0.5, np.float32) for slot in SLOTS}
MISFIT = ("is missing", "is unexpected", "has shape", "holds")


def saved(name: str) -> bytes:
    return torch_weights.content(Path(name), STATE_DICT, {})


def legacy() -> bytes:
    stream = io.BytesIO()
    tensors = {key: torch.tensor(array) for key, array in STATE_DICT.items()}
    torch.save(tensors, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


SAFETENSORS, ZIPPED, LEGACY = saved("w.safetensors"), saved("w.pth"), legacy()


def read_weights(content: bytes, suffix: str) -> bool:
    """As ``convert.import_weights`` does, before it writes anything."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"given{suffix}"
        file.write_bytes(content)
        tensors = torch_weights.read(file)
        in_order = suffix != ".safetensors"
        params, batch_stats, _ = torch_weights.from_state_dict(NETWORK, tensors, in_order=in_order)
    leaves = jax.tree.leaves((params, batch_stats))
    assert len(leaves) == len(SLOTS)
    assert all(bool(np.isfinite(leaf).all()) for leaf in leaves)
    return True


def split_safetensors(content: bytes) -> tuple[dict[str, Any], bytes]:
    (size,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + size]), content[8 + size :]


@st.composite
def bad_safetensors(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["bytes", "header", "header", "kind", "length", "any"]))
    if kind == "bytes":
        return draw(mutated(SAFETENSORS))
    if kind == "any":
        return draw(st.binary(max_size=100))
    if kind == "length":
        return struct.pack("<Q", draw(st.sampled_from(LARGE))) + SAFETENSORS[8:]
    header, body = split_safetensors(SAFETENSORS)
    if kind == "kind":
        entry = header[draw(st.sampled_from(sorted(header)))]
        entry["dtype"] = draw(st.sampled_from(["F64", "F16", "BF16", "I64", "F8_E4M3", "BOOL"]))
        entry["shape"] = draw(st.lists(st.sampled_from([0, 1, 2, *LARGE]), max_size=4))
    else:
        header = draw(forged(header))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@fuzz(150, content=bad_safetensors())
def test_safetensors(content: bytes):
    outcome(lambda: read_weights(content, ".safetensors"), "given.safetensors", *MISFIT)


def rezipped(change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """The .pth file with other contents, whole and with the right checksums."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(ZIPPED)) as old, zipfile.ZipFile(stream, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return stream.getvalue()


@st.composite
def bad_pth(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["zip", "end", "legacy", "pickle", "record", "bomb", "any"]))
    if kind == "zip":
        return draw(mutated(ZIPPED))
    if kind == "end":  # the directory of the archive, which has the sizes
        at = ZIPPED.index(b"PK\x01\x02")
        return ZIPPED[:at] + draw(mutated(ZIPPED[at:]))
    if kind == "legacy":
        return draw(mutated(LEGACY))
    if kind == "any":
        return draw(st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02"])) + draw(
            st.binary(max_size=99)
        )
    if kind == "bomb":
        return rezipped(
            lambda name, old: bytes(50_000_000) if name.endswith("data/0") else old,
            zipfile.ZIP_DEFLATED,
        )
    names = [name for name in zipfile.ZipFile(io.BytesIO(ZIPPED)).namelist()]
    chosen = "data.pkl" if kind == "pickle" else draw(st.sampled_from(names))
    with zipfile.ZipFile(io.BytesIO(ZIPPED)) as archive:
        (full,) = [name for name in names if name.endswith(chosen)]
        content = draw(mutated(archive.read(full)))
    return rezipped(lambda name, old: content if name == full else old)


@fuzz(200, content=bad_pth(), suffix=st.sampled_from([".pth", ".pt"]))
def test_pth(content: bytes, suffix: str):
    outcome(lambda: read_weights(content, suffix), f"given{suffix}", *MISFIT)


class Tensor(NamedTuple):
    """A tensor as a file can declare it: few bytes, whatever the shape."""

    shape: tuple[int, ...]
    dtype: str

    def make(self) -> torch.Tensor:
        return torch.zeros((), dtype=getattr(torch, self.dtype)).expand(self.shape)


DTYPES = ["float32", "float32", "float16", "bfloat16", "float64", "int64", "bool", "complex64"]
SHAPES = st.sampled_from([slot.shape for slot in SLOTS]) | st.lists(
    st.sampled_from([0, 1, 2, 3, 2**16, 2**28, 2**40]), max_size=5
).map(tuple)


@fuzz(
    120,
    changes=st.dictionaries(
        st.sampled_from([*STATE_DICT, *STATE_DICT, "a", "", "a\nb", "layers.99.weight", "module"]),
        st.none() | st.builds(Tensor, SHAPES, st.sampled_from(DTYPES)),
        min_size=1,
        max_size=3,
    ),
    wrapper=st.sampled_from(["", "", "state_dict", "model"]),
)
def test_tensors_in_pth(changes: dict[str, Tensor | None], wrapper: str):
    """Tensors of other names, shapes and kinds, huge ones with a stride of 0 among them."""
    given: dict[str, Any] = {key: torch.tensor(array) for key, array in STATE_DICT.items()}
    for key, change in changes.items():
        given.pop(key, None)
        if change:
            try:
                given[key] = change.make()
            except RuntimeError:  # torch itself has no such size
                hypothesis.reject()
    stream = io.BytesIO()
    torch.save({wrapper: given} if wrapper else given, stream)
    outcome(lambda: read_weights(stream.getvalue(), ".pth"), "given.pth", *MISFIT)


class Payload:
    """Pickled, it becomes a call."""

    def __init__(self, function: Callable, *args: Any):
        self.call = function, args

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.call


@fuzz(
    60,
    way=st.sampled_from(["mkdir", "system", "eval", "exec", "nested"]),
    protocol=st.integers(0, 5),
    form=st.sampled_from(["zip", "legacy", "pickle"]),
    place=st.sampled_from([*STATE_DICT, "state_dict", "layers.0.extra"]),
)
def test_code_does_not_run(way: str, protocol: int, form: str, place: str):
    with tempfile.TemporaryDirectory() as folder:
        marker = Path(folder) / "marker"
        code = f"__import__('os').mkdir({str(marker)!r})"
        payload = {
            "mkdir": Payload(os.mkdir, str(marker)),
            "system": Payload(os.system, f"mkdir {marker}"),
            "eval": Payload(eval, code),
            "exec": Payload(exec, code),
            "nested": Payload(getattr, Payload(eval, code), "x"),
        }[way]
        given: dict[str, Any] = {key: torch.tensor(array) for key, array in STATE_DICT.items()}
        given[place] = payload
        stream = io.BytesIO()
        if form == "pickle":
            pickle.dump({place: payload}, stream, protocol)
        else:
            new = form == "zip"
            torch.save(given, stream, _use_new_zipfile_serialization=new, pickle_protocol=protocol)
        assert outcome(lambda: read_weights(stream.getvalue(), ".pth"), "given.pth") is None
        assert not marker.exists()


# Checkpoints.

STEPS = (4, 8, 12)
BEST = 8


def at_step(step: int) -> TrainState:
    """A small state of which each step has another."""
    params = {"w": jnp.full((1, 2), step / 3, jnp.float32)}
    return TrainState(jnp.full(1, step, jnp.int32), params, {}, ())


ABSTRACT = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), at_step(0))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of three checkpoints, not to be changed."""
    folder = tmp_path_factory.mktemp("kept") / "checkpoints"
    with contextlib.closing(Checkpoints(folder, len(STEPS))) as checkpoints:
        for epoch, step in enumerate(STEPS, start=1):
            row = {"epoch": epoch, "eval_accuracy": 99.0 if step == BEST else 90.0}
            partial = PartialEpoch(1, 64, 0.5, [1.0], [2.0]) if step == STEPS[-1] else None
            checkpoints.save(step, at_step(step), Record(epoch, [row], partial, {}))
    return folder


def is_state(found: TrainState, step: int) -> bool:
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(at_step(step)), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in leaves)


NAMES = ["00012", "²", "٣", "12.0", "+5", "5 ", "1_0", "9" * 21, "0", "-1", "12.damaged", "a\nb"]
NAMES += ["12.damaged.1", "20", "\udc80", "x.record.orbax-checkpoint-tmp", ".hidden", "12.old.x"]


DAMAGES = [*4 * ["mutate"], "empty", "delete", "rename", "folder", "add file", "add folder"]
DAMAGES += ["rename all", "copy all", "file for all", "link", "dangling"]


def damage(draw: Callable[[st.SearchStrategy], Any], folder: Path) -> None:
    """Does something to one file of the checkpoint or to the checkpoint as a whole."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = files[draw(st.integers(0, len(files) - 1))]
    name = draw(st.sampled_from(NAMES))
    what = draw(st.sampled_from(DAMAGES))
    if what == "mutate":
        file.write_bytes(draw(mutated(file.read_bytes())))
    elif what == "empty":
        file.write_bytes(b"")
    elif what == "delete":
        file.unlink()
    elif what == "rename":
        file.rename(file.with_name(name))
    elif what == "folder":
        file.unlink()
        file.mkdir()
    elif what == "add file":
        (file.parent / name).write_bytes(draw(st.binary(max_size=9)))
    elif what == "add folder":
        (file.parent / name).mkdir()
    elif what == "rename all":
        folder.rename(folder.with_name(name))
    elif what == "copy all":
        shutil.copytree(folder, folder.with_name(name))
    elif what == "file for all":
        shutil.rmtree(folder)
        folder.write_bytes(b"x")
    elif what == "link":
        (file.parent / name).symlink_to(folder, target_is_directory=True)
    else:
        (file.parent / name).symlink_to(folder / "nowhere")


def usable(folder: Path, read_only: bool) -> dict[int, TrainState | None]:
    """What the checkpoints hold, None for those that are refused although they look intact."""
    with contextlib.closing(Checkpoints(folder, 3, read_only=read_only)) as checkpoints:
        for line in checkpoints.damaged:
            assert len(line.splitlines()) == 1, repr(line)
            assert "damaged" in line
        best, steps = checkpoints.best(), checkpoints.steps()
        assert best is None or best in steps
        for step in steps:
            assert checkpoints.record(step).epoch is not None
        return {
            step: outcome(lambda step=step: checkpoints.restore(step, ABSTRACT), str(folder))
            for step in steps
        }


@fuzz(100, chosen=st.sampled_from([*STEPS, STEPS[-1]]), read_only=st.booleans(), drawn=st.data())
def test_checkpoints(kept: Path, chosen: int, read_only: bool, drawn: st.DataObject):
    """What is not damaged stays as it was, whatever happens to another checkpoint."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "checkpoints"
        shutil.copytree(kept, folder)
        damage(drawn.draw, folder / str(chosen))
        found = outcome(lambda: usable(folder, read_only), str(folder))
        assert found is not None
        for step in STEPS:
            if step != chosen:
                assert found[step] is not None
                assert is_state(found[step], step)
        for step, states in found.items():
            original = step if step in STEPS else chosen
            assert states is None or is_state(states, original)


def sealed(body: str) -> str:
    return f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}\n"


@fuzz(100, drawn=st.data())
def test_forged_checkpoints(kept: Path, drawn: st.DataObject):
    """Forged with the right digests, a checkpoint may hold anything; it is still no traceback."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "checkpoints"
        shutil.copytree(kept, folder)
        newest = folder / str(STEPS[-1])
        record = newest / "record.json"
        if drawn.draw(st.booleans()):
            content = json.loads(record.read_text().partition("\n")[2])
            body = json.dumps(drawn.draw(forged(content)))
            body = drawn.draw(st.sampled_from([*5 * [body], "[" * 100_000, "", "1", "[]", "null"]))
            record.write_text(sealed(body))
        else:
            files = [path for path in newest.rglob("*") if path.is_file() and path != record]
            file = drawn.draw(st.sampled_from(sorted(files)))
            try:
                content = json.loads(file.read_text())
                file.write_text(json.dumps(drawn.draw(forged(content))))
            except ValueError:
                file.write_bytes(drawn.draw(mutated(file.read_bytes())))
            content = json.loads(record.read_text().partition("\n")[2])
            content["files"] = checkpoint._digests(newest)
            record.write_text(sealed(json.dumps(content)))
        found = outcome(lambda: usable(folder, True), str(folder))
        assert found is not None
        for step in STEPS[:-1]:
            assert found[step] is not None
            assert is_state(found[step], step)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of imported weights, not to be changed."""
    folder = tmp_path_factory.mktemp("imported")
    (folder / "weights.safetensors").write_bytes(SAFETENSORS)
    recipe = config.default_config()
    recipe.model = "compact_tiny"
    convert.import_weights(folder / "weights.safetensors", folder / "run", recipe)
    return folder / "run"


@st.composite
def bad_configs(draw: st.DrawFn, valid: bytes) -> bytes:
    kind = draw(st.sampled_from(["bytes", "json", "json", "field", "field", "any"]))
    if kind == "bytes":
        return draw(mutated(valid))
    if kind == "any":
        return draw(st.binary(max_size=60) | st.sampled_from([b"[" * 10**5, b"9" * 5000, b"null"]))
    content = json.loads(valid)
    if kind == "field":
        *group, leaf = draw(st.sampled_from(sorted(config.FIELDS))).split(".")
        inner = content[group[0]] if group else content
        inner[leaf] = draw(st.sampled_from(ODD_VALUES) | INTEGERS | st.floats() | ODD_TEXT)
    else:
        content = draw(forged(content))
    return json.dumps(content).encode()


def good_configs(valid: bytes) -> st.SearchStrategy[bytes]:
    content = json.loads(valid)
    return st.integers(0, 10**9).map(lambda seed: json.dumps(content | {"seed": seed}).encode())


WANTED = st.sampled_from(["last", "best", "0", "1", "", "a\nb"])


@fuzz(200, least=20, drawn=st.data(), wanted=WANTED)
def test_configs_of_saved_runs(imported: Path, drawn: st.DataObject, wanted: str) -> bool:
    with tempfile.TemporaryDirectory() as parent:
        run = Path(parent) / "run"
        shutil.copytree(imported, run)
        valid = (imported / "config.json").read_bytes()
        (run / "config.json").write_bytes(drawn.draw(good_configs(valid) | bad_configs(valid)))
        found = outcome(lambda: saved_run.load(run, wanted), str(run), "config.")
        if found:
            kernel = found.state.params["layers_0"]["kernel"]
            assert bool((np.asarray(kernel) == 0.5).all())
    return bool(found)


OTHERS = st.dictionaries(st.sampled_from(["step", "params"]), ODD_TEXT)


@fuzz(150, least=8, drawn=st.data(), others=OTHERS)
def test_metadata_of_weights(imported: Path, drawn: st.DataObject, others: dict[str, str]) -> bool:
    """What can be loaded can be saved again."""
    written = drawn.draw(bad_configs((imported / "config.json").read_bytes()))
    metadata = {
        name: text.encode(errors="replace").decode()
        for name, text in (others | {"config": written.decode(errors="replace")}).items()
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "given.safetensors"
        file.write_bytes(torch_weights.content(file, STATE_DICT, metadata))
        found = outcome(lambda: jaxmnist.load(file), str(file))
        if found:
            assert bool((np.asarray(found.params["layers_0"]["kernel"]) == 0.5).all())
            jaxmnist.save(found, file)
            assert jaxmnist.load(file).metadata == found.metadata
    return bool(found)
