#!/usr/bin/env python3
"""Times pages and look-ups of the interactions' timeline in ClickHouse, on rows that it makes itself.

Makes a database of its own with the product's table, fills it with blocks as the writer makes them (one range of one
partition each, 5% of the events late by up to days), and asks for pages at several depths by time and by session, for
rare types, for one event by its id, and for what a writer asks when it takes a partition over. Prints for each the best
and the median of the server's own times, and what it read. Pages are checked against a plain sort for ten minutes.

Needs nothing but Python and a ClickHouse (what `scripts/up` started, or the address given). 100 million rows take
about 12 GB of disk and ten minutes on 2 cores.
"""
import argparse
import http.client
import json
import os
import pathlib
import statistics
import sys
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent
MONTH_S = 30 * 86400
START_S = 1767225600  # 2026-01-01
PARTITIONS = 4
RECORD = 100
SESSIONS = 1_000_000
HEAVY = 7
"""The session that 1% of all events are of."""

PLACE = "log_generation, log_partition, log_offset, log_position"
PAGE_BYTES = 16 << 20
"""A page is cut once its events' data has come to so many bytes."""
SHOWN = (
    "cut.2, UUIDToNum(session_id), toString(category), toString(name), data, toUnixTimestamp64Micro(timestamp), "
    "UUIDToNum(event_id), event_id_origin = 'sent', toUnixTimestamp64Milli(accepted_at), "
    f"toUnixTimestamp64Milli(stored_at), {PLACE}"
)
COLUMNS = f"timestamp, session_id, category, name, data, event_id, event_id_origin, accepted_at, stored_at, {PLACE}"


def parse_arguments():
    var = pathlib.Path(os.environ.get("VAR_DIR", ROOT / "var"))
    password_file = os.environ.get("MILLRACE_CLICKHOUSE_PASSWORD_FILE", var / "clickhouse.password")
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=2_000_000, help="events to store (default 2,000,000)")
    options.add_argument("--block", type=int, default=200_000, help="events in one insert (default 200,000)")
    options.add_argument("--rounds", type=int, default=7, help="times that each query is run (default 7)")
    options.add_argument("--database", default="millrace_timeline", help="made, and dropped at the end")
    options.add_argument("--keep", action="store_true", help="do not drop the database")
    options.add_argument("--reuse", action="store_true", help="ask a database that an earlier --keep left; implies --keep")
    options.add_argument("--clickhouse", default=os.environ.get("MILLRACE_CLICKHOUSE_URL", "http://127.0.0.1:8123"))
    options.add_argument("--clickhouse-user", default=os.environ.get("MILLRACE_CLICKHOUSE_USER", "millrace"))
    options.add_argument("--clickhouse-password-file", type=pathlib.Path, default=password_file)
    return options.parse_args()


class ClickHouse:
    """Queries over one keep-alive connection."""

    def __init__(self, options):
        parts = urllib.parse.urlsplit(options.clickhouse)
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=1800)
        password = os.environ.get("MILLRACE_CLICKHOUSE_PASSWORD")
        if password is None:
            password = options.clickhouse_password_file.read_text(encoding="utf-8").strip()
        self.headers = {"X-ClickHouse-User": options.clickhouse_user, "X-ClickHouse-Key": password}

    def run(self, sql, **settings):
        """The answer's bytes and the server's summary of the query."""
        address = "/?" + urllib.parse.urlencode({"wait_end_of_query": 1, **settings})
        self.connection.request("POST", address, body=sql.encode(), headers=self.headers)
        response = self.connection.getresponse()
        body = response.read()
        if response.status != 200:
            sys.exit(f"clickhouse: {body[:500].decode(errors='replace')}\nthe query: {sql}")
        return body, json.loads(response.getheader("X-ClickHouse-Summary", "{}"))

    def text(self, sql, **settings):
        return self.run(sql, **settings)[0].decode().strip()


def uuid_sql(expression):
    """A UUID made from a number."""
    return f"reinterpretAsUUID(sipHash128({expression}))"


