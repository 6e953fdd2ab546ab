//! The device rules of a specification, as a BPF program on the container's cgroup.
//!
//! cgroup v2 has no device files. Instead the kernel runs a program at each open and mknod, with the device
//! and the kind of access, and the program returns 1 or 0. This program checks the rules from the last to the
//! first, because the last matching rule decides. It does so for each kind of access separately: a rule that
//! allows reading leaves writing to the rules before it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use pouch_bpf::{
    self as bpf, AND_IMMEDIATE, EXIT, Hook, Instruction, JUMP_EQUAL, JUMP_NOT_EQUAL, LOAD_WORD,
    MOVE_IMMEDIATE, MOVE_REGISTER, SHIFT_RIGHT, instruction,
};
use ttrpc::proto::Code;

use crate::error::{Coded, RequestError};

const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MKNOD | READ | WRITE;
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

/// More rules than this are refused: each is up to eight instructions, of which the kernel
/// takes a million, but a list this long is a mistake.
const RULES_MAX: usize = 1024;

/// Devices that every container may use, regardless of its rules: runc's list (type, major, minor, access).
/// mknod of any device is harmless if it cannot be opened.
const ALWAYS: &[(i32, Option<i32>, Option<i32>, i32)] = &[
    (CHARACTER, None, None, MKNOD),
    (BLOCK, None, None, MKNOD),
    (CHARACTER, Some(1), Some(3), ALL),
    (CHARACTER, Some(1), Some(5), ALL),
    (CHARACTER, Some(1), Some(7), ALL),
    (CHARACTER, Some(1), Some(8), ALL),
    (CHARACTER, Some(1), Some(9), ALL),
    (CHARACTER, Some(5), Some(0), ALL),
    (CHARACTER, Some(5), Some(2), ALL),
    (CHARACTER, Some(136), None, ALL),
];

/// Why the rules could not be set.
#[derive(Debug, thiserror::Error)]
pub enum DeviceRulesError {
    /// A rule is invalid.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The kernel refused.
    #[error("linux.resources.devices: cannot {0} the BPF program")]
    System(&'static str, #[source] io::Error),
}

impl Coded for DeviceRulesError {
    fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code(),
            Self::System(..) => Code::INTERNAL,
        }
    }
}

/// One rule, with wildcards as `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    allow: bool,
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

/// The specification's rules with those that every container has.
pub fn rules(devices: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>, RequestError> {
    if devices.len() > RULES_MAX {
        return Err(RequestError::new("linux.resources.devices", format!("has more than {RULES_MAX} rules")));
    }
    let mut rules = devices
        .iter()
        .enumerate()
        .map(|(index, device)| rule(index, device))
        .collect::<Result<Vec<_>, _>>()?;
    rules.extend(ALWAYS.iter().map(|&(kind, major, minor, access)| Rule {
        allow: true,
        kind: Some(kind),
        major,
        minor,
        access,
    }));
    Ok(rules)
}

fn rule(index: usize, device: &LinuxDeviceCgroup) -> Result<Rule, RequestError> {
    let field = |name: &str| format!("linux.resources.devices[{index}].{name}");
    let kind = match device.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(BLOCK),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHARACTER),
        Some(LinuxDeviceType::P) => {
            return Err(RequestError::new(field("type"), "p is not the type of a device"));
        }
    };
    let number = |name: &str, value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(value) => i32::try_from(value)
            .ok()
            .filter(|value| *value >= 0)
            .map(Some)
            .ok_or_else(|| RequestError::new(field(name), format!("{value} is not a device number"))),
    };
    let mut access = 0;
    for letter in device.access().as_deref().unwrap_or("").chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => {
                return Err(RequestError::new(
                    field("access"),
                    format!("{letter:?} is not one of r, w and m"),
                ));
            }
        };
    }
    // No access named is every access, as runc has it.
    let access = if access == 0 { ALL } else { access };
    let (major, minor) = (number("major", device.major())?, number("minor", device.minor())?);
    Ok(Rule { allow: device.allow(), kind, major, minor, access })
}

