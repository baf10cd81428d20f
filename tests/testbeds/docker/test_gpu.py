"""GPU throttles against a fake NVML; the last test is there only where a real GPU is."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pynvml
import pytest
from fake_nvml import FakeGpu, FakeNvml, gpus_of

from harness.errors import ConfigError, TestbedError
from harness.validation import validated
from testbeds.docker import gpu_mps, gpu_nvml
from testbeds.docker.gpu import (
    MEMORY_FRACTION,
    STATE_FILE,
    VISIBLE,
    GpuShare,
    GpuThrottle,
    doctor,
    restore_leftover,
)

ROOT = Path(__file__).parents[3]
PATIENCE_S = 60.0
SLOW = {"device-0": GpuShare(clock_mhz=600)}
FREE = [(None, None)]


@pytest.fixture(autouse=True)
def no_mps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for MPS in which nobody listens."""
    place = tmp_path / "mps"
    place.mkdir()
    monkeypatch.setenv(gpu_mps.FOLDER, str(place))
    return place


@pytest.fixture
def mps(no_mps: Path) -> Iterator[Path]:
    """A folder for MPS in which somebody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.bind(str(no_mps / "control"))
        control.listen()
        yield no_mps


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / STATE_FILE


def error(code: int) -> Any:
    return pynvml.NVMLError(code)


def two() -> FakeNvml:
    return FakeNvml([FakeGpu(), FakeGpu()])


ONE_EACH: Mapping[str, GpuShare] = {
    "device-0": GpuShare(index=0, clock_mhz=600),
    "device-1": GpuShare(index=1, clock_mhz=1410, memory_clock_mhz=1215),
}


# ---- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "remedy"),
    [
        ("index", -1, "nvidia-smi -L"),
        ("clock_mhz", 0, "SUPPORTED_CLOCKS"),
        ("memory_clock_mhz", -5, "SUPPORTED_CLOCKS"),
        ("sm_percent", 0, "give 1 to 100"),
        ("sm_percent", 101, "give 1 to 100"),
        ("memory_fraction", 0.0, "above 0, at most 1"),
        ("memory_fraction", 1.5, "above 0, at most 1"),
    ],
)
def test_a_bad_share_is_refused_with_what_to_give(setting: str, value: float, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy) as refused:
        validated(GpuShare, {setting: value}, "e.yaml: testbed.devices[0].gpu")
    assert f"testbed.devices[0].gpu.{setting}" in str(refused.value)


@pytest.mark.parametrize("percent", [1, 100])
def test_a_share_may_be_the_least_and_the_whole(percent: int) -> None:
    assert GpuShare(sm_percent=percent, memory_fraction=percent / 100).sm_percent == percent


@pytest.mark.parametrize("other", [900, None])
def test_devices_on_one_gpu_must_agree_on_its_clock(other: int | None) -> None:
    shares = {**SLOW, "device-1": GpuShare(clock_mhz=other)}
    with pytest.raises(ConfigError, match=r"GPU 0, device-0 asks for 600 MHz and device-1 .*give all devices on it"):
        GpuThrottle(shares, FakeNvml())
    GpuThrottle(
        {**SLOW, "device-1": GpuShare(index=1, clock_mhz=other)}, FakeNvml()
    )  # on GPUs of their own they need not


@pytest.mark.parametrize(
    ("setting", "share", "told"), [("sm_percent", 60, "120 of 100"), ("memory_fraction", 0.6, "1.2 of 1")]
)
def test_shares_of_more_than_a_gpu_are_refused_with_the_sum(setting: str, share: float, told: str) -> None:
    def shares(*values: float) -> dict[str, GpuShare]:
        return {f"device-{i}": GpuShare(**{setting: value}) for i, value in enumerate(values)}  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match=rf"{setting}: 2 devices on GPU 0 ask for {told}; lower"):
        GpuThrottle(shares(share, share), FakeNvml())
    GpuThrottle(shares(*[share / 6] * 10), FakeNvml())  # ten tenths, whatever they add up to in floats


# ---- locking and letting go -------------------------------------------------------------------------------------


def test_clocks_are_locked_within_and_free_after(state: Path) -> None:
    nvml = two()
    with GpuThrottle(ONE_EACH, nvml, state) as throttle:
        assert nvml.locks == [(600, None), (1410, 1215)]
        assert [(lock["clock"], lock["mhz"]) for lock in json.loads(state.read_text())["locked"]] == [
            ("graphics", 600),
            ("graphics", 1410),
            ("memory", 1215),
        ]
        assert not throttle.paced("device-0")
    assert nvml.locks == FREE * 2
    assert not state.exists()
    assert nvml.open == 0


def test_what_is_about_to_be_locked_is_in_the_file_before_it_is(state: Path) -> None:
    nvml, seen = two(), []
    nvml.after["nvmlDeviceSetGpuLockedClocks"] = lambda: seen.append(state.read_text().count('"uuid"'))
    with GpuThrottle(ONE_EACH, nvml, state):
        assert seen == [1, 2]


def test_restoring_twice_does_nothing_the_second_time(state: Path) -> None:
    nvml = FakeNvml()
    throttle = GpuThrottle(SLOW, nvml, state)
    throttle.restore()
    throttle.apply()
    throttle.restore()
    nvml.gpus[0].graphics_lock = (900, 900)  # somebody else's, since
    throttle.restore()
    assert nvml.locks == [(900, None)]


def test_the_clock_locked_is_the_nearest_the_gpu_has() -> None:
    nvml = FakeNvml()
    with GpuThrottle({"device-0": GpuShare(clock_mhz=609)}, nvml) as throttle:
        assert nvml.locks == [(615, None)]
        assert throttle.describe()["device-0"]["done"] == {"clock_mhz": 615}
        assert throttle.describe()["device-0"]["asked"] == {"clock_mhz": 609}


@pytest.mark.parametrize("mhz", [209, 1411])
def test_a_clock_the_gpu_has_not_is_refused_with_its_range(mhz: int, state: Path) -> None:
    nvml = two()
    shares = {**SLOW, "device-1": GpuShare(index=1, clock_mhz=mhz)}
    with pytest.raises(TestbedError, match=rf"clock_mhz: {mhz} MHz, but GPU 1 \(NVIDIA A100.* has 210 to 1410; give"):
        GpuThrottle(shares, nvml, state).apply()
    assert nvml.locks == FREE * 2


def test_a_gpu_that_does_not_list_its_clocks_is_asked_all_the_same() -> None:
    nvml = FakeNvml([FakeGpu(graphics_clocks=(), memory_clocks=())])
    with GpuThrottle({"device-0": GpuShare(clock_mhz=777)}, nvml):
        assert nvml.locks == [(777, None)]


def test_application_clocks_that_letting_go_changes_are_put_back() -> None:
    nvml = FakeNvml([FakeGpu(applications=(1215, 1095))], reset_forgets=(1215, 1410))
    with GpuThrottle(SLOW, nvml):
        pass
    assert nvml.gpus[0].applications == (1215, 1095)
    assert nvml.locks == FREE


def test_nodes_without_a_share_change_nothing(state: Path) -> None:
    nvml = FakeNvml(no_driver=error(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    with GpuThrottle({}, nvml, state) as throttle:
        assert throttle.env("server") == {}
        assert throttle.mps_folder("server") is None
        assert not throttle.paced("server")
        assert throttle.describe() == {}
        assert throttle.check() == []
    assert nvml.calls == []


# ---- every way out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_within_lets_go(kind: type[BaseException], state: Path) -> None:
    nvml = two()
    with pytest.raises(kind), GpuThrottle(ONE_EACH, nvml, state):
        raise kind
    assert nvml.locks == FREE * 2
    assert not state.exists()


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_UNKNOWN, pynvml.NVML_ERROR_INVALID_ARGUMENT])
def test_a_failure_half_way_lets_go_of_what_was_locked(code: int, call: int, state: Path) -> None:
    nvml = two()
    nvml.errors["nvmlDeviceSetGpuLockedClocks", call] = error(code)
    with pytest.raises(TestbedError, match=rf"gpu {call - 1}: locking its graphics clock at \d+ MHz: NVML says"):
        GpuThrottle(ONE_EACH, nvml, state).apply()
    assert nvml.locks == FREE * 2
    assert not state.exists()


def test_ctrl_c_just_after_the_deed_lets_go(state: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    nvml = two()
    nvml.after["nvmlDeviceSetMemoryLockedClocks"] = interrupt  # the last of three
    with pytest.raises(KeyboardInterrupt), GpuThrottle(ONE_EACH, nvml, state):
        pytest.fail("it was not entered")
    assert nvml.locks == FREE * 2
    assert not state.exists()


def test_nothing_is_locked_that_cannot_be_noted(tmp_path: Path) -> None:
    nvml = FakeNvml([FakeGpu(graphics_lock=(900, 900))])  # somebody else's
    with pytest.raises(TestbedError, match=r"cannot be noted in .*make the run's folder writable"):
        GpuThrottle(SLOW, nvml, tmp_path / "nowhere" / STATE_FILE).apply()
    assert nvml.locks == [(900, None)]


def test_clocks_are_let_go_though_the_runs_folder_is_gone(tmp_path: Path) -> None:
    nvml, folder = two(), tmp_path / "run"
    folder.mkdir()
    with GpuThrottle(ONE_EACH, nvml, folder / STATE_FILE):
        shutil.rmtree(folder)
    assert nvml.locks == FREE * 2


def test_what_cannot_be_let_go_is_told_and_tried_again(state: Path) -> None:
    nvml = two()
    throttle = GpuThrottle(ONE_EACH, nvml, state)
    throttle.apply()
    nvml.errors["nvmlDeviceResetGpuLockedClocks", 1] = error(pynvml.NVML_ERROR_TIMEOUT)
    with pytest.raises(
        TestbedError, match=r"still locked at 1410 MHz \(Timeout\); run 'sudo nvidia-smi -i GPU-.* -rgc'"
    ):
        throttle.restore()
    assert nvml.locks == [(None, None), (1410, None)]  # the others are free
    assert json.loads(state.read_text())["locked"][0]["mhz"] == 1410
    throttle.restore()
    assert nvml.locks == FREE * 2
    assert not state.exists()


def test_a_failure_to_let_go_does_not_hide_what_went_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    nvml = FakeNvml()
    nvml.errors["nvmlDeviceResetGpuLockedClocks", 1] = error(pynvml.NVML_ERROR_GPU_IS_LOST)
    with pytest.raises(ValueError, match="the run's own"), GpuThrottle(SLOW, nvml):
        raise ValueError("the run's own")
    assert "still locked at 600 MHz" in capsys.readouterr().err


def test_a_gpu_that_has_gone_needs_no_letting_go(state: Path) -> None:
    nvml = two()
    with GpuThrottle(ONE_EACH, nvml, state):
        del nvml.gpus[1]
    assert nvml.locks == FREE
    assert not state.exists()


def test_signal_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with GpuThrottle(SLOW, FakeNvml()):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_handler_set_meanwhile_stays() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def others(number: int, frame: object) -> None:
        raise AssertionError(number, frame)

    try:
        with GpuThrottle(SLOW, FakeNvml()):
            signal.signal(signal.SIGTERM, others)
        assert signal.getsignal(signal.SIGTERM) is others
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_handler_of_before_gets_its_signal_once_the_clocks_are_free(state: Path) -> None:
    nvml, seen = two(), []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append((number, nvml.locks)))
    try:
        with GpuThrottle(ONE_EACH, nvml, state):
            os.kill(os.getpid(), signal.SIGTERM)
            assert nvml.locks == FREE * 2
        assert seen == [(signal.SIGTERM, FREE * 2)]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("moment", ["nvmlDeviceSetGpuLockedClocks", "nvmlDeviceResetGpuLockedClocks"])
def test_a_signal_in_the_midst_of_locking_or_letting_go_waits_its_turn(moment: str, state: Path) -> None:
    nvml, seen = FakeNvml(), []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(nvml.locks))
    try:
        nvml.after[moment] = lambda: os.kill(os.getpid(), signal.SIGTERM)
        with GpuThrottle(SLOW, nvml, state):
            pass
        assert seen == [FREE]
        assert not state.exists()
        assert nvml.open == 0
    finally:
        signal.signal(signal.SIGTERM, before)


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from fake_nvml import FakeGpu, FakeNvml
from testbeds.docker.gpu import GpuShare, GpuThrottle
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore it
nvml = FakeNvml([FakeGpu(), FakeGpu()], hardware=Path(sys.argv[1]))
shares = {"device-0": GpuShare(clock_mhz=600), "device-1": GpuShare(index=1, memory_clock_mhz=1215)}
throttle = GpuThrottle(shares, nvml, Path(sys.argv[2]))
throttle.apply()
if sys.argv[3] == "fork":
    if os.fork() == 0:
        sys.exit(0)
    os.wait()
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[3] == "exit":
    sys.exit(7)
if sys.argv[3] == "raise":
    raise RuntimeError
print("locked", flush=True)
time.sleep(600)
"""


