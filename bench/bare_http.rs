//! may_minihttp answering what millrace answers to one event, at once: what the HTTP layer alone costs.
//!
//! `bare_http ADDRESS`; for `scripts/bench`.

use std::io::{self, BufRead};

use may_minihttp::{HttpServer, HttpService, Request, Response};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Clone)]
struct Bare;

impl HttpService for Bare {
    fn call(&mut self, request: Request<'_, '_, '_>, response: &mut Response<'_>) -> io::Result<()> {
        let mut body = request.body();
        loop {
            let length = body.fill_buf()?.len();
            if length == 0 {
                break;
            }
            body.consume(length);
        }
        response.status_code(202, "Accepted");
        response.header("Content-Type: application/json");
        response.header("X-Request-Id: 0123456789abcdef0123456789abcdef");
        response.body("{\"accepted\":1,\"rejected\":0,\"errors\":[]}\n");
        Ok(())
    }
}

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    may::config().set_workers(std::thread::available_parallelism().map_or(2, usize::from));
    let server = HttpServer(Bare).start(address)?;
    server.join().map_err(|_| io::Error::other("the server panicked"))
}
