//! Bodies with a content coding, heads with an idempotency key, and answers without content.

use super::*;
use crate::door::decode::tests::{gzip, zstd};

const MIB: usize = 1 << 20;

/// A request with a coded body and further header fields.
fn coded(path: &str, coding: &str, more: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Encoding: {coding}\r\n{more}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().map(|&b| u64::from(b)).sum()
}

#[test]
fn what_is_coded_arrives_decoded_and_is_counted_as_sent() {
    let house = house(|_| {});
    let mut client = house.knock();
    for length in [1, 1000, 20_000, 300_000, 12_000_000] {
        let plain = pattern(length).into_bytes();
        for (coding, body) in [
            ("gzip", gzip(&plain)),
            ("X-GZIP", gzip(&plain)),
            ("zstd", zstd(&plain)),
            ("identity", plain.clone()),
            ("", plain.clone()),
        ] {
            client.send(coded("/decoded", coding, "", &body));
            let reply = client.reply();
            assert_eq!((reply.status, reply.closes()), (202, false));
            assert_eq!(reply.json()["length"], length);
            assert_eq!(reply.json()["sum"], sum(&plain));
            assert_eq!(reply.json()["announced"], body.len());
            let entry = house.log.lock().expect("log").last().cloned().expect("an entry");
            assert_eq!(entry, ("/decoded".to_owned(), "POST", 202, body.len()));
        }
    }
    eventually("all room is given back", || house.door.gauges().body_bytes_in_flight() == 0);
}

#[test]
fn an_endpoint_that_does_not_ask_for_it_gets_what_was_sent() {
    let house = house(|_| {});
    for (coding, body) in [("gzip", gzip(b"hello")), ("gzip", b"no gzip".to_vec()), ("br, x", b"whatever".to_vec())] {
        let (reply, closed) = house.once(coded("/echo", coding, "", &body));
        assert_eq!((reply.status, closed, reply.json()["length"].as_u64()), (202, false, Some(body.len() as u64)));
        assert_eq!(reply.json()["sum"], sum(&body));
    }
}

#[test]
fn other_codings_are_415_before_the_body() {
    let house = house(|_| {});
    for coding in ["br", "deflate", "gzip, zstd", "gzip,identity", "gzip\r\nContent-Encoding: gzip"] {
        let (reply, closed) = house.once(coded("/decoded", coding, "", &gzip(b"hello")));
        assert_eq!((reply.status, reply.code().as_str(), closed), (415, "unsupported_content_encoding", false));
        let message = reply.json()["error"]["message"].as_str().expect("a message").to_owned();
        assert!(message.contains("gzip, zstd or identity"), "{message}");
        let mut client = house.knock();
        client.send(coded("/decoded", coding, "Expect: 100-continue\r\n", b"").replace_length(5));
        assert_eq!(client.reply().status, 415);
        client.expect_end();
    }
}

trait ReplaceLength {
    fn replace_length(self, length: usize) -> Vec<u8>;
}
impl ReplaceLength for Vec<u8> {
    /// Announces another length than the body has.
    fn replace_length(self, length: usize) -> Vec<u8> {
        let text = String::from_utf8(self).expect("text");
        text.replace("Content-Length: 0", &format!("Content-Length: {length}")).into_bytes()
    }
}

#[test]
fn continue_is_sent_before_a_coded_body() {
    let house = house(|o| o.body_bytes_max = 10_000);
    let mut client = house.knock();
    for body in [gzip(&pattern(5_000).into_bytes()), zstd(&[b'x'; 1_000_000])] {
        client.send(
            coded("/decoded", if body[0] == 0x1f { "gzip" } else { "zstd" }, "Expect: 100-continue\r\n", b"")
                .replace_length(body.len()),
        );
        assert_eq!(client.reply_head().status, 100);
        client.send(&body);
        assert_eq!(client.reply().status, 202);
    }
    // What counts before the body is its length as sent.
    client.send(coded("/decoded", "gzip", "Expect: 100-continue\r\n", b"").replace_length(10_001));
    let reply = client.reply();
    assert_eq!((reply.status, reply.code().as_str(), reply.closes()), (413, "content_too_large", true));
    client.expect_end();
}

