"""Who is alive, judged by one worker from beats, pings and reports. Pure: times are handed in, nothing is sent.

A worker is dead or alive by the first line that fits:

| line | what is known of the worker                                                        | verdict |
|------|------------------------------------------------------------------------------------|---------|
| 1    | it is ourselves                                                                    | alive   |
| 2    | it said goodbye, or its parent saw it end, and no beat since                       | dead    |
| 3    | it was dead by lines 6 to 9 at our last echo before our link broke; no sign since  | dead    |
| 4    | our own beats do not come back (none for 1.6 s)                                    | alive   |
| 5    | they came back, or we reconnected, less than 4 s ago (amnesty)                     | alive   |
| 6    | heard before, no beat for 3 s of unbroken own echoes                               | dead    |
| 7    | never heard in 4 s of unbroken own echoes, and named to us 1.5 s ago or earlier    | dead    |
| 8    | on our server: three pings unanswered, 0.5 s from first to last, no beat since     | dead    |
| 9    | on another server or unknown, or it beats without answering pings: the same, 2.0 s | dead    |
| 10   | anything else                                                                      | alive   |

"Unanswered" means that the server knew nobody who listens: it drops the subscriptions of a dead process. A ping that
times out says nothing and is not reported here. Any beat or answered ping ends lines 2, 3 and 6 to 9. Lines 4 and 5
exist because a server's restart silences everybody and is nobody's death; those who were dead before it stay dead.
"""

from __future__ import annotations

import math

# Beats come once a second; one may be late by this much in all before our link is in doubt. With it an outage is seen
# before anybody who beat in time up to its start has been silent for three seconds.
MAX_ECHO_GAP_S = 1.6
# A beat older than this makes its worker worth a ping.
LATE_S = 1.3
PINGS = 3
PINGS_SPAN_S = 0.5
PINGS_SPAN_ELSEWHERE_S = 2.0
# The one neighbour that each worker watches is pinged this often while it answers.
WATCH_EVERY_S = 0.5
# A beat that was on its way when its sender ended may come this much after the news of the end.
LATE_BEAT_S = 0.5
# How long a beat that crossed an unanswered ping does not yet prove that its worker answers no pings.
CROSSING_S = 0.1
# A worker that is named before its first beat reached us gets this long to be heard.
INTRODUCTION_S = 1.5
# An accusation, a name in a cursor and a sign of muteness are looked into for this long.
SUSPICION_S = 3.0
# The dead are remembered for this long, beyond any amnesty.
FORGET_AFTER_S = 600.0


