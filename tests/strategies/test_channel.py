"""Connections between ranks tell at once when a process is gone."""

import os
import signal
import time

import pytest

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


@pytest.mark.parametrize("exchanges", [0, 1, 2, 5])
def test_what_a_process_said_last_arrives_although_it_did_not_read_what_it_was_told(exchanges):
    server, addresses = listen("127.0.0.1")
    with server:
        line = connect(addresses, server.getsockname()[1], timeout=5.0)
        other = Line(server.accept()[0])
    for _ in range(exchanges):
        line.send(standing=1)
        other.read()
        other.send(standing=2)
        line.read()
        time.sleep(0.002)
    other.send(standing=2)
    line.send(standing=1)
    line.send(fault=3)
    time.sleep(0.01)
    line.sock.close()  # with unread data, which resets the connection: what has not left by now is lost
    heard = []
    while not other.closed:
        heard += other.read()
    other.close()
    assert heard[-1] == {"fault": 3}
