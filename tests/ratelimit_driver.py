"""Serves examples/ratelimit/app.py for the tests: redis URL, timeout in ms, limits and options as JSON.

Says its port on stdout. A port of the kernel's choice, and listening before anything else: who connects early waits.
"""

import json
import socket
import sys
from pathlib import Path

import uvicorn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "ratelimit"))
from app import create_app
from middleware import Limit, connect

_, url, timeout_ms, limits, options = sys.argv
app = create_app(
    connect(url, int(timeout_ms) / 1000), [Limit(**limit) for limit in json.loads(limits)], **json.loads(options)
)
listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
