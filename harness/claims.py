"""What a paper reports, to be put beside what our runs give: by how much one method lowers a figure of another.

    claims:
      - {figure: payload_bytes, method: Ampere, against: SplitFed V1, reported: 0.991, source: "..., abstract"}

A claim only labels runs: it is no part of a run's id, and changing it makes no run anew. Imports no torch.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from harness.errors import suggestion

_CAUSES = ("dependency", "straggler", "transfer", "unselected")

FIGURES: dict[str, tuple[str, tuple[str, ...]]] = {
    # figure: (heading, columns of a run's summary that are added up)
    "makespan_s": ("training time", ("makespan_s",)),
    "time_to_accuracy_s": ("time to accuracy", ("time_to_accuracy_s",)),
    "payload_bytes": ("communication", ("payload_up_bytes", "payload_down_bytes")),
    "payload_up_bytes": ("communication up", ("payload_up_bytes",)),
    "payload_down_bytes": ("communication down", ("payload_down_bytes",)),
    "wire_bytes": ("bytes on the wire", ("wire_bytes",)),
    "messages": ("messages", ("messages",)),
    "device_flops": ("device computation", ("device_flops",)),
    "server_flops": ("server computation", ("server_flops",)),
    "device_compute_s": ("device computing time", ("device_compute_s",)),
    "server_compute_s": ("server computing time", ("server_compute_s",)),
    "device_energy_j": ("device energy", ("device_energy_j",)),
    "peak_device_memory_bytes": ("peak device memory", ("peak_device_memory_bytes",)),
    "peak_server_memory_bytes": ("peak server memory", ("peak_server_memory_bytes",)),
    **{f"{role}_idle_s": (f"{role} idle time", (f"{role}_idle_s",)) for role in ("device", "server")},
    **{
        f"{role}_idle_{cause}_s": (f"{role} idle time, {cause}", (f"{role}_idle_{cause}_s",))
        for role in ("device", "server")
        for cause in _CAUSES
    },
}
"""The figures that a claim can be about: costs, so that less is better."""


class Claim(BaseModel):
    """A reduction that a paper reports, or that is asked about.

    Attributes:
        figure: which of FIGURES.
        method, against: labels of two methods of the experiment; the reduction is 1 - method / against.
        reported: the paper's reduction as a fraction (0.991 = 99.1 % less); None = it reports none, ours is shown.
        source: where it is reported, and with which words ("up to").
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    figure: str
    method: str = Field(min_length=1)
    against: str = Field(min_length=1)
    reported: float | None = Field(default=None, le=1)
    source: str = ""

    @field_validator("figure")
    @classmethod
    def _known(cls, figure: str) -> str:
        if figure not in FIGURES:
            raise ValueError(f"no claim can be about it{suggestion(figure, FIGURES)}")
        return figure
