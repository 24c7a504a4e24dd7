"""Ctrl-C during training."""

import json
import signal
import time


def test_ctrl_c_leaves_a_checkpoint_from_which_the_run_goes_on(start, small, tmp_path):
    def command(run, *more):
        return ("train", "ring", "--steps", "400", *small, "--out", tmp_path / run, *more)

    uninterrupted = start(*command("whole", "--json"))
    process = start(*command("run"))
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text()):  # the first record: training is under way
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "run the same command again to resume" in stderr and "Traceback" not in stderr
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert len(metrics.read_text().splitlines()) < 400 / 20

    resumed = start(*command("run", "--json"))
    results = [process.communicate(timeout=60)[0] for process in (uninterrupted, resumed)]
    whole, pieced = map(json.loads, results)
    assert whole["loss"] == pieced["loss"]
    assert whole["config"] == pieced["config"]
