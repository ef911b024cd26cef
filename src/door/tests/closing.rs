//! Pipelining, closing, half-closing: in order, whole, and nothing after the last answer.

use super::*;

#[test]
fn pipelined_requests_are_answered_in_order() {
    let house = house(|_| {});
    let mut client = house.knock();
    let mut all = String::new();
    for n in 0..500 {
        all += &get(&format!("/one/{n}"));
        all += &post("/echo", &"x".repeat(n));
    }
    let sending = client.stream.try_clone().expect("clone");
    let sender = std::thread::spawn(move || (&sending).write_all(all.as_bytes()));
    for n in 0..500 {
        assert_eq!(client.reply().json()["path"].as_str(), Some(format!("/one/{n}").as_str()));
        assert_eq!(client.reply().json()["length"].as_u64(), Some(n));
    }
    sender.join().expect("sender").expect("sent");
}

#[test]
fn close_is_honoured_whatever_the_answers_size_and_nothing_follows() {
    let house = house(|_| {});
    for length in [0, 1000, 64 << 10, (64 << 10) + 1, 10_000_000] {
        for request in [
            format!("GET /big?{length} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
            format!("GET /big?{length} HTTP/1.0\r\n\r\n"),
            format!(
                "GET /big?{length} HTTP/1.1\r\nHost: x\r\nConnection: Keep-Alive, Close\r\n\r\n{}",
                get("/one/hidden")
            ),
        ] {
            let mut client = house.knock();
            client.send(&request);
            let reply = client.reply();
            assert!(reply.closes() && reply.body == pattern(length).as_bytes(), "{request:?}");
            client.expect_end();
        }
    }
    assert!(house.log.lock().expect("log").iter().all(|entry| entry.0 == "/big"));
    eventually("all closed", || house.door.gauges().connections_open() == 0);
}

#[test]
fn an_answer_longer_than_the_buffers_reaches_a_slow_reader_whole() {
    let house = house(|_| {});
    for close in ["", "Connection: close\r\n"] {
        let mut client = house.knock();
        client.send(format!("GET /big?10000000 HTTP/1.1\r\nHost: x\r\n{close}\r\n"));
        let mut all = Vec::new();
        let mut chunk = [0; 50_000];
        // Reads a little whenever the sender surely waits: nothing is in flight any more.
        while all.len() < 10_000_000 {
            let n = client.stream.read(&mut chunk).expect("read");
            assert!(n > 0, "ended after {}", all.len());
            all.extend_from_slice(&chunk[..n]);
            std::thread::yield_now();
        }
        all.extend(client.rest());
        assert!(all.ends_with(&pattern(10_000_000).as_bytes()[9_000_000..]));
    }
}

#[test]
fn answers_to_pipelined_requests_stay_in_order_before_a_last_one() {
    let house = house(|o| o.body_bytes_max = 1000);
    let before = get("/one/a") + &post("/echo", "body") + &get("/big?5000");
    for (last, status) in [
        ("GET /big?100 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(), 200),
        ("GET /big?100 HTTP/1.0\r\n\r\n".to_owned(), 200),
        (get("/big?1000000"), 200),
        (post("/echo", &"x".repeat(1001)), 413),
        ("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(), 411),
        ("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\n".to_owned(), 400),
        ("garbage\r\n\r\n".to_owned(), 400),
        ("HEAD /big?7 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 200),
        ("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\nbody".to_owned(), 202),
    ] {
        let mut client = house.knock();
        client.send(format!("{before}{last}{}", get("/one/hidden")));
        assert_eq!(client.reply().json()["path"].as_str(), Some("/one/a"));
        assert_eq!(client.reply().json()["length"].as_u64(), Some(4));
        assert_eq!(client.reply().body, pattern(5000).as_bytes());
        let mut reply = client.reply_head();
        if last.contains("Expect") && reply.status == 100 {
            reply = client.reply_head();
        }
        assert_eq!((reply.status, reply.closes()), (status, true), "{last:?}");
        let length: usize = reply.header("Content-Length").and_then(|n| n.parse().ok()).expect("length");
        let rest = client.rest();
        assert_eq!(rest.len(), if last.starts_with("HEAD") { 0 } else { length }, "nothing after {last:?}");
    }
    assert!(!house.log.lock().expect("log").iter().any(|e| e.0 == "/one/{id}" && e.3 > 0));
}

#[test]
fn a_client_that_sends_requests_and_reads_nothing_is_bounded() {
    let house = house(|_| {});
    let mut client = house.knock();
    // 60 bytes ask for 60,000: what the server would buffer is a thousand times what it reads.
    let many = get("/big?60000").repeat(500);
    let mut rounds = 0;
    client.stream.set_write_timeout(Some(Duration::from_millis(200))).expect("timeout");
    while client.try_send(&many) {
        rounds += 1;
        assert!(rounds < 10_000, "the server takes requests for ever");
    }
    client.finish_quietly();
    // What it does get is answers, whole and in order, and an end.
    let mut answers = 0;
    loop {
        let reply = client.reply();
        assert_eq!((reply.status, reply.body.len()), (200, 60_000));
        answers += 1;
        if reply.closes() {
            break;
        }
    }
    assert!(answers > 1);
    client.rest();
}

#[test]
fn a_client_that_has_closed_its_side_is_answered() {
    let house = house(|_| {});
    // Once its request was seen: by all means.
    let mut client = house.knock();
    client.send(get("/gate"));
    eventually("the request is being served", || house.gate.waiting.load(Ordering::SeqCst) == 1);
    client.finish();
    house.gate.open.store(true, Ordering::SeqCst);
    let reply = client.reply();
    assert_eq!((reply.status, reply.body.as_slice()), (200, &b"through\n"[..]));
    client.expect_end();
    // A body is awaited, so its end may come together with the peer's.
    let mut client = house.knock();
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n");
    eventually("the body is awaited", || house.door.gauges().body_bytes_in_flight() > 0);
    client.send("x".repeat(100_000));
    client.finish();
    assert_eq!(client.reply().json()["length"].as_u64(), Some(100_000));
    client.expect_end();
    // When the request and the end come together on a new connection.
    for length in [0, 100, 20_000, 1_000_000] {
        for _ in 0..20 {
            let mut client = house.knock();
            client.send(get(&format!("/big?{length}")));
            client.finish();
            let reply = client.reply();
            assert_eq!((reply.status, reply.body.len()), (200, length));
            client.expect_end();
        }
    }
    for length in [10, 10_000, 15_000, 100_000, 1_000_000] {
        let mut client = house.knock();
        client.send(post("/echo", &"x".repeat(length)));
        client.finish();
        let reply = client.reply();
        assert_eq!((reply.status, reply.json()["length"].as_u64()), (202, Some(length as u64)), "{length}");
        client.expect_end();
    }
    for (bytes, status) in [
        (post("/echo", "x").replace(": 1", ": 2"), 400),
        (post("/nowhere", "x"), 404),
        ("GET /echo HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("nonsense\r\n\r\n".to_owned(), 400),
        ("GET /ec".to_owned(), 400),
        (get("/echo").replace("\r\n\r\n", &("\r\nA: b".repeat(17) + "\r\n\r\n")), 431),
    ] {
        let mut client = house.knock();
        client.send(&bytes);
        client.finish();
        assert_eq!(client.reply().status, status, "{bytes:?}");
        client.expect_end();
    }
    // Together with a further request it is served, or told what to do.
    for _ in 0..50 {
        let mut client = house.knock();
        client.send(get("/echo"));
        assert_eq!(client.reply().status, 202);
        client.send(get("/big?20000"));
        client.finish();
        let reply = client.reply();
        match reply.status {
            200 => assert_eq!(reply.body.len(), 20_000),
            400 => assert!(reply.json()["error"]["message"].as_str().is_some_and(|m| m.contains("keep it open"))),
            other => panic!("status {other}"),
        }
        client.expect_end();
    }
}

#[test]
fn a_client_that_vanishes_harms_nobody() {
    let house = house(|_| {});
    for bytes in
        ["", "GET", "GET /echo HTTP/1.1\r\nHo", "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nab"]
    {
        for reset in [false, true] {
            let mut client = house.knock();
            client.send(bytes);
            if reset {
                reset_on_close(&client.stream);
            }
            drop(client);
        }
    }
    for _ in 0..20 {
        let mut client = house.knock();
        client.send(get("/big?10000000"));
        let mut some = [0; 1000];
        client.stream.read_exact(&mut some).expect("read");
        reset_on_close(&client.stream);
    }
    eventually("all closed", || house.door.gauges().connections_open() == 0);
    assert_eq!(house.door.gauges().body_bytes_in_flight(), 0);
    assert_eq!(house.once(get("/echo")).0.status, 202);
}

fn reset_on_close(stream: &TcpStream) {
    use std::os::fd::AsRawFd;
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the option's value is a linger that outlives the call.
    let failed = unsafe {
        let size = size_of_val(&linger) as libc::socklen_t;
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size)
    };
    assert_eq!(failed, 0);
}