/// Registers: the answer, the context, and what is asked.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// The program for `rules`; without a matching rule it denies access.
fn assemble(rules: &[Rule]) -> Vec<Instruction> {
    let load = |register: u8, offset: i16| instruction(LOAD_WORD, register | (CONTEXT << 4), offset, 0);
    let mut program = vec![
        // struct bpf_cgroup_dev_ctx: access in the high half of the first word, type in the low.
        load(KIND, 0),
        instruction(MOVE_REGISTER, ACCESS | (KIND << 4), 0, 0),
        instruction(SHIFT_RIGHT, ACCESS, 0, 16),
        instruction(AND_IMMEDIATE, KIND, 0, 0xffff),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for rule in rules.iter().rev() {
        program.extend(assemble_rule(rule));
    }
    program.push(instruction(MOVE_IMMEDIATE, ANSWER, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0));
    program
}

fn assemble_rule(rule: &Rule) -> Vec<Instruction> {
    let mut body = Vec::with_capacity(4);
    if rule.allow {
        // What the rule allows is no longer asked; with nothing left, the answer is yes.
        body.push(instruction(AND_IMMEDIATE, ACCESS, 0, !rule.access & ALL));
        body.push(instruction(JUMP_NOT_EQUAL, ACCESS, 2, 0));
    } else {
        // What the rule denies may not be asked any more.
        body.push(instruction(MOVE_REGISTER, ANSWER | (ACCESS << 4), 0, 0));
        body.push(instruction(AND_IMMEDIATE, ANSWER, 0, rule.access));
        body.push(instruction(JUMP_EQUAL, ANSWER, 2, 0));
    }
    body.push(instruction(MOVE_IMMEDIATE, ANSWER, 0, i32::from(rule.allow)));
    body.push(instruction(EXIT, 0, 0, 0));
    let tests = [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)];
    let tests: Vec<(u8, i32)> =
        tests.into_iter().filter_map(|(register, value)| Some((register, value?))).collect();
    let mut code = Vec::with_capacity(tests.len() + body.len());
    for (index, (register, value)) in tests.iter().enumerate() {
        let skip = (tests.len() - index - 1 + body.len()) as i16;
        code.push(instruction(JUMP_NOT_EQUAL, *register, skip, *value));
    }
    code.extend(body);
    code
}

/// A program that is attached to a cgroup, until it is replaced or the cgroup is removed.
#[derive(Debug)]
pub struct Attached(OwnedFd);

