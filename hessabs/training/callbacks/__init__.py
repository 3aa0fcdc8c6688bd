"""stub"""
from typing import Any
Callback=Any
def call_all(callbacks, event, record, save):
    for c in callbacks: c(event, record)
