"""Kafka or ClickHouse, or everything, goes away and comes back.

While Kafka is away the door says so in bounded time and memory; while ClickHouse is away the log keeps what comes in. When
they are back the program goes on by itself, and everything that was acknowledged is counted once.
"""

import http.client
import time

import pytest
from harness import Servers, Space, eventually
from once import SMALL_RANGES, Load, Proxy, make_events, reckon, stored_to

# The door waits for Kafka up to `http.ack_ms_max`; the rest is for a busy machine.
ANSWER_S_MAX = 6 + 3
SETTINGS = {
    **SMALL_RANGES,
    "MILLRACE_KAFKA_DELIVERY_MS_MAX": "5000",
    "MILLRACE_HTTP_ACK_MS_MAX": "6000",
}
# What may lie in the program's queues, and what the allocator keeps of it.
GROWTH_BYTES_MAX = 200 << 20


@pytest.fixture
def own_kafka(lent_kafka):
    """The module's, in place of one for each test."""
    return lent_kafka


def resident_bytes(program):
    with open(f"/proc/{program.process.pid}/statm", encoding="ascii") as source:
        return int(source.read().split()[1]) * 4096


def is_ready(program):
    try:
        return program.get("/health/ready", timeout_s=5).status == 200
    except (OSError, http.client.HTTPException):
        return False


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_kafka_away(how, own_kafka, own_kafka_space, millrace, sent):
    """Kafka is killed, or hangs, under load."""
    space = own_kafka_space
    program = millrace("run", space=space, settings=SETTINGS)
    # Bodies of a thousand lines from eight clients: more than the queues hold if nobody minded.
    with Load(sent, [program], clients=8, batch=1000, pause_s=0) as load:
        load.wait_taken(30)
        before = resident_bytes(program)
        own_kafka.kill() if how == "killed" else own_kafka.pause()
        refused = load.statuses[503]
        eventually(lambda: load.statuses[503] > refused + 100, 40, what="refusals")
        eventually(lambda: not is_ready(program), 10, what="not being ready")
        # Once it is known that Kafka is away, the answer comes at once: nothing is taken in to be refused later.
        began = time.monotonic()
        assert program.post("/v1/events", make_events(1)).status == 503
        assert time.monotonic() - began < ANSWER_S_MAX
        growth_bytes = resident_bytes(program) - before
        assert growth_bytes < GROWTH_BYTES_MAX
        assert load.slowest_s < ANSWER_S_MAX
        taken = load.taken()
        own_kafka.start() if how == "killed" else own_kafka.resume()
        back = time.monotonic()
        eventually(lambda: load.taken() > taken, 20, what="acceptance after Kafka is back")
        accepted_s = time.monotonic() - back
        eventually(lambda: is_ready(program), 10, what="readiness after Kafka is back")
        goal = stored_to(space)
        eventually(lambda: stored_to(space) != goal, 30, what="storing after Kafka is back")
        stored_s = time.monotonic() - back
        load.wait_taken(20)
    print(f"Kafka {how}: accepted again after {accepted_s:.1f} s, stored again after {stored_s:.1f} s")
    print(f"the slowest answer took {load.slowest_s:.1f} s, memory grew by {growth_bytes >> 20} MiB")
    print(f"all stored {reckon(space, sent, program):.1f} s after the load, statuses {dict(load.statuses)}")


def test_told_to_end_while_kafka_is_away(own_kafka, own_kafka_space, millrace, sent):
    """SIGTERM is obeyed in time, and the next start takes over."""
    space = own_kafka_space
    program = millrace("run", space=space, settings=SETTINGS)
    with Load(sent, [program], resend=False) as load:
        load.wait_taken(10)
        own_kafka.pause()
        eventually(lambda: load.statuses[503] > 5, 30, what="refusals")
        program.terminate()
        assert program.wait_end(12) == 0
    own_kafka.resume()
    program = millrace("run", space=space, settings=SETTINGS)
    reckon(space, sent, program)


def test_left_out_of_the_group(space, millrace, sent):
    """A client that Kafka does not take into the group is given up, and the next one goes on."""
    # Each of the three kinds looks once a second, and after 20 in vain its client is given up: one of them at least.
    program = millrace("run", settings=SMALL_RANGES, failpoints="log::is_member=66*return")
    assert sent.post(program, make_events(100)) == 202
    eventually(lambda: "has not let it into the group for 20 s" in program.log_text(), 40, what="a client made anew")
    assert sent.post(program, make_events(100)) == 202
    reckon(space, sent, program)


