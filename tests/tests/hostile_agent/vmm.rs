//! A VMM without a guest. It answers the host's requests, and attacks if the attack is one of a VMM.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::{fs::File, thread};

use pouch_protocol::AGENT_PORT;
use pouch_vmm_api::control::{Answer, Command, ControlSocket, MAX_DESCRIPTORS, Message, Metrics, Request};
use pouch_vmm_api::inherited::Inherited;
use serde_json::Value;

use crate::agent::{self, Guest};
use crate::attacks::{self, Act, OfVmm};

/// The whole life of the VMM.
pub fn run(inherited: &mut Inherited, config: i32, control: i32) {
    let mut text = String::new();
    File::from(inherited.claim(config).unwrap()).read_to_string(&mut text).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    let words = config["kernel_arguments"].as_array().unwrap();
    let name = words.iter().find_map(|word| word.as_str()?.strip_prefix(crate::WORD)).unwrap();
    let attack = attacks::all().into_iter().find(|attack| attack.name == name).unwrap();
    let of_vmm = match attack.act {
        Act::Vmm(act) => Some(act),
        _ => None,
    };
    let control = Arc::new(ControlSocket::from_fd(inherited.claim(control).unwrap()));
    let guest = Arc::new(Guest::new(attack));
    while let Ok(Some((Request { id, command }, fds))) = control.receive::<Request>() {
        match command {
            Command::Connect { port, .. } => connect(&control, id, port, of_vmm, &guest),
            Command::PlugNetwork(_) | Command::PlugDisk(_) => {
                answer(&control, id, Answer::Plugged { device: u32::MAX }, &[]);
            }
            Command::UnplugDisk { .. } => answer(&control, id, Answer::Unplugged, &[]),
            Command::Metrics => answer(&control, id, Answer::Metrics(Metrics::default()), &[]),
            Command::Stop if of_vmm == Some(OfVmm::DoesNotStop) => {}
            Command::Stop => return,
        }
        drop(fds);
    }
    if of_vmm == Some(OfVmm::DoesNotStop) {
        thread::park();
    }
}

/// The host may have ended.
fn answer(control: &ControlSocket, id: u64, answer: Answer, fds: &[OwnedFd]) {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let _ = control.send(&Message::Answer { id, answer }, &fds);
}

fn connect(control: &Arc<ControlSocket>, id: u64, port: u32, act: Option<OfVmm>, guest: &Arc<Guest>) {
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let (ours, theirs) = UnixStream::pair().unwrap();
    let is_agent = port == AGENT_PORT;
    match act {
        Some(OfVmm::NoDescriptor) => return answer(control, id, Answer::Connected, &[]),
        Some(OfVmm::NoSocket) => return answer(control, id, Answer::Connected, &[null()]),
        Some(OfVmm::ManyDescriptors) => {
            let mut fds = vec![OwnedFd::from(theirs)];
            fds.extend((1..MAX_DESCRIPTORS).map(|_| null()));
            answer(control, id, Answer::Connected, &fds);
        }
        Some(OfVmm::AnotherAnswer) => return answer(control, id, Answer::Plugged { device: 0 }, &[]),
        Some(OfVmm::UnknownRequest) => {
            for unknown in 0..2000 {
                answer(control, u64::MAX - unknown, Answer::Connected, &[]);
            }
            answer(control, id, Answer::Connected, &[theirs.into()]);
        }
        Some(OfVmm::ControlCharacters) => {
            let error = "\x1b[2J\x07\r\0\u{9b}31m".repeat(2000);
            let _ = control.send(&Message::Failed { id, error }, &[]);
            return;
        }
        Some(OfVmm::NoMessage) => {
            let _ = control.send(&"no message", &[]);
            return;
        }
        Some(OfVmm::Exits) => {
            let message = "\x1b]0;title\x07".repeat(5000);
            let _ = control.send(&Message::Exited(pouch_vmm_api::exit::ExitReason::Panic { message }), &[]);
            std::process::exit(0);
        }
        Some(OfVmm::FloodsItsLog) => {
            let line = format!("\x1b[31m{}", "x".repeat(4000));
            thread::spawn(move || {
                loop {
                    eprintln!("{line}")
                }
            });
            answer(control, id, Answer::Connected, &[theirs.into()]);
        }
        Some(OfVmm::DoesNotStop) | None => answer(control, id, Answer::Connected, &[theirs.into()]),
    }
    let guest = guest.clone();
    thread::spawn(move || if is_agent { agent::serve(ours, &guest) } else { agent::stream(ours, &guest) });
}
