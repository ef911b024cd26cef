//! Deadlines, numbers and sizes that a client runs into.

use super::*;

/// Limits short enough for a test, and long enough for a busy machine where they must not strike.
fn hasty(o: &mut Options) {
    o.header_ms_max = 600;
    o.body_grace_ms = 600;
    o.idle_ms_max = 1200;
    o.write_stall_ms_max = 600;
    o.linger_ms_max = 300;
}

#[test]
fn a_silent_connection_is_closed_without_a_word() {
    let house = house(hasty);
    let mut client = house.knock();
    let began = Instant::now();
    client.expect_end();
    assert!(began.elapsed() >= Duration::from_millis(600));
    assert!(house.statuses().is_empty());
}

#[test]
fn a_head_that_takes_too_long_is_408() {
    let house = house(hasty);
    // It stops in the middle.
    let mut client = house.knock();
    client.send("GET /echo HTTP/1.1\r\nHost");
    let reply = client.reply();
    assert_eq!((reply.status, reply.code().as_str(), reply.closes()), (408, "request_timeout", true));
    client.expect_end();
    // It trickles, as the first or as a further one.
    for before in [String::new(), get("/echo")] {
        trickles(&house, &before);
    }
}

fn trickles(house: &House, before: &str) {
    let mut client = house.knock();
    if !before.is_empty() {
        client.send(before);
        assert_eq!(client.reply().status, 202);
    }
    let trickle = client.stream.try_clone().expect("clone");
    let trickler = std::thread::spawn(move || {
        let mut sent = 0;
        while (&trickle).write_all(b"a").is_ok() {
            sent += 1;
            // A pace, not a wait: the head would be endless.
            std::thread::sleep(Duration::from_millis(20));
        }
        sent
    });
    client.send("GET /echo HTTP/1.1\r\nX-Long: ");
    assert_eq!(client.reply().status, 408);
    client.rest();
    drop(client);
    assert!(trickler.join().expect("trickler") < 1000);
}

#[test]
fn an_idle_connection_is_closed_without_a_word_and_a_used_one_is_not() {
    let house = house(hasty);
    let mut used = house.knock();
    let mut idle = house.knock();
    idle.send(get("/echo"));
    assert_eq!(idle.reply().status, 202);
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2500) {
        used.send(get("/echo"));
        assert_eq!(used.reply().status, 202);
        std::thread::sleep(Duration::from_millis(300));
    }
    idle.expect_end();
    eventually("one is left", || house.door.gauges().connections_open() == 1);
}

