"""profiles/library.py: the shipped profiles, a user's own file, and what is said when either is wrong."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import ProfileError
from profiles import library, reading

BOARD = """
id: my-board
title: My board
processor: cpu
figures:
  cores: {value: 4, status: data-sheet, source: the box}
  memory_bytes: {value: 4e9, status: data-sheet, source: the box}
  conv_flops_per_s: {value: 15.8e9, status: measured, source: timed here}
  matmul_flops_per_s: {value: 2.83e10, status: measured, source: timed here}
  depthwise_flops_per_s: {value: 8.2e7, status: measured, source: timed here}
  depthwise_backward_flops_per_s: {value: 1.6e8, status: measured, source: timed here}
  memory_bytes_per_s: {value: 5e9, status: measured, source: timed here}
  operator_s: {value: 0, status: inferred, source: not seen}
"""

NETWORK = """
id: my-link
title: My link
technology: Wi-Fi
shared_medium: true
figures:
  up_bps: {value: 20e6, status: measured, source: iperf3}
  down_bps: {value: 25e6, status: measured, source: iperf3}
  rtt_s: {value: 6e-3, status: measured, source: ping}
  jitter_s: {value: 1e-3, status: measured, source: ping}
  loss_fraction: {value: 0.001, status: measured, source: ping}
