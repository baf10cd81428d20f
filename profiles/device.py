"""What a device computes, remembers and draws in one power mode, and the file that says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from profiles.figure import CountFigure, Figure, NonNegativeFigure, PositiveFigure

Processor = Literal["cpu", "gpu"]
Identifier = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*$")]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredStep:
    """A published time of one whole training step (forward, backward, update) of a network.

    Attributes:
        network: its name and the shape of its input, "resnet-18 3x224x224".
        batch: samples in the mini-batch.
        step_s: the time.
        roofline_s: what the profile's own rates make of the same step; a test holds it against the trace.
    """

    network: str
    batch: int
    step_s: float
    roofline_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """A device in one power mode, as the clock prices it (see profiles.price).

    FLOPs are 2 x multiply-accumulates, fp32, in training; bytes are what an operator reads plus what it
    writes, its tensor arguments and results, each counted once. A profile has all rates of the roofline, or
    none of them and `flops_per_s` alone.

    Attributes:
        id: `board` or `board/mode`, as `profiles.library.device` takes it.
        title: for people.
        processor: the processor the rates are of.
        cores: CPU cores online in this mode, also on a GPU device.
        memory_bytes: RAM the training shares with everything else; a discrete GPU's own memory.
        conv_flops_per_s: dense convolutions.
        matmul_flops_per_s: matrix products.
        depthwise_flops_per_s: depthwise convolutions, forward.
        depthwise_backward_flops_per_s: their backward passes.
        memory_bytes_per_s: every other operator: normalisation, activations, copies, the optimiser.
        stream_bytes_per_s: what convolutions and products cannot move faster than (STREAM); None no limit.
        operator_s: added per operator call (dispatch, kernel launch).
        flops_per_s: of a whole training step, for a profile without the rates above; None with them.
        measured: published times of whole training steps.
        nic_up_bps: bits per second of TCP payload the wired interface sends at most; None unknown.
        nic_down_bps: the same, receiving.
        wifi_bps: the same for on-board Wi-Fi, both directions together; None without or unknown.
        power_idle_w: drawn when idle; None unknown.
        power_load_w: drawn when computing; None unknown.
    """

    id: str
    title: str
    processor: Processor
    cores: int
    memory_bytes: int
    conv_flops_per_s: float | None = None
    matmul_flops_per_s: float | None = None
    depthwise_flops_per_s: float | None = None
    depthwise_backward_flops_per_s: float | None = None
    memory_bytes_per_s: float | None = None
    stream_bytes_per_s: float | None = None
    operator_s: float = 0.0
    flops_per_s: float | None = None
    measured: tuple[MeasuredStep, ...] = ()
    nic_up_bps: float | None = None
    nic_down_bps: float | None = None
    wifi_bps: float | None = None
    power_idle_w: float | None = None
    power_load_w: float | None = None


_ROOFLINE = (
    "conv_flops_per_s",
    "matmul_flops_per_s",
    "depthwise_flops_per_s",
    "depthwise_backward_flops_per_s",
    "memory_bytes_per_s",
    "operator_s",
)
_REQUIRED = ("cores", "memory_bytes")


class MeasuredFigure(BaseModel):
    """A published time of a training step, in a file; see MeasuredStep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+ \d+(x\d+)*$")]
    batch: Annotated[int, Field(strict=True, ge=1)]
    step_s: PositiveFigure
    roofline_s: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]


