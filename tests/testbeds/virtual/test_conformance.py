"""The conformance check passes what is good and fails each kind of bad method on the right check."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import ConfigError
from testbeds.virtual import conformance
from testbeds.virtual.conformance import Finding

RULES = "keeps the rules under random speeds and delays"
READS = "reads every message"
WEIGHTS = "weights do not depend on speed"
TIMING = "timing mode agrees with learning"

# ---- what is good -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("fedavg", {}),
        ("fedavg", {"fraction": 0.5}),
        ("sl", {"split_point": 2}),
        ("splitfed_v1", {"split_point": 2}),
        ("splitfed_v2", {"split_point": 1}),
        ("splitfed_v2", {"split_point": 2, "order": "round_robin"}),
        ("ampere", {"split_point": 1}),
        ("ampere", {"split_point": 1, "patience": 1}),
    ],
)
def test_shipped_methods_conform(method: str, settings: dict) -> None:
    findings = conformance.check(method, settings, trials=3)
    assert [finding.check for finding in findings] == [RULES, READS, WEIGHTS, TIMING]
    assert [finding for finding in findings if not finding.passed] == []


def test_an_asynchronous_order_is_allowed_to_depend_on_speed() -> None:
    """SplitFed V2 that serves arrivals: three devices of random speeds are served in other orders."""
    findings = {finding.check: finding for finding in conformance.check("splitfed_v2", trials=3)}
    assert findings[WEIGHTS].passed
    assert "not required of an asynchronous method" in findings[WEIGHTS].seen


# ---- what is bad ------------------------------------------------------------------------------------------------

FEDAVG = '''"""A FedAvg that can be spoilt in one place."""

import torch

from harness.method import MethodConfig
from harness.task.aggregate import shares, weighted_average


class Config(MethodConfig):
    """Nothing to set."""


def total(weights):
    """A number that is no tensor."""
    return float(sum(tensor.sum() for tensor in weights.values()))


def scaled(state):
    """Changes a state in place."""
    for tensor in state.values():
        tensor.mul_(1.0001)
    return state


def mixed(weights, update):
    """Half old, half new: the order of updates matters."""
    return {name: (tensor + update[name]) / 2 for name, tensor in weights.items()}


async def device(node, task, config):
    model = task.trainer()
    async for message in node.stream("weights", from_="server"):
        index = message.round
        await node.compute(model.begin_round, message.payload, task.training.reset_optimizer)
        for batch in task.batches(index):
            await node.compute(model.step, batch)
        weights = await node.compute(model.weights)
        BEFORE_SENDING
        SENDING
        AFTER_SENDING


async def server(node, task, config):
    weights = await node.compute(task.trainer().weights)
    scorer = task.scorer()
    for index in node.rounds(task.training.rounds):
        node.broadcast("weights", weights, round=index)
        AVERAGING
        node.evaluate(scorer, weights, round=index)
    node.close("weights")


ROLES = {"device": device, "server": server}
ENDS = "server"
'''

SENDING = 'await node.send("server", "update", weights, round=index)'
AVERAGING = """updates = await node.gather("update", round=index)
        weights = await node.compute(weighted_average, updates.payloads, shares([1, 1, 1], "uniform"))"""


def _method(folder: Path, **spoilt: str) -> str:
    """Write FEDAVG with some places changed; return its path."""
    text = FEDAVG
    parts = {"BEFORE_SENDING": "", "SENDING": SENDING, "AFTER_SENDING": "pass", "AVERAGING": AVERAGING} | spoilt
    for place in ("BEFORE_SENDING", "AFTER_SENDING", "AVERAGING", "SENDING"):
        text = text.replace(place, parts[place])
    path = folder / "mine.py"
    path.write_text(text)
    return str(path)


def _failed(path: str, trials: int = 3) -> list[Finding]:
    return [finding for finding in conformance.check(path, trials=trials) if not finding.passed]


def test_the_unspoilt_method_conforms(tmp_path: Path) -> None:
    findings = conformance.check(_method(tmp_path), trials=3)
    assert all(finding.passed for finding in findings), findings
    assert "2 evaluated states are equal bit for bit in 3 runs" in {f.check: f for f in findings}[WEIGHTS].seen


def test_a_payload_that_is_changed_after_its_post(tmp_path: Path) -> None:
    path = _method(
        tmp_path,
        SENDING='node.post("server", "update", weights, round=index)',
        AFTER_SENDING="await node.compute(scaled, weights)",
    )
    (finding,) = _failed(path)
    assert finding.check == "trial 1: keeps the rules"
    assert finding.seen.startswith("ProtocolError: device-")
    assert "'update'" in finding.seen
    assert "changed after it was posted" in finding.seen


def test_a_lambda_in_compute(tmp_path: Path) -> None:
    (finding,) = _failed(_method(tmp_path, BEFORE_SENDING="weights = await node.compute(lambda: weights)"))
    assert finding.check == "trial 1: keeps the rules"
    assert finding.seen.startswith("ProtocolError")
    assert "lambda" in finding.seen


def test_nodes_that_wait_for_each_other(tmp_path: Path) -> None:
    """The devices wait for a go that the server sends after it has their updates."""
    path = _method(
        tmp_path,
        BEFORE_SENDING='await node.recv("go", from_="server")',
        AVERAGING=AVERAGING + '\n        node.broadcast("go")',
    )
    (finding,) = _failed(path)
    assert finding.check == "trial 1: keeps the rules"
    assert finding.seen.startswith("DeadlockError")
    for words in ("server waits for 'update'", "device-0 waits for 'go' from server"):
        assert words in finding.seen


def test_messages_that_nobody_reads(tmp_path: Path) -> None:
    """Each of 3 devices says something before its update in each of 2 rounds: 6 unread messages in every run."""
    path = _method(tmp_path, BEFORE_SENDING='node.post("server", "chatter", round=index)')
    (finding,) = _failed(path)
    assert finding == Finding(READS, False, "unread messages per run: [6, 6, 6]")


def test_a_value_that_steers_without_a_stand_in(tmp_path: Path) -> None:
    """It works while learning; timing mode has no such value."""
    path = _method(tmp_path, BEFORE_SENDING="_ = 'big' if await node.compute(total, weights) > 0 else 'small'")
    (finding,) = _failed(path)
    assert finding.check == TIMING
    assert finding.seen.startswith("ProtocolError")
    assert "compute(total)" in finding.seen
    assert "stand_in" in finding.seen


def test_the_same_value_with_a_stand_in_conforms(tmp_path: Path) -> None:
    line = "_ = 'big' if await node.compute(total, weights, stand_in=float) > 0 else 'small'"
    assert _failed(_method(tmp_path, BEFORE_SENDING=line)) == []


def test_a_stand_in_that_steers_the_time_elsewhere(tmp_path: Path) -> None:
    """Learned, the sum of the weights is some number; in timing mode it stands for 0: another sleep, another time."""
    line = "await node.sleep(1.0 if await node.compute(total, weights, stand_in=float) else 2.0)"
    (finding,) = _failed(_method(tmp_path, BEFORE_SENDING=line))
    assert finding.check == TIMING
    assert "s learned" in finding.seen


ARRIVALS = """for _ in node.devices:
            message = await node.recv("update", round=index)
            weights = await node.compute(mixed, weights, message.payload)"""


def test_weights_that_depend_on_the_order_of_arrival(tmp_path: Path) -> None:
    """The server mixes updates in as they come and says nothing of being asynchronous."""
    (finding,) = _failed(_method(tmp_path, AVERAGING=ARRIVALS), trials=4)
    assert finding.check == WEIGHTS
    assert "differ, first at 'global' of round" in finding.seen


def test_the_same_method_may_say_that_it_is_asynchronous(tmp_path: Path) -> None:
    path = Path(_method(tmp_path, AVERAGING=ARRIVALS))
    path.write_text(path.read_text() + "\n\ndef synchronous(config):\n    return False\n")
    findings = {finding.check: finding for finding in conformance.check(str(path), trials=4)}
    assert findings[WEIGHTS].passed
    assert findings[WEIGHTS].seen.endswith("(here they do)")


def test_weights_that_depend_on_the_clock(tmp_path: Path) -> None:
    """Who sends later is changed: `now_s` steers what is learned."""
    line = "weights = await node.compute(scaled, weights) if node.now_s % 0.2 < 0.1 else weights"
    (finding,) = _failed(_method(tmp_path, BEFORE_SENDING=line), trials=4)
    assert finding.check == WEIGHTS


def test_a_round_more_in_some_runs_is_a_difference(tmp_path: Path) -> None:
    """The server stops early where the network was slow: what was evaluated is equal, but there is less of it.

    With seed 1 the first round ends at about 0.85 s in the first trial and before 0.62 s in the others.
    """
    text = Path(_method(tmp_path)).read_text()
    stop = "        node.evaluate(scorer, weights, round=index)\n"
    path = tmp_path / "mine.py"
    path.write_text(text.replace(stop, stop + "        if node.now_s > 0.7:\n            break\n"))
    found = [finding.check for finding in _failed(str(path), trials=4)]
    assert found == [WEIGHTS]


def test_an_exception_of_the_methods_own_is_a_finding(tmp_path: Path) -> None:
    """A method's bug is what the check is there to show: not a traceback of ours."""
    (finding,) = _failed(_method(tmp_path, BEFORE_SENDING='raise RuntimeError("my own mistake")'))
    assert finding.check == "trial 1: keeps the rules"
    assert "my own mistake" in finding.seen


def test_a_method_that_evaluates_nothing_is_told_so(tmp_path: Path) -> None:
    path = Path(_method(tmp_path))
    path.write_text(path.read_text().replace("node.evaluate(scorer, weights, round=index)", "pass"))
    findings = {finding.check: finding for finding in conformance.check(str(path), trials=2)}
    assert findings[WEIGHTS].passed
    assert "not checked" in findings[WEIGHTS].seen


def test_the_same_check_sees_the_same(tmp_path: Path) -> None:
    """Random networks of a seed: the findings can be quoted in a report. Another seed draws others."""
    path = _method(tmp_path)
    assert conformance.check(path, trials=2) == conformance.check(path, trials=2)
    assert conformance.check(path, trials=2, seed=2) != conformance.check(path, trials=2)


def test_nothing_to_check_is_an_error() -> None:
    with pytest.raises(ConfigError, match="did you mean 'fedavg'"):
        conformance.check("fedavgg")
    with pytest.raises(ConfigError, match="fractoin"):
        conformance.check("fedavg", {"fractoin": 1})