"""

ROOT = Path(__file__).resolve().parents[2]
RATES = [
    "conv_flops_per_s",
    "matmul_flops_per_s",
    "depthwise_flops_per_s",
    "depthwise_backward_flops_per_s",
    "memory_bytes_per_s",
]
ROOFLINE = [name for name in library.devices() if library.device(name).flops_per_s is None]
SCALAR = [name for name in library.devices() if library.device(name).flops_per_s is not None]


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


# --- what is shipped


@pytest.mark.parametrize("profile_id", library.devices())
def test_every_shipped_device_loads(profile_id: str) -> None:
    profile = library.device(profile_id)
    assert profile.id == profile_id
    assert profile.cores >= 1
    assert profile.memory_bytes >= 2**29
    assert isinstance(profile.cores, int)
    assert isinstance(profile.memory_bytes, int)


@pytest.mark.parametrize("profile_id", ROOFLINE)
def test_the_rates_of_every_shipped_roofline_are_of_a_real_machine(profile_id: str) -> None:
    """A slip of a power of ten or two would leave these bounds."""
    profile = library.device(profile_id)
    assert all(1e7 <= getattr(profile, rate) <= 2e14 for rate in RATES)
    assert profile.memory_bytes_per_s <= (profile.stream_bytes_per_s or 2e12)
    assert 1e-6 <= profile.operator_s <= 1e-3


@pytest.mark.parametrize("profile_id", SCALAR)
def test_a_scalar_profile_has_no_other_rate(profile_id: str) -> None:
    profile = library.device(profile_id)
    assert 1e9 <= profile.flops_per_s <= 1e14
    assert all(getattr(profile, rate) is None for rate in RATES)
    assert profile.operator_s == 0


def test_both_tiers_are_shipped() -> None:
    assert ROOFLINE
    assert SCALAR


@pytest.mark.parametrize("path", sorted(ROOT.glob("profiles/[dn]e*/*.yaml")), ids=lambda path: path.stem)
def test_no_shipped_file_has_a_place_left_open(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "TODO" not in text
    assert f"\nid: {path.stem}\n" in f"\n{text}"


@pytest.mark.parametrize("profile_id", library.networks())
def test_every_shipped_network_loads(profile_id: str) -> None:
    profile = library.network(profile_id)
    assert profile.id == profile_id
    assert profile.up_bps > 0
    assert profile.down_bps > 0
    assert profile.shared_medium == (profile.technology in {"Wi-Fi", "LoRa", "Bluetooth"})
    assert profile.latency_s == profile.rtt_s / 2
    assert profile.nic_cap_bps is None or profile.nic_cap_bps >= max(profile.up_bps, profile.down_bps)


@pytest.mark.parametrize("profile_id", [*library.devices(), *library.networks()])
def test_every_figure_has_status_unit_and_source(profile_id: str) -> None:
    rows = library.describe(profile_id)
    assert len(rows) >= 5
    for row in rows:
        assert row.status in {"measured", "data-sheet", "computed", "inferred", "memory"}
        assert row.source.strip()
        assert row.unit
        assert math.isfinite(row.value)


def test_the_ids_promised_are_there() -> None:
    assert {
        *("rpi-3b-plus", "rpi-zero-2w", "rpi-4-2g", "rpi-4-4g", "rpi-4-8g", "rpi-5-8g", "phone-sd888"),
        *("jetson-nano-4g/10w", "jetson-nano-4g/5w", "server-cpu", "server-gpu", "gpu-v100-sxm2", "cpu-epyc-7713p"),
        *(f"jetson-tx2/{mode}" for mode in ("maxn", "maxq", "maxp-all", "maxp-arm", "maxp-denver")),
        *(f"jetson-orin-nano-8g/{mode}" for mode in ("7w", "15w", "25w", "maxn-super")),
        *(f"jetson-orin-nx-16g/{mode}" for mode in ("10w", "15w", "25w", "maxn")),
        *(f"jetson-agx-orin-64g/{mode}" for mode in ("15w", "30w", "50w", "maxn")),
        *(f"jetson-xavier-nx/{watt}w-{core}core" for watt in (15, 20) for core in (2, 4, 6)),
        *("jetson-xavier-nx/10w-2core", "jetson-xavier-nx/10w-4core", "jetson-xavier-nx/10w-desktop"),
    } <= set(library.devices())
    assert "jetson-xavier-nx/maxn" not in library.devices()  # no stock mode of that name
    assert {f"lora-eu868-dr{rate}" for rate in range(6)} < set(library.networks())
    assert {"eth-1g", "eth-100m", "wifi-n-24ghz", "wifi-ac-pi4", "wifi-ac-pi5", "lte"} <= set(library.networks())
    assert {"preset-pipar-4g", "preset-pipar-4g-plus", "preset-pipar-wifi", "preset-fedcomm-4g"} <= set(
        library.networks()
    )


def test_no_id_names_both_a_device_and_a_network() -> None:
    assert not set(library.devices()) & set(library.networks())


@pytest.mark.parametrize("rate", RATES)
def test_pi5_is_twice_a_pi4(rate: str) -> None:  # training rows measure 1.85 to 2.44
    assert 1.5 <= getattr(library.device("rpi-5-8g"), rate) / getattr(library.device("rpi-4-4g"), rate) <= 3


def test_modes_are_not_monotonic_where_they_were_measured_not_to_be() -> None:
    """AGX Orin: at 50 W twice the lanes of 30 W and a slower CPU. Orin NX: 25 W caps GPU and memory below 15 W."""
    slow, fast = library.device("jetson-agx-orin-64g/30w"), library.device("jetson-agx-orin-64g/50w")
    assert fast.conv_flops_per_s > slow.conv_flops_per_s
    assert fast.operator_s > slow.operator_s
    less, more = library.device("jetson-orin-nx-16g/15w"), library.device("jetson-orin-nx-16g/25w")
    assert more.memory_bytes_per_s < less.memory_bytes_per_s


def test_a_slower_power_mode_is_slower() -> None:
    slow, fast = library.device("jetson-nano-4g/5w"), library.device("jetson-nano-4g/10w")
    assert slow.conv_flops_per_s < fast.conv_flops_per_s
    assert (slow.cores, fast.cores) == (2, 4)
    assert slow.memory_bytes == fast.memory_bytes


def test_unknown_power_is_none() -> None:
    assert library.device("jetson-orin-nano-8g/25w").power_load_w is None
    assert "power_load_w" not in {row.figure for row in library.describe("jetson-orin-nano-8g/25w")}


def test_wifi_shares_its_medium_and_wire_does_not() -> None:
    assert library.network("wifi-n-24ghz").shared_medium
    assert not library.network("eth-1g").shared_medium


def test_a_profile_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        library.device("rpi-4-4g").cores = 8  # type: ignore[misc]


def test_an_alias_of_a_board_takes_modes_too() -> None:
    assert library.device("jetson-nano/5w") == library.device("jetson-nano-4g/5w")
    assert library.device("rpi-4b-4g").id == "rpi-4-4g"
    assert library.device("rpi-4b-8g").id == "rpi-4-8g"
    assert library.device("rtx-a6000") == library.device("gpu-rtx-a6000") == library.device("server-gpu")


def test_no_alias_is_given_twice_or_names_another_profile() -> None:
    boards = [library._shipped_board(path.stem) for path in ROOT.glob("profiles/devices/*.yaml")]
    names = [name for board in boards for name in (board.id, *board.aliases)] + library.networks()
    assert len(names) == len(set(names))


def test_describe_tells_the_measured_steps_with_their_source() -> None:
    rows = {row.figure: row for row in library.describe("rpi-5-8g")}
    step = rows["step of resnet-18 3x224x224, batch 16"]
    assert (step.value, step.unit, step.status) == (5.8425, "s", "measured")
    assert "raspberry-pi" in step.source


def test_one_profile_parses_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    library._shipped_board.cache_clear()
    places: list[str] = []

    def spy(text: str, place: str) -> dict[str, object]:
        places.append(place)
        return original(text, place)

    original = reading.read_mapping
    monkeypatch.setattr(library, "read_mapping", spy)
    library.device("jetson-nano-4g/10w")
    library.device("jetson-nano-4g/5w")
    assert places == ["profiles/devices/jetson-nano-4g.yaml"]


def test_torch_is_not_imported() -> None:
    code = "import sys, profiles, profiles.library; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# --- a name that is no profile


def test_a_misspelt_device_is_told_the_nearest() -> None:
    with pytest.raises(ProfileError) as caught:
        library.device("jetson_nanoo")
    assert str(caught.value) == "'jetson_nanoo' is no device profile; did you mean 'jetson-nano-4g/10w'?"


@pytest.mark.parametrize(
    ("profile_id", "said"),
    [
        ("jetson-nano-4g/20w", "'jetson-nano-4g' has no power mode '20w'; it has '10w', '5w'"),
        ("jetson-nano-4g", "has power modes; name one: 'jetson-nano-4g/10w' or 'jetson-nano-4g/5w'"),
        ("jetson-nano-4g/", "has no power mode ''; it has '10w', '5w'"),
        ("rpi-4-4g/10w", "'rpi-4-4g' has one power mode only, and '10w' was asked for; write 'rpi-4-4g'"),
        ("zzz", "'zzz' is no device profile; known: cpu-epyc-7443p"),
        ("../devices/rpi-4-4g", "is no device profile"),
        ("absent.yaml", "absent.yaml: cannot be read as a profile: No such file or directory"),
    ],
)
def test_a_wrong_device_is_refused(profile_id: str, said: str) -> None:
    with pytest.raises(ProfileError) as caught:
        library.device(profile_id)
    assert said in str(caught.value)


def test_a_wrong_network_is_refused() -> None:
    with pytest.raises(ProfileError, match=r"'eth1g' is no network profile; did you mean 'eth-1g'\?"):
        library.network("eth1g")
    with pytest.raises(ProfileError, match=r"'ltee' is no device or network profile; did you mean 'lte'\?"):
        library.describe("ltee")


# --- a user's own file


def test_a_users_own_device_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, BOARD)
    profile = library.device(path)
    assert profile.id == "my-board"
    assert profile.conv_flops_per_s == 15.8e9  # YAML 1.1 would take 15.8e9 for a text
    assert profile.memory_bytes == 4_000_000_000
    assert profile.nic_up_bps is None
    assert library.describe(path)[2] == ("conv_flops_per_s", 15.8e9, "FLOP/s", "measured", "timed here")


def test_a_users_own_network_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, NETWORK)
    assert library.network(path).latency_s == 3e-3
    assert [row.figure for row in library.describe(path)][:2] == ["up_bps", "down_bps"]


def test_a_users_own_modes_follow_the_path(tmp_path: Path) -> None:
    text = BOARD.replace("  operator_s: {value: 0, status: inferred, source: not seen}\n", "")
    text += "modes:\n"
    text += "  slow: {operator_s: {value: 2e-6, status: inferred, source: a guess}}\n"
    text += "  fast: {operator_s: {value: 1e-6, status: inferred, source: a guess}}\n"
    path = written(tmp_path, text)
    assert library.device(f"{path}/slow").operator_s == 2e-6
    assert library.device(f"{path}/fast").id == "my-board/fast"
    with pytest.raises(ProfileError, match="has no power mode 'medium'; it has 'slow', 'fast'"):
        library.device(f"{path}/medium")


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = written(tmp_path, BOARD)
    assert library.device(path).cores == 4
    written(tmp_path, BOARD.replace("cores: {value: 4,", "cores: {value: 16,"))
    assert library.device(path).cores == 16


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("value: 15.8e9", "value: -3", "mine.yaml: figures.conv_flops_per_s: -3 must be greater than 0"),
        ("value: 15.8e9", "value: 0", "figures.conv_flops_per_s: 0 must be greater than 0"),
        (
            "value: 15.8e9",
            "value: .nan",
            "figures.conv_flops_per_s.value: input should be a finite number, not nan",
        ),
        (
            "value: 15.8e9",
            "value: fast",
            "figures.conv_flops_per_s.value: input should be a valid number, not 'fast'",
        ),
        (
            "value: 15.8e9",
            "value: true",
            "figures.conv_flops_per_s.value: input should be a valid number, not True",
        ),
        ("value: 15.8e9, ", "", "figures.conv_flops_per_s.value: is missing; add it"),
        (
            "{value: 15.8e9, status: measured, source: timed here}",
            "15.8e9",
            "figures.conv_flops_per_s: 15800000000.0",
        ),
        (
            "{value: 0, status: inferred, source: not seen}",
            "{value: 0, status: inferred}",
            "figures.operator_s.source: is missing; add it",
        ),
        (
            "source: not seen",
            "source: ' '",
            "figures.operator_s.source: string should have at least 1 character",
        ),
        (
            "status: inferred",
            "status: guessed",
            "figures.operator_s.status: input should be 'measured', 'data-sheet'",
        ),
        ("value: 4,", "value: 2.5,", "figures.cores: 2.5 must be a whole number, 1 or more"),
        (
            "conv_flops_per_s",
            "conv_flop_per_s",
            "conv_flop_per_s: is no key of a profile; did you mean 'conv_flops",
        ),
        ("processor: cpu", "processor: tpu", "processor: input should be 'cpu' or 'gpu', not 'tpu'"),
        ("title: My board", "titel: My board", "title: is missing; add it (and 1 more)"),
        ("id: my-board", "id: My Board", "id: string should match pattern"),
        ("processor: cpu", "processor: cpu\nid: again", "line 5: key 'id' is given twice"),
        ("figures:", "figures: [", "line "),
        ("processor: cpu", "? [a, b]\n: 1", "line "),
        ("title: My board", "title: 2026-99-99", "month must be in 1..12"),
        (
            "processor: cpu",
            "processor: cpu\nmodes: {15: {}}",
            "modes.15: input should be a valid string, not 15",
        ),
        (
            "processor: cpu",
            "processor: cpu\nmodes: {slow: 15}",
            "modes.slow: input should be a valid dictionary",
        ),
        (
            "  operator_s: {value: 0, status: inferred, source: not seen}\n",
            "",
            "mine.yaml: figures: lacks operator_s; give all rates of the roofline, or flops_per_s alone",
        ),
    ],
)
def test_a_wrong_device_file_is_refused_with_its_place(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in BOARD
    path = written(tmp_path, BOARD.replace(old, new, 1))
    with pytest.raises(ProfileError) as caught:
        library.device(path)
    message = str(caught.value)
    assert message.startswith(path)
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "value: 0.001",
            "value: 1",
            "figures.loss_fraction: 1 must be a fraction from 0 up to, not including, 1",
        ),
        ("value: 6e-3", "value: -1", "figures.rtt_s: -1 must be 0 or more"),
        ("value: 20e6", "value: .inf", "figures.up_bps.value: input should be a finite number, not inf"),
        ("shared_medium: true", "shared_medium: 3", "shared_medium: input should be a valid boolean, not 3"),
        ("  up_bps", "  up_mbps", "figures.up_bps: is missing; add it (and 1 more)"),
    ],
)
def test_a_wrong_network_file_is_refused_with_its_place(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = written(tmp_path, NETWORK.replace(old, new, 1))
    with pytest.raises(ProfileError) as caught:
        library.network(path)
    assert str(caught.value).startswith(path)
    assert said in str(caught.value)


def test_a_roofline_and_a_scalar_are_one_too_many(tmp_path: Path) -> None:
    both = BOARD + "  flops_per_s: {value: 1e9, status: inferred, source: a guess}\n"
    with pytest.raises(ProfileError, match=r"figures\.flops_per_s: given beside conv_flops_per_s; keep"):
        library.device(written(tmp_path, both))


def test_a_scalar_alone_is_enough(tmp_path: Path) -> None:
    kept = [line for line in BOARD.splitlines() if "flops" not in line and "bytes_per" not in line]
    text = "\n".join(line for line in kept if "operator_s" not in line)
    text += "\n  flops_per_s: {value: 1e9, status: inferred, source: a guess}\n"
    assert library.device(written(tmp_path, text)).flops_per_s == 1e9


STEP = "{network: vgg-5 3x32x32, batch: 1, roofline_s: 1.0, step_s: {value: 1, status: measured, source: timed}}"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("vgg-5 3x32x32", "VGG 5", "figures.measured.0.network: string should match pattern"),
        ("batch: 1", "batch: 0", "figures.measured.0.batch: input should be greater than or equal to 1"),
        ("roofline_s: 1.0, ", "", "figures.measured.0.roofline_s: is missing; add it"),
        ("{value: 1, status: measured, source: timed}", "3", "figures.measured.0.step_s: "),
    ],
)
def test_a_wrong_measured_step_is_refused_with_its_place(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert library.device(written(tmp_path, f"{BOARD}  measured: [{STEP}]\n")).measured[0].step_s == 1
    with pytest.raises(ProfileError) as caught:
        library.device(written(tmp_path, f"{BOARD}  measured: [{STEP.replace(old, new)}]\n"))
    assert said in str(caught.value)


def test_a_figure_in_both_places_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, BOARD + "modes: {slow: {cores: {value: 2, status: inferred, source: a guess}}}\n")
    with pytest.raises(ProfileError, match=r"modes\.slow\.cores: given under 'figures' as well; keep one of the two"):
        library.device(f"{path}/slow")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_a_file_without_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ProfileError, match="holds no mapping of keys to values"):
        library.device(written(tmp_path, text))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProfileError, match="it is not UTF-8 text"):
        library.device(str(path))


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="could not determine a constructor"):
        library.device(written(tmp_path, "id: !!python/object/apply:os.getcwd []\n"))
