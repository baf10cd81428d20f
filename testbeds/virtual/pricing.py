"""The price list of a run: each computation is traced once and from then on has a price on every machine."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_iter

from harness.cost.key import Key, digest
from harness.cost.key import key as price_key
from harness.cost.key import name as price_name
from harness.cost.trace import Tracer, trace
from harness.cost.work import Work
from harness.errors import AmmeterError, ProtocolError
from harness.task.batch import batch_size, samples_in
from profiles.device import DeviceProfile
from profiles.price import Price, price


class Entry:
    """One priced computation: its work, and its value when nothing is really computed."""

    __slots__ = ("_digest", "_key", "_prices", "batch", "name", "plain", "samples", "value", "work")

    def __init__(self, key: Key, name: str, work: Work, value: Any, plain: bool, samples: int, batch: int = 0) -> None:
        self._key = key
        self._digest = ""
        self.name = name
        self.work = work
        self.value = value
        self.plain = plain  # the value holds something that is no tensor
        self.samples = samples  # training samples in the mini-batches it is given
        self.batch = batch  # samples that it computes on, as far as its arguments tell
        self._prices: dict[int, Price] = {}

    @property
    def digest(self) -> str:
        """What names the computation in every process (harness.cost.key); found once for all nodes."""
        if not self._digest:
            self._digest = digest(self._key)
        return self._digest

    def price(self, profile: DeviceProfile) -> Price:
        """Return what it costs on a profile; found once for every profile of the run."""
        found = self._prices.get(id(profile))
        if found is None:
            found = self._prices[id(profile)] = price(self.work, profile, batch=self.batch)
        return found


class Prices:
    """Traced computations by key; shared by all nodes of a run.

    Args:
        timing: computations are traced on meta tensors and their first value is returned ever after; else the
            first call is traced while it really runs and later ones just run.
    """

    def __init__(self, timing: bool) -> None:
        self.timing = timing
        self.entries: dict[Any, Entry] = {}

    def put(self, fn: Callable[..., Any], args: tuple[Any, ...], work: Work) -> None:
        """Give `fn(*args)` a known amount of work instead of tracing it; its value is None in timing mode."""
        key = price_key(fn, args)
        self.entries[key] = Entry(key, price_name(fn), work, None, False, 0)

    def trace(self, fn: Callable[..., Any], args: tuple[Any, ...], steers: bool) -> tuple[Entry, Any]:
        """Run `fn(*args)` under the tracer; return its new entry and its value.

        Args:
            steers: the caller has a stand-in for the value, so a function that needs real numbers may stop
                where it asks for them.

        Raises:
            ProtocolError: it needs real numbers in timing mode, or `StopIteration` comes out of it.
        """
        key = price_key(fn, args)
        name = price_name(fn)
        try:
            if self.timing and steers:
                value, work = None, _work_until_value(fn, args)
            else:
                value, work = trace(fn, args)
        except AmmeterError:
            raise
        except StopIteration as error:
            raise ProtocolError(f"compute({name}): StopIteration came out of it; return a value instead") from error
        except (RuntimeError, TypeError, NotImplementedError) as error:
            if self.timing and "meta" in str(error):
                raise ProtocolError(
                    f"compute({name}) needs the value of a tensor, which timing mode does not have "
                    f"({_place(error)}); return a tensor, or give compute(..., stand_in=...) for a value that steers"
                ) from error
            raise
        plain = (self.timing and steers) or any(
            not isinstance(leaf, (torch.Tensor, type(None))) for leaf in tree_iter(value)
        )
        entry = self.entries[key] = Entry(
            key, name, work, value if self.timing else None, plain, samples_in(args), batch_size(args)
        )
        return entry, value


def _work_until_value(fn: Callable[..., Any], args: tuple[Any, ...]) -> Work:
    """Trace a function that ends in asking a tensor for its value; what it did until then is its work."""
    tracer = Tracer()
    try:
        with tracer:
            fn(*args)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        if "meta" not in str(error):
            raise
    return tracer.work()


def _place(error: BaseException) -> str:
    """Return file and line, outside torch, where an error came from."""
    inside = ("/torch/", "/harness/cost/trace.py")
    frames = traceback.extract_tb(error.__traceback__)
    frames = traceback.StackSummary.from_list(
        [frame for frame in frames if not any(part in frame.filename for part in inside)]
    )
    last = frames[-1]
    return f"{last.filename.rsplit('/', 1)[-1]}:{last.lineno}: {last.line}"
