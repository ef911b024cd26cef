//! Requests whose framing is at fault, and attempts to hide one request in another.

use super::*;

/// Sends it, expects one answer with this status, and that nothing follows: above all not a second answer.
fn fails(house: &House, bytes: impl AsRef<[u8]>, status: u16, code: &str) {
    let shown = String::from_utf8_lossy(&bytes.as_ref()[..bytes.as_ref().len().min(300)]).into_owned();
    let (reply, closed) = house.once(bytes);
    assert_eq!((reply.status, reply.code().as_str(), closed), (status, code, true), "{shown:?}");
}

/// A request that must never be seen as one: what comes before it is not complete, or is refused.
const HIDDEN: &str = "GET /one/hidden HTTP/1.1\r\nHost: x\r\n\r\n";

fn saw_hidden(house: &House) -> bool {
    house.log.lock().expect("log").iter().any(|entry| entry.0 == "/one/{id}")
}

#[test]
fn content_lengths_that_cannot_be_trusted() {
    let house = house(|_| {});
    for value in
        ["x", "-1", "+5", "5, 5", "5 5", "", "0x5", "5.", "18446744073709551616", "99999999999999999999999", "\u{665}"]
    {
        fails(
            &house,
            format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {value}\r\n\r\n{HIDDEN}"),
            400,
            "bad_request",
        );
        fails(&house, format!("GET /nowhere HTTP/1.0\r\nContent-Length: {value}\r\n\r\n{HIDDEN}"), 400, "bad_request");
    }
    for (a, b) in [("5", "6"), ("5", "5"), ("0", "x"), ("5", "")] {
        fails(
            &house,
            format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {a}\r\ncontent-length: {b}\r\n\r\n{HIDDEN}"),
            400,
            "bad_request",
        );
    }
    assert!(!saw_hidden(&house));
}

#[test]
fn transfer_encoding_is_refused_and_its_body_is_no_request() {
    let house = house(|_| {});
    for field in [
        "Transfer-Encoding: chunked",
        "transfer-encoding:identity",
        "Transfer-Encoding: \tchunked\r\nContent-Length: 4",
    ] {
        fails(
            &house,
            format!("POST /echo HTTP/1.1\r\nHost: x\r\n{field}\r\n\r\n4\r\nbody\r\n0\r\n\r\n{HIDDEN}"),
            411,
            "length_required",
        );
    }
    fails(
        &house,
        format!("POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"),
        411,
        "length_required",
    );
    // The body comes later, in pieces, after the answer.
    let mut client = house.knock();
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(client.reply().status, 411);
    for _ in 0..10 {
        client.try_send(HIDDEN);
    }
    client.expect_end();
    assert!(!saw_hidden(&house));
}