#[test]
fn a_broken_body_is_400_that_says_where_and_the_connection_stays() {
    let house = house(|_| {});
    let good = gzip(b"hello, hello, hello");
    let end = good.len();
    for (coding, body, at) in [
        ("gzip", Vec::new(), 0),
        ("zstd", Vec::new(), 0),
        ("gzip", b"{}".to_vec(), 0),
        ("gzip", good[..end - 3].to_vec(), end - 3),
        ("gzip", [&good[..], b"\0\0\0\0"].concat(), end),
        ("zstd", [zstd(b"x"), b"x".to_vec()].concat(), zstd(b"x").len()),
    ] {
        let (reply, closed) = house.once(coded("/decoded", coding, "", &body));
        assert_eq!((reply.status, reply.code().as_str(), closed), (400, "bad_encoding", false));
        let message = reply.json()["error"]["message"].as_str().expect("a message").to_owned();
        assert!(message.contains(&format!("the {coding} body is broken at byte {at}: ")), "{message}");
    }
    assert!(house.log.lock().expect("log").iter().all(|entry| entry.0 != "/decoded" || entry.2 == 400));
}

#[test]
fn a_bomb_is_413_wherever_it_lies_and_closes() {
    let house = house(|o| (o.body_bytes_max, o.decoded_bytes_max) = (MIB, 4 * MIB));
    let zeros = vec![0; 64 * MIB];
    let (small_gzip, small_zstd) = (gzip(b"{}\n").repeat(1000), zstd(b"{}\n").repeat(1000));
    for (coding, body) in [
        ("gzip", gzip(&zeros)),
        ("zstd", zstd(&zeros)),
        ("gzip", [small_gzip, gzip(&zeros)].concat()),
        ("zstd", [small_zstd, zstd(&zeros)].concat()),
    ] {
        let (reply, closed) = house.once(coded("/decoded", coding, "", &body));
        assert_eq!((reply.status, reply.code().as_str(), closed), (413, "content_too_large", true));
        assert!(String::from_utf8_lossy(&reply.body).contains("4194304 bytes at most once it is decoded"));
    }
    let (reply, _) = house.once(coded("/decoded", "gzip", "", &gzip(&zeros[..4 * MIB])));
    assert_eq!((reply.status, reply.json()["length"].as_u64()), (202, Some(4 << 20)));
}

#[test]
fn many_bombs_at_once_stay_within_the_room() {
    let room = 24 * MIB;
    let house = house(|o| (o.body_bytes_max, o.decoded_bytes_max, o.body_bytes_in_flight_max) = (MIB, 8 * MIB, room));
    let bombs = [("gzip", gzip(&vec![0; 16 * MIB])), ("zstd", zstd(&vec![0; 16 * MIB]))];
    let most = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..24)
            .map(|n| {
                let (coding, body) = &bombs[n % 2];
                let house = &house;
                scope.spawn(move || {
                    for _ in 0..5 {
                        let mut client = house.knock();
                        client.send(coded("/decoded", coding, "", body));
                        let status = client.reply().status;
                        assert!([413, 503].contains(&status), "{status}");
                    }
                })
            })
            .collect();
        while clients.iter().any(|client| !client.is_finished()) {
            most.fetch_max(house.door.gauges().body_bytes_in_flight(), Ordering::SeqCst);
            // Others are served meanwhile.
            assert_eq!(house.once(get("/echo")).0.status, 202);
        }
    });
    assert!(most.load(Ordering::SeqCst) <= room);
    eventually("all is given back", || house.door.gauges().body_bytes_in_flight() == 0);
    assert_eq!(house.once(coded("/decoded", "zstd", "", &zstd(b"fine"))).0.status, 202);
}