@pytest.mark.parametrize("how", ["refused", "hanging"])
def test_clickhouse_away(how, space, millrace, sent):
    """Accepting goes on, the lag shows it, reports are refused; afterwards everything is there."""
    proxy = Proxy(space.servers.clickhouse_url.removeprefix("http://"))
    through_proxy = {"MILLRACE_CLICKHOUSE_URL": f"http://{proxy.address}", "MILLRACE_CLICKHOUSE_REPORT_MS_MAX": "2000"}
    program = millrace("run", settings={**SMALL_RANGES, **through_proxy})
    with Load(sent, [program], clients=3, batch=500) as load:
        load.wait_taken(10)
        before = resident_bytes(program)
        proxy.cut() if how == "refused" else proxy.freeze()
        load.wait_taken(40)
        eventually(lambda: program.metric("millrace_lag_records") > 20, 20, what="a lag that shows")
        answer = program.get("/v1/report?day=2021-01-25", timeout_s=15)
        assert answer.status == 503 and int(answer.headers["Retry-After"]) >= 1
        eventually(lambda: program.get("/health/ready").json()["status"] == "degraded", 10, what="a degraded state")
        assert program.get("/health/ready").status == 200
        assert load.statuses[503] == 0
        growth_bytes = resident_bytes(program) - before
        assert growth_bytes < GROWTH_BYTES_MAX
        proxy.mend() if how == "refused" else proxy.thaw()
        load.wait_taken(10)
    took_s = reckon(space, sent, program)
    print(f"ClickHouse {how}: all stored {took_s:.1f} s after the load, memory grew by {growth_bytes >> 20} MiB")
    eventually(lambda: program.metric("millrace_lag_records") == 0, what="a lag of 0")
    proxy.close()


def test_clickhouse_away_at_the_start(space, millrace, sent):
    """Accepting begins, and the lag shows what waits: all that is in the log, later all behind what is committed."""
    proxy = Proxy(space.servers.clickhouse_url.removeprefix("http://"))
    settings = {**SMALL_RANGES, "MILLRACE_CLICKHOUSE_URL": f"http://{proxy.address}"}
    for turn in range(2):
        proxy.cut()
        program = millrace("run", settings=settings)
        sent.post_until_taken(program, make_events(1000))
        records = sum(high for _, high in space.log.watermarks(space.topic))
        stored = sum(stored_to(space).values())
        assert (stored > 0) == (turn > 0)
        eventually(lambda: program.metric("millrace_lag_records") == records - stored, 20, what="a lag that shows")
        proxy.mend()
        reckon(space, sent, program)
        eventually(lambda: program.metric("millrace_lag_records") == 0, 20, what="a lag of 0")
        program.stop()
    proxy.close()


def test_everything_killed(own_kafka, own_clickhouse, millrace, sent):
    """kill -9 of Kafka, ClickHouse and the program at once, again and again, under load."""
    space = Space(Servers(own_kafka.brokers, own_clickhouse.url, own_clickhouse.user, own_clickhouse.password))
    doors = [millrace("run", space=space, settings=SETTINGS)]
    with Load(sent, doors, clients=3) as load:
        for _ in range(2):
            load.wait_taken(15)
            doors[0].kill()
            own_clickhouse.kill()
            own_kafka.kill()
            own_kafka.start()
            own_clickhouse.start()
            doors[0] = millrace("run", space=space, settings=SETTINGS)
        load.wait_taken(10)
    print(f"all stored {reckon(space, sent, doors[0]):.1f} s after the load")


def test_clickhouse_restarted_under_a_writer(own_clickhouse, servers, millrace, sent):
    """ClickHouse is killed and stopped in order under load: no partition is left standing still."""
    named = (own_clickhouse.url, own_clickhouse.user, own_clickhouse.password)
    space = Space(Servers(servers.kafka_brokers, *named))
    program = millrace("run", space=space, settings=SETTINGS)
    with Load(sent, [program], clients=3) as load:
        for turn in range(6):
            load.wait_taken(10)
            own_clickhouse.kill() if turn % 2 else own_clickhouse.stop()
            own_clickhouse.start()
        load.wait_taken(10)
    assert "stands still" not in program.log_text()
    print(f"all stored {reckon(space, sent, program):.1f} s after the load")
    space.log.delete_topics([space.topic])
