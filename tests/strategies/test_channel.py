"""Connections between ranks tell at once when a process is gone."""

import os
import signal
import time

from lightning_mvrec.strategies.channel import Line, connect, listen


def test_a_worker_that_outlives_its_rank_keeps_no_connection_of_it():
    server, addresses = listen("127.0.0.1")
    with server:
        line = connect(addresses, server.getsockname()[1], timeout=5.0)
        other = Line(server.accept()[0])
    worker = os.fork()
    if worker == 0:
        time.sleep(60)
        os._exit(0)
    try:
        line.sock.close()  # what a kill does: nothing is said
        other.read()  # waits a second at most
        assert other.closed
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        other.close()
