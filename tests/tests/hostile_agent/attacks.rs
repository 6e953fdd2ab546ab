//! The attacks.

use pouch_protocol::agent::list_processes_response::Process;
use pouch_protocol::agent::{
    AdjustTimeResponse, BlockStats, ContainerStatsResponse, InterfaceStats, ListProcessesResponse,
    WaitProcessResponse,
};
use protobuf::Message;

use crate::agent::{REQUEST, RESPONSE, frame, response};

/// Makes the frames that answer a call: from the number of its stream, and what an honest agent would say.
pub type Make = Box<dyn Fn(u32, Vec<u8>) -> Vec<Vec<u8>> + Send + Sync>;

/// What is done.
pub enum Act {
    /// A call is answered with these frames.
    Answer(Make),
    /// A call is not answered.
    Silence,
    /// The connection is closed instead of an answer.
    Close,
    /// Something with standard streams.
    Stream(OfStream),
    /// Something that only a VMM can do.
    Vmm(OfVmm),
}

/// What a stream of a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfStream {
    /// It ends at once.
    Closes,
    /// It neither ends nor is read.
    StaysOpen,
    /// It never ends.
    Floods,
}

/// What a VMM answers to a request for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfVmm {
    NoDescriptor,
    NoSocket,
    ManyDescriptors,
    AnotherAnswer,
    UnknownRequest,
    ControlCharacters,
    NoMessage,
    Exits,
    FloodsItsLog,
    DoesNotStop,
}

/// When it is felt first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// While the container is created.
    Create,
    /// Later.
    Later,
}

/// An attack.
pub struct Attack {
    pub name: String,
    /// The call of the agent that is attacked.
    pub method: Option<&'static str>,
    pub at: Point,
    pub act: Act,
}

/// The calls of a container's life, each with the name of its attacks.
const CALLS: [(&str, &str, Point); 12] = [
    ("setup", "SetupSandbox", Point::Create),
    ("create", "CreateContainer", Point::Create),
    ("start", "StartContainer", Point::Later),
    ("wait", "WaitProcess", Point::Later),
    ("exec", "ExecProcess", Point::Later),
    ("signal", "SignalProcess", Point::Later),
    ("pause", "PauseContainer", Point::Later),
    ("resume", "ResumeContainer", Point::Later),
    ("processes", "ListProcesses", Point::Later),
    ("stats", "ContainerStats", Point::Later),
    ("update", "UpdateContainer", Point::Later),
    ("shutdown", "Shutdown", Point::Later),
];
/// The calls with which every way of answering is tried in an ordinary run; the others are tried in the profile `long`.
const ORDINARY: [&str; 3] = ["create", "wait", "exec"];

/// All attacks.
pub fn all() -> Vec<Attack> {
    let mut all: Vec<Attack> = CALLS.iter().flat_map(|call| of_call(*call)).collect();
    all.extend(lies());
    all.extend(slow());
    all.extend([OfStream::Closes, OfStream::StaysOpen, OfStream::Floods].map(|act| Attack {
        name: format!("stream::{}", snake(&format!("{act:?}"))),
        method: None,
        at: Point::Later,
        act: Act::Stream(act),
    }));
    all.extend(of_vmm());
    all
}

/// `NoSocket` as `no_socket`.
fn snake(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.extend(c.to_lowercase());
    }
    text
}

fn of_vmm() -> Vec<Attack> {
    let creates = [
        OfVmm::NoDescriptor,
        OfVmm::NoSocket,
        OfVmm::AnotherAnswer,
        OfVmm::ControlCharacters,
        OfVmm::NoMessage,
        OfVmm::Exits,
    ];
    let later = [OfVmm::ManyDescriptors, OfVmm::UnknownRequest, OfVmm::FloodsItsLog, OfVmm::DoesNotStop];
    let attack = |act: OfVmm, at| Attack {
        name: format!("vmm::{}", snake(&format!("{act:?}"))),
        method: None,
        at,
        act: Act::Vmm(act),
    };
    let creates = creates.map(|act| attack(act, Point::Create));
    creates.into_iter().chain(later.map(|act| attack(act, Point::Later))).collect()
}

/// The ways to answer a call that are wrong for every call.
fn of_call((short, method, at): (&'static str, &'static str, Point)) -> Vec<Attack> {
    let long = if ORDINARY.contains(&short) { "" } else { "_long" };
    let attack =
        |what: &str, act| Attack { name: format!("{short}{long}::{what}"), method: Some(method), at, act };
    let answer = |what, make: fn(u32, Vec<u8>) -> Vec<Vec<u8>>| attack(what, Act::Answer(Box::new(make)));
    vec![
        answer("a_long_error_with_control_characters", |stream, _| {
            let text = "\x1b[2J\x1b]0;title\x07\r\u{9b}31m\0".repeat(100_000);
            vec![frame(stream, RESPONSE, &response(2, &text, Vec::new()))]
        }),
        answer("an_unknown_code", |stream, _| {
            vec![frame(stream, RESPONSE, &response(i32::MAX, "x", Vec::new()))]
        }),
        answer("no_protobuf", |stream, _| vec![frame(stream, RESPONSE, &[0xff; 1000])]),
        answer("no_protobuf_inside", |stream, _| {
            vec![frame(stream, RESPONSE, &response(0, "", vec![0xff; 1000]))]
        }),
        answer("an_empty_frame", |stream, _| vec![frame(stream, RESPONSE, &[])]),
        answer("more_than_a_message_may_have", |stream, _| vec![frame(stream, RESPONSE, &vec![0; 5 << 20])]),
        answer("answers_to_calls_that_were_not_made", |stream, honest| {
            let empty = response(0, "", Vec::new());
            let unknown = (1..20_000).map(|other| frame(stream.wrapping_add(other * 2), RESPONSE, &empty));
            unknown.chain([frame(stream, RESPONSE, &response(0, "", honest))]).collect()
        }),
        answer("two_answers", |stream, honest| vec![frame(stream, RESPONSE, &response(0, "", honest)); 2]),
        answer("calls_of_its_own", |stream, honest| {
            let own = (0..1000).map(|other| frame(other, REQUEST, &[0xff; 100]));
            own.chain([frame(stream, RESPONSE, &response(0, "", honest))]).collect()
        }),
        attack("the_connection_ends", Act::Close),
    ]
}

