"""Sends events to millrace in the background.

    from millrace_client import Client

    with Client("http://127.0.0.1:8000") as client:
        client.hit(user="ada", action="click")

`Client` takes events of the three kinds into bounded queues and returns at once; a thread for each kind in use sends
them in batches, again and again until the server has answered for each. `Reports` reads what was counted.
"""

from .client import Client
from .errors import ClientClosed, QueueFull, ServerError
from .events import UNSENT, Event, Rejection
from .reports import Reports
from .stats import Stats
from .version import __version__

__all__ = [
    "UNSENT",
    "Client",
    "ClientClosed",
    "Event",
    "QueueFull",
    "Rejection",
    "Reports",
    "ServerError",
    "Stats",
    "__version__",
]
