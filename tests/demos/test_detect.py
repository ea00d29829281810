"""demos/detect.py, for an epoch of each training."""

from __future__ import annotations

import json

import pytest

from demos import detect


def test_the_demo(tmp_path, capfd):
    detect.main(["--pictures", "8", "--dense_epochs", "1", "--epochs", "1", "--out", str(tmp_path)])
    lines = capfd.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert list(result) == [
        "map_dense",
        "map_pruned",
        "map_control",
        "prunable_sparsity",
        "seconds",
    ]
    assert result["prunable_sparsity"] == pytest.approx(0.565, abs=1e-5)
    rows = [line for line in lines if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["dense", "pruned", "control"]