class Liveness:
    """What one worker knows of the others. Not thread safe; all times are monotonic seconds of one clock.

    Attributes:
        me: The observer, always alive to itself.
    """

    def __init__(self, me: str, *, now_s: float, beat_timeout_s: float = 3.0, amnesty_s: float = 4.0) -> None:
        """Begin to listen.

        Args:
            me: Our own name.
            now_s: The present.
            beat_timeout_s: Silence that means death, 3 s: three lost beats. Whoever was never heard gets 1 s more.
            amnesty_s: How long nobody is declared dead after our own link was away: time for all to reconnect.
        """
        self.me = me
        self._beat_timeout_s = beat_timeout_s
        self._amnesty_s = amnesty_s
        self._server = ""
        self._echo_s = now_s
        self._unbroken_s = now_s
        self._amnesty_until_s = now_s
        self._peers: dict[str, _Peer] = {}

    # --- what happens

    def heard(self, worker: str, now_s: float, *, server: str = "", host: str = "", pid: int = 0) -> None:
        """Note a beat, our own ones too: they are the echo that proves our link.

        Args:
            worker: Whose.
            now_s: When it came.
            server: Name of the server that its keeper is connected to, "" when the beat does not say.
            host: The beat's, with ``pid``, by which ``ended`` knows the worker; may be left out.
            pid: See ``host``.
        """
        if worker == self.me:
            if now_s - self._echo_s > MAX_ECHO_GAP_S:
                self._pardon(now_s)
            self._echo_s = now_s
            self._server = server
            return
        peer = self._peer(worker, now_s)
        if peer.left_s is not None and now_s - peer.left_s < LATE_BEAT_S:
            return
        is_newly_mute = not peer.is_mute and peer.unanswered and now_s - peer.unanswered_from_s >= CROSSING_S
        peer.revive(now_s)
        peer.server = server
        peer.process = (host, pid)
        if is_newly_mute:
            # or it was between two links: the next answer will tell
            peer.is_mute = True
            peer.suspected_until_s = now_s + SUSPICION_S

    def left(self, worker: str, now_s: float) -> None:
        """Note an end that somebody saw: the goodbye beat, or the report of its parent. Dead at once."""
        if worker != self.me:
            self._peer(worker, now_s).left_s = now_s

    def ended(self, host: str, pid: int, now_s: float) -> None:
        """Note a parent's report that its child is gone: ``left`` for the worker whose beats named it.

        Where several did (containers that share a host's name), all are accused instead. A process whose beats were
        never heard is nobody we know.
        """
        named = [
            name for name, peer in self._peers.items() if peer.process == (host, pid) and not self._is_dead(peer, now_s)
        ]
        for worker in named:
            if len(named) == 1:
                self.left(worker, now_s)
            else:
                self.accused(worker, now_s)

    def reconnected(self, now_s: float) -> None:
        """Note that our own link was away: amnesty begins."""
        self._pardon(now_s)

    def pinged(self, worker: str, now_s: float, *, answered: bool, via: str = "", server: str = "") -> bool:
        """Note the end of a ping; return whether to tell others: the first one unanswered, of one not doubted yet.

        Args:
            worker: Whom we pinged.
            now_s: When the ping was *sent*.
            answered: False for "no responders". A ping that timed out must not be noted.
            via: Name of the server that passed it on; by default the one that our beats come from.
            server: Name of the server that the answer came from, "" when it does not say.
        """
        if worker == self.me:
            return False
        peer = self._peer(worker, now_s)
        peer.pinged_s = now_s
        if answered:
            if peer.left_s is None or now_s > peer.left_s:
                peer.revive(max(now_s, peer.heard_s or now_s))
                peer.is_mute = False
                peer.server = server or peer.server
        elif peer.heard_s is None or now_s >= peer.heard_s:
            peer.miss(now_s, via or self._server)
            return peer.unanswered == 1 and not peer.is_mute and now_s >= peer.suspected_until_s
        return False

    def watch(self, worker: str, now_s: float) -> None:
        """Note that a record names a worker. One never heard is pinged for the next 3 s; repeat while it is named."""
        if worker != self.me:
            peer = self._peer(worker, now_s)
            if peer.heard_s is None:
                peer.suspected_until_s = now_s + SUSPICION_S

    def accused(self, worker: str, now_s: float) -> None:
        """Note that somebody else thinks it dead: it is pinged for the next 3 s, nothing is believed."""
        if worker != self.me:
            self._peer(worker, now_s).suspected_until_s = now_s + SUSPICION_S

    # --- what follows

    def is_dead(self, worker: str, now_s: float) -> bool:
        """Return the verdict of the table above. Asking about one never heard implies ``watch``."""
        if worker == self.me:
            return False
        self.watch(worker, now_s)
        return self._is_dead(self._peers[worker], now_s)

    def live(self, now_s: float) -> frozenset[str]:
        """Return all that were heard, or answered a ping, and are not dead; ourselves always."""
        others = self._peers.items()
        return frozenset(
            [self.me, *(name for name, peer in others if peer.heard_s is not None and not self._is_dead(peer, now_s))]
        )

    def echo_age_s(self, now_s: float) -> float:
        """Return the seconds since our own last beat came back; since the start when none did."""
        return now_s - self._echo_s

    def suspects(self, now_s: float) -> frozenset[str]:
        """Return whom to ping now: late ones, accused ones, watched ones never heard, and our neighbour every 0.5 s.

        The neighbour is the next living worker in the order of names, so that each has one that watches it.
        """
        found = {
            name for name, peer in self._peers.items() if peer.is_suspect(now_s) and not self._is_dead(peer, now_s)
        }
        neighbour = _next(self.me, self.live(now_s))
        if neighbour is not None and now_s - self._peers[neighbour].pinged_s >= WATCH_EVERY_S:
            found.add(neighbour)
        return frozenset(found)

    # --- inside

    def _is_dead(self, peer: _Peer, now_s: float) -> bool:
        if peer.left_s is not None or peer.was_dead:
            return True
        if now_s < self._amnesty_until_s or self.echo_age_s(now_s) > MAX_ECHO_GAP_S:
            return False
        return self._is_silent(peer, now_s) or self._is_unreachable(peer, now_s)

    def _is_silent(self, peer: _Peer, now_s: float) -> bool:
        if peer.heard_s is not None:
            return now_s - max(peer.heard_s, self._unbroken_s) >= self._beat_timeout_s
        return now_s - self._unbroken_s >= self._beat_timeout_s + 1.0 and now_s - peer.known_s >= INTRODUCTION_S

    def _is_unreachable(self, peer: _Peer, now_s: float) -> bool:
        is_beside_us = peer.server != "" and peer.server == peer.unanswered_via and not peer.is_mute
        span_s = PINGS_SPAN_S if is_beside_us else PINGS_SPAN_ELSEWHERE_S
        return (
            peer.unanswered >= PINGS
            and peer.unanswered_to_s <= now_s
            and peer.unanswered_to_s - peer.unanswered_from_s >= span_s
        )

    def _pardon(self, now_s: float) -> None:
        """Begin an amnesty. Verdicts stand as they were at the last echo; what came later may be the outage's doing."""
        as_of_s = min(self._echo_s, now_s)
        for peer in self._peers.values():
            if self._is_dead(peer, as_of_s):
                peer.was_dead = True
            peer.unanswered = 0
        self._unbroken_s = now_s
        self._amnesty_until_s = now_s + self._amnesty_s

    def _peer(self, worker: str, now_s: float) -> _Peer:
        peer = self._peers.get(worker)
        if peer is None:
            self._forget(now_s)
            peer = self._peers[worker] = _Peer(now_s)
        return peer

    def _forget(self, now_s: float) -> None:
        for name in [name for name, peer in self._peers.items() if peer.is_past(now_s)]:
            del self._peers[name]