def rows_sql(first, count, total):
    """One range: `count` events from the `first` one of `total`, which fill a month evenly."""
    block = first // count
    offsets = -(-count // RECORD)
    offset = block // PARTITIONS * offsets
    return f"""
    WITH {first} + number AS n,
        cityHash64(n, 1) AS a, cityHash64(n, 2) AS b, cityHash64(n, 3) AS c, cityHash64(n, 4) AS d,
        n * ({MONTH_S}e6 / {total}) AS us,
        if(a % 20 = 0, -log((b % 1000000 + 1) / 1000001) * 86400e6, toFloat64(b % 30000000)) AS late_us,
        multiIf(c % 100 = 0, {HEAVY}, c % 10 < 3, d % {SESSIONS}, intDiv(n * 980, {total}) * 1000 + d % 20000) AS session,
        if(b % 100000 = 77, 23, toUInt64(pow(d % 1000003 / 1000003, 3) * 20)) AS type
    SELECT
        fromUnixTimestamp64Micro(toInt64({START_S}000000 + us - late_us), 'UTC') AS timestamp,
        {uuid_sql("session")} AS session_id,
        ['page_interaction', 'form_interaction', 'cart'][type % 3 + 1] AS category,
        ['pageview', 'cta_click', 'submit', 'scroll', 'leave', 'open', 'close', 'rare'][intDiv(type, 3) + 1] AS name,
        concat('{{"host":"www', toString(c % 50), '.example.org","path":"/products/', toString(d % 5000), '/',
            lower(hex(toUInt32(a % 100000))), '","element":"', ['buy', 'more', 'cart', 'menu'][b % 4 + 1], '"',
            if(a % 3 = 0, concat(',"referrer":"https://search.example.com/?q=', toString(b % 100000), '"'), ''),
            '}}') AS data,
        if(n % 2 = 0, {uuid_sql("n, 'event'")}, toUUID('00000000-0000-0000-0000-000000000000')) AS event_id,
        toInt8(n % 2 = 0) AS event_id_origin,
        fromUnixTimestamp64Milli(toInt64({START_S}000 + us / 1000), 'UTC') AS accepted_at,
        fromUnixTimestamp64Milli(toInt64({START_S}000 + us / 1000) + 500, 'UTC') AS stored_at,
        1 AS log_generation, {block % PARTITIONS} AS log_partition,
        {offset} + intDiv(number, {RECORD}) AS log_offset, number % {RECORD} AS log_position,
        {offset + offsets - 1} AS range_last, 202601 AS log_month
    FROM numbers({count})"""


def fill(clickhouse, options):
    database = options.database
    clickhouse.run(f"CREATE DATABASE {database}")
    table = (ROOT / "sql" / "interaction" / "0001_events.sql").read_text(encoding="utf-8").strip().rstrip(";")
    clickhouse.run(table.replace("{database}", database).replace("{replicated}", ""))
    began = shown = time.monotonic()
    # Whole blocks alone: offsets are counted in them.
    for first in range(0, options.rows - options.rows % options.block, options.block):
        rows = rows_sql(first, options.block, options.rows)
        clickhouse.run(
            f"INSERT INTO {database}.interaction_events ({COLUMNS}, range_last, log_month) {rows}",
            insert_deduplication_token=f"block {first}",
            max_threads=1,
            max_block_size=options.block,
            min_insert_block_size_rows=options.block,
            min_insert_block_size_bytes=0,
            async_insert=0,
        )
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            rate = (first + options.block) / (shown - began)
            print(f"  {first + options.block:,} rows, {rate:,.0f} rows/s with making them", flush=True)


def page_sql(table, *, where=(), after=None, session=None, limit=100, columns=SHOWN, form="RowBinary"):
    """A page of the timeline, or of a session's, as the product asks for it (TimelineQuery::sql): a first look at the
    sizes alone finds where the page is cut. `after` is the last row's (timestamp in microseconds, place)."""
    conditions = list(where)
    order = f"timestamp, {PLACE}"
    if session is not None:
        conditions.append(f"session_id = toUUID('{session}')")
        order = f"session_id, {order}"
    if after is not None:
        instant, place = f"fromUnixTimestamp64Micro({after[0]}, 'UTC')", ", ".join(map(str, after[1:]))
        # The first condition is for the index, which a comparison of tuples that begin with the time would not use.
        conditions.append(f"timestamp >= {instant} AND (timestamp > {instant} OR ({PLACE}) > ({place}))")
    said = " AND ".join(conditions) or "1"
    return (
        "WITH assumeNotNull((SELECT (max(place), count() < max(found)) FROM (SELECT place, count() OVER () AS found, "
        "sum(size) OVER (ORDER BY place ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) - size AS before FROM "
        f"(SELECT (timestamp, {PLACE}) AS place, length(data) AS size FROM {table} WHERE {said} "
        f"ORDER BY {order} LIMIT {limit + 1})) WHERE before < {PAGE_BYTES})) AS cut "
        f"SELECT {columns} FROM {table} "
        f"WHERE {said} AND timestamp <= cut.1.1 AND (NOT cut.2 OR (timestamp, {PLACE}) <= cut.1) "
        f"ORDER BY {order} LIMIT {limit + 1} FORMAT {form}"
    )


def samples(clickhouse, table):
    """Of what is stored: the busiest session, some other one, an event id of its middle, and instants by depth."""
    first, last = map(
        int, clickhouse.text(f"SELECT toUnixTimestamp64Micro(min(timestamp)), toUnixTimestamp64Micro(max(timestamp)) FROM {table}").split()
    )
    some = f"(SELECT session_id FROM {table} WHERE timestamp >= fromUnixTimestamp64Micro({(first + last) // 2}, 'UTC') LIMIT 200000)"
    heavy = clickhouse.text(f"SELECT topK(1)(session_id)[1] FROM {some}")
    light = clickhouse.text(f"SELECT session_id FROM {some} WHERE session_id != '{heavy}' LIMIT 1")
    sent = clickhouse.text(
        f"SELECT event_id FROM {table} WHERE timestamp >= fromUnixTimestamp64Micro({(first + last) // 2}, 'UTC') "
        "AND event_id_origin = 'sent' LIMIT 1"
    )
    return heavy, light, sent, lambda depth: first + int((last - first) * depth)


def questions(clickhouse, table):
    """(name, SQL, settings) of everything that is timed."""
    in_order = {"optimize_read_in_order": 1, "optimize_use_projections": 0}
    in_session = {"optimize_read_in_order": 1, "optimize_use_projections": 1}
    heavy, light, sent, instant = samples(clickhouse, table)
    for depth in (0, 0.5, 0.99):
        after = None if depth == 0 else (instant(depth), 1, 2, 3, 4)
        for limit in (100, 10_000):
            yield f"by time, depth {depth:.0%}, limit {limit}", page_sql(table, after=after, limit=limit), in_order
            yield (
                f"heavy session, depth {depth:.0%}, limit {limit}",
                page_sql(table, session=heavy, after=after, limit=limit),
                in_session,
            )
    yield "light session, limit 100", page_sql(table, session=light), in_session
    middle = (instant(0.5), 1, 2, 3, 4)
    for label, where in (
        ("a common type", ("category IN ('page_interaction')", "name IN ('pageview')")),
        ("1 in 100,000", ("category IN ('cart')", "name IN ('rare')")),
        ("1 in 100,000, name alone", ("name IN ('rare')",)),
        ("no such type", ("category IN ('cart')", "name IN ('none')")),
    ):
        for limit in (100, 10_000):
            yield f"{label}, depth 50%, limit {limit}", page_sql(table, where=where, after=middle, limit=limit), in_order
    for label, event in (("event_id", sent), ("event_id, unknown", "00000000-0000-4000-8000-000000000001")):
        where = (f"event_id = toUUID('{event}')", "event_id_origin = 'sent'")
        yield label, page_sql(table, where=where), in_order
    last = clickhouse.text(f"SELECT max(log_offset) FROM {table} WHERE log_generation = 1 AND log_partition = 2")
    yield (
        "taking over: events beyond the ledger",
        f"SELECT min(range_last), max(range_last), count() FROM {table} WHERE log_generation = 1 AND log_partition = 2 "
        f"AND log_offset >= {int(last) + 1} GROUP BY log_partition",
        {"optimize_use_projections": 1},
    )


def check_pages(clickhouse, table):
    """Pages of ten minutes, one after the other, must be all of them in order."""
    begin = samples(clickhouse, table)[-1](0.5)
    span = tuple(
        f"timestamp {sign} fromUnixTimestamp64Micro({at}, 'UTC')" for sign, at in ((">=", begin), ("<", begin + 600_000_000))
    )
    keys = f"toUnixTimestamp64Micro(timestamp), {PLACE}"
    plain = clickhouse.text(
        f"SELECT {keys} FROM {table} WHERE {' AND '.join(span)} FORMAT TSV", optimize_use_projections=0
    )
    expected = sorted(tuple(map(int, line.split("\t"))) for line in plain.splitlines())
    found, after = [], None
    while True:
        sql = page_sql(table, where=span, after=after, limit=997, columns=keys, form="TSV")
        # One row more than the page holds tells that there is a next one.
        rows = [tuple(map(int, line.split("\t"))) for line in clickhouse.text(sql).splitlines()]
        found += rows[:997]
        if len(rows) <= 997:
            break
        after = rows[996]
    if found != expected:
        sys.exit(f"the pages hold {len(found):,} events, and a plain sort {len(expected):,}, or in another order")
    print(f"{len(found):,} events of ten minutes, page by page, are those of a plain sort")


def main():
    options = parse_arguments()
    clickhouse = ClickHouse(options)
    table = f"{options.database}.interaction_events"
    if not options.reuse:
        fill(clickhouse, options)
    facts = clickhouse.text(
        "SELECT count(), sum(rows), round(sum(bytes_on_disk) / sum(rows), 1) FROM system.parts "
        f"WHERE active AND database = '{options.database}' AND table = 'interaction_events'"
    )
    parts, rows, bytes_row = facts.split("\t")
    print(f"{int(rows):,} rows in {parts} parts, {bytes_row} bytes of disk a row; ClickHouse {clickhouse.text('SELECT version()')}")
    check_pages(clickhouse, table)
    asked = list(questions(clickhouse, table))
    times = {name: [] for name, _, _ in asked}
    told = {}
    for _ in range(options.rounds):
        for name, sql, settings in asked:
            _, summary = clickhouse.run(sql, **settings)
            times[name].append(int(summary["elapsed_ns"]) / 1e6)
            told[name] = summary
    print(f"{'':44} {'best ms':>8} {'median':>8} {'rows read':>12} {'MB read':>8} {'MB memory':>9} {'rows':>7}")
    for name, sample in times.items():
        summary = told[name]
        print(
            f"{name:44} {min(sample):8.1f} {statistics.median(sample):8.1f} {int(summary['read_rows']):12,} "
            f"{int(summary['read_bytes']) / 1e6:8.1f} {int(summary.get('memory_usage', 0)) / 1e6:9.1f} "
            f"{int(summary['result_rows']):7,}"
        )
    if not (options.keep or options.reuse):
        clickhouse.run(f"DROP DATABASE {options.database} SYNC")


if __name__ == "__main__":
    main()
