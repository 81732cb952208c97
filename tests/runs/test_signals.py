"""Ctrl-C and SIGTERM within and around a request to stop."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import pytest

from jaxmnist.runs.signals import StopRequest, die_of_ctrl_c, held_back, raise_on_ctrl_c

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """What reaches the handlers that were there before; these are set back at the end."""
    numbers: list[int] = []

    def hear(number: int, _: FrameType | None) -> None:
        numbers.append(number)

    before = {n: signal.signal(n, hear) for n in (signal.SIGINT, signal.SIGTERM)}
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


@BOTH
def test_first_signal_is_only_noted(number: signal.Signals, heard: list[int]):
    with StopRequest() as stop:
        assert stop.cause is None
        signal.raise_signal(number)
        assert stop.cause is number
    assert stop.cause is number
    assert heard == []


@BOTH
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_does_what_it_always_does(
    number: signal.Signals, second: signal.Signals, heard: list[int]
):
    with StopRequest() as stop:
        signal.raise_signal(number)
        signal.raise_signal(second)
        signal.raise_signal(second)
        assert heard == [second, second]
        assert stop.cause is number


def test_second_ctrl_c_interrupts():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.cause is signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@BOTH
def test_handlers_are_set_back_afterwards(number: signal.Signals, heard: list[int]):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest():
        assert signal.getsignal(number) not in handlers
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    signal.raise_signal(number)
    assert heard == [number]
    with pytest.raises(ValueError, match="mine"), StopRequest():
        raise ValueError("mine")
    signal.raise_signal(number)
    assert heard == [number, number]


def test_default_actions_are_set_back(heard: list[int]):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.cause is signal.SIGINT
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert heard == []


def test_ignored_signals_stay_ignored(heard: list[int]):
    """As Ctrl-C in what a script starts with &."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.cause is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.raise_signal(signal.SIGTERM)
    assert stop.cause is signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert heard == []


def test_signal_from_outside_is_noted(heard: list[int]):
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        end = time.monotonic() + 10
        while stop.cause is None:
            assert time.monotonic() < end
    assert stop.cause is signal.SIGTERM
    assert heard == []


def test_nothing_changes_in_a_thread(heard: list[int]):
    """Only the main thread may handle signals: Python refuses the others."""
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
            with StopRequest() as stop:
                assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
                signal.raise_signal(signal.SIGTERM)
                assert stop.cause is None
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(10)
    assert errors == []
    assert heard == [signal.SIGTERM]


@BOTH
def test_held_back_signals_come_at_the_end(number: signal.Signals, heard: list[int]):
    with held_back():
        signal.raise_signal(number)
        assert heard == []
    assert heard == [number]


def test_held_back_ctrl_c_interrupts_at_the_end():
    done = []

    def work() -> None:
        with held_back():
            signal.raise_signal(signal.SIGINT)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]


def test_ctrl_c_dies_and_raises_again():
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    die_of_ctrl_c()
    try:
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        raise_on_ctrl_c()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ignored_ctrl_c_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        die_of_ctrl_c()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        raise_on_ctrl_c()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
