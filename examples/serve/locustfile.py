"""Load for multi-model-server: users who send one picture after the other, without a pause.

Usage, with the server running::

    MODEL=resnetdigits locust -f examples/serve/locustfile.py --headless --users 1 --run-time 20s
    MODEL=resnetdigitsint8 locust -f examples/serve/locustfile.py --headless --users 1 --run-time 20s

locust prints requests per second and the percentiles of the latency, in milliseconds.
"""

from __future__ import annotations

import os
from pathlib import Path

from locust import HttpUser, constant, task

PICTURE = Path(os.environ.get("PICTURE", Path(__file__).parents[1] / "resnet" / "sample.png")).read_bytes()


class Client(HttpUser):
    """One user."""

    host = "http://127.0.0.1:8080"
    wait_time = constant(0)

    @task
    def classify(self) -> None:
        """One picture."""
        name = os.environ["MODEL"]
        sent = {"data": PICTURE, "headers": {"Content-Type": "application/octet-stream"}}
        with self.client.post(f"/predictions/{name}", name=name, catch_response=True, **sent) as answer:
            if answer.status_code != 200 or not answer.json():
                answer.failure(f"{answer.status_code}: {answer.text[:100]}")
