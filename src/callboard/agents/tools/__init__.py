"""Tools: plain functions that a model may call, who may call which, and how a call is made once."""
