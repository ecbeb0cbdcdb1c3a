"""Ctrl-C and SIGTERM within this process."""

import signal
import threading

import pytest

from mdssd.system.stop import Interrupted, StopRequest, Terminated, interruptible


@pytest.fixture
def sigint():
    """Python's own handler of SIGINT, whatever started the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interruptible_raises_a_subclass_and_restores_the_handler(sigint):
    with pytest.raises(KeyboardInterrupt) as caught, interruptible():
        signal.raise_signal(signal.SIGINT)
    assert caught.type is not KeyboardInterrupt
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_interruptible_leaves_other_handlers_alone(sigint, handler):
    signal.signal(signal.SIGINT, handler)
    with interruptible():
        assert signal.getsignal(signal.SIGINT) is handler
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("context", [interruptible, StopRequest])
def test_no_handler_is_set_outside_the_main_thread(context):
    errors = []

    def run():
        try:
            with context():
                pass
        except ValueError as error:  # signal.signal raises it in another thread
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not errors


def test_stop_request_raises_when_asked_for(sigint):
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        stop.check()
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # a second one kills
        with pytest.raises(Terminated):
            stop.check()
    assert signal.getsignal(signal.SIGTERM) is before
    with StopRequest(patient=True) as stop:
        with pytest.raises(Terminated), stop.at_once():
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is before


def test_stop_request_waits_after_the_first_ctrl_c_and_raises_at_the_second(sigint, capfd):
    with interruptible():
        before = signal.getsignal(signal.SIGINT)
        with StopRequest(note="stopping soon") as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.asked and isinstance(stop.error(), Interrupted)
            with pytest.raises(Interrupted):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is before
        with pytest.raises(Interrupted), StopRequest() as stop, stop.at_once():
            signal.raise_signal(signal.SIGINT)
        with StopRequest(patient=True) as stop:
            for _ in range(3):
                signal.raise_signal(signal.SIGINT)
            with pytest.raises(Interrupted):
                stop.check()
    assert capfd.readouterr().err == "\nstopping soon\n"


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_stop_request_leaves_other_handlers_of_ctrl_c_alone(sigint, handler):
    signal.signal(signal.SIGINT, handler)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert not stop.asked
