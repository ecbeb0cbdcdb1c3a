"""Progress bars on a terminal, in a log file, and without standard error."""

import io

import pytest

from mdssd.system.progress import progress_bar


class Output(io.StringIO):
    """Standard error, which may be a terminal."""

    def __init__(self, terminal):
        super().__init__()
        self._terminal = terminal

    def isatty(self):
        return self._terminal


@pytest.fixture
def work(monkeypatch):
    """Do steps of so many seconds each, by a clock of the test's own; return what is written."""
    monkeypatch.delenv("TERM", raising=False)

    def run(steps, seconds, terminal=False, **options):
        clock, output = [1000.0], Output(terminal)
        monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
        monkeypatch.setattr("sys.stderr", output)
        bar = progress_bar(desc="work", total=steps, unit="image", **options)
        for step in range(steps):
            clock[0] += seconds
            bar.update()
            if step == 0:
                bar.write("a note")
        bar.close()
        return output.getvalue()

    return run


def test_a_log_file_gets_nothing_for_short_work(work):
    assert work(1000, 0.001) == ""


def test_a_log_file_gets_whole_lines_now_and_then(work):
    lines = work(100, 1.0).splitlines()
    assert [line.partition("|")[0] for line in lines] == [
        "work:  30%", "work:  60%", "work:  90%", "work: 100%",
    ]  # fmt: skip
    assert all("\r" not in line and line.isascii() for line in lines)
    assert "30/100 [00:30<01:10,  1.00image/s]" in lines[0]


def test_a_note_repeats_no_bar_in_a_log_file(work, capsys):
    assert work(3, 1.0) == ""
    assert capsys.readouterr().out == "a note\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_note_cannot_change_what_the_terminal_shows(capsys, monkeypatch, terminal):
    monkeypatch.delenv("TERM", raising=False)
    monkeypatch.setattr("sys.stderr", Output(terminal))
    bar = progress_bar(desc="of a\x1b[2J", total=1)
    bar.write("failed: a\nb\x1b[2J.png")
    bar.close()
    assert capsys.readouterr().out == "failed: a\\nb\\x1b[2J.png\n"
    assert bar.desc == "of a\\x1b[2J"


def test_a_terminal_shows_the_bar_at_once(work):
    text = work(3, 0.01, terminal=True)
    assert text.startswith("\rwork:   0%") and "3/3" in text and text.endswith("\n")


def test_a_terminal_that_cannot_move_the_cursor_is_a_log_file(work, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert "\r" not in work(100, 1.0, terminal=True)


def test_a_hidden_bar_still_prints_notes(work, capsys):
    assert work(3, 60.0, terminal=True, visible=False) == ""
    assert capsys.readouterr().out == "a note\n"


def test_standard_error_may_be_closed(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    assert list(progress_bar([1, 2], desc="work")) == [1, 2]