#[test]
fn random_damage_over_a_socket_ends_nothing() {
    let house = house(|_| {});
    let mut random = random();
    let mut client = house.knock();
    let plain = pattern(50_000).into_bytes();
    for round in 0..400 {
        let (coding, mut body) = if round % 2 == 0 { ("gzip", gzip(&plain)) } else { ("zstd", zstd(&plain)) };
        for _ in 0..random() % 3 {
            let at = (random() % body.len() as u64) as usize;
            body[at] ^= 1 << (random() % 8);
        }
        client.send(coded("/decoded", coding, "", &body));
        let reply = client.reply();
        assert!([202, 400, 413].contains(&reply.status), "{}", reply.status);
        if reply.status == 202 {
            assert_eq!(reply.json()["sum"], sum(&plain));
        }
        if reply.closes() {
            client = house.knock();
        }
    }
}

#[test]
fn an_idempotency_key_is_handed_on_or_refused() {
    let house = house(|_| {});
    let with = |method: &str, fields: &str| {
        house.once(format!("{method} /echo HTTP/1.1\r\nHost: x\r\n{fields}Content-Length: 0\r\n\r\n")).0
    };
    let longest = "k".repeat(255);
    for key in ["a", "0af7651916cd43dd8448eb211c80319c", "\"quoted\"", &longest] {
        let reply = with("POST", &format!("idempotency-key: {key}\r\n"));
        assert_eq!((reply.status, reply.json()["key"].as_str()), (202, Some(key)));
    }
    let reply = with("POST", "Idempotency-Key: a\r\nContent-Type: b\r\nIdempotency-Key: a\r\nContent-Encoding: c\r\n");
    assert_eq!((reply.json()["key"].as_str(), reply.json()["type"].as_str()), (Some("a"), Some("b")));
    let too_long = format!("Idempotency-Key: {longest}k\r\n");
    for fields in ["Idempotency-Key: a b\r\n", "Idempotency-Key:\r\n", "Idempotency-Key: é\r\n", &too_long] {
        let reply = with("POST", fields);
        assert_eq!((reply.status, reply.code().as_str()), (400, "bad_request"));
        assert!(String::from_utf8_lossy(&reply.body).contains("Idempotency-Key"), "the message names it");
        assert_eq!(with("GET", fields).status, 202);
    }
    assert_eq!(with("POST", "Idempotency-Key: a\r\nIdempotency-Key: b\r\n").status, 400);
    assert_eq!(with("GET", "Idempotency-Key: a\r\n").json()["key"], serde_json::Value::Null);
    let reply = with("POST", "X-Request-Id: mine\r\n");
    assert_eq!((reply.json()["id"].as_str(), reply.header("X-Request-Id")), (Some("mine"), Some("mine")));
    let reply = with("POST", "");
    assert_eq!(reply.json()["id"].as_str(), reply.header("X-Request-Id"));
}

/// Reads a 204 as a client does: it ends with its head.
fn no_content(client: &mut Client) -> Reply {
    let reply = client.reply_head();
    assert_eq!(reply.status, 204, "{}", reply.head);
    assert!(reply.header("Content-Type").is_none() && reply.header("Date").is_some(), "{}", reply.head);
    assert!(reply.header("X-Request-Id").is_some());
    reply
}

