"""The sides of a benchmark's row take turns, and their ratio survives what disturbs the machine."""

from __future__ import annotations

import contextlib
import random
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from benchmarks import conftest, turns
from benchmarks.rows import Sides
from benchmarks.turns import Ratio, Side, Slice, Turns, ratio


class Machine:
    """A machine with its own clock, on which a call takes as long as it is told.

    Attributes:
        slow: Returns the factor by which calls take longer now.
        steal: Returns the nanoseconds that other processes take from a call.
        made: The names of the calls in order.
    """

    def __init__(self):
        self.now = self.waited = 0
        self.slow = lambda: 1.0
        self.steal = lambda name: 0
        self.made = []

    def side(self, name, microseconds, **more):
        def call():
            self.made.append(name)
            stolen = self.steal(name)
            self.waited += stolen
            self.now += round(1000 * microseconds * self.slow()) + stolen

        return Side(call, **more)

    def turns(self, rounds=None, **times):
        sides = {name: self.side(name, value) for name, value in times.items()}
        return self.of(sides, rounds)

    def of(self, sides, rounds=None):
        waiting = lambda: contextlib.nullcontext(lambda: self.waited)  # noqa: E731
        return Turns(sides, rounds, clock=lambda: self.now, waiting=waiting)


def test_every_round_times_each_side_once_in_a_changing_order():
    machine = Machine()
    made = machine.turns(rounds=40, ours=10, first=20, second=30)
    made.run()
    measured = machine.made[6:]  # after two calls of each to warm up
    rounds = [tuple(measured[k : k + 3]) for k in range(0, 120, 3)]
    assert all(sorted(each) == ["first", "ours", "second"] for each in rounds)
    assert len(set(rounds)) == 6  # all orders occur
    again = Machine()
    again.turns(rounds=40, ours=10, first=20, second=30).run()
    assert again.made == machine.made  # and are the same in each run
    assert {name: len(times) for name, times in made.times.items()} == dict.fromkeys(
        ("ours", "first", "second"), 40
    )


def test_a_ratio_survives_a_machine_that_becomes_slower_and_slower():
    machine = Machine()
    machine.slow = lambda: 1 + machine.now / 1e8
    made = machine.turns(ours=100, peer=300)
    made.run()
    first, last = (made.times["ours"][r].seconds for r in (0, turns.ROUNDS - 1))
    assert last > 1.7 * first
    found = made.ratios()["peer"]
    assert found.median == pytest.approx(3, rel=0.02) and not found.wide and made.attempts == 1


@pytest.mark.parametrize("often", [0.3, 0.7])
def test_a_ratio_is_marked_if_threads_waited_for_a_core_in_most_rounds(often):
    machine, chance = Machine(), random.Random(0)
    machine.steal = lambda name: 400_000 * (name == "peer" and chance.random() < often)
    made = machine.turns(ours=200, peer=200, alone=300)
    made.run()
    found = made.ratios()
    assert found["peer"].disturbed is (often > 0.5) and not found["peer"].wide
    assert found["peer"].median == (3 if often > 0.5 else 1)
    assert found["alone"] == Ratio(1.5, 1.5, 1.5, 0)
    assert made.attempts == (turns.ATTEMPTS if often > 0.5 else 1)


def test_sides_with_a_wide_spread_are_timed_again_and_then_marked():
    machine, chance = Machine(), random.Random(0)
    sides = {name: machine.side(name, time) for name, time in (("ours", 200), ("calm", 300))}
    swings = machine.side("swings", 0)

    def call():
        swings.call()
        machine.now += chance.choice((100_000, 500_000))

    made = machine.of({**sides, "swings": Side(call)})
    made.run()
    assert made.attempts == turns.ATTEMPTS
    found = made.ratios()
    assert found["swings"].wide and not found["calm"].wide
    counts = {name: len(times) for name, times in made.times.items()}
    assert counts == {"ours": 288, "calm": 96, "swings": 288}
    alone = Machine().turns(ours=200, calm=300)
    alone.run()
    assert alone.attempts == 1


def test_short_calls_fill_a_slice_and_slow_sides_take_part_in_fewer_rounds():
    machine = Machine()
    made = machine.turns(short=3, usual=200, slow=50_000, slowest=3_000_000)
    made.run()
    counts = {name: len(times) for name, times in made.times.items()}
    assert counts == {"short": 96, "usual": 96, "slow": 24, "slowest": 3}
    assert set(made.times["slowest"]) <= set(made.times["slow"])  # so that their ratio has rounds
    assert made.times["short"][0] == Slice(pytest.approx(3e-6), 0)
    in_round = machine.made.index("short", machine.made.index("slowest", 20))
    run = next(k for k, name in enumerate(machine.made[in_round:]) if name != "short")
    assert run == 1 + 34  # one call to warm up, and 34 of 3 us make 100 us


def test_what_is_around_a_side_is_entered_for_each_of_its_turns_only():
    machine, inside = Machine(), []

    @contextlib.contextmanager
    def around():
        inside.append(True)
        yield
        inside.pop()

    patched = machine.side("patched", 200)
    own = machine.side("own", 200)

    def check(call, want):
        return lambda: (call(), inside == want or pytest.fail(f"{inside}"))

    sides = {
        "patched": Side(check(patched.call, [True]), around),
        "own": Side(check(own.call, [])),
    }
    machine.of(sides).run()
    assert not inside and len(machine.made) > 2 * turns.ROUNDS


