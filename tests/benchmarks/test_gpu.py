"""The run on a GPU goes on after it was killed, and a piece that fails takes no other with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_report
from benchmarks.gpu_pieces.setting import Piece, Setting, add_record, read_records
from benchmarks.gpu_pieces.steps import largest
from benchmarks.gpu_pieces.table import pieces
from benchmarks.training.cost_tables import Group, Row

TOY = ["--device", "cpu", "--scale", "toy", "--workers", "1"]


@pytest.mark.slow
def test_a_piece_that_fails_takes_no_other_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = (one for one in pieces("toy") if one.key.startswith("largest/vit_base/"))
    # The process that does it knows of no such piece.
    monkeypatch.setattr(gpu, "pieces", lambda scale: [Piece("none", "none:none", 1), first])
    assert gpu.main([*TOY, "--out", str(tmp_path)]) == 1
    failed, done = read_records(tmp_path / "gpu.jsonl")
    assert failed["status"] == "failed" and "ValueError" in failed["error"]
    assert done["status"] == "done" and done["result"]["largest"]
    assert gpu.main([*TOY, "--out", str(tmp_path)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_goes_on(tmp_path: Path, sent: signal.Signals) -> None:
    given = [*TOY, "--only", "largest/*", "--out", str(tmp_path)]
    records = tmp_path / "gpu.jsonl"
    run = subprocess.Popen([sys.executable, "-m", "benchmarks.gpu", *given], cwd=gpu.ROOT, env=dict(os.environ))
    while not read_records(records) and run.poll() is None:
        time.sleep(0.05)
    run.send_signal(sent)
    run.wait(60)
    kept = records.read_text()
    assert gpu.main(given) == 0
    assert records.read_text().startswith(kept)
    found = [json.loads(line) for line in records.read_text().splitlines()]
    assert [one["key"] for one in found if one["status"] == "done"] == [
        one.key for one in pieces("toy") if one.key.startswith("largest/")
    ]


def test_what_is_timed_has_the_device_alone(tmp_path: Path) -> None:
    setting = Setting("gpu", torch.device("cpu"), tmp_path, tmp_path, tmp_path / "records", 1, lambda record: None)
    order: list[str] = []

    def time_() -> None:
        with setting.alone():
            order.append("timed")

    with setting.beside(), setting.beside():
        waiting = threading.Thread(target=time_)
        waiting.start()
        waiting.join(0.1)
        order.append("beside")
    waiting.join(10)
    assert order == ["beside", "timed"]


def test_half_a_line_is_no_record(tmp_path: Path) -> None:
    file = tmp_path / "gpu.jsonl"
    file.write_text('{"key": "a", "status": "done"}\n{"key": "b", "sta')
    add_record(file, {"key": "c", "status": "failed"})
    assert [one["key"] for one in read_records(file)] == ["a", "c"]


def test_of_two_devices_the_last_counts_and_the_one_before_where_it_has_no_figure(tmp_path: Path) -> None:
    file, key = tmp_path / "gpu.jsonl", "step/vit_base/eager/2/recommended"
    seconds = {"one": {"depth-pruned, every=2": 1, "auto, every=2": 1.5, "full, checkpointed": 3}}
    seconds["two"] = {"depth-pruned, every=2": 1, "auto, every=2": 1.25}
    for device, variants in seconds.items():
        rows = [asdict(Row(name, None)) | {"steps": [{"forward": time}]} for name, time in variants.items()]
        about = {"device": device, "clock": "CUDA events", "cpu": "", "cores": 1, "threads": 1}
        about |= dict.fromkeys(("python", "torch", "repl_fx"), "")
        group = asdict(Group("vit_base", "eager", "bfloat16", 1, about)) | {"rows": rows}
        record = {"key": key, "scale": "gpu", "device": "cuda", "status": "done", "machine": about}
        add_record(file, record | {"result": {"group": group}})
    gpu_report.write_report(read_records(file), tmp_path)
    page = (tmp_path / "gpu.md").read_text()
    assert "at most 1.05 times the depth-pruned | 1.250 times | no" in page
    assert "below the full model's with checkpoints | 0.500 times | yes" in page
    assert page.count("### vit_base, eager") == 2 and "one; times by" in page and "two; times by" in page
    # Files of one device, of which the last counts.
    gpu_report.write_report([read_records(file)[-1]] * 2, tmp_path)
    assert (tmp_path / "gpu.md").read_text().count("### vit_base, eager") == 1


def test_what_failed_is_tried_again_where_that_is_asked_for() -> None:
    known = [Piece(key, "", 1) for key in "abcd"]
    states = {"a": "done", "b": "failed", "c": "cut"}
    records = [{"key": key, "scale": "gpu", "status": state} for key, state in states.items()]
    for again, left in ((False, "cd"), (True, "bcd")):
        assert "".join(one.key for one in gpu.left_to_do(known, records, scale="gpu", again=again)) == left


@pytest.mark.parametrize("limit", [0, 1, 7, 100, 4096])
def test_the_largest_batch_is_found_within_an_eighth(limit: int) -> None:
    found = largest(lambda size: size <= limit, 4096)
    assert limit * 7 / 8 <= found <= limit


def test_pieces_have_keys_of_their_own() -> None:
    for scale in ("gpu", "toy"):
        keys = [one.key for one in pieces(scale)]
        assert len(set(keys)) == len(keys)