def ended(ending: str, hardware: Path, state: Path) -> int:
    """Run a process that locks clocks and never lets go by itself, end it, and return its exit status."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(hardware), str(state), ending],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        if hasattr(signal, ending):
            assert process.stdout is not None
            assert process.stdout.readline() == b"locked\n"
            assert locked(hardware) == [(600, None), (None, 1215)]
            process.send_signal(getattr(signal, ending))
        return process.wait(PATIENCE_S)
    finally:
        process.kill()
        process.communicate()


def locked(hardware: Path) -> list[tuple[int | None, int | None]]:
    return FakeNvml(gpus_of(hardware)).locks


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("SIGTERM", -signal.SIGTERM),
        ("SIGHUP", -signal.SIGHUP),
        ("SIGINT", -signal.SIGINT),
        ("exit", 7),
        ("raise", 1),
    ],
)
def test_a_process_that_ends_lets_go(ending: str, status: int, tmp_path: Path, state: Path) -> None:
    hardware = tmp_path / "hardware.json"
    assert ended(ending, hardware, state) == status
    assert locked(hardware) == FREE * 2
    assert not state.exists()


@pytest.mark.parametrize("ending", ["SIGKILL", "fork"])
def test_after_a_kill_the_file_says_what_to_let_go(ending: str, tmp_path: Path, state: Path) -> None:
    hardware = tmp_path / "hardware.json"
    assert ended(ending, hardware, state) == -signal.SIGKILL
    nvml = FakeNvml(hardware=hardware)
    assert nvml.locks == [(600, None), (None, 1215)]  # a child of a fork has let go of nothing
    told = restore_leftover(state, nvml)
    assert [line.partition(": ")[2] for line in told] == [
        "memory clock, locked at 1215 MHz, let go",
        "graphics clock, locked at 600 MHz, let go",
    ]
    assert nvml.locks == FREE * 2
    assert not state.exists()
    assert restore_leftover(state, nvml) == []


@pytest.mark.parametrize(
    "why", [{"root": False}, {"no_driver": error(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)}], ids=["user", "no driver"]
)
def test_what_is_left_over_and_cannot_be_let_go_stays_noted(why: dict[str, Any], state: Path) -> None:
    GpuThrottle(SLOW, FakeNvml(), state).apply()
    text = state.read_text()
    with pytest.raises(TestbedError, match=r"(?s)still locked at 600 MHz.*sudo nvidia-smi.*delete it if the machine"):
        restore_leftover(state, FakeNvml([FakeGpu(graphics_lock=(600, 600))], **why))
    assert state.read_text() == text


@pytest.mark.parametrize("text", ["", "{", '{"locked": [{"uuid": 3}]}', '{"locked": [], "more": 1}'])
def test_a_file_that_is_none_of_ours_is_left_alone(text: str, state: Path) -> None:
    state.write_text(text)
    nvml = FakeNvml()
    with pytest.raises(TestbedError, match="not a list of locked clocks"):
        restore_leftover(state, nvml)
    assert state.read_text() == text
    assert nvml.calls == []


# ---- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nvml", "reason"),
    [
        (FakeNvml(root=False), "only root may lock"),
        (FakeNvml([FakeGpu("Tesla P100", pynvml.NVML_DEVICE_ARCH_PASCAL)]), "Tesla P100 is older than Volta"),
        (
            FakeNvml(errors={("nvmlDeviceSetGpuLockedClocks", 1): error(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)}),
            r"or its driver cannot lock its graphics clock \(Function Not Found\)",
        ),
    ],
    ids=["permission", "support", "driver"],
)
def test_where_nvml_refuses_compute_is_paced_and_the_record_says_why(nvml: FakeNvml, reason: str, state: Path) -> None:
    with GpuThrottle(SLOW, nvml, state) as throttle:
        assert throttle.paced("device-0")
        said = throttle.describe()["device-0"]
        assert not state.exists()
    assert said["paced"]
    assert said["asked"] == {"clock_mhz": 600}
    assert said["done"] == {}
    assert re.search(reason, said["not_done"]["clock_mhz"])
    assert "nvmlDeviceResetGpuLockedClocks" not in nvml.calls  # what was not locked is not reset: it may be another's


def test_a_refused_memory_clock_leaves_the_other_locked(state: Path) -> None:
    nvml = FakeNvml([FakeGpu("Tesla V100", pynvml.NVML_DEVICE_ARCH_VOLTA)])
    with GpuThrottle({"device-0": GpuShare(clock_mhz=600, memory_clock_mhz=1215)}, nvml, state) as throttle:
        assert nvml.locks == [(600, None)]
        said = throttle.describe()["device-0"]
        assert (said["done"], said["paced"]) == ({"clock_mhz": 600}, True)
        assert said["not_done"] == {
            "memory_clock_mhz": "Tesla V100 is older than Ampere, the first that can lock its memory clock"
        }
    assert nvml.locks == FREE


def test_only_the_devices_on_the_gpu_that_refused_are_paced() -> None:
    nvml = FakeNvml([FakeGpu(), FakeGpu("Tesla P100", pynvml.NVML_DEVICE_ARCH_PASCAL)])
    with GpuThrottle(ONE_EACH, nvml) as throttle:
        assert [throttle.paced(node) for node in ONE_EACH] == [False, True]


@pytest.mark.parametrize(
    ("nvml", "message"),
    [
        (FakeNvml(no_driver=error(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)), "no NVIDIA driver answers .*install"),
        (FakeNvml([]), "gpu 0: there is no such GPU .*sees none.*nvidia-smi -L"),
        (FakeNvml(errors={("nvmlInit", 1): error(pynvml.NVML_ERROR_UNKNOWN)}), "gpu: NVML says Unknown Error"),
    ],
    ids=["driver", "gpu", "failure"],
)
def test_without_the_gpu_nothing_runs(nvml: FakeNvml, message: str) -> None:
    with pytest.raises(TestbedError, match=message):
        GpuThrottle(SLOW, nvml).apply()


# ---- a container's part -----------------------------------------------------------------------------------------


def test_a_container_is_told_its_gpu_and_its_shares(mps: Path) -> None:
    nvml = two()
    throttle = GpuThrottle({"device-0": GpuShare(index=1, sm_percent=25, memory_fraction=0.1)}, nvml)
    assert throttle.env("device-0") == {
        VISIBLE: nvml.gpus[1].uuid,
        gpu_mps.FOLDER: str(mps),
        gpu_mps.PERCENT: "25",
        MEMORY_FRACTION: "0.1",
    }
    assert throttle.mps_folder("device-0") == mps
    assert throttle.uuid("device-0") == nvml.gpus[1].uuid
    with throttle:
        said = throttle.describe()["device-0"]
    assert said["done"] == said["asked"] == {"sm_percent": 25, "memory_fraction": 0.1}
    assert not said["paced"]
    assert nvml.locks == FREE * 2


def test_without_limits_a_container_is_told_its_gpu_only(mps: Path) -> None:  # noqa: ARG001
    nvml = FakeNvml()
    throttle = GpuThrottle({"device-0": GpuShare()}, nvml)
    assert throttle.env("device-0") == {VISIBLE: nvml.gpus[0].uuid}
    assert throttle.mps_folder("device-0") is None


def test_without_mps_a_share_of_multiprocessors_is_paced(no_mps: Path) -> None:
    throttle = GpuThrottle({"device-0": GpuShare(sm_percent=25)}, FakeNvml())
    assert throttle.env("device-0").keys() == {VISIBLE}
    assert throttle.mps_folder("device-0") is None
    assert throttle.paced("device-0")
    why = throttle.describe()["device-0"]["not_done"]["sm_percent"]
    assert why.startswith(f"no MPS daemon answers at {no_mps / 'control'}")
    assert "nvidia-cuda-mps-control -d" in why


def test_a_socket_that_a_daemon_left_behind_is_no_daemon(no_mps: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.bind(str(no_mps / "control"))
        control.listen()
        assert gpu_mps.unreachable(no_mps) == ""
    assert "Connection refused" in gpu_mps.unreachable(no_mps)


def test_a_daemon_with_sockets_of_another_type_is_one(no_mps: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        control.bind(str(no_mps / "control"))
        control.listen()
        assert gpu_mps.unreachable(no_mps) == ""


def test_a_daemon_that_this_user_may_not_use_is_told_apart(mps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mps / "control").chmod(0)
    if os.geteuid() == 0:  # root may use any socket, so what the kernel says to others has to be said for it
        monkeypatch.setattr(socket.socket, "connect", _refuse)
    assert "start the MPS daemon as the user that Ammeter runs as" in gpu_mps.unreachable(mps)


def _refuse(self: socket.socket, address: str) -> None:  # noqa: ARG001
    assert not stat.S_IMODE(os.stat(address).st_mode)
    raise PermissionError(13, "Permission denied")


def test_mps_is_looked_for_where_cuda_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(gpu_mps.FOLDER)
    assert gpu_mps.folder() == Path("/tmp/nvidia-mps")


# ---- what is permitted here -------------------------------------------------------------------------------------


def as_user(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)


def test_check_says_what_is_permitted_and_changes_nothing(monkeypatch: pytest.MonkeyPatch, mps: Path) -> None:  # noqa: ARG001
    as_user(monkeypatch, 0)
    nvml = two()
    shares = {**ONE_EACH, "device-2": GpuShare(index=7, sm_percent=5)}
    rows = GpuThrottle(shares, nvml).check()
    assert [(what, state) for what, state, _ in rows] == [
        ("gpu driver", "580.105.08"),
        ("gpu 0", "NVIDIA A100-SXM4-40GB"),
        ("gpu 0 graphics clock lock", "permitted"),
        ("gpu 1", "NVIDIA A100-SXM4-40GB"),
        ("gpu 1 graphics clock lock", "permitted"),
        ("gpu 1 memory clock lock", "permitted"),
        ("gpu 7", "missing"),
        ("gpu mps daemon", "reachable"),
    ]
    assert [bool(remedy) for _, state, remedy in rows] == [state == "missing" for _, state, _ in rows]
    assert not [call for call in nvml.calls if "Set" in call or "Reset" in call]


def test_doctor_says_what_can_be_throttled_here(monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, 1000)
    nvml = FakeNvml([FakeGpu(), FakeGpu("Tesla V100", pynvml.NVML_DEVICE_ARCH_VOLTA)])
    rows = doctor(nvml)
    assert [(what, state) for what, state, _ in rows] == [
        ("gpu driver", "580.105.08"),
        ("gpu 0", "NVIDIA A100-SXM4-40GB"),
        ("gpu 0 graphics clock lock", "not permitted"),
        ("gpu 0 memory clock lock", "not permitted"),
        ("gpu 1", "Tesla V100"),
        ("gpu 1 graphics clock lock", "not permitted"),
        ("gpu 1 memory clock lock", "not supported"),
        ("gpu mps daemon", "not reachable"),
    ]
    assert "sudo" in rows[2][2]
    assert not [call for call in nvml.calls if "Set" in call or "Reset" in call]


@pytest.mark.parametrize(
    ("nvml", "what", "state"),
    [
        (FakeNvml(no_driver=error(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)), "gpu", "none"),
        (FakeNvml([]), "gpu", "none"),
        (FakeNvml(errors={("nvmlDeviceGetName", 1): error(pynvml.NVML_ERROR_GPU_IS_LOST)}), "gpu driver", "not usable"),
    ],
    ids=["driver", "gpu", "failure"],
)
def test_doctor_says_what_is_missing_and_what_mends_it(nvml: FakeNvml, what: str, state: str) -> None:
    *_, (found, how, remedy) = doctor(nvml)
    assert (found, how) == (what, state)
    assert "nvidia-smi" in remedy


def test_check_without_a_driver_says_so() -> None:
    ((what, state, remedy),) = GpuThrottle(SLOW, FakeNvml(no_driver=error(pynvml.NVML_ERROR_DRIVER_NOT_LOADED))).check()
    assert (what, state) == ("gpu driver", "missing")
    assert "install" in remedy


def test_the_fake_has_pynvmls_names_and_refuses_what_is_closed() -> None:
    nvml = FakeNvml()
    names = [name for name in dir(nvml) if name.startswith("nvml")]
    assert len(names) > 15
    assert [name for name in names if not callable(getattr(pynvml, name, None))] == []
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        nvml.nvmlDeviceGetCount()


# ---- a real GPU -------------------------------------------------------------------------------------------------


def real_gpus() -> list[gpu_nvml.Gpu]:
    try:
        return gpu_nvml.found(pynvml)
    except TestbedError:
        return []


if GPUS := real_gpus():  # without a GPU there is no such test: none that is skipped, none that passes

    @pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: f"gpu {gpu.index}")
    def test_a_real_gpu_runs_at_the_clock_or_the_record_says_why_not(gpu: gpu_nvml.Gpu, state: Path) -> None:
        steps = gpu.clocks["graphics"]
        mhz = steps[len(steps) // 2] if steps else 900
        with GpuThrottle({"device-0": GpuShare(index=gpu.index, clock_mhz=mhz)}, pynvml, state) as throttle:
            said = throttle.describe()["device-0"]
            assert said["gpu"]["uuid"] == gpu.uuid
            if said["paced"]:
                assert said["not_done"]["clock_mhz"]
                assert not state.exists()
            else:
                assert said["done"] == {"clock_mhz": mhz}
                assert gpu.uuid in state.read_text()
                deadline = time.monotonic() + PATIENCE_S
                while (now := graphics_mhz(gpu)) > mhz + 15:  # a step more than asked, for rounding
                    assert time.monotonic() < deadline, f"locked at {mhz} MHz, but runs at {now}"
                    time.sleep(0.1)
        assert not state.exists()

    def graphics_mhz(gpu: gpu_nvml.Gpu) -> int:
        with gpu_nvml.session(pynvml):
            handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
            return int(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_GRAPHICS))
