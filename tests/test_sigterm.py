"""SIGTERM, which a scheduler sends before it kills, ends a run at once and leaves nothing half."""

import multiprocessing
import signal
import time

import pytest
from test_ddp import predict_config, run, start
from toy_data import contents

from ovseg.callbacks.sigterm import end_at_sigterm

ALONE = ("--trainer.devices=1", "--trainer.strategy=auto")


@pytest.mark.parametrize("arguments", [ALONE, ()], ids=["one", "two"])
def test_predict_ends_and_goes_on(tmp_path, arguments):
    expected = tmp_path / "whole" / "set"
    run("predict", predict_config(tmp_path / "whole"), *ALONE)
    output, config = tmp_path / "set", predict_config(tmp_path, delay=1.0)
    with start("predict", config, *arguments) as process:
        deadline = time.monotonic() + 500
        while not (output / "shard-000000.tar").is_file():
            assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, printed
    assert "ovseg: ended by SIGTERM" in printed and "Traceback" not in printed
    left = contents(output)
    assert "dataset.json" not in left and not [n for n in left if n.endswith(".tar.tmp")]
    assert left["shard-000000.tar"] == (expected / "shard-000000.tar").read_bytes()
    run("predict", predict_config(tmp_path), *ALONE)
    assert contents(output) == contents(expected)


def linger(started):
    try:
        started.set()
        time.sleep(500)
    finally:
        time.sleep(500)  # as who waits on the way out


def test_a_forked_process_ends_at_once_and_says_nothing(capfd):
    context = multiprocessing.get_context("fork")
    started, again = context.Event(), end_at_sigterm()
    try:
        worker = context.Process(target=linger, args=(started,))
        worker.start()
        assert started.wait(60)
        worker.terminate()
        worker.join(60)
    finally:
        again()
    assert worker.exitcode == 128 + signal.SIGTERM
    assert capfd.readouterr().err == ""
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
