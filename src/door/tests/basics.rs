//! Requests as they should be, and what every answer has.

use super::*;

#[test]
fn a_request_is_answered_and_the_connection_stays() {
    let house = house(|_| {});
    let mut client = house.knock();
    for round in 0..3 {
        let body = "x".repeat(round * 1000);
        client.send(format!(
            "POST /echo?a=b HTTP/1.1\r\nHost: x\r\nContent-Type: text/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        let reply = client.reply();
        assert_eq!(reply.status, 202);
        assert_eq!(
            reply.json(),
            serde_json::json!({
                "method": "POST", "path": "/echo", "query": "a=b", "type": "text/json", "announced": body.len(),
                "length": body.len(), "sum": body.len() * usize::from(b'x'), "loopback": true,
                "key": null, "id": reply.header("X-Request-Id"), "last": "echo",
            })
        );
        assert_eq!(reply.header("Content-Type"), Some("application/json"));
        assert_eq!(reply.header("Connection"), None);
        assert!(reply.header("Date").is_some_and(|d| d.ends_with(" GMT") && d.len() == 29));
    }
    assert_eq!(house.door.gauges().connections_open(), 1);
    drop(client);
    eventually("the connection is closed", || house.door.gauges().connections_open() == 0);
    let log = house.log.lock().expect("log");
    assert_eq!(log[2], ("/echo".to_owned(), "POST", 202, 2000));
}

#[test]
fn every_answer_has_a_request_id() {
    let house = house(|_| {});
    for (asked, echoed) in [("abc-123", true), (&"x".repeat(128), true), (&"x".repeat(129), false), ("a b", false)] {
        for path in ["/echo", "/nowhere"] {
            let (reply, _) = house.once(format!("GET {path} HTTP/1.1\r\nHost: x\r\nX-Request-ID: {asked}\r\n\r\n"));
            let id = reply.header("X-Request-Id").expect("an id");
            assert_eq!(id == asked, echoed);
            assert!((1..=128).contains(&id.len()));
        }
    }
    let mut client = house.knock();
    let ids: std::collections::HashSet<String> = (0..10)
        .map(|_| {
            client.send(get("/echo"));
            client.reply().header("X-Request-Id").expect("an id").to_owned()
        })
        .collect();
    assert_eq!(ids.len(), 10, "made ids differ");
    for bad in ["nonsense\r\n\r\n", "POST /echo HTTP/1.1\r\nX-Request-Id: mine\r\nHost: x\r\nContent-Length: x\r\n\r\n"]
    {
        let (reply, closed) = house.once(bad);
        assert!(closed && reply.status == 400 && reply.header("X-Request-Id").is_some());
        assert_eq!(reply.header("X-Request-Id") == Some("mine"), bad.contains("mine"));
    }
}

#[test]
fn paths_and_methods() {
    let house = house(|_| {});
    let (reply, _) = house.once(get("/one/7?x"));
    assert_eq!((reply.status, reply.json()["path"].as_str()), (202, Some("/one/7")));
    let (reply, _) = house.once(get("/one/a%2Fb%20c"));
    assert_eq!((reply.status, reply.json()["last"].as_str()), (202, Some("a%2Fb%20c")));
    assert_eq!(house.once(get("/one/a/b")).0.status, 404);
    let (reply, closed) = house.once(post("/ech", "body"));
    assert_eq!((reply.status, reply.code().as_str(), closed), (404, "not_found", false));
    assert!(reply.json()["error"]["message"].as_str().is_some_and(|m| m.contains("/echo")));
    let (reply, closed) = house.once(post("/big", "body"));
    assert_eq!((reply.status, reply.code().as_str(), closed), (405, "method_not_allowed", false));
    assert_eq!(reply.header("Allow"), Some("GET, HEAD"));
    let (reply, _) = house.once("BREW /echo HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!((reply.status, reply.header("Allow")), (405, Some("POST, GET, HEAD")));
    let (reply, _) = house.once(get("/v1/"));
    assert_eq!(reply.status, 200);
    assert!(reply.json()["paths"].as_array().is_some_and(|paths| paths.len() == 8));
    let (reply, _) = house.once("GET http://example.org:80/one/8?y=1 HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!((reply.json()["path"].as_str(), reply.json()["query"].as_str()), (Some("/one/8"), Some("y=1")));
    let (reply, _) = house.once("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(reply.status, 404);
    let log = house.log.lock().expect("log");
    assert!(log.iter().any(|entry| (entry.0.as_str(), entry.1, entry.2) == ("/echo", "OTHER", 405)));
    assert!(log.iter().any(|entry| (entry.0.as_str(), entry.2) == ("-", 404)));
    assert!(log.iter().any(|entry| entry.0 == "/one/{id}"));
}

#[test]
fn head_has_the_length_and_no_body() {
    let house = house(|_| {});
    for (path, length) in [("/big?1000", 1000), ("/big?1000000", 1_000_000), ("/big?0", 0)] {
        let mut client = house.knock();
        client.send(format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        let reply = client.reply_head();
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("Content-Length"), Some(length.to_string().as_str()));
        if reply.closes() {
            client.expect_end();
        } else {
            client.send(get("/echo"));
            assert_eq!(client.reply().status, 202);
        }
    }
    let (reply, _) = house.once("HEAD /nowhere HTTP/1.0\r\n\r\n".replace("HEAD", "GET"));
    assert_eq!(reply.status, 404);
}

#[test]
fn a_refusal_before_the_body_keeps_the_connection_when_the_body_is_short() {
    let house = house(|_| {});
    let (reply, closed) = house.once(post("/picky?media", &"x".repeat(60_000)));
    assert_eq!((reply.status, closed), (415, false));
    let (reply, closed) = house.once(post("/picky?media", &"x".repeat(70_000)));
    assert_eq!((reply.status, closed), (415, true));
    let (reply, closed) = house.once(post("/picky?busy", "x"));
    assert_eq!((reply.status, closed, reply.header("Retry-After")), (503, true, Some("7")));
    let (reply, closed) = house.once(post("/picky?busy", ""));
    assert_eq!((reply.status, closed), (503, false));
}

#[test]
fn a_panic_in_an_endpoint_is_500_and_no_more() {
    let house = house(|_| {});
    let mut client = house.knock();
    for path in ["/panics", "/panics?early", "/panics"] {
        client.send(post(path, "body"));
        let reply = client.reply();
        assert_eq!((reply.status, reply.code().as_str()), (500, "internal"));
    }
    client.send(post("/echo", "body"));
    assert_eq!(client.reply().status, 202);
}

#[test]
fn blanks_and_newlines_within_the_rules_are_taken() {
    let house = house(|_| {});
    for request in [
        "\r\n\r\nPOST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab",
        "POST /echo HTTP/1.1\r\nHost:x\r\ncontent-length:\t 2 \t\r\n\r\nab",
        "POST /echo HTTP/1.1\nHost: x\nContent-Length: 2\n\nab",
        "POST /echo HTTP/1.0\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nab",
    ] {
        let mut client = house.knock();
        for _ in 0..3 {
            client.send(request);
            let reply = client.reply();
            assert_eq!((reply.status, reply.json()["length"].as_u64()), (202, Some(2)), "{request:?}");
            assert_eq!(reply.header("Connection"), request.contains("1.0").then_some("keep-alive"));
        }
    }
}
