"""How an instance leaves its volume (docs/semantics.md, A3.9 to A3.11, A8).

Out of the callback lists, teardown-start, wait until no operation uses it, teardown-complete, its I/O and contexts,
gone. Whether it may leave is the manager's to ask before. Runs on trio's thread, with no lock held.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import structlog
import trio

from stackfs import api, contexts, filter_calls, verifier
from stackfs.cext import filter_file, sections
from stackfs.filter_objects import Instance, InstanceState, Volume

log = structlog.get_logger("stackfs.manager")

_TOUCHES_CACHES = frozenset(
    {
        api.IRP_MJ_READ,
        api.IRP_MJ_WRITE,
        api.IRP_MJ_QUERY_OPEN,
        api.IRP_MJ_NETWORK_QUERY_OPEN,
        api.IRP_MJ_QUERY_INFORMATION,
        api.IRP_MJ_DIRECTORY_CONTROL,
    }
)
"""An instance that registers one of these may make what the kernel has cached wrong by coming or going."""

DRAIN_POLL, DRAIN_POLL_AT_MOST = 0.0005, 0.02
"""Seconds between two looks at whether operations still use what has been taken out; from the first to the last."""

DRAIN_AFTER = 0.2
"""Seconds that operations have to finish by themselves before an instance that leaves gives its posts up (A3.10)."""

CANCEL_EVERY = 0.05
"""Seconds between two rounds of cancelling what an instance that leaves holds: it may have come to hold more."""

PATIENCE = 2.0
"""Seconds after which an unload or teardown that waits, for references or for what filters hold, says so in the log."""


async def tear_down(instances: Sequence[Instance], reason: int) -> None:
    """Takes instances out (A3.9); one that is being set up when it has been, one that is going is waited for.

    All are told to let go before any is waited for: what one holds may be what another waits for.
    """
    for instance in instances:
        await instance.settled.wait()
    going = [instance for instance in instances if instance.state is InstanceState.ATTACHED]
    for instance in going:
        instance.become(InstanceState.TEARING_DOWN)
    with trio.CancelScope(shield=True):
        for instance in going:
            await _start(instance, reason)
        for instance in going:
            await _complete(instance, reason)
    for instance in instances:
        await instance.gone.wait()


async def _start(instance: Instance, reason: int) -> None:
    volume, loaded = instance.volume, instance.filter
    instance.rundown.run_down()
    if reason != api.FLTFL_INSTANCE_TEARDOWN_VOLUME_DISMOUNT:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_what_it_holds, instance)
            await write_back(instance)
            nursery.cancel_scope.cancel()
        volume.settle_needs()  # before anything can go past where it was
    volume.core.stack.remove(instance.entry)
    volume.attached(loaded).remove(instance)
    volume.unsettled.append(instance)
    volume.settle_timeouts()
    volume.settle_bypass()
    instance.entry.close_contexts()
    routine = loaded.object.instance_teardown_start
    await filter_calls.tell(f"{loaded.name}: instance_teardown_start", routine, instance, reason)


async def _complete(instance: Instance, reason: int) -> None:
    volume, loaded = instance.volume, instance.filter
    await _drain(instance)
    with trio.move_on_after(PATIENCE) as patience:
        await instance.rundown.wait(work_alone=True)
    if patience.cancelled_caught:
        held = instance.rundown.holders()
        log.warning("a teardown waits for what is under way", instance=instance.name, held_by=held)
        await instance.rundown.wait(work_alone=True)
    while filter_file.io_pending(instance.entry):
        await trio.sleep(DRAIN_POLL)
    if reason != api.FLTFL_INSTANCE_TEARDOWN_VOLUME_DISMOUNT:
        await invalidate(instance)
    routine = loaded.object.instance_teardown_complete
    await filter_calls.tell(f"{loaded.name}: instance_teardown_complete", routine, instance, reason)
    left_open = await end_io(instance)
    await contexts.delete_all(instance.entry)
    await filter_calls.end(instance)
    await _settle_contexts(instance)
    verifier.instance_ends(instance, left_open)
    volume.unsettled.remove(instance)
    loaded.instances.remove(instance)
    loaded.former = [each for each in (*loaded.former, instance) if each.rundown.held]
    instance.context = None
    instance.become(InstanceState.GONE)


async def replaced(volume: Volume) -> None:
    """Until no operation walks a callback list that has been replaced, but for what filters hold."""
    volume.core.restart_waiting_locks()
    pause = DRAIN_POLL
    while not volume.core.stack.drained():
        await trio.sleep(pause)
        pause = min(pause * 1.5, DRAIN_POLL_AT_MOST)


async def _drain(instance: Instance) -> None:
    """Until no operation uses an instance that has been taken out: by itself, because what the instance holds is
    cancelled, or because it was drained (A3.10, A3.11)."""
    core, entry = instance.volume.core, instance.entry
    core.restart_waiting_locks()
    cancel_at = begun = trio.current_time()
    tell_at = begun + PATIENCE
    pause = DRAIN_POLL
    while core.stack.drain(entry):
        if trio.current_time() >= cancel_at:
            core.cancel_held(entry)
            cancel_at = trio.current_time() + CANCEL_EVERY
        if trio.current_time() >= tell_at:
            tell_at = math.inf
            held = core.held(entry)
            log.warning("a teardown waits for operations that are held or changed", instance=instance.name,
                        held=held)  # fmt: skip
            if held and verifier.is_on():
                verifier.report(f"it holds {held} operations, and does not complete them when it is torn down",
                                filter=instance.filter.name, instance=instance.name)  # fmt: skip
        await trio.sleep(pause)
        pause = min(pause * 1.5, DRAIN_POLL_AT_MOST)
        if trio.current_time() < begun + DRAIN_AFTER:
            continue
        if not await filter_calls.in_thread(core.stack.drain, entry, True):
            break
    core.stack.drained()  # frees what nobody walks any more


async def _cancel_what_it_holds(instance: Instance) -> None:
    """While the kernel writes its pages back before an instance leaves: it waits for pages that are being read, and
    the instance may hold such a read."""
    await trio.sleep(DRAIN_AFTER)
    while True:
        instance.volume.core.cancel_held(instance.entry)
        await trio.sleep(CANCEL_EVERY)


async def _settle_contexts(instance: Instance) -> None:
    """A context that has been taken off its file may be on its way to its end in another thread: no leak."""
    with trio.move_on_after(verifier.GRACE):
        while verifier.holds(instance):
            await trio.sleep(DRAIN_POLL_AT_MOST)


async def write_back(instance: Instance) -> None:
    """What was written before the instance comes, or before it goes, takes the way that it was written for (D9)."""
    if instance.volume.write_back is not None and instance.sees_data:
        with trio.CancelScope(shield=True):
            await instance.volume.write_back()


async def end_io(instance: Instance) -> int:
    """The filter starts no more I/O on this volume; what it left open is closed: how many files (B4.8)."""
    filter_file.end_io(instance.entry)
    while filter_file.io_pending(instance.entry):
        await trio.sleep(DRAIN_POLL)
    scanned = sections.close_left_open(instance.entry)
    if scanned:
        log.warning("sections left open", filter=instance.filter.name, instance=instance.name, sections=scanned)
    left = filter_file.close_left_open(instance.entry) - scanned
    if left:
        log.warning("files left open", filter=instance.filter.name, instance=instance.name, files=left)
    return left


async def invalidate(instance: Instance) -> None:
    if instance.volume.invalidate is not None and _TOUCHES_CACHES & set(instance.entry.registered):
        await instance.volume.invalidate()