#[test]
fn a_body_that_stops_or_trickles_is_408_and_a_slow_one_is_not() {
    let house = house(hasty);
    for some in [0, 10, 40_000] {
        let mut client = house.knock();
        client.send(format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n{}", "x".repeat(some)));
        let reply = client.reply();
        assert_eq!((reply.status, reply.code().as_str(), reply.closes()), (408, "request_timeout", true), "{some}");
        client.expect_end();
    }
    // 2 KiB/s for three times the grace: slow, but fast enough.
    let mut client = house.knock();
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n");
    for _ in 0..40 {
        client.send([b'x'; 100]);
        std::thread::sleep(Duration::from_millis(49));
    }
    assert_eq!(client.reply().status, 202);
}

#[test]
fn a_peer_that_takes_nothing_of_its_answer_is_cut() {
    let house = house(hasty);
    for close in ["", "Connection: close\r\n"] {
        let mut client = house.knock();
        client.send(format!("GET /big?50000000 HTTP/1.1\r\nHost: x\r\n{close}\r\n"));
        eventually("connected", || house.door.gauges().connections_open() == 1);
        eventually("cut", || house.door.gauges().connections_open() == 0);
        assert!(client.rest().len() < 50_000_000);
    }
}

#[test]
fn a_head_that_is_too_long_is_431_in_bounded_memory() {
    let house = house(|o| o.head_bytes_max = 32 << 10);
    // 60 KB in all is within reach of a single field; endless is not.
    for endless in ["GET /echo HTTP/1.1\r\nX-Long: ", "GET /", "POST /echo?", "A"] {
        let mut client = house.knock();
        client.send(endless);
        let mut sent = 0;
        while client.try_send([b'a'; 8192]) {
            sent += 8192;
            assert!(sent < 256 << 20, "the server reads a head for ever");
        }
        drop(client);
    }
    eventually("all closed", || house.door.gauges().connections_open() == 0);
    // A sender that stops and looks sees why.
    let mut client = house.knock();
    client.send(format!("GET /echo HTTP/1.1\r\nX-Long: {}", "a".repeat(120_000)));
    let reply = client.reply();
    assert_eq!((reply.status, reply.code().as_str()), (431, "header_fields_too_large"));
    client.expect_end();
    // What is long and complete is served.
    let (reply, _) = house.once(format!("GET /echo HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "a".repeat(30_000)));
    assert_eq!(reply.status, 202);
}

#[test]
fn connections_beyond_the_limit_are_told_503_and_the_others_are_served() {
    let house = house(|o| o.connections_max = 10);
    let mut inside: Vec<Client> = (0..10).map(|_| house.knock()).collect();
    for client in &mut inside {
        client.send(get("/echo"));
        assert_eq!(client.reply().status, 202);
    }
    assert_eq!(house.door.gauges().connections_open(), 10);
    for bytes in [get("/echo"), post("/echo", &"x".repeat(10_000)), "GET /e".to_owned(), "nonsense\r\n\r\n".to_owned()]
    {
        for _ in 0..5 {
            let mut client = house.knock();
            client.send(&bytes);
            let reply = client.reply();
            assert_eq!((reply.status, reply.header("Retry-After"), reply.closes()), (503, Some("1"), true));
            client.try_send(get("/echo"));
            client.expect_end();
        }
    }
    assert_eq!(house.door.gauges().connections_refused(), 20);
    for client in &mut inside {
        client.send(get("/echo"));
        assert_eq!(client.reply().status, 202);
    }
    // A flood that is never read from does not shut the door for those who come after it.
    let flood: Vec<TcpStream> = (0..500).filter_map(|_| TcpStream::connect(house.door.local_addr()).ok()).collect();
    drop(inside);
    drop(flood);
    eventually("served again", || {
        let mut client = house.knock();
        client.try_send(get("/echo"))
            && client.stream.peek(&mut [0; 16]).is_ok_and(|n| n > 0)
            && client.reply().status == 202
    });
}

#[test]
fn all_bodies_together_have_a_bound() {
    let house = house(|o| {
        o.body_bytes_max = 1 << 20;
        o.body_bytes_in_flight_max = 4 << 20;
    });
    let head = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n";
    // Announced bodies hold nothing until they arrive.
    let mut waiting: Vec<Client> = (0..8).map(|_| house.knock()).collect();
    for client in &mut waiting {
        client.send(head);
    }
    eventually("all are awaited", || house.door.gauges().body_bytes_in_flight() >= 8 * (64 << 10));
    assert!(house.door.gauges().body_bytes_in_flight() < 1 << 20);
    // Three of them arrive, all but the end: they take 1,000,000 each.
    for (n, client) in waiting.iter_mut().take(3).enumerate() {
        client.send(vec![b'x'; 900_000]);
        let least = (n + 1) * 1_000_000;
        eventually("its room is taken", || house.door.gauges().body_bytes_in_flight() >= least);
    }
    // So a fourth is refused on the way, as soon as it grows too large, and a new one before it has begun.
    waiting[3].try_send(vec![b'x'; 900_000]);
    let reply = waiting[3].reply();
    assert_eq!((reply.status, reply.header("Retry-After"), reply.closes()), (503, Some("1"), true));
    let (reply, closed) = house.once(format!("{head}x"));
    assert_eq!((reply.status, reply.header("Retry-After"), closed), (503, Some("1"), true));
    for client in waiting.iter_mut().take(3) {
        client.send(vec![b'x'; 100_000]);
        assert_eq!(client.reply().status, 202);
    }
    drop(waiting);
    eventually("all is given back", || house.door.gauges().body_bytes_in_flight() == 0);
}

#[test]
fn an_address_in_use_is_an_error_that_names_it() {
    let house = house(|_| {});
    let options = Options { listen: house.door.local_addr(), ..Options::default() };
    let error = start(&options, Routes::new(), |_: &Answered<'_>| {}).err().expect("in use");
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&options.listen.to_string()), "{error}");
    let foreign = Options { listen: ([192, 0, 2, 1], 0).into(), ..Options::default() };
    assert_eq!(
        start(&foreign, Routes::new(), |_: &Answered<'_>| {}).err().map(|e| e.kind()),
        Some(ErrorKind::AddrNotAvailable)
    );
    // Closed, it can be opened again at once.
    drop(house);
    start(&options, Routes::new(), |_: &Answered<'_>| {}).expect("free again");
}