class DeviceFigures(BaseModel):
    """The figures of a board or of one of its modes; names and units are DeviceProfile's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cores: CountFigure | None = None
    memory_bytes: CountFigure | None = None
    conv_flops_per_s: PositiveFigure | None = None
    matmul_flops_per_s: PositiveFigure | None = None
    depthwise_flops_per_s: PositiveFigure | None = None
    depthwise_backward_flops_per_s: PositiveFigure | None = None
    memory_bytes_per_s: PositiveFigure | None = None
    stream_bytes_per_s: PositiveFigure | None = None
    operator_s: NonNegativeFigure | None = None
    flops_per_s: PositiveFigure | None = None
    nic_up_bps: PositiveFigure | None = None
    nic_down_bps: PositiveFigure | None = None
    wifi_bps: PositiveFigure | None = None
    power_idle_w: NonNegativeFigure | None = None
    power_load_w: PositiveFigure | None = None
    measured: tuple[MeasuredFigure, ...] = ()

    def given(self) -> dict[str, Figure]:
        """Return the figures that the file gives, by name."""
        return {key: figure for key in type(self).model_fields if isinstance(figure := getattr(self, key), Figure)}


class BoardFile(BaseModel):
    """A board's file: figures that hold in every power mode, and per mode those that do not.

    A board without `modes` has one mode, and its profile id is the board's id. A figure stands in one
    of the two places, never in both, and every mode ends up with all that are required.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Identifier
    title: Annotated[str, StringConstraints(min_length=1)]
    aliases: tuple[Identifier, ...] = ()
    processor: Processor
    figures: DeviceFigures = DeviceFigures()
    modes: dict[Identifier, DeviceFigures] = {}

    @model_validator(mode="after")
    def _complete(self) -> BoardFile:
        shared = self.figures.given().keys()
        for mode, figures in self.modes.items() or [("", DeviceFigures())]:
            place = f"modes.{mode}" if mode else "figures"
            own = figures.given().keys()
            if twice := sorted(shared & own):
                raise _board_error(f"{place}.{twice[0]}: given under 'figures' as well; keep one of the two")
            found = shared | own
            if missing := [key for key in _REQUIRED if key not in found]:
                raise _board_error(f"{place}: lacks {', '.join(missing)}; every profile needs them")
            rates = [key for key in _ROOFLINE if key in found]
            if "flops_per_s" in found and rates:
                raise _board_error(
                    f"{place}.flops_per_s: given beside {rates[0]}; keep the roofline's rates or this one"
                )
            if "flops_per_s" not in found and (missing := [key for key in _ROOFLINE if key not in found]):
                raise _board_error(
                    f"{place}: lacks {', '.join(missing)}; give all rates of the roofline, or flops_per_s alone"
                )
        return self

    def profile_ids(self) -> list[str]:
        """Return the ids of the board's profiles, in the order of the file."""
        return [f"{self.id}/{mode}" for mode in self.modes] or [self.id]

    def mode_figures(self, mode: str | None) -> dict[str, Figure]:
        """Return every figure of one mode by name, in DeviceProfile's order.

        Raises:
            KeyError: the board has no such mode.
        """
        given = self.figures.given() | (self.modes[mode].given() if mode is not None else {})
        return {key: given[key] for key in DeviceFigures.model_fields if key in given}

    def measured_steps(self, mode: str | None) -> tuple[MeasuredFigure, ...]:
        """Return the published steps of one mode.

        Raises:
            KeyError: the board has no such mode.
        """
        return self.figures.measured + (self.modes[mode].measured if mode is not None else ())

    def profile(self, mode: str | None) -> DeviceProfile:
        """Return the profile of one mode, or of the board where it has one mode only.

        Raises:
            KeyError: the board has no such mode.
        """
        values: dict[str, Any] = {key: figure.value for key, figure in self.mode_figures(mode).items()}
        for whole in _REQUIRED:
            values[whole] = int(values[whole])
        return DeviceProfile(
            id=self.id if mode is None else f"{self.id}/{mode}",
            title=self.title if mode is None else f"{self.title}, {mode}",
            processor=self.processor,
            measured=tuple(
                MeasuredStep(
                    network=step.network, batch=step.batch, step_s=step.step_s.value, roofline_s=step.roofline_s
                )
                for step in self.measured_steps(mode)
            ),
            **values,
        )


def _board_error(message: str) -> PydanticCustomError:
    return PydanticCustomError("board", "{message}", {"message": message})
