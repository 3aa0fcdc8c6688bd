"""Functions that are told of a run while it trains: ``callback(event, record)``."""

from hessabs.training.callbacks.make import CallbackSettings, make_callbacks
from hessabs.training.callbacks.protocol import Callback, CallbackError, call_all

__all__ = ["Callback", "CallbackError", "CallbackSettings", "call_all", "make_callbacks"]
