"""An actor and a capability to begin with.

Run `callboard dev examples/hello.py`, then in a second terminal

    callboard ask greeter/ann Ask '{"text": "bob"}'

Change this file while it runs: the next message is handled by the new code, and the count goes on.
"""

from msgspec import Struct

from callboard import Actor, capability, on


class Ask(Struct):
    """A question to a greeter."""

    text: str


class Reply(Struct):
    """Its answer."""

    text: str
    turn: int


class Greeter(Actor, name="greeter", capabilities=["greet"]):
    """Greets, and counts how often. Every key (ann, bob, ...) is an actor of its own, with its own count."""

    class State(Struct):
        """What it remembers; stored when a turn ends, on whichever worker it ran."""

        turns: int = 0

    @on
    async def hello(self, m: Ask) -> Reply:
        """The message's type picks the handler."""
        self.state.turns += 1
        return Reply(f"hi {m.text}", self.state.turns)


@capability("shout")
async def shout(text: str) -> str:
    """Say it loud: a plain function, run by whichever worker is free (`callboard submit shout '"hey"' --wait`)."""
    return text.upper()