/// Answers that are well-formed and false.
fn lies() -> Vec<Attack> {
    let lie = |name: &str, method, make: fn() -> Vec<u8>| Attack {
        name: format!("lie::{name}"),
        method: Some(method),
        at: Point::Later,
        act: Act::Answer(Box::new(move |stream, _| vec![frame(stream, RESPONSE, &response(0, "", make()))])),
    };
    vec![
        lie("a_status_out_of_range", "WaitProcess", || bytes(&exit(u32::MAX, 0))),
        Attack {
            name: "lie::more_output_than_was_sent".to_owned(),
            method: Some("WaitProcess"),
            at: Point::Later,
            act: Act::Answer(Box::new(|stream, honest| {
                // Of the container's process. A process of `exec` may go on for ever anyway.
                let exec = honest.is_empty();
                let answer = if exec { honest } else { bytes(&exit(0, u64::MAX)) };
                vec![frame(stream, RESPONSE, &response(0, "", answer))]
            })),
        },
        lie("a_kill_for_lack_of_memory", "WaitProcess", || {
            bytes(&WaitProcessResponse { oom_killed: true, signal: u32::MAX, ..exit(137, 0) })
        }),
        lie("a_hundred_thousand_processes", "ListProcesses", || {
            let process = || Process { command: "x".repeat(10), ..Process::default() };
            bytes(&processes((0..100_000).map(|_| process()).collect()))
        }),
        lie("empty_processes_without_number", "ListProcesses", || {
            // Two bytes each, which become a structure each.
            [0x0a, 0x00].repeat(1 << 20)
        }),
        lie("a_process_with_a_long_name", "ListProcesses", || {
            let command = "\x1b[2J\x07\r\0".repeat(400_000);
            let process =
                Process { command: command.clone(), terminal: command[..100_000].to_owned(), ..largest() };
            bytes(&processes(vec![process]))
        }),
        lie("the_largest_counters", "ContainerStats", || {
            bytes(&ContainerStatsResponse {
                cpu_usage_usec: u64::MAX,
                cpu_user_usec: u64::MAX,
                cpu_system_usec: u64::MAX,
                cpu_throttled_usec: u64::MAX,
                memory_current: u64::MAX,
                memory_peak: u64::MAX,
                memory_swap_current: u64::MAX,
                oom_kills: u64::MAX,
                pids_current: u64::MAX,
                ..ContainerStatsResponse::default()
            })
        }),
        lie("many_devices_and_interfaces", "ContainerStats", || {
            let interface = InterfaceStats { name: "\x1b[2J".repeat(10), ..InterfaceStats::default() };
            let block = BlockStats { major: u64::MAX, ..BlockStats::default() };
            bytes(&ContainerStatsResponse {
                block: vec![block; 50_000],
                interfaces: vec![interface; 20_000],
                ..ContainerStatsResponse::default()
            })
        }),
        lie("counters_with_names_of_its_own", "ContainerStats", || {
            let name = |number: u32| (format!("\x1b[2J{number}"), u64::MAX);
            bytes(&ContainerStatsResponse {
                memory_stat: (0..50_000).map(name).collect(),
                ..ContainerStatsResponse::default()
            })
        }),
        lie("a_clock_before_all_time", "AdjustTime", || clock(i64::MIN)),
        lie("a_clock_after_all_time", "AdjustTime", || clock(i64::MAX)),
    ]
}

/// What the host has to wait for, up to two minutes.
fn slow() -> Vec<Attack> {
    let attack = |name: &str, method, at, act| Attack {
        name: format!("slow_long::{name}"),
        method: Some(method),
        at,
        act,
    };
    let header = |stream, honest| {
        let mut lies = frame(stream, RESPONSE, &response(0, "", honest));
        lies[..4].copy_from_slice(&u32::MAX.to_be_bytes());
        vec![lies]
    };
    vec![
        attack("a_header_that_lies", "CreateContainer", Point::Create, Act::Answer(Box::new(header))),
        attack("no_answer_to_create", "CreateContainer", Point::Create, Act::Silence),
        attack("no_answer_to_a_signal", "SignalProcess", Point::Later, Act::Silence),
        attack("no_end", "Shutdown", Point::Later, Act::Silence),
    ]
}

fn bytes(message: &impl Message) -> Vec<u8> {
    message.write_to_bytes().unwrap()
}

fn exit(exit_status: u32, stdout_bytes: u64) -> WaitProcessResponse {
    WaitProcessResponse {
        exit_status,
        stdout_bytes,
        stderr_bytes: stdout_bytes,
        ..WaitProcessResponse::default()
    }
}

fn processes(processes: Vec<Process>) -> ListProcessesResponse {
    ListProcessesResponse { processes, ..ListProcessesResponse::default() }
}

fn largest() -> Process {
    Process {
        pid: u32::MAX,
        parent_pid: u32::MAX,
        uid: u32::MAX,
        cpu_milliseconds: u64::MAX,
        ..Process::default()
    }
}

fn clock(nanoseconds: i64) -> Vec<u8> {
    bytes(&AdjustTimeResponse { nanoseconds, ..AdjustTimeResponse::default() })
}
