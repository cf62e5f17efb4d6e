"""The processes of a sweep: their GPUs, their end with the sweep, and why they failed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spp_cli.errors import ConfigError
from spp_cli.settings import assigned
from spp_cli.sweeps.jobs import Job, check_devices, end_all, environment, visible_devices
from spp_cli.sweeps.sweep import Point, read_sweep

NAMES = st.lists(st.sampled_from(["0", "1", "5", "GPU-8932f937"]), max_size=4, unique=True)


def point(folder: Path, **settings: str) -> Point:
    """Return a point whose run is at work for seconds at least."""
    file = folder / "many.yaml"
    file.write_text(
        "points: [{name: one, prune.method: sparsegpt, prune.calibration.samples: 512}]"
    )
    flags = {"workspace": str(folder / "runs"), "prune.method.damping": 0.02, **settings}
    layer = assigned([(key, value, "--set") for key, value in flags.items()])
    return read_sweep(str(file), layer).points[0]


@given(NAMES, st.integers(1, 4))
def test_each_process_has_a_gpu_of_its_own_out_of_those_that_the_sweep_may_use(names, jobs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", ",".join(names))
        devices = visible_devices()
        assert devices == names
        given = [environment(slot, jobs, devices)["CUDA_VISIBLE_DEVICES"] for slot in range(jobs)]
    if names:
        assert set(given) <= set(names)
        assert len(set(given)) == min(jobs, len(names))
    else:
        assert set(given) == {""}


def test_what_stands_behind_an_invalid_gpu_is_not_seen_as_by_cuda_itself(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 3,-1,4")
    assert visible_devices() == ["2", "3"]


def test_without_gpus_processes_share_the_cores_unless_the_user_said_how(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    assert environment(0, 3, [])["OMP_NUM_THREADS"] == "2"
    assert "OMP_NUM_THREADS" not in environment(0, 1, [])
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert environment(0, 3, [])["OMP_NUM_THREADS"] == "5"


def test_a_gpu_by_its_number_is_refused_where_each_process_sees_one(tmp_path):
    numbered = point(tmp_path, **{"model.device": "cuda:1"})
    check_devices([numbered], [])
    with pytest.raises(ConfigError) as refusal:
        check_devices([numbered], ["4", "7"])
    assert str(refusal.value) == (
        "many-one: model.device is cuda:1, and a sweep gives each process a GPU of its own, "
        "of 4, 7. Set cuda or auto; CUDA_VISIBLE_DEVICES chooses GPUs"
    )


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A process that has just been started."""
    return Job(point(tmp_path), tmp_path, environment(0, 2, ["7"]))


def test_a_process_sees_its_gpu_alone(job):
    try:
        variables = Path(f"/proc/{job.process.pid}/environ")
        if not variables.exists():
            pytest.skip("the system has no /proc")
        assert b"CUDA_VISIBLE_DEVICES=7" in variables.read_bytes().split(b"\0")
    finally:
        end_all([job])


def test_a_process_that_has_hardly_started_ends_when_it_is_asked_to(job):
    end_all([job])
    assert job.process.returncode in (130, -signal.SIGINT)  # the latter while Python starts


@pytest.mark.slow
def test_a_process_ends_when_the_pipe_to_the_sweep_does(job, tmp_path):
    while not list(tmp_path.glob("runs/many-one/prune.partial/fingerprint.json")):
        assert job.process.poll() is None
        assert not job.has_ended(), job.problem()
        time.sleep(0.02)
    assert job.process.stdin is not None
    job.process.stdin.close()  # as the kernel does when the sweep is killed
    assert job.process.wait(timeout=30) == 130
    assert "interrupted. Finished stages are kept" in (tmp_path / "many-one.log").read_text()


def test_why_a_process_failed_is_one_line(job, tmp_path):
    job.process.kill()
    job.process.wait()
    assert job.problem() == (
        f"killed by SIGKILL, perhaps for want of memory. See {tmp_path / 'many-one.log'}"
    )
    job.process.returncode = 2
    assert job.problem() == f"ended with exit code 2. See {tmp_path / 'many-one.log'}"
    (tmp_path / "many-one.answer").write_text(
        '{"error": "one: wrong\\ntwo: wrong", "exit_code": 2}'
    )
    assert job.problem() == "one: wrong; two: wrong"
    job.process.returncode = 0
    assert job.problem() == ""
