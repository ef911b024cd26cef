//! Many at a time, and closing the door under them.

use super::*;
use std::os::fd::AsRawFd;

#[test]
fn many_connections_at_a_time_each_get_their_own_answers() {
    let house = house(|_| {});
    let mut clients: Vec<Client> = (0..256).map(|_| house.knock()).collect();
    for round in 0..5 {
        for (n, client) in clients.iter_mut().enumerate() {
            client.send(get(&format!("/one/{n}-{round}")));
            client.send(post("/echo", &"x".repeat(n * 100)));
        }
        for (n, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.reply().json()["path"], format!("/one/{n}-{round}"));
            assert_eq!(client.reply().json()["length"], n * 100);
        }
    }
    assert_eq!(house.door.gauges().connections_open(), 256);
}

#[test]
fn a_busy_endpoint_does_not_keep_others_from_being_served() {
    let house = house(|_| {});
    let mut waiting: Vec<Client> = (0..100).map(|_| house.knock()).collect();
    for client in &mut waiting {
        client.send(get("/gate"));
    }
    eventually("all wait", || house.gate.waiting.load(Ordering::SeqCst) == 100);
    assert_eq!(house.once(get("/echo")).0.status, 202);
    house.gate.open.store(true, Ordering::SeqCst);
    for client in &mut waiting {
        assert_eq!(client.reply().status, 200);
    }
}

#[test]
fn draining_answers_what_is_in_flight_and_closes_the_rest() {
    let house = house(|_| {});
    let mut idle = house.knock();
    idle.send(get("/echo"));
    assert_eq!(idle.reply().status, 202);
    let mut silent = house.knock();
    eventually("a silent connection is accepted too", || house.door.gauges().connections_open() == 2);
    let mut waiting = house.knock();
    waiting.send(get("/gate"));
    eventually("it waits", || house.gate.waiting.load(Ordering::SeqCst) == 1);
    let address = house.door.local_addr();
    std::thread::scope(|scope| {
        let draining = scope.spawn(|| house.door.drain(Instant::now() + PATIENCE));
        idle.expect_end();
        silent.expect_end();
        eventually("the listener is closed", || TcpStream::connect(address).is_err());
        assert!(!draining.is_finished());
        house.gate.open.store(true, Ordering::SeqCst);
        let reply = waiting.reply();
        assert_eq!((reply.status, reply.closes()), (200, true));
        waiting.expect_end();
        assert!(draining.join().expect("drain"));
    });
    assert_eq!(house.door.gauges().connections_open(), 0);
    assert!(house.door.drain(Instant::now()), "again is fine");
}

#[test]
fn draining_gives_up_at_its_deadline() {
    let house = house(|_| {});
    let mut waiting = house.knock();
    waiting.send(get("/gate"));
    eventually("it waits", || house.gate.waiting.load(Ordering::SeqCst) == 1);
    let began = Instant::now();
    assert!(!house.door.drain(began + Duration::from_millis(200)));
    assert!(began.elapsed() < Duration::from_secs(10));
    waiting.expect_end();
    house.gate.open.store(true, Ordering::SeqCst);
}

#[test]
fn draining_under_load_never_cuts_an_answer() {
    for _ in 0..5 {
        let house = house(|_| {});
        let address = house.door.local_addr();
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..16)
                .map(|_| {
                    let mut client = house.knock();
                    scope.spawn(move || {
                        let mut answered = 0;
                        loop {
                            // The door may close between two requests, but then without a byte of an answer.
                            if !client.try_send(post("/echo", "body")) {
                                return answered;
                            }
                            match client.stream.peek(&mut [0; 16]) {
                                Ok(n) if n > 0 => {}
                                _ => return answered,
                            }
                            let reply = client.reply();
                            // A client that comes as late as this is told so.
                            assert!(reply.status == 503 && answered == 0 || reply.json()["length"] == 4);
                            answered += 1;
                            if reply.closes() {
                                client.expect_end();
                                return answered;
                            }
                        }
                    })
                })
                .collect();
            eventually("load", || house.log.lock().expect("log").len() > 500);
            assert!(house.door.drain(Instant::now() + PATIENCE));
            let answered: usize = clients.into_iter().map(|c| c.join().expect("client")).sum();
            let served = house.log.lock().expect("log").len();
            assert_eq!(answered, served, "every request that was served was answered");
            assert!(TcpStream::connect(address).is_err());
        });
    }
}

