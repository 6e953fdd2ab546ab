//! Serves metrics over HTTP.

use std::net::SocketAddr;

use tiny_http::{Header, Method, Response, Server};

use super::collect::CollectError;
use pouch_errors::chain;

/// The media type of the text (OpenMetrics 1.0, section 3).
const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// They could not be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address.
    #[error("--listen {address} cannot be used: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The socket failed.
    #[error("connections cannot be accepted any more")]
    Accept(#[source] std::io::Error),
}

/// Answers requests, one after the other, until the process ends.
///
/// # Errors
/// [`ServeError`] if the address cannot be used.
pub fn serve(
    address: SocketAddr,
    collect: impl Fn() -> Result<String, CollectError>,
) -> Result<(), ServeError> {
    let server = Server::http(address).map_err(|error| ServeError::Listen { address, error })?;
    eprintln!("pouch-vm: metrics are served at http://{}/metrics", server.server_addr());
    loop {
        let request = server.recv().map_err(ServeError::Accept)?;
        let (status, text) = answer(request.method(), request.url(), &collect);
        let mut response = Response::from_string(text).with_status_code(status);
        if status == 200
            && let Ok(header) = Header::from_bytes("Content-Type", TYPE)
        {
            response.add_header(header);
        }
        // The client may have gone.
        let _ = request.respond(response);
    }
}

fn answer(method: &Method, url: &str, collect: impl Fn() -> Result<String, CollectError>) -> (u16, String) {
    let path = url.split('?').next().unwrap_or_default();
    match (method, path) {
        (Method::Get | Method::Head, "/metrics") => match collect() {
            Ok(text) => (200, text),
            Err(error) => (500, chain(&error) + "\n"),
        },
        (Method::Get | Method::Head, _) => (404, "the metrics are at /metrics\n".to_owned()),
        _ => (405, "only GET is supported\n".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_metrics_are_served() {
        let ask = |method, url| answer(&method, url, || Ok("text".to_owned()));
        assert_eq!(ask(Method::Get, "/metrics"), (200, "text".to_owned()));
        assert_eq!(ask(Method::Get, "/metrics?x=1").0, 200);
        assert_eq!(ask(Method::Get, "/").0, 404);
        assert_eq!(ask(Method::Get, "/metrics/../etc/passwd").0, 404);
        assert_eq!(ask(Method::Post, "/metrics").0, 405);
    }
}
