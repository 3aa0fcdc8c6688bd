"""What a terminal and a log show of a run: whole fields, and a line for each epoch."""

import io
import sys
import time

import pytest
from tqdm import tqdm

from hessabs.training.progress import Progress, fitting

FIELDS = {
    "epoch": "3/90",
    "loss": "0.5123",
    "batch": "256",
    "lr": "0.1",
    "eigenvalue": "12.33",
    "updates": "12000",
}


@pytest.mark.parametrize("columns", [8, 15, 30, 45, 60, 80, 100, 120, 200])
def test_a_line_holds_whole_fields_however_narrow_the_terminal_is(columns):
    with tqdm(
        total=129_330, unit="img", unit_scale=True, file=io.StringIO(), ncols=columns, disable=False
    ) as bar:
        bar.n = 40_000
        bar.start_t -= 100
        bar.bar_format, kept = fitting(bar.format_dict, FIELDS)
        bar.set_postfix(kept, refresh=False)
        line = str(bar)
    assert len(line) <= columns
    assert list(kept) == list(FIELDS)[: len(kept)]  # the first ones stay longest
    assert all(f"{name}={value}" in line for name, value in kept.items())
    assert not any(f"{name}=" in line for name in FIELDS.keys() - kept.keys())
    assert "31%" in line
    assert ("]" in line) == ("[" in line)
    assert len(kept) == {100: 4, 120: 6, 200: 6}.get(columns, len(kept))


@pytest.mark.parametrize(("logs", "want"), [(True, 2), (False, 0)])
def test_a_log_has_a_line_for_each_milestone(capsys, logs, want):
    with Progress(200, 50, logs=logs) as progress:
        for samples in (75, 100, 150, 200):
            progress.show(
                samples, milestone=samples % 100 == 0, epoch=f"{samples // 100}/2", loss=0.51234, lr=None
            )
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == want
    if logs:
        assert lines[0].startswith("50%: epoch 1/2, loss 0.5123, lr - [00:00<")
        assert lines[1].startswith("100%: epoch 2/2")


@pytest.mark.parametrize(
    ("total", "logs", "want"),
    [
        (10_000, True, "hessabs: about 01:32 to go.\n"),
        (400_000, True, "hessabs: about 1:06:07 to go.\n"),
        (5_000, True, ""),
        (10_000, False, ""),
    ],
)
def test_what_takes_more_than_a_minute_says_so_when_it_is_known(capsys, monkeypatch, total, logs, want):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Progress(total, 100, logs=logs) as progress:
        now += 40.0  # what is compiled says nothing of the rest
        progress.show(300)
        for _ in range(31):  # 100 examples a second
            now += 1.0
            progress.show(int(300 + 100 * (now - 1040.0)))
    # After 5 s 9,200 of 10,000 are left. Of 400,000 they are too few to tell: after 30 s 396,700 are left.
    assert capsys.readouterr().err == want


def test_of_a_total_that_nobody_can_tell_no_time_left_is_told(capsys, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Progress(None) as progress:
        for samples in range(100, 10_000, 100):
            now += 30.0
            progress.show(samples, matrix="training")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "2100 examples: matrix training [10:30]"
    assert all("<" not in line and "to go" not in line for line in lines)


@pytest.mark.parametrize("columns", [8, 15, 30, 60, 100])
def test_a_bar_without_a_total_fits_and_tells_no_time_left(columns):
    with tqdm(unit="ex", unit_scale=True, file=io.StringIO(), ncols=columns, disable=False) as bar:
        bar.n = 40_000
        bar.start_t -= 100
        bar.bar_format, kept = fitting(bar.format_dict, {"matrix": "training"})
        bar.set_postfix(kept, refresh=False)
        line = str(bar)
    assert len(line) <= columns
    assert line.startswith("40.0k")
    assert "%" not in line
    assert "<" not in line
    assert ("matrix=training" in line) == (columns >= 60)


class Terminal(io.StringIO):
    """A terminal of a few columns, as tqdm sees it."""

    def isatty(self):
        return True


def test_a_terminal_has_a_bar_and_no_lines(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(200) as progress:
        progress.show(100, milestone=True, epoch="1/2")
    assert "epoch=1/2" in terminal.getvalue() or "50%" in terminal.getvalue() or "100" in terminal.getvalue()
    assert "epoch 1/2" not in terminal.getvalue()
