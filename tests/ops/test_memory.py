"""Memory of the C++ operators beyond their inputs and outputs, at the sizes that could grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mdssd import ops

EXTRA = """
import ctypes, json
from pathlib import Path
import torch
from mdssd import ops

MB = 1e6

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def extra(call):
    # The peak of the process during a call, minus what it held before and minus the outputs.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    outputs = call()
    return (status("VmHWM") - before - sum(t.nbytes for t in outputs)) / MB

"""

MEASURE = """
PRIORS, CLASSES, BOXES = 90_100, 81, 200

make = torch.Generator().manual_seed(0)
priors = torch.rand(PRIORS, 4, generator=make) * 0.2 + 0.1
loc = torch.randn(1, PRIORS, 4, generator=make)
logits = torch.randn(1, PRIORS, CLASSES, generator=make) * 0.1  # every score passes the threshold
corner = torch.rand(BOXES, 2, generator=make)
boxes = [torch.cat([corner, corner + 0.1], 1)]
labels = [torch.ones(BOXES, dtype=torch.int64)]
targets = ops.encode_targets(boxes, labels, priors)
small = loc[:, :100].contiguous(), logits[:, :100].contiguous(), priors[:100]

found = torch.rand(30_000, 2, generator=make)
found = torch.cat([found, found + 0.02], 1), torch.rand(30_000, generator=make)

def merge(count, method):
    boxes, scores = (part[:count] for part in found)
    return ops.merge_boxes(boxes, scores, torch.ones(count).long(), method=method, threshold=0.3)

def with_gradient(loss, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(loss(x), x)

def calls(loc, logits, priors, count):
    t = ops.encode_targets(boxes, labels, priors)
    focal = lambda x: ops.sigmoid_focal_loss(x, t.labels)
    box = lambda x: ops.box_loss(x, t.loc, t.labels, priors)
    return {
        "detection_output": lambda: ops.detection_output(loc, logits, priors),
        "encode_targets": lambda: ops.encode_targets(boxes, labels, priors),
        "multibox_loss": lambda: ops.multibox_loss(loc, logits, t.loc, t.labels),
        "sigmoid_focal_loss": lambda: with_gradient(focal, logits),
        "box_loss": lambda: with_gradient(box, loc),
        "soft_nms": lambda: ops.soft_nms(*(part[:count] for part in found), max_detections=500),
        "merge_boxes, nmm": lambda: merge(count, "nmm"),
        "merge_boxes, wbf": lambda: merge(count, "wbf"),
    }

# The first call of an op allocates what stays: threads, code.
for call in calls(*small, 10).values():
    call()
large = calls(loc, logits, priors, len(found[0]))
print(json.dumps({name: extra(call) for name, call in large.items()}))
"""


# A matrix of these priors and boxes would take 8 GB.
MATCH = """
make = torch.Generator().manual_seed(0)
side = torch.arange(1_000_000)
priors = torch.rand(1_000_000, 4, generator=make) * 0.02 + 0.01
priors[:, 0], priors[:, 1] = (side % 1000 + 0.5) / 1000, (side // 1000 + 0.5) / 1000
corner = torch.rand(2_000, 2, generator=make)
boxes = [torch.cat([corner, corner + torch.rand(2_000, 2, generator=make) * 0.05], 1)]
labels = [torch.ones(2_000, dtype=torch.int64)]
rules = {
    "usual": {},
    "band": {"low_threshold": 0.4, "force": "low_quality"},
    "top_k, nwd": {"top_k": 9, "metric": "nwd", "nwd_constant": 0.02},
    "ignored": {"ignored_xyxy": boxes, "force": "none"},
}
ops.match_priors(boxes, priors[:100])  # the first call of an op allocates what stays
ops.encode_targets(boxes, labels, priors[:100])
found = {}
for name, rule in rules.items():
    found[name] = extra(lambda: ops.match_priors(boxes, priors, **rule))
    found[name + ", targets"] = extra(lambda: ops.encode_targets(boxes, labels, priors, **rule))
print(json.dumps(found))
"""


def measured(script: str) -> dict[str, float]:
    """Return the megabytes that a script prints."""
    # Large buffers are then returned to the system, so every call counts them again.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    environment.pop("MALLOC_MMAP_MAX_", None)
    done = subprocess.run(
        [sys.executable, "-c", EXTRA + script],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    megabytes: dict[str, float] = json.loads(done.stdout)
    return megabytes


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the kernel does not reset the peak"
)
def test_cpp_takes_little_memory() -> None:
    assert "cpp" in ops.backends()["detection_output"]
    megabytes = measured(MEASURE)
    assert max(megabytes.values()) < 8, megabytes


@pytest.mark.nightly("a million priors and two thousand boxes")
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the kernel does not reset the peak"
)
def test_matching_builds_no_matrix() -> None:
    assert "cpp" in ops.backends()["match_priors"]
    megabytes = measured(MATCH)
    assert max(megabytes.values()) < 100, megabytes