#[test]
fn an_answer_without_content_has_no_length_and_the_connection_stays() {
    let house = house(|_| {});
    let mut client = house.knock();
    for round in 0..50 {
        // Before, between and after answers of the other kind.
        for path in ["/empty", "/echo", "/empty", "/empty", "/empty?x"] {
            client.send(post(path, &"x".repeat(round * 1500)));
            if path == "/echo" {
                assert_eq!(client.reply().json()["length"], round * 1500);
            } else {
                assert!(no_content(&mut client).header("Content-Length").is_none());
            }
        }
        client.send("POST /empty HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(client.reply_head().status, 100);
        client.send("hello");
        assert!(no_content(&mut client).header("Content-Length").is_none());
    }
    assert_eq!(house.statuses().len(), 300);
    // Byte by byte, and an error that closes.
    for byte in post("/empty", "slowly").bytes() {
        client.send([byte]);
    }
    no_content(&mut client);
    client.send("nonsense\r\n\r\n");
    assert_eq!(client.reply().status, 400);
    client.expect_end();
}

#[test]
fn an_answer_without_content_may_be_the_last() {
    let house = house(|_| {});
    for request in ["POST /empty HTTP/1.0\r\n\r\n", "POST /empty HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"] {
        let mut client = house.knock();
        client.send(request);
        let reply = no_content(&mut client);
        assert!(reply.closes() && reply.header("Content-Length").is_none());
        client.expect_end();
    }
    let mut client = house.knock();
    client.send("POST /empty HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(no_content(&mut client).header("Connection"), Some("keep-alive"));
    client.send(post("/echo", "more"));
    assert_eq!(client.reply().json()["length"], 4);
    drop(client);
    // The client ends after it, idle, in the middle of a head, or behind a whole request.
    for (more, statuses) in [("", &[][..]), ("POST /ec", &[400]), (&post("/echo", "last"), &[202])] {
        let mut client = house.knock();
        client.send(post("/empty", ""));
        no_content(&mut client);
        client.send(more);
        client.finish();
        let rest = String::from_utf8(client.rest()).expect("text");
        let found: Vec<u16> =
            rest.match_indices("HTTP/1.1 ").map(|(at, _)| rest[at + 9..at + 12].parse().expect("a status")).collect();
        assert_eq!(found, statuses);
    }
    eventually("all are closed", || house.door.gauges().connections_open() == 0);
}

#[test]
fn requests_sent_ahead_are_all_answered_in_order() {
    let house = house(|_| {});
    for count in [2, 3, 50, 3000] {
        let mut client = house.knock();
        let sending = client.stream.try_clone().expect("clone");
        let bytes = (post("/empty", "x") + &post("/echo", "xy") + &post("/empty", "xyz")).repeat(count);
        let sender = std::thread::spawn(move || (&sending).write_all(bytes.as_bytes()));
        for _ in 0..count {
            no_content(&mut client);
            assert_eq!(client.reply().json()["length"], 2);
            no_content(&mut client);
        }
        assert!(sender.join().expect("sender").is_ok());
        client.send(post("/empty", ""));
        no_content(&mut client);
    }
}

#[test]
fn a_connection_between_answers_without_content_falls_under_the_same_deadlines() {
    let house = house(|o| (o.header_ms_max, o.idle_ms_max) = (500, 1000));
    let mut idle = house.knock();
    idle.send(post("/empty", ""));
    no_content(&mut idle);
    idle.expect_end();
    let mut slow = house.knock();
    slow.send(post("/empty", ""));
    no_content(&mut slow);
    slow.send("POST /em");
    assert_eq!(slow.reply().status, 408);
    let mut long = house.knock();
    long.send(post("/empty", ""));
    no_content(&mut long);
    long.send(format!("GET /echo HTTP/1.1\r\nX-Long: {}", "a".repeat(120_000)));
    assert_eq!(long.reply().status, 431);
    let mut client = house.knock();
    client.send(post("/empty", ""));
    no_content(&mut client);
    assert!(house.door.drain(Instant::now() + PATIENCE));
    client.expect_end();
}

#[test]
fn nothing_is_changed_or_removed_by_any_path() {
    let house = house(|_| {});
    let (list, _) = house.once(get("/v1/"));
    for path in list.json()["paths"].as_array().expect("paths") {
        let allowed: Vec<&str> =
            path["methods"].as_array().expect("methods").iter().filter_map(|m| m.as_str()).collect();
        let target = path["path"].as_str().expect("a path").replace("{id}", "7");
        for method in ["PUT", "PATCH", "DELETE"] {
            let (reply, closed) = house.once(post(&target, "body").replace("POST", method));
            assert_eq!((reply.status, reply.header("Allow"), closed), (405, Some(allowed.join(", ").as_str()), false));
        }
    }
}