def test_the_interval_of_a_median_covers_95_percent():
    def of(values):
        times = {k: Slice(value, 0) for k, value in enumerate(values)}
        return ratio(times, {k: Slice(1, 0) for k in times})

    # The order statistics that tables of the sign test name for a confidence of 95%.
    for count, low, high in ((3, 1, 3), (5, 1, 5), (6, 1, 6), (9, 2, 8), (20, 6, 15), (96, 38, 59)):
        found = of(range(1, count + 1))
        assert (found.low, found.high) == (low, high)
        assert found.median == (count + 1) / 2
    found = of([1.0, 2.0, 3.0, 4.0, 9.0])
    assert found.spread == pytest.approx(2.0) and found.wide
    assert not of([0.97, 1.0, 1.03]).wide


def test_waiting_is_read_from_all_threads_of_this_process():
    with turns.WaitedForACore() as waited:
        first = waited()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(sum, range(1000)).result()
            assert 0 <= first <= waited()
        waited()  # a thread has ended


class Benchmark:
    """What `measure` uses of pytest-benchmark's fixture."""

    disabled = False

    def __init__(self):
        self.entries = {}

    def _make_stats(self, iterations):
        data = []
        self.entries[self.name] = (dict(self.extra_info), data)
        return types.SimpleNamespace(update=data.append)


@pytest.fixture
def measuring(monkeypatch):
    """Return `measure`, and the entries that it makes, on a machine with its own clock."""
    machine, benchmark = Machine(), Benchmark()
    plugins = types.SimpleNamespace(get_plugin=lambda name: None)
    node = types.SimpleNamespace(name="test_x[cpu]", nodeid="benchmarks/test_ops.py::test_x[cpu]")
    request = types.SimpleNamespace(node=node, config=types.SimpleNamespace(pluginmanager=plugins))
    monkeypatch.setattr(conftest, "Turns", lambda sides, rounds: machine.of(sides, rounds))
    monkeypatch.setattr(conftest, "_SKIPPED", {"needs it": []})
    monkeypatch.setattr(conftest, "_RATIOS", [])
    return machine, conftest.measure.__wrapped__(benchmark, request), benchmark.entries


COMMON = {"op": "nms", "row": "small", "dtype": torch.float32, "shape": "[1]"}


def test_each_side_has_an_entry_and_one_that_skips_or_fails_does_not_stop_the_others(measuring):
    machine, measure, entries = measuring

    def prepare(peer, time):
        if time is None:
            pytest.skip("needs it")
        assert time > 0, "wrong result"
        return machine.side(peer, time, more={"own": peer})

    sides = Sides("cpu", {"mdssd cpp": 200, "absent": None, "wrong": -1, "other": 500})
    with pytest.raises(AssertionError, match="wrong: wrong result"):
        measure(sides, prepare, **COMMON, axis="boxes", x=3)
    ours, other = (entries[f"test_x[cpu], {peer}"] for peer in ("mdssd cpp", "other"))
    assert len(entries) == 2 and conftest._SKIPPED == {"needs it": ["test_x[cpu], absent"]}
    assert ours[0]["peer"] == ours[0]["own"] == "mdssd cpp" and "ratio" not in ours[0]
    info = other[0]
    assert (info["ratio"], info["spread"], info["wide"], info["disturbed"]) == (
        2.5,
        0,
        False,
        False,
    )
    assert info["x"] == 3 and other[1] == [pytest.approx(5e-4)] * turns.ROUNDS
    assert conftest._RATIOS == ["nms, small, cpu: other 2.5x ±0%"]


def test_without_its_first_side_a_row_is_skipped(measuring):
    _, measure, entries = measuring
    sides = Sides("cpu", {"mdssd cpp": None, "other": 1})
    with pytest.raises(pytest.skip.Exception, match="needs it"):
        measure(sides, lambda peer, value: pytest.skip("needs it"), **COMMON)
    assert not entries


def test_a_ceiling_takes_turns_so_that_a_slow_moment_does_not_move_the_share(
    measuring, monkeypatch
):
    machine, measure, entries = measuring
    machine.slow = lambda: 1 + machine.now / 1e8
    ceilings = conftest.Ceilings()
    monkeypatch.setattr(conftest, "_CEILINGS", ceilings)
    copies = {"copy": machine.side("copy", 50)}  # of 1 MiB, in 50 us
    monkeypatch.setattr(ceilings, "sides", lambda *_: copies)
    measure(Sides("cpu", {"mdssd cpp": 200}), machine.side, **COMMON, moved=2**19)
    info = entries["test_x[cpu], mdssd cpp"][0]
    assert info["floor_share"] == pytest.approx(25e-6 / 200e-6, rel=0.02)
    assert not info["floor_wide"] and machine.slow() > 1.3
    (rate,) = ceilings.as_dict()["copy"]
    assert rate["bytes"] == 2**20 and rate["device"] == "cpu"
