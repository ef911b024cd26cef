//! The server to load: its address, and that it may be loaded.

use std::net::{SocketAddr, ToSocketAddrs};

/// A server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub address: SocketAddr,
    /// As requests name it.
    pub host: String,
}

impl Target {
    /// Of a URL. One that is not on this machine is refused unless that is `allowed`.
    pub fn of(url: &str, allowed: bool) -> Result<Target, String> {
        let host = match url.split_once("://") {
            Some(("http", rest)) => rest,
            Some(_) => return Err(format!("--url {url}: only http:// is spoken")),
            None => url,
        };
        let host = host.strip_suffix('/').unwrap_or(host);
        let name_ends = host.rfind(']').map_or(0, |bracket| bracket + 1);
        let named = if host[name_ends..].contains(':') { host.to_owned() } else { format!("{host}:80") };
        if host.is_empty() || host.contains(['/', '?', '#', '@']) || host.contains(char::is_whitespace) {
            return Err(format!("--url {url}: give it as http://HOST:PORT"));
        }
        let address = match named.to_socket_addrs().map(|mut found| found.next()) {
            Ok(Some(address)) => address,
            Ok(None) => return Err(format!("--url {url}: the name has no address")),
            Err(error) => return Err(format!("--url {url}: {error}: give it as http://HOST:PORT")),
        };
        if !address.ip().is_loopback() && !allowed {
            let ip = address.ip();
            return Err(format!("--url {url}: {ip} is not this machine: add --allow-remote if you may load it"));
        }
        Ok(Target { address, host: host.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (url, address, host) in [
            ("http://127.0.0.1:8000", "127.0.0.1:8000", "127.0.0.1:8000"),
            ("http://127.0.0.1/", "127.0.0.1:80", "127.0.0.1"),
            ("127.1.2.3:9", "127.1.2.3:9", "127.1.2.3:9"),
            ("http://[::1]:81", "[::1]:81", "[::1]:81"),
            ("http://[::1]", "[::1]:80", "[::1]"),
        ] {
            let target = Target::of(url, false).unwrap();
            assert_eq!((target.address, target.host.as_str()), (address.parse().unwrap(), host), "{url}");
        }
        for wrong in
            ["https://127.0.0.1", "", "http://", "http://127.0.0.1:8000/v1", "http://127.0.0.1:x", "http://a b"]
        {
            assert!(Target::of(wrong, true).is_err(), "{wrong}");
        }
    }

    #[test]
    fn other_machines_need_a_word() {
        for url in
            ["http://192.0.2.1:8000", "http://0.0.0.0:8000", "http://[2001:db8::1]:80", "http://[::ffff:192.0.2.1]:80"]
        {
            assert!(Target::of(url, false).unwrap_err().contains("--allow-remote"), "{url}");
            Target::of(url, true).unwrap();
        }
    }
}