class _Peer:
    """Another worker. ``heard_s`` is its last beat or answer."""

    __slots__ = (
        "known_s",
        "heard_s",
        "server",
        "process",
        "left_s",
        "was_dead",
        "pinged_s",
        "unanswered",
        "unanswered_from_s",
        "unanswered_to_s",
        "unanswered_via",
        "is_mute",
        "suspected_until_s",
    )

    def __init__(self, now_s: float) -> None:
        self.known_s = now_s
        self.heard_s: float | None = None
        self.server = ""
        self.process = ("", 0)
        self.left_s: float | None = None
        self.was_dead = False
        self.pinged_s = -math.inf
        self.unanswered = 0
        self.unanswered_from_s = 0.0
        self.unanswered_to_s = 0.0
        self.unanswered_via = ""
        self.is_mute = False
        self.suspected_until_s = -math.inf

    def revive(self, now_s: float) -> None:
        self.heard_s = now_s
        self.left_s = None
        self.was_dead = False
        self.unanswered = 0
        self.suspected_until_s = -math.inf

    def miss(self, now_s: float, via: str) -> None:
        if not self.unanswered or via != self.unanswered_via:
            self.unanswered = 0
            self.unanswered_from_s = now_s
            self.unanswered_via = via
        self.unanswered += 1
        self.unanswered_to_s = now_s

    def is_suspect(self, now_s: float) -> bool:
        is_late = self.heard_s is not None and now_s - self.heard_s > LATE_S
        return is_late or self.unanswered > 0 or now_s < self.suspected_until_s

    def is_past(self, now_s: float) -> bool:
        signs = (self.known_s, self.heard_s, self.left_s, self.suspected_until_s)
        return now_s - max(sign for sign in signs if sign is not None) > FORGET_AFTER_S


def _next(me: str, living: frozenset[str]) -> str | None:
    """Return the name after ours in the ring of ``living``, or None when we are alone."""
    others = sorted(living - {me})
    return next((name for name in others if name > me), others[0] if others else None)
