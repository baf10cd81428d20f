"""What of the docker testbed works on this machine, and what would mend the rest."""

from __future__ import annotations

from harness.errors import TestbedError
from testbeds.docker import access, shaping_tc
from testbeds.docker.gpu import doctor as gpu_doctor

_NEEDS = {"tbf": "CONFIG_NET_SCH_TBF", "htb": "CONFIG_NET_SCH_HTB", "u32": "CONFIG_NET_CLS_U32"}
_SPARES = {
    "netem": "delay and jitter are left to the transport and loss to none; load sch_netem (modprobe sch_netem, on "
    "Ubuntu from linux-modules-extra)",
    "ifb": "not needed",
}


def doctor() -> list[tuple[str, str, str]]:
    """Return rows (what, state, remedy); the remedy is empty where all is well."""
    rows = access.check()
    try:
        kinds = shaping_tc.kinds()
    except TestbedError as error:
        rows.append(("docker shaping", "missing", f"{error}; or say testbed.shaped: false"))
    else:
        for kind, works in kinds.items():
            remedy = _SPARES.get(kind) or f"the kernel lacks it; boot one with {_NEEDS.get(kind, kind)}"
            rows.append((f"docker tc {kind}", "works" if works else "missing", "" if works else remedy))
    return rows + gpu_doctor()