#[test]
fn random_pipelines_are_answered_in_order_and_whole() {
    let house = house(|_| {});
    let mut random = random();
    let mut served_before = 0;
    for round in 0..200 {
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        for n in 0..random() % 300 {
            let length = match random() % 6 {
                0 => random() % 60_000,
                _ => random() % 3_000,
            };
            match random() % 3 {
                0 => bytes.extend(get(&format!("/one/{n}")).bytes()),
                1 => bytes.extend(post("/echo", &"x".repeat(length as usize)).bytes()),
                _ => bytes.extend(get(&format!("/big?{length}")).bytes()),
            }
            expected.push((n, length));
        }
        let last = ["GET /big?9 HTTP/1.0\r\n\r\n", "GET /big?200000 HTTP/1.1\r\nHost: x\r\n\r\n", "oh no\r\n\r\n"];
        bytes.extend(last[(random() % 3) as usize].bytes());
        let mut client = house.knock();
        if round % 2 == 0 {
            // A small window, so that the server's writes are cut anywhere.
            let size: libc::c_int = 64 << 10;
            crate::door::socket::set(client.stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, &size).expect("set");
        }
        let sending = client.stream.try_clone().expect("clone");
        let cut = (random() % (bytes.len() as u64)) as usize;
        let sender = std::thread::spawn(move || {
            // The server may close in between; what it has answered until then is what counts.
            let _ = (&sending).write_all(&bytes[..cut]).and_then(|()| (&sending).write_all(&bytes[cut..]));
        });
        let mut answered = 0;
        for &(n, length) in &expected {
            let reply = client.reply();
            answered += 1;
            match reply.header("Content-Type") {
                Some("text/plain; charset=utf-8") => assert_eq!(reply.body, pattern(length as usize).as_bytes()),
                _ if reply.json()["path"] == "/echo" => assert_eq!(reply.json()["length"], length),
                _ => assert_eq!(reply.json()["path"], format!("/one/{n}")),
            }
            if reply.closes() {
                break;
            }
        }
        if answered == expected.len() {
            assert!(client.reply().closes());
            answered += 1;
        }
        client.expect_end();
        drop(client);
        sender.join().expect("sender");
        eventually("closed", || house.door.gauges().connections_open() == 0);
        let served = house.log.lock().expect("log").len();
        assert_eq!(served - served_before, answered, "every request that was served was answered");
        served_before = served;
    }
}

#[test]
fn garbage_from_many_sides_ends_nothing() {
    let house = house(|o| (o.linger_ms_max, o.header_ms_max) = (100, 500));
    let mut random = random();
    let parts: [&[u8]; 14] = [
        b"GET ",
        b"POST ",
        b"/echo",
        b" HTTP/1.1\r\n",
        b" HTTP/1.0\n",
        b"Host: x\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: -1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n",
        b"\r\n",
        b"\0\xff\x80",
        b"Connection: close\r\n",
        b"hello",
    ];
    for _ in 0..1000 {
        let mut bytes = Vec::new();
        for _ in 0..random() % 30 {
            let part = parts[(random() % parts.len() as u64) as usize];
            bytes.extend_from_slice(part);
            if random().is_multiple_of(20) {
                bytes.extend((0..random() % 50).map(|n| (n * 37) as u8));
            }
        }
        let mut client = house.knock();
        client.try_send(bytes);
        if random().is_multiple_of(2) {
            client.finish_quietly();
        }
    }
    eventually("all closed", || house.door.gauges().connections_open() == 0);
    assert_eq!(house.once(get("/echo")).0.status, 202);
    assert!(!house.statuses().contains(&500));
}