#[test]
fn a_body_that_is_too_long_is_413_at_once() {
    let house = house(|o| o.body_bytes_max = 1000);
    let head = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n";
    fails(&house, head, 413, "content_too_large");
    fails(&house, format!("{head}{HIDDEN}"), 413, "content_too_large");
    fails(
        &house,
        format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{HIDDEN}", usize::MAX),
        413,
        "content_too_large",
    );
    // A client that sends all before it reads sees the answer nevertheless, up to 1 MiB.
    let mut client = house.knock();
    client.send(format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n{}", "x".repeat(900_000)));
    assert_eq!(client.reply().status, 413);
    client.finish();
    client.expect_end();
    assert!(!saw_hidden(&house));
    assert_eq!(house.once(post("/echo", &"x".repeat(1000))).0.status, 202);
}

#[test]
fn what_follows_a_413_is_read_on_for_a_bounded_time_and_length_only() {
    let house = house(|o| (o.body_bytes_max, o.linger_ms_max) = (1000, 300));
    let mut client = house.knock();
    let began = Instant::now();
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n");
    assert_eq!(client.reply().status, 413);
    // The sender never stops: by length.
    let mut sent = 0;
    while client.try_send([b'x'; 65_536]) {
        sent += 65_536;
        assert!(sent < 64 << 20, "still read after {sent} bytes");
    }
    assert!(began.elapsed() < Duration::from_secs(10));
    // The sender says nothing: by time.
    let mut client = house.knock();
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n");
    assert_eq!(client.reply().status, 413);
    client.expect_end();
    eventually("all closed", || house.door.gauges().connections_open() == 0);
}

#[test]
fn hosts_and_expectations() {
    let house = house(|_| {});
    for head in [
        "GET /echo HTTP/1.1\r\n",
        "GET /echo HTTP/1.1\r\nHost: a\r\nHost: b\r\n",
        "GET /echo HTTP/1.1\r\nHost: a b\r\n",
        "GET /echo HTTP/1.1\r\nHost:\r\n",
        "GET http:///echo HTTP/1.1\r\nHost: a\r\n",
        "GET echo HTTP/1.1\r\nHost: a\r\n",
    ] {
        fails(&house, format!("{head}\r\n{HIDDEN}"), 400, "bad_request");
    }
    fails(
        &house,
        format!("POST /echo HTTP/1.1\r\nHost: x\r\nExpect: magic\r\n\r\n{HIDDEN}"),
        417,
        "expectation_failed",
    );
    assert_eq!(house.once("GET /echo HTTP/1.0\r\n\r\n").0.status, 202);
    assert!(!saw_hidden(&house));
}

#[test]
fn malformed_heads_are_told_so() {
    let house = house(|_| {});
    for head in [
        "hello\r\n\r\n",
        "GET /echo\r\n\r\n",
        "GET /echo HTTP/2.0\r\n\r\n",
        "GET /e cho HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /echo HTTP/1.1\r\nHost : x\r\n\r\n",
        "GET /echo HTTP/1.1\r\n folded: x\r\n\r\n",
        "GET /echo HTTP/1.1\r\nHost: x\rY: z\r\n\r\n",
        "GET /echo HTTP/1.1\r\nHost: x\0\r\n\r\n",
        "GET /echo HTTP/1.1\r\nHost: \x01x\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        fails(&house, head, 400, "bad_request");
        fails(&house, format!("{head}{HIDDEN}{HIDDEN}{HIDDEN}"), 400, "bad_request");
        assert_eq!(house.log.lock().expect("log").last().map(|e| (e.0.as_str(), e.1)), Some(("-", "-")));
    }
    // On a further request, what is wrong with a long one cannot be told, only that it is wrong.
    let mut client = house.knock();
    client.send(get("/echo"));
    assert_eq!(client.reply().status, 202);
    client.send(format!("nonsense{}\r\n\r\n", "!".repeat(200)));
    assert!([400, 431].contains(&client.reply().status));
    client.expect_end();
    fails(&house, b"\x16\x03\x01\x00\x20\x01\x00\xff\xfe\x00\x00", 400, "bad_request");
    assert!(!saw_hidden(&house));
}

#[test]
fn more_than_sixteen_fields_are_431() {
    let house = house(|_| {});
    let with = |fields: usize| {
        let more: String = (1..fields).map(|n| format!("X-Field-{n}: value\r\n")).collect();
        format!("GET /echo HTTP/1.1\r\nHost: x\r\n{more}\r\n")
    };
    assert_eq!(house.once(with(16)).0.status, 202);
    for fields in [17, 18, 100, 10_000] {
        fails(&house, with(fields), 431, "header_fields_too_large");
    }
    // After good requests on the same connection too, and in order behind their answers.
    let mut client = house.knock();
    client.send(get("/echo").repeat(3) + &with(17));
    for _ in 0..3 {
        assert_eq!(client.reply().status, 202);
    }
    let last = client.reply();
    assert_eq!((last.status, last.closes()), (431, true));
    client.expect_end();
}

#[test]
fn a_body_that_ends_early_is_400() {
    let house = house(|_| {});
    for (announced, sent) in [(10, 0), (10, 9), (100_000, 99_999), (10_000_000, 5_000_000)] {
        let mut client = house.knock();
        client.send(format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {announced}\r\n\r\n"));
        if sent > 0 {
            // So that the head is surely read before the end.
            client.send("x".repeat(sent));
        }
        eventually("the body is awaited", || house.door.gauges().body_bytes_in_flight() > 0);
        client.finish();
        let reply = client.reply();
        assert_eq!((reply.status, reply.code().as_str(), reply.closes()), (400, "bad_request", true));
        client.expect_end();
        eventually("its room is given back", || house.door.gauges().body_bytes_in_flight() == 0);
    }
    assert!(house.statuses().iter().all(|status| *status == 400));
}

#[test]
fn bodies_of_every_size_and_cut_arrive_whole_and_exactly() {
    let house = house(|_| {});
    let mut client = house.knock();
    for length in
        [1, 100, 4095, 4096, 16_384, 16_385, 32_000, 32_768, 65_535, 65_536, 65_537, 262_144, 300_000, 5_000_000]
    {
        let body: Vec<u8> = (0..length).map(|n: usize| (n % 251) as u8).collect();
        let sum: u64 = body.iter().map(|&b| u64::from(b)).sum();
        // With the next request right behind the body, in one write and in two.
        for cut in [0, 1, length / 2, length] {
            let mut bytes = format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n").into_bytes();
            bytes.extend_from_slice(&body);
            bytes.extend_from_slice(get("/one/next").as_bytes());
            let at = bytes.len() - cut;
            client.send(&bytes[..at]);
            std::thread::yield_now();
            client.send(&bytes[at..]);
            let reply = client.reply();
            assert_eq!(
                (reply.json()["length"].as_u64(), reply.json()["sum"].as_u64()),
                (Some(length as u64), Some(sum))
            );
            assert_eq!(client.reply().json()["path"].as_str(), Some("/one/next"));
        }
    }
    // Byte by byte.
    for byte in post("/echo", "slowly").bytes() {
        client.send([byte]);
    }
    assert_eq!(client.reply().json()["length"].as_u64(), Some(6));
}

#[test]
fn continue_is_sent_before_the_body_or_the_final_error_is() {
    let house = house(|o| o.body_bytes_max = 1_000_000);
    let head = |path: &str, length: usize| {
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n")
    };
    let mut client = house.knock();
    for length in [5, 500_000] {
        client.send(head("/echo", length));
        let interim = client.reply_head();
        assert_eq!((interim.status, interim.head.as_str()), (100, "HTTP/1.1 100 Continue\r\n\r\n"));
        client.send("x".repeat(length));
        let reply = client.reply();
        assert_eq!((reply.status, reply.closes()), (202, false));
    }
    client.send(head("/echo", 0));
    assert_eq!(client.reply().status, 202, "nothing to continue with");
    for (path, length, status) in [
        ("/echo", 1_000_001, 413),
        ("/nowhere", 5, 404),
        ("/big", 5, 405),
        ("/picky?media", 5, 415),
        ("/picky?busy", 5, 503),
    ] {
        fails_with(&house, head(path, length), status);
    }
    // Of HTTP/1.0 there is no 100.
    let (reply, _) = house.once("POST /echo HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab");
    assert_eq!(reply.status, 202);
}

fn fails_with(house: &House, bytes: String, status: u16) {
    let (reply, closed) = house.once(&bytes);
    assert_eq!((reply.status, closed), (status, true), "{bytes:?}");
}

#[test]
fn requests_behind_a_body_are_served_although_the_server_was_not_told_of_them() {
    let house = house(|_| {});
    for length in [1_000, 40_000, 400_000] {
        for close in [false, true] {
            let mut client = house.knock();
            client.send(format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"));
            eventually("the body is awaited", || house.door.gauges().body_bytes_in_flight() > 0);
            // All of it arrives at once while the body is being read, so the kernel announces it once.
            let sending = client.stream.try_clone().expect("clone");
            let bytes = "x".repeat(length) + &get("/one/next").repeat(2000);
            let sender = std::thread::spawn(move || {
                (&sending).write_all(bytes.as_bytes()).expect("send");
                if close {
                    sending.shutdown(Shutdown::Write).expect("shutdown");
                }
            });
            assert_eq!(client.reply().json()["length"], length);
            if !close {
                for _ in 0..2000 {
                    assert_eq!(client.reply().status, 202);
                }
            } else {
                client.rest();
            }
            sender.join().expect("sender");
        }
    }
}
