//! The streams of `exec`, `attach` and `port-forward`, by a web socket to containerd's streaming server, as kubectl has
//! them (k8s.io/kubelet, `pkg/cri/streaming`). Each message begins with the number of its channel.

use std::collections::BTreeMap;
use std::net::TcpStream;

use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

use crate::HANG;

/// The subprotocol whose messages are binary.
const PROTOCOL: &str = "v4.channel.k8s.io";

/// The channels of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Its input. For a port it is the data of both directions.
    Input = 0,
    /// Its output. For a port it is an error.
    Output = 1,
    /// Its standard error.
    Errors = 2,
    /// How it ended, as JSON.
    End = 3,
    /// The size of its terminal, as JSON.
    Size = 4,
}

/// A connection.
pub struct Stream {
    socket: WebSocket<TcpStream>,
    received: BTreeMap<u8, Vec<u8>>,
    /// Each channel of a port begins with the port's number.
    of_port: bool,
}

impl Stream {
    /// The streams of a process.
    #[track_caller]
    pub(super) fn to_process(url: &str) -> Self {
        Self::connect(url, false)
    }

    /// The connection to a port.
    #[track_caller]
    pub(super) fn to_port(url: &str) -> Self {
        Self::connect(url, true)
    }

    #[track_caller]
    fn connect(url: &str, of_port: bool) -> Self {
        let rest = url.strip_prefix("http://").expect("it is a URL of http");
        let address = rest.split('/').next().unwrap();
        let mut request = format!("ws://{rest}").into_client_request().unwrap();
        request.headers_mut().insert("Sec-WebSocket-Protocol", PROTOCOL.parse().unwrap());
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        let (socket, _) =
            tungstenite::client(request, stream).unwrap_or_else(|error| panic!("{url}: {error}"));
        Stream { socket, received: BTreeMap::new(), of_port }
    }

    /// Sends bytes on a channel.
    #[track_caller]
    pub fn send(&mut self, channel: Channel, bytes: &[u8]) {
        let message = [&[channel as u8], bytes].concat();
        self.socket.send(Message::binary(message)).unwrap();
    }

    /// Receives a message; false at the end.
    fn receive(&mut self) -> bool {
        match self.socket.read() {
            Ok(Message::Binary(bytes)) => {
                if let Some((channel, bytes)) = bytes.split_first() {
                    self.received.entry(*channel).or_default().extend(bytes);
                }
                true
            }
            Ok(Message::Close(_)) => false,
            Ok(_) => true,
            Err(error @ tungstenite::Error::Io(_)) if self.received.is_empty() => {
                panic!("nothing came: {error}")
            }
            Err(_) => false,
        }
    }

    /// What has come on a channel.
    pub fn text(&self, channel: Channel) -> String {
        let bytes = self.received.get(&(channel as u8)).map(Vec::as_slice).unwrap_or_default();
        let bytes = if self.of_port { bytes.get(2..).unwrap_or_default() } else { bytes };
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// Waits until a channel has this text.
    #[track_caller]
    pub fn await_text(&mut self, channel: Channel, text: &str) {
        while !self.text(channel).contains(text) {
            assert!(self.receive(), "it ended without {text:?}: {:?}", self.received);
        }
    }

    /// Waits for the end.
    pub fn await_end(&mut self) {
        while self.receive() {}
    }
}
