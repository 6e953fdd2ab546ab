//! An agent that has containers only in its answers. It speaks ttrpc by hand, because a library would not let it lie.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use pouch_protocol::agent::{
    AdjustTimeResponse, CheckResponse, ListProcessesResponse, SignalProcessRequest, WaitProcessResponse,
};
use protobuf::{Message, MessageField};
use ttrpc::proto::{Request, Response, Status};

use crate::attacks::{Act, Attack, OfStream};

/// A message's kind in the header of a frame (ttrpc, PROTOCOL.md).
pub const REQUEST: u8 = 1;
/// As above.
pub const RESPONSE: u8 = 2;

/// What the container's process does.
pub struct Guest {
    attack: Attack,
    /// Set when the process has ended: the signal.
    ended: (Mutex<Option<u32>>, Condvar),
}

impl Guest {
    /// A guest that attacks.
    pub fn new(attack: Attack) -> Self {
        Guest { attack, ended: (Mutex::new(None), Condvar::new()) }
    }

    fn end(&self, signal: u32) {
        self.ended.0.lock().unwrap().get_or_insert(signal);
        self.ended.1.notify_all();
    }

    fn wait(&self) -> u32 {
        let mut ended = self.ended.0.lock().unwrap();
        loop {
            match *ended {
                Some(signal) => return signal,
                None => ended = self.ended.1.wait(ended).unwrap(),
            }
        }
    }

    /// What an honest agent would answer.
    fn answer(&self, request: &Request) -> Vec<u8> {
        match request.method.as_str() {
            "Check" => CheckResponse::new().write_to_bytes().unwrap(),
            "AdjustTime" => AdjustTimeResponse::new().write_to_bytes().unwrap(),
            "ListProcesses" => ListProcessesResponse::new().write_to_bytes().unwrap(),
            "SignalProcess" => {
                let asked = SignalProcessRequest::parse_from_bytes(&request.payload).unwrap();
                if asked.exec_id.is_empty() {
                    self.end(asked.signal);
                }
                Vec::new()
            }
            "WaitProcess" => {
                let asked =
                    pouch_protocol::agent::ProcessRequest::parse_from_bytes(&request.payload).unwrap();
                let mut response = WaitProcessResponse::new();
                if asked.exec_id.is_empty() {
                    response.signal = self.wait();
                    response.exit_status = 128 + response.signal;
                }
                response.write_to_bytes().unwrap()
            }
            _ => Vec::new(),
        }
    }
}

/// A frame.
pub fn frame(stream: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(10 + payload.len());
    frame.extend((payload.len() as u32).to_be_bytes());
    frame.extend(stream.to_be_bytes());
    frame.extend([kind, 0]);
    frame.extend(payload);
    frame
}

/// A response with a status.
pub fn response(code: i32, message: &str, payload: Vec<u8>) -> Vec<u8> {
    let mut status = Status::new();
    status.set_code(protobuf::Enum::from_i32(code).unwrap_or_default());
    status.message = message.to_owned();
    let response = Response { status: MessageField::some(status), payload, ..Response::default() };
    response.write_to_bytes().unwrap()
}

/// Answers the host's calls until the connection ends.
pub fn serve(stream: UnixStream, guest: &Arc<Guest>) {
    let writer = Arc::new(Mutex::new(stream.try_clone().unwrap()));
    let mut reader = stream;
    loop {
        let mut header = [0; 10];
        if reader.read_exact(&mut header).is_err() {
            return;
        }
        let [a, b, c, d, e, f, g, h, ..] = header;
        let mut payload = vec![0; u32::from_be_bytes([a, b, c, d]) as usize];
        if reader.read_exact(&mut payload).is_err() {
            return;
        }
        let request = Request::parse_from_bytes(&payload).unwrap();
        let (number, writer, guest) = (u32::from_be_bytes([e, f, g, h]), writer.clone(), guest.clone());
        thread::spawn(move || respond(number, &request, &writer, &guest));
    }
}

fn respond(number: u32, request: &Request, writer: &Mutex<UnixStream>, guest: &Guest) {
    let attacked = guest.attack.method == Some(request.method.as_str());
    let honest = guest.answer(request);
    let frames = match &guest.attack.act {
        Act::Answer(make) if attacked => make(number, honest),
        Act::Silence if attacked => return,
        Act::Close if attacked => {
            let _ = writer.lock().unwrap().shutdown(std::net::Shutdown::Both);
            return;
        }
        _ => vec![frame(number, RESPONSE, &response(0, "", honest))],
    };
    let mut writer = writer.lock().unwrap();
    for frame in frames {
        // The host may have had enough.
        if writer.write_all(&frame).is_err() {
            return;
        }
    }
}

/// A standard stream of a process.
pub fn stream(mut stream: UnixStream, guest: &Guest) {
    let mut token = [0; 8];
    if stream.read_exact(&mut token).is_err() {
        return;
    }
    match guest.attack.act {
        Act::Stream(OfStream::Closes) => {}
        Act::Stream(OfStream::StaysOpen) => thread::park(),
        Act::Stream(OfStream::Floods) => while stream.write_all(&[b'x'; 64 * 1024]).is_ok() {},
        _ => {
            // As a process that reads its input and ends.
            let mut rest = Vec::new();
            guest.wait();
            let _ = stream.set_nonblocking(true);
            let _ = stream.read_to_end(&mut rest);
        }
    }
}