/// Loads the program for `rules` and attaches it to `cgroup`, in place of `previous`.
pub fn attach(
    cgroup: &Path,
    rules: &[Rule],
    previous: Option<&Attached>,
) -> Result<Attached, DeviceRulesError> {
    let error = |step| move |error| DeviceRulesError::System(step, error);
    let directory = std::fs::File::open(cgroup).map_err(error("open the cgroup of"))?;
    let program = bpf::load(&assemble(rules), Hook::DEVICE).map_err(error("load"))?;
    let previous = previous.map(|Attached(previous)| previous.as_fd());
    bpf::attach(directory.as_fd(), program.as_fd(), Hook::DEVICE, previous).map_err(error("attach"))?;
    Ok(Attached(program))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs a program as the kernel would; `None` if it leaves its end.
    fn run(program: &[Instruction], kind: i32, major: i32, minor: i32, access: i32) -> Option<bool> {
        let context = [(access << 16) | kind, major, minor];
        let mut registers = [0_u64; 6];
        let mut at = 0_usize;
        loop {
            let instruction = program.get(at)?;
            let (to, from) = ((instruction.registers & 15) as usize, (instruction.registers >> 4) as usize);
            let immediate = instruction.immediate;
            at += 1;
            match instruction.code {
                LOAD_WORD => registers[to] = u64::from(context[instruction.offset as usize / 4] as u32),
                MOVE_IMMEDIATE => registers[to] = immediate as u64,
                MOVE_REGISTER => registers[to] = registers[from],
                AND_IMMEDIATE => registers[to] = u64::from(registers[to] as u32 & immediate as u32),
                SHIFT_RIGHT => registers[to] = u64::from((registers[to] as u32) >> immediate),
                JUMP_NOT_EQUAL if registers[to] as u32 != immediate as u32 => {
                    at += instruction.offset as usize
                }
                JUMP_EQUAL if registers[to] as u32 == immediate as u32 => at += instruction.offset as usize,
                JUMP_NOT_EQUAL | JUMP_EQUAL => {}
                EXIT => return Some(registers[0] != 0),
                _ => return None,
            }
        }
    }

    fn parse(json: &str) -> Result<Vec<Rule>, RequestError> {
        rules(&serde_json::from_str::<Vec<LinuxDeviceCgroup>>(json).unwrap())
    }

    const DENY_ALL: &str = r#"{"allow":false,"access":"rwm"}"#;

    #[test]
    fn dockers_rules() {
        let json =
            format!(r#"[{DENY_ALL},{{"allow":true,"type":"c","major":10,"minor":200,"access":"rw"}}]"#);
        let program = assemble(&parse(&json).unwrap());
        let asks = |kind, major, minor, access| run(&program, kind, major, minor, access).unwrap();
        assert!(asks(CHARACTER, 1, 3, READ | WRITE), "/dev/null");
        assert!(asks(CHARACTER, 10, 200, READ | WRITE), "the one that is allowed");
        assert!(asks(CHARACTER, 136, 5, READ | WRITE), "a terminal");
        assert!(asks(BLOCK, 254, 0, MKNOD), "nodes can be made");
        assert!(!asks(BLOCK, 254, 0, READ), "but not opened");
        assert!(!asks(CHARACTER, 10, 201, READ));
        assert!(!asks(BLOCK, 10, 200, READ), "the other type");
    }

    #[test]
    fn the_last_rule_decides_for_each_access() {
        let json = r#"[{"allow":true,"access":"rwm"},{"allow":false,"type":"b","major":8,"access":"w"}]"#;
        let program = assemble(&parse(json).unwrap());
        let asks = |kind, major, minor, access| run(&program, kind, major, minor, access).unwrap();
        assert!(asks(BLOCK, 8, 1, READ));
        assert!(!asks(BLOCK, 8, 1, READ | WRITE));
        assert!(asks(BLOCK, 9, 1, READ | WRITE));
    }

    #[test]
    fn bad_rules_are_named() {
        let error = |json: &str| parse(json).unwrap_err().to_string();
        assert!(error(r#"[{"allow":true,"access":"x"}]"#).starts_with("linux.resources.devices[0].access: "));
        assert!(error(r#"[{"allow":true,"type":"p"}]"#).starts_with("linux.resources.devices[0].type: "));
        assert!(error(r#"[{"allow":true,"major":-7}]"#).starts_with("linux.resources.devices[0].major: "));
    }

    /// The meaning of the rules, said in another way: each access on its own.
    fn expected(rules: &[Rule], kind: i32, major: i32, minor: i32, access: i32) -> bool {
        [MKNOD, READ, WRITE].into_iter().filter(|bit| access & bit != 0).all(|bit| {
            rules
                .iter()
                .rev()
                .find(|rule| {
                    rule.access & bit != 0
                        && rule.kind.is_none_or(|value| value == kind)
                        && rule.major.is_none_or(|value| value == major)
                        && rule.minor.is_none_or(|value| value == minor)
                })
                .is_some_and(|rule| rule.allow)
        })
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let number = || proptest::option::of(0..3_i32);
        (any::<bool>(), proptest::option::of(1..3_i32), number(), number(), 1..8_i32)
            .prop_map(|(allow, kind, major, minor, access)| Rule { allow, kind, major, minor, access })
    }

    proptest! {
        #[test]
        fn the_program_means_the_rules(
            rules in proptest::collection::vec(any_rule(), 0..12),
            kind in 1..3_i32, major in 0..3_i32, minor in 0..3_i32, access in 1..8_i32,
        ) {
            let answer = run(&assemble(&rules), kind, major, minor, access);
            prop_assert_eq!(answer, Some(expected(&rules, kind, major, minor, access)));
        }
    }
}
